"""Fetching: the stems of a finished job, in parallel, each whole or absent."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import anyio
import attrs

from musicgpt_async._io.download import Downloader
from musicgpt_async._rules import formats, names, payloads, retrying
from musicgpt_async._work.desk import Desk
from musicgpt_async._work.waiting import Watcher
from musicgpt_async.errors import DownloadError, InvalidOptionError, MusicGPTError
from musicgpt_async.events import Downloaded, Downloading, Failed
from musicgpt_async.job import ExtractionJob, Files
from musicgpt_async.models import AudioFormat, StemFile, StemLinks

_log = logging.getLogger(__name__)


@attrs.frozen
class _Wanted:
    """One file to fetch."""

    stem: str
    format: str
    target: Path


class Fetcher:
    """Brings finished jobs' files to directories.

    Args:
        desk: What the rooms share.
        watcher: Asks for fresh links where old ones have run out.
        downloader: Brings one file down.
        template: The layout of the files in a directory, where no other is asked for.
    """

    def __init__(
        self, desk: Desk, *, watcher: Watcher, downloader: Downloader, template: str
    ) -> None:
        self.desk = desk
        self.watcher = watcher
        self.downloader = downloader
        self._template = template
        # Kept longer than the jobs: their files must not be overwritten by a later namesake's.
        self._places: dict[str, list[str]] = {}
        self._locks: WeakValueDictionary[Path, anyio.Lock] = WeakValueDictionary()

    async def fetch(
        self,
        job: ExtractionJob,
        directory: Path,
        *,
        stems: Collection[str] | None,
        format: AudioFormat,  # noqa: A002 - as in download()
        layout: str | None = None,
    ) -> Files:
        """Bring a finished job's files to a directory: stem → format → path.

        Args:
            job: It is completed.
            directory: Where the files are to lie.
            stems: Which of the stems; all by default.
            format: Which files of each.
            layout: The files' names in the directory; the session's by default.

        Raises:
            InvalidOptionError: The job has no such stem.
            DownloadError: A file did not arrive whole; the others are there.
        """
        absolute = Path(os.path.abspath(directory))  # noqa: ASYNC240, PTH100 - no IO; keeps no ".."
        layout = names.with_folder(layout or job.record.layout or self._template, "")
        for each in {job, self.desk.ledger.leader(job)}:
            each.note(
                directory=str(absolute), format=format, wanted=tuple(stems or ()), layout=layout
            )
            self.desk.ledger.save_soon(each)
        fetch = _Fetch(self, job, layout)
        job.note_fetch(None)
        try:
            wanted = await fetch.wanted(absolute, stems, format)
            files = await fetch.all(wanted)
        except MusicGPTError as error:
            self._tell_end(job, job.event(Failed, error=error))
            raise
        self._tell_end(job, job.event(Downloaded, files=files))
        return files

    def _tell_end(self, job: ExtractionJob, end: Downloaded | Failed) -> None:
        job.note_fetch(end)
        self.desk.feed.publish(end)

    async def places(
        self,
        job: ExtractionJob,
        directory: Path,
        files: Collection[tuple[str, str]],
        *,
        layout: str,
    ) -> dict[tuple[str, str], Path]:
        """Return the final names of a job's files, which no other job's files have.

        Args:
            job: Its title is in the names; the second of two namesakes gets a number.
            directory: Where the files are to lie.
            files: Stems and formats.
            layout: The files' names in the directory.
        """
        track = job.title
        number = await self._number(job, names.place(directory, layout, track=track))
        if names.has_track(layout):  # the number is the track's, the same for all its files
            track, number = await self._numbered_track(job, directory, layout, number), 1
        paths = {
            (stem, kind): names.numbered(
                names.target(directory, layout, track=track, stem=stem, ext=kind), number
            )
            for stem, kind in files
        }
        return names.distinct(paths)

    def reserve(self, job: ExtractionJob, directory: Path, *, layout: str) -> None:
        """Number a job among its namesakes before it is finished: in order of submission."""
        place = names.place(directory, layout, track=job.title)
        self._places.setdefault(place, []).append(job.id)

    async def _numbered_track(
        self, job: ExtractionJob, directory: Path, layout: str, number: int
    ) -> str:
        """Return the track's name with a number, unless another track is called that already."""
        while number > 1:
            track = names.numbered_track(job.title, number)
            place = names.place(directory, layout, track=track)
            if await self._number(job, place) == 1:
                return track
            number += 1
        return job.title

    def lock(self, target: Path) -> anyio.Lock:
        """Return the lock of a file: of two who want it one fetches it, and the other finds it."""
        return self._locks.setdefault(target, anyio.Lock())

    async def _number(self, job: ExtractionJob, place: str) -> int:
        """Number a job among its namesakes; with a journal, among those of other processes too."""
        task_id = job.task_id or job.id
        journal = self.desk.ledger.journal
        if journal is not None:
            return await journal.place(task_id, place)
        known = self._places.setdefault(place, [])
        if task_id not in known and job.id in known:
            known[known.index(job.id)] = task_id  # other handles of the task share its number
        elif task_id not in known:
            known.append(task_id)
        return known.index(task_id) + 1


