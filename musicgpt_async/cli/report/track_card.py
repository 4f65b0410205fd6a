"""One track of the page."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from musicgpt_async.cli.messages import for_shell
from musicgpt_async.cli.report.markup import Markup, element, join
from musicgpt_async.cli.report.tracks import SONG, WHOLES, ReportTrack, TrackStatus
from musicgpt_async.cli.report.waveforms import Waveform, top_of
from musicgpt_async.cli.states import state_of
from musicgpt_async.cli.text import count, credit, size, span
from musicgpt_async.models import JobRecord

Waveforms = Mapping[Path, Waveform | None]


def track_card(
    track: ReportTrack,
    waveforms: Waveforms,
    directory: Path,
    *,
    number: int,
    seconds: float,
    reason: int | None,
) -> Markup:
    """Return a track as HTML.

    Args:
        track: The track.
        waveforms: The waveforms of its files.
        directory: Directory that links are relative to.
        number: Its place on the page, from 1.
        seconds: Its length.
        reason: The number of the reason why it failed.
    """
    is_playable = any(waveforms.get(path) is not None for path in track.played)
    sounds = list(_sounds(track, waveforms, directory, is_playable=is_playable))
    transport = _transport(track, seconds) if is_playable else None
    title = f"t{number}"
    error = _error_of(track)
    return element(
        "article",
        element(
            "div",
            _play(track) if is_playable else None,
            element(
                "div",
                element("h2", element("bdi", track.title), id=title),
                element("p", *_facts(track, seconds), class_="facts"),
            ),
            _badge(track),
            class_="title",
        ),
        element("p", error, class_="reason") if error else None,
        element("div", transport, *sounds, class_="sounds") if sounds else None,
        _details(track),
        class_=" ".join(["track", str(track.outcome), *([] if sounds else ["brief"])]),
        id=track.anchor,
        aria_labelledby=title,
        tabindex=-1,
        data_outcome=str(track.outcome),
        data_reason=reason,
        data_seconds=f"{seconds:.3f}",
        data_time=_time_of(track),
        data_cost=_cost_of(track),
        data_find=f"{track.title} {error or ''}".lower(),
    )


def _time_of(track: ReportTrack) -> float:
    """Return when a track was accepted, else queued, else written; for ordering."""
    record = track.record
    moment = record and (record.accepted_at or record.created_at)
    return moment or track.written_at or 0.0


def _cost_of(track: ReportTrack) -> float:
    """Return what all attempts at a track cost, for ordering."""
    records = () if track.record is None else (*track.earlier, track.record)
    return sum(each.cost or each.credit_estimate or 0.0 for each in records)


def when(moment: float) -> Markup:
    """Return a moment in this machine's time zone."""
    local = datetime.fromtimestamp(moment, UTC).astimezone()
    shown = f"{local.day} {local:%B %Y, %H:%M}"
    return element("time", shown, datetime=local.isoformat(timespec="seconds"))


def _play(track: ReportTrack) -> Markup:
    return element("button", type="button", class_="play", aria_label=f"Play {track.title}")


def _badge(track: ReportTrack) -> Markup | None:
    if track.outcome is TrackStatus.DONE or track.record is None:
        return None
    return element("span", state_of(track.record).capitalize(), class_="badge")


def _facts(track: ReportTrack, seconds: float) -> Iterator[Markup]:
    if seconds:
        yield element("span", span(seconds))
    if track.stems:
        yield element("span", count(len(track.stems), "stem"))
    record = track.record
    if record is not None:
        if cost := _cost(record):
            yield element("span", cost)
        yield element("span", when(record.accepted_at or record.created_at))


def _cost(record: JobRecord) -> str | None:
    if record.cost is not None:
        return credit(record.cost)
    return None if record.credit_estimate is None else f"about {credit(record.credit_estimate)}"


def _transport(track: ReportTrack, seconds: float) -> Markup:
    time = element("span", element("b", "0:00"), f" / {span(seconds)}", class_="time")
    slider = element(
        "input",
        type="range",
        class_="seek",
        min=0,
        max=f"{seconds:.3f}",
        step="any",
        value=0,
        autocomplete="off",
        aria_label=f"Position in {track.title}",
        aria_valuetext=f"0:00 of {span(seconds)}",
    )
    share = element(
        "button",
        "Copy link",
        type="button",
        class_="share",
        aria_label=f"Copy a link to this position in {track.title}",
    )
    axis = element("div", class_="axis", aria_hidden="true")
    return element("div", time, slider, share, axis, class_="transport")


