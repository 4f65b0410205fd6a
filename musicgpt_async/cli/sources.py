"""What to submit: files, URLs, directories, globs and lists, read as they are needed."""

from __future__ import annotations

import glob
import os
import re
import string
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import anyio.to_thread
import attrs

from musicgpt_async import BatchItem, Preprocessing, Stem
from musicgpt_async._io.sources import parse_source
from musicgpt_async._rules import audio, protocol
from musicgpt_async.cli import track_list
from musicgpt_async.cli.names import match_case
from musicgpt_async.cli.usage import UsageError
from musicgpt_async.errors import InvalidOptionError

AUDIO = frozenset(
    {".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".wma"}
)
# Tracks taken from the disk at a time.
READ_AHEAD = 32
# What a second file that would have the same name gets before its ending.
_NUMBER = re.compile(r" \(\d+\)(?=\.\w+$)")


@attrs.frozen(kw_only=True)
class TrackRequest:
    """One track to submit: a path or URL, its options, and its folder below the named directory."""

    source: str
    stems: tuple[str, ...] = ()
    preprocessing: tuple[str, ...] = ()
    eco_mode: bool = False
    label: str | None = None
    folder: str = ""
    key: str | None = None

    @property
    def identity(self) -> tuple[str, frozenset[str], frozenset[str], bool, str | None]:
        """Equal for the same track with the same options and key."""
        place = self.source if is_url(self.source) else os.path.abspath(self.source)  # noqa: PTH100 - Path.absolute() keeps the ".."
        stems, preprocessing = frozenset(self.stems), frozenset(self.preprocessing)
        return place, stems, preprocessing, self.eco_mode, self.key

    @property
    def item(self) -> BatchItem:
        """The same, as ``extract_many`` takes it."""
        options = {
            "stems": self.stems,
            "preprocessing": self.preprocessing,
            "eco_mode": self.eco_mode,
            "label": self.label,
            "key": self.key,
        }
        return BatchItem(source=self.source, options=options, folder=self.folder)


@attrs.frozen(kw_only=True)
class TrackSources:
    """The tracks that a command names; each call of `tracks` reads them anew.

    Attributes:
        named: Files, URLs, directories and globs.
        list_file: A list of tracks with options of their own.
        stems: For every track that has none of its own.
        preprocessing: For every track that has none of its own.
        eco_mode: For every track that does not say.
        generated: Recognises stems that an earlier run made.
        warn: Called with a message for each source that is skipped.
    """

    named: Sequence[str]
    list_file: track_list.TrackList | None
    stems: tuple[str, ...]
    preprocessing: tuple[str, ...]
    eco_mode: bool = attrs.field(default=False, kw_only=True)
    generated: GeneratedFiles
    warn: Callable[[str], None] = attrs.field(default=lambda _: None)

    def validate(self) -> int:
        """Go through all tracks once and return how many there are.

        Raises:
            UsageError: A name, an option or a file is wrong, or there is nothing to do.
        """
        _check_options(self.stems, self.preprocessing, "")
        number = sum(1 for _ in self.tracks(check=True))
        if not number:
            raise UsageError("There is nothing to do: no audio file was given or found.")
        return number

    def tracks(self, *, check: bool = False) -> Iterator[TrackRequest]:
        """Yield every track once.

        Args:
            check: Whether to raise for sources that cannot be sent, and to warn of skipped ones.
        """
        seen: set[int] = set()
        for request in self._iterate(check=check):
            # Only its hash: a hundred thousand paths would take much more memory.
            if (mark := hash(request.identity)) not in seen:
                seen.add(mark)
                yield request

    def _iterate(self, *, check: bool) -> Iterator[TrackRequest]:
        warn = self.warn if check else lambda _: None
        for name in self.named:
            for source, folder in self._expand(name, warn=warn):
                yield TrackRequest(
                    source=source,
                    stems=self.stems,
                    preprocessing=self.preprocessing,
                    eco_mode=self.eco_mode,
                    folder=folder,
                )
        if self.list_file is not None:
            for row in track_list.rows(self.list_file):
                yield self._from_row(row, self.list_file.folder, check=check)

    def _expand(self, name: str, *, warn: Callable[[str], None]) -> Iterator[tuple[str, str]]:
        path = Path(name)
        if is_url(name):
            _check_url(name)
            yield name, ""
        elif path.is_dir():
            yield from self._walk(path, warn=warn)
        elif path.exists():
            _check_readable(path)
            if self.generated.is_generated(path):
                warn(f"{name} is a stem from an earlier run; it is skipped.")
            else:
                yield name, ""
        elif glob.has_magic(name):
            yield from self._glob(name, warn=warn)
        else:
            raise UsageError(f"There is no file {name!r}.")

    def _glob(self, pattern: str, *, warn: Callable[[str], None]) -> Iterator[tuple[str, str]]:
        matched = False
        for match in glob.iglob(pattern, recursive=True):  # noqa: PTH207 - a pattern may be absolute
            matched = True
            path = Path(match)
            if path.is_dir():
                # With ** its files match by themselves.
                if "**" not in pattern:
                    yield from self._walk(path, warn=warn)
            elif is_audio(path) and not self.generated.is_generated(path):
                yield match, ""
        if not matched:
            raise UsageError(f"Nothing matches {pattern!r}.")

    def _walk(self, root: Path, *, warn: Callable[[str], None]) -> Iterator[tuple[str, str]]:
        def unreadable(error: OSError) -> None:
            warn(f"{error.filename} is skipped: {error.strerror}.")

        for folder, subfolders, files in os.walk(root, onerror=unreadable):
            subfolders[:] = sorted(
                each for each in subfolders if not self.generated.is_home(Path(folder, each))
            )
            for file in sorted(files):
                path = Path(folder, file)
                if is_audio(path) and not self.generated.is_generated(path):
                    yield str(path), path.parent.relative_to(root).as_posix()

    def _from_row(self, row: track_list.ListRow, beside: Path, *, check: bool) -> TrackRequest:
        source = row.source if is_url(row.source) else str(beside / row.source)
        stems = self.stems if row.stems is None else match_case(row.stems, Stem)
        preprocessing = self.preprocessing
        if row.preprocessing is not None:
            preprocessing = match_case(row.preprocessing, Preprocessing)
        if check:
            _check_options(stems, preprocessing, f"{row.location}: ")
            if is_url(source):
                _check_url(source, f"{row.location}: ")
            else:
                _check_readable(Path(source), f"{row.location}: ")
        return TrackRequest(
            source=source,
            stems=stems,
            preprocessing=preprocessing,
            eco_mode=self.eco_mode if row.eco_mode is None else row.eco_mode,
            label=row.label or None,
            key=row.key,
        )


class GeneratedFiles:
    """Recognises the stems of earlier runs below the output directory.

    Args:
        out: The output directory.
        layout: The template of the names in it.
    """

    def __init__(self, out: Path, layout: str) -> None:
        self._out = Path(os.path.realpath(out))
        self._pattern = _pattern(layout)

    def is_generated(self, path: Path) -> bool:
        """Return whether a file is in the output directory and is named like a stem."""
        real = Path(os.path.realpath(path.parent)) / path.name
        if not real.is_relative_to(self._out):
            return False
        name = _NUMBER.sub("", real.relative_to(self._out).as_posix())
        return self._pattern.fullmatch(name) is not None

    def is_home(self, folder: Path) -> bool:
        """Return whether a folder is the output directory itself."""
        return folder.name == self._out.name and Path(os.path.realpath(folder)) == self._out


def is_url(source: str) -> bool:
    """Return whether MusicGPT downloads the track itself."""
    return source.lower().startswith(("http://", "https://"))


def is_audio(path: Path) -> bool:
    """Return whether a file's name says that it is audio; hidden files never are."""
    return path.suffix.lower() in AUDIO and not path.name.startswith(".")


async def iter_lazily(
    tracks: Iterator[TrackRequest],
    *,
    stopped: Callable[[], bool],
    refuse: Callable[[str, str], None] | None = None,
) -> AsyncIterator[BatchItem]:
    """Yield tracks as they are needed, until stopped; the disk is read in a thread.

    Args:
        tracks: The tracks.
        stopped: Returns whether to stop.
        refuse: Called with the path of a file that is not audio, and with the reason; the file is
            left out. Without it no file is looked into.
    """
    take = partial(_take_chunk, tracks, check=refuse is not None)
    while chunk := await anyio.to_thread.run_sync(take):
        for request, reason in chunk:
            if stopped():
                return
            if reason and refuse:
                refuse(request.source, reason)
            else:
                yield request.item


def why_not_audio(source: str) -> str | None:
    """Return why the first bytes of a file show that it is not audio, or ``None``."""
    if is_url(source):
        return None
    try:
        with Path(source).open("rb") as file:
            head = file.read(audio.HEAD_SIZE)
    except OSError:  # the session says what is wrong when it opens the file
        return None
    return audio.why_not_audio(head, "") or (
        "it is text, not audio" if audio.is_text(head) else None
    )


def _take_chunk(
    tracks: Iterator[TrackRequest], *, check: bool
) -> list[tuple[TrackRequest, str | None]]:
    chunk = islice(tracks, READ_AHEAD)
    return [(each, why_not_audio(each.source) if check else None) for each in chunk]


def _check_options(stems: Sequence[str], preprocessing: Sequence[str], prefix: str) -> None:
    try:
        protocol.validate_names(stems, Stem, "stem")
        protocol.validate_names(preprocessing, Preprocessing, "option")
    except InvalidOptionError as error:
        raise UsageError(f"{prefix}{error}") from error


def _check_url(url: str, prefix: str = "") -> None:
    try:
        parse_source(url)
    except InvalidOptionError as error:
        raise UsageError(f"{prefix}{error}") from error


def _check_readable(path: Path, prefix: str = "") -> None:
    if not path.exists():
        raise UsageError(f"{prefix}There is no file {str(path)!r}.")
    if not path.is_file():
        raise UsageError(f"{prefix}{str(path)!r} is not a file.")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{prefix}{str(path)!r} may not be read.")


def _pattern(layout: str) -> re.Pattern[str]:
    """Return the pattern of the names that a layout makes."""
    fields = {
        "folder": "(?:[^/]+(?:/[^/]+)*)?",
        "track": "[^/]+",
        "stem": f"(?:{'|'.join(Stem)})",
        "ext": "(?:wav|mp3)",
    }
    pattern = "".join(
        re.escape(text) + (fields[name] if name else "")
        for text, name, _, _ in string.Formatter().parse(layout)
    )
    # The slash beside an empty folder is left out.
    return re.compile(pattern.replace(f"{fields['folder']}/", "(?:[^/]+/)*"))
