"""The page itself: values in, HTML out."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from string import Template

import attrs

from musicgpt_async._version import __version__
from musicgpt_async.cli.messages import for_shell
from musicgpt_async.cli.report.markup import Markup, element, join
from musicgpt_async.cli.report.track_card import track_card, when
from musicgpt_async.cli.report.tracks import LeftOut, ReportTrack, TrackStatus
from musicgpt_async.cli.report.waveforms import Waveform
from musicgpt_async.cli.text import count, span
from musicgpt_async.cli.track_json import title_of
from musicgpt_async.models import JobRecord

Waveforms = Mapping[Path, Waveform | None]

# Reasons that the page's head names; the tracks themselves name all.
MAX_REASONS = 12
# Fewer tracks are found without a search.
MIN_SEARCHABLE = 4
# What the tracks may be ordered by: the script's word, and the page's.
ORDERS = {
    "": "Order of work",
    "name": "By name",
    "time": "Newest first",
    "cost": "Highest cost first",
    "length": "Longest first",
}


@attrs.define
class Page:
    """Collects cards, and makes the page of them.

    Args:
        directory: Directory of the page, which links are relative to.
        title: Its name for people.
        left_out: Sums over the tracks that are not shown.
    """

    directory: Path
    title: str
    left_out: LeftOut = attrs.field(factory=LeftOut)
    _tracks: list[ReportTrack] = attrs.field(factory=list)
    _cards: list[str] = attrs.field(factory=list)
    _reasons: Counter[str] = attrs.field(factory=Counter)
    _seconds: float = 0.0

    def add(self, track: ReportTrack, waveforms: Waveforms) -> None:
        """Add a track with the waveforms of its files."""
        reason = None
        if track.outcome is TrackStatus.FAILED:
            reason = _reason_of(track)
            self._reasons[reason] += 1
        seconds = _seconds_of(track, waveforms)
        self._tracks.append(track)
        self._seconds += seconds
        number = None if reason is None else list(self._reasons).index(reason)
        self._cards.append(
            track_card(
                track,
                waveforms,
                self.directory,
                number=len(self._tracks),
                seconds=seconds,
                reason=number,
            )
        )

    def encode(self, now: float) -> str:
        """Return the page.

        Args:
            now: Seconds since the epoch.
        """
        style, script = _resource("style.css"), _resource("player.js")
        return Template(_resource("page.html")).substitute(
            policy=_policy(style, script),
            style=style,
            script=script,
            version=__version__,
            title=join(f"{self.title} · stems"),
            head=self._head(now),
            tools=self._tools(),
            tracks="\n".join(self._cards),
        )

    def _head(self, now: float) -> Markup:
        made = element("p", "Stems by MusicGPT · made ", when(now), class_="made")
        return join(
            element("h1", element("bdi", self.title)),
            made,
            self._sums(),
            self._left_out_note(),
            self._why(),
        )

    def _sums(self) -> Markup:
        left_out = self.left_out
        outcomes = Counter(track.outcome for track in self._tracks) + left_out.outcomes
        failed, unfinished = outcomes[TrackStatus.FAILED], outcomes[TrackStatus.UNFINISHED]
        sums = [
            _sum("Tracks", f"{outcomes.total():,}"),
            _sum("Done", f"{outcomes[TrackStatus.DONE]:,}"),
        ]
        if failed:
            sums.append(_sum("Failed", f"{failed:,}", class_="bad"))
        if unfinished:
            sums.append(_sum("Unfinished", f"{unfinished:,}"))
        records = _records(self._tracks)
        charged = left_out.charged + sum(record.cost or 0.0 for record in records)
        expected = left_out.estimated + sum(
            record.credit_estimate or 0.0 for record in records if record.cost is None
        )
        if records:
            sums.append(_sum("Credits charged", f"{round(charged, 2):,g}"))
        if expected:
            sums.append(_sum("Credits only estimated", f"{round(expected, 2):,g}"))
        sums.append(_sum("Audio", span(self._seconds + left_out.seconds)))
        return element("dl", *sums, class_="sums")

    def _left_out_note(self) -> Markup | None:
        if not self.left_out:
            return None
        total = len(self._tracks) + len(self.left_out)
        return element(
            "p",
            f"The last {len(self._tracks):,} of {count(total, 'track')} are shown; the sums are of "
            f"all. report --last {total} shows all.",
            class_="left-out",
        )

    def _why(self) -> Markup | None:
        """Return why tracks failed, the most common reason first."""
        if not self._reasons:
            return None
        numbers = {reason: number for number, reason in enumerate(self._reasons)}
        lines = [
            element(
                "li",
                element(
                    "button",
                    element("b", count(times, "track")),
                    element("span", reason),
                    element("i", "Show these"),
                    type="button",
                    aria_pressed="false",
                    data_reason=numbers[reason],
                ),
            )
            for reason, times in self._reasons.most_common(MAX_REASONS)
        ]
        if (others := len(self._reasons) - len(lines)) > 0:
            lines.append(element("li", f"and {count(others, 'other reason')}"))
        return element("ul", *lines, class_="reasons", aria_label="Why tracks failed")

    def _tools(self) -> Markup:
        if len(self._tracks) < MIN_SEARCHABLE:
            return Markup("")
        outcomes = Counter(track.outcome for track in self._tracks)
        choices = [("", "All", len(self._tracks))]
        choices += [
            (each, each.capitalize(), outcomes[each]) for each in TrackStatus if outcomes[each]
        ]
        search = element(
            "input",
            type="search",
            placeholder="Search tracks",
            aria_label="Search tracks",
            autocomplete="off",
            spellcheck="false",
        )
        radios = [_radio(*each) for each in choices] if len(choices) > 2 else []
        legend = element("legend", "Show", class_="unseen")
        fieldset = element("fieldset", legend, *radios) if radios else None
        options = [element("option", name, value=value) for value, name in ORDERS.items()]
        order = element("select", *options, aria_label="Order tracks by", autocomplete="off")
        return element("div", search, fieldset, order, class_="tools", role="search")


def _seconds_of(track: ReportTrack, waveforms: Waveforms) -> float:
    """Return the length of a track: from its files, or else from MusicGPT."""
    played = [waveforms.get(path) for path in track.played]
    known = [waveform.seconds for waveform in played if waveform is not None]
    return max(known, default=(track.record and track.record.duration) or 0.0)


def _reason_of(track: ReportTrack) -> str:
    """Return why a track failed, the same for all that failed alike."""
    record = track.record
    reason = for_shell(record.error) if record and record.error else "No reason is known."
    if record is not None:
        names = (record.source, Path(record.source).name, title_of(record), track.title)
        own = (*names, record.task_id, record.id)
        for name in sorted(filter(None, own), key=len, reverse=True):
            reason = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "…", reason)
    return reason


def _records(tracks: Iterable[ReportTrack]) -> list[JobRecord]:
    return [
        record
        for track in tracks
        if track.record is not None
        for record in (*track.earlier, track.record)
    ]


def _sum(name: str, amount: str, **attributes: str) -> Markup:
    return element("div", element("dt", name), element("dd", amount), **attributes)


def _radio(value: str, name: str, number: int) -> Markup:
    button = element("input", type="radio", name="outcome", value=value, checked=value == "")
    return element("label", button, f"{name} {number:,}")


def _resource(name: str) -> str:
    return (resources.files(__package__) / name).read_text("utf-8")


def _policy(style: str, script: str) -> str:
    """Return a policy that lets nothing run or load but the page's own parts and the audio."""
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "media-src 'self' file:; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