def _sounds(
    track: ReportTrack, waveforms: Waveforms, directory: Path, *, is_playable: bool
) -> Iterator[Markup]:
    song = {} if track.song is None else {SONG: (track.song,)}
    sounds = {**song, **track.stems}
    top = top_of(waveforms.get(path) for path in track.played)
    for key, (stem, files) in enumerate(sounds.items(), start=0 if track.song else 1):
        waveform = waveforms.get(files[0])
        yield _sound(
            stem,
            files,
            waveform.encode(top) if waveform else None,
            directory,
            key=key,
            is_playable=is_playable,
            is_muted=track.is_doubled(stem),
        )
    for stem in track.missing:
        name = element("span", element("kbd"), _shown(stem), class_="name")
        gone = element("span", "no longer here", class_="absent")
        yield element("div", name, gone, class_="sound")


def _sound(
    stem: str,
    files: tuple[Path, ...],
    drawing: str | None,
    directory: Path,
    *,
    key: int,
    is_playable: bool,
    is_muted: bool,
) -> Markup:
    name, hint = _shown(stem), str(key) if is_playable and key < 10 else ""
    switches = [_switch("solo", name, on=False), _switch("mute", name, on=is_muted)]
    return element(
        "div",
        element("span", element("kbd", hint, aria_hidden="true"), name, class_="name"),
        element("span", *(switches if is_playable else ()), class_="choice"),
        element("div", class_="wave", data_wave=drawing)
        if drawing
        else element("div", "No waveform: not readable as audio", class_="wave unseeable"),
        element("span", *(_link(path, directory, name) for path in files), class_="files"),
        class_="sound silent" if is_muted else "sound",
        role="group",
        aria_label=name,
        data_family=_family(stem),
        data_name=name,
        data_key=hint,
        data_src=url(files[0], directory),
    )


def _switch(kind: str, name: str, *, on: bool) -> Markup:
    return element(
        "button",
        kind.capitalize(),
        type="button",
        class_=kind,
        aria_label=f"{kind.capitalize()} {name}",
        aria_pressed=str(on).lower(),
    )


def _link(path: Path, directory: Path, name: str) -> Markup:
    kind = path.suffix[1:].upper()
    return element(
        "a",
        f"{kind} ",
        element("span", size(path.stat().st_size)),
        href=url(path, directory),
        aria_label=f"{name}, {kind}, {size(path.stat().st_size)}",
    )


def url(path: Path, directory: Path) -> str:
    """Return a file's URL, relative to the page wherever it can be."""
    try:
        relative = Path(os.path.relpath(path, directory))
    except ValueError:  # another drive
        return path.absolute().as_uri()
    return "/".join(quote(os.fsencode(part), safe="") for part in relative.parts)


def _shown(stem: str) -> str:
    return stem.replace("_", " ").capitalize()


def _family(stem: str) -> str:
    whole = next(iter(WHOLES.get(stem, ())), stem)
    return stem if whole == "instrumental" else whole


def _details(track: ReportTrack) -> Markup | None:
    if track.record is None:
        return None
    lines = [
        join(element("dt", name), element("dd", shown))
        for name, shown in _known(track, track.record)
        if shown
    ]
    terms = element("dl", *lines, class_="details")
    return element("details", element("summary", "Details"), terms)


def _known(track: ReportTrack, record: JobRecord) -> Iterator[tuple[str, str | None]]:
    yield "Source", record.source
    yield "Stems asked for", ", ".join(record.stems) or "MusicGPT's default"
    yield "Preprocessing", ", ".join(record.preprocessing)
    yield "Eco mode", "on" if record.eco_mode else None
    yield "Task", record.task_id
    yield "Conversion", record.conversion_id
    yield "Credits", ", ".join(_credits(record))
    yield "Queued", _moment(record.created_at)
    yield "Sent", _moment(record.sent_at, record.created_at)
    yield "Accepted", _moment(record.accepted_at, record.sent_at)
    if record.eta is not None:
        yield "Expected to take", span(record.eta)
    yield "Stems here", _moment(track.written_at, record.accepted_at)
    for attempt in track.earlier:
        yield "Earlier attempt", join(when(attempt.created_at), f": {_ending(attempt)}")


def _credits(record: JobRecord) -> Iterator[str]:
    if record.cost is not None:
        yield f"{round(record.cost, 2):g} charged"
    if record.credit_estimate is not None:
        yield f"{round(record.credit_estimate, 2):g} estimated"


def _ending(record: JobRecord) -> str:
    return for_shell(record.error) if record.error else state_of(record).capitalize()


def _error_of(track: ReportTrack) -> str | None:
    if track.record is None or not track.record.error or track.outcome is TrackStatus.DONE:
        return None
    return for_shell(track.record.error)


def _moment(moment: float | None, before: float | None = None) -> str | None:
    """Return a moment to the second, and how long after another it came."""
    if not moment:
        return None
    local = datetime.fromtimestamp(moment, UTC).astimezone()
    shown = f"{local:%Y-%m-%d %H:%M:%S}"
    if before is None or moment < before:
        return shown
    return f"{shown} ({_lapse(moment - before)} later)"


def _lapse(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else span(seconds)