class _Fetch:
    """The files of one job."""

    def __init__(self, room: Fetcher, job: ExtractionJob, layout: str) -> None:
        self._room = room
        self._desk = room.desk
        self._job = job
        self._layout = layout
        self._leader = room.desk.ledger.leader(job)
        self._links: Mapping[str, StemLinks] = job.result().stems
        self._refresh = anyio.Lock()
        self._refreshed = False

    async def wanted(
        self, directory: Path, stems: Collection[str] | None, choice: AudioFormat
    ) -> list[_Wanted]:
        """Return the files to fetch."""
        chosen = list(self._links if stems is None else stems)
        links = [self._links.get(stem, StemLinks()) for stem in chosen]
        if not links or any(formats.is_lacking(each, choice) for each in links):
            await self._late_links(has_some=any(formats.select_formats(x, choice) for x in links))
            chosen = list(self._links if stems is None else stems)
        for stem in chosen:
            self._check(stem, choice)
        if not chosen:
            raise DownloadError(
                f"The vendor gave no links for {self._job.title}; try job.download() again later.",
                task_id=self._job.task_id,
                job=self._job,
            )
        files = [
            (stem, kind)
            for stem in chosen
            for kind in formats.select_formats(self._links[stem], choice)
        ]
        places = await self._room.places(self._job, directory, files, layout=self._layout)
        return [_Wanted(stem, kind, places[stem, kind]) for stem, kind in files]

    async def all(self, wanted: list[_Wanted]) -> Files:
        """Fetch all files in parallel; one that fails holds up none of the others."""
        errors: list[MusicGPTError] = []
        async with anyio.create_task_group() as downloads:
            for each in wanted:
                downloads.start_soon(self._one, each, errors)
        if errors:
            raise errors[0]
        files: Files = {}
        for each in wanted:
            files.setdefault(each.stem, {})[each.format] = each.target
        return files

    async def _one(self, wanted: _Wanted, errors: list[MusicGPTError]) -> None:
        try:
            async with self._room.lock(wanted.target):
                if not await self._is_there(wanted):
                    await self._download(wanted)
        except MusicGPTError as error:
            errors.append(error.fresh(task_id=self._job.task_id, job=self._job))
        except Exception as error:  # noqa: BLE001 - one file's failure holds up none of the others
            _log.error("Fetching %s failed unexpectedly", wanted.target, exc_info=error)
            words = f"{wanted.target} was not downloaded: {error!r}."
            errors.append(DownloadError(words, task_id=self._job.task_id, job=self._job))

    async def _download(self, wanted: _Wanted) -> None:
        progress = partial(self._progress, wanted)
        what = f"{self._job.task_id}/{wanted.stem}.{wanted.format}"
        download = partial(self._room.downloader.download, what=what, progress=progress)
        url = self._url(wanted.stem, wanted.format)
        try:
            fetched = await download(url, wanted.target)
        except DownloadError as error:
            if error.status not in retrying.EXPIRED_LINK:
                raise
            await self._fresh_links()
            url = self._url(wanted.stem, wanted.format)
            fetched = await download(url, wanted.target)
        if self._desk.ledger.journal is not None:
            file = StemFile(
                stem=wanted.stem,
                format=wanted.format,
                path=str(fetched.path),
                size=fetched.size,
                sha256=fetched.sha256,
            )
            others = [each for each in self._leader.record.files if each.path != file.path]
            self._leader.note(files=(*others, file))
            self._desk.ledger.save_soon(self._leader)

    async def _late_links(self, *, has_some: bool) -> None:
        """Ask once more for links that were not there at completion."""
        if has_some:
            await anyio.sleep(formats.LATE_LINKS_DELAY)
        try:
            await self._fresh_links()
        except MusicGPTError as error:
            if not has_some:
                raise
            _log.debug("%s is downloaded as it is: %s", self._job.title, error)
        self._refreshed = False  # links that run out later are asked for again

    async def _fresh_links(self) -> None:
        """Ask byId for the links again, once for all files of the job."""
        async with self._refresh:
            if self._refreshed:
                return
            self._refreshed = True
            task_id = self._job.task_id or ""
            conversion = await self._room.watcher.ask(task_id, self._job.stems)
            self._links = payloads.with_hinted_links(conversion.links, self._links)

    async def _is_there(self, wanted: _Wanted) -> bool:
        """Return whether the journal remembers this very file, and it lies there unharmed."""
        for file in self._leader.record.files:
            if file.path == str(wanted.target) and (file.stem, file.format) == (
                wanted.stem,
                wanted.format,
            ):
                has = self._room.downloader.has
                return await has(wanted.target, size=file.size, sha256=file.sha256)
        return False

    def _url(self, stem: str, kind: str) -> str:
        links = self._links.get(stem, StemLinks())
        return (links.wav if kind == "wav" else links.mp3) or ""

    def _check(self, stem: str, choice: AudioFormat) -> None:
        if stem not in self._links:
            there = ", ".join(self._links) or "none"
            raise InvalidOptionError(
                f"{self._job.title} has no stem named {stem!r}; it has: {there}.",
                task_id=self._job.task_id,
                job=self._job,
            )
        if not formats.select_formats(self._links[stem], choice):
            kind = "file" if choice in ("best", "both") else choice.upper()
            raise DownloadError(
                f"The vendor gave no {kind} of {stem!r} for {self._job.title}; "
                'download it again with format="best", which takes what there is.',
                task_id=self._job.task_id,
                job=self._job,
            )

    def _progress(self, wanted: _Wanted, received: int, total: int | None) -> None:
        if self._desk.feed:
            self._desk.feed.publish(
                self._job.event(
                    Downloading,
                    stem=wanted.stem,
                    format=wanted.format,
                    received=received,
                    total=total,
                )
            )
