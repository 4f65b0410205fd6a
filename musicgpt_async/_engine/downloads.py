"""Downloads: the stems of a finished job, in parallel, each complete or absent."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import anyio
import attrs

from musicgpt_async._engine.context import Context
from musicgpt_async._engine.job_state import Job
from musicgpt_async._engine.poller import Poller
from musicgpt_async._engine.supervision import run_child
from musicgpt_async._io.download import Downloader
from musicgpt_async._rules import filenames, formats, payloads, retrying
from musicgpt_async.errors import DownloadError, InvalidOptionError, MusicGPTError
from musicgpt_async.events import Downloaded, Downloading, Failed
from musicgpt_async.job import Files
from musicgpt_async.models import AudioFormat, Extraction, StemFile, StemLinks

_log = logging.getLogger(__name__)


@attrs.frozen
class _PlannedFile:
    """One file to download."""

    stem: str
    format: str
    target: Path


class JobDownloads:
    """Downloads finished jobs' files to directories.

    Args:
        context: What the parts share.
        poller: Polls for fresh links if old ones have expired.
        downloader: Downloads one file.
        layout: How files are named in a directory, if no other layout is asked for.
    """

    def __init__(
        self, context: Context, *, poller: Poller, downloader: Downloader, layout: str
    ) -> None:
        self.context = context
        self.poller = poller
        self.downloader = downloader
        self._layout = layout
        # Kept longer than the jobs: a later job of the same title must not overwrite their files.
        self._numbers: dict[str, list[str]] = {}
        self._locks: WeakValueDictionary[Path, anyio.Lock] = WeakValueDictionary()

    async def download(
        self,
        job: Job,
        directory: Path,
        *,
        stems: Collection[str] | None,
        format: AudioFormat,  # noqa: A002 - as in download()
        layout: str | None = None,
    ) -> Files:
        """Download a finished job's files to a directory: stem → format → path.

        Args:
            job: It is completed.
            directory: Where the files go.
            stems: Which of the stems; all by default.
            format: Which files of each stem.
            layout: The files' names in the directory; the session's by default.

        Raises:
            InvalidOptionError: The job has no such stem.
            DownloadError: A file is incomplete; the others are there.
        """
        target, store = job.primary or job, self.context.store
        if target.claim is None:
            await store.reclaim(target)
            if target.claim is not None:  # while another process has it, each file is looked up
                await self.merge_saved_files(target)
        with self._writing(target):
            absolute = Path(os.path.abspath(directory))  # noqa: ASYNC240, PTH100 - no IO, no ".."
            layout = filenames.with_folder(layout or job.record.layout or self._layout, "")
            for each in {job, target}:
                self.context.jobs.update(
                    each,
                    directory=str(absolute),
                    format=format,
                    requested_stems=tuple(stems or ()),
                    layout=layout,
                )
            download = _JobDownload(self, job, layout)
            self.context.jobs.set_download_end(job, None)
            try:
                planned = await download.plan(absolute, stems, format)
                files = await download.download_all(planned)
            except MusicGPTError as error:
                self.context.jobs.set_download_end(job, job.make_event(Failed, error=error))
                raise
            self.context.jobs.set_download_end(job, job.make_event(Downloaded, files=files))
            return files

    async def merge_saved_files(self, target: Job) -> None:
        """Add the files that another process has downloaded meanwhile."""
        saved = await self.context.store.find(target.record.id)
        if saved is None:
            return
        known = {file.path for file in target.record.files}
        files = [file for file in saved.files if file.path not in known]
        self.context.jobs.update(target, save=False, files=(*files, *target.record.files))

    @contextmanager
    def _writing(self, target: Job) -> Iterator[None]:
        """Keep the claim of a job's record while files are added to it."""
        self.context.jobs.count_downloads(target, writers=1)
        try:
            yield
        finally:
            self.context.jobs.count_downloads(target, writers=-1)
            self.context.store.save_later(target)

    async def target_paths(
        self,
        job: Job,
        directory: Path,
        files: Collection[tuple[str, str]],
        *,
        layout: str,
    ) -> dict[tuple[str, str], Path]:
        """Return the final names of a job's files, which no other job's files have.

        Args:
            job: Its title is in the names; of namesakes the second gets a number.
            directory: Where the files go.
            files: Stems and formats.
            layout: The files' names in the directory.
        """
        track = job.title
        number = await self._collision_number(
            job, filenames.collision_key(directory, layout, track=track)
        )
        if filenames.has_track(layout):  # the number is the track's, the same for all its files
            track, number = await self._numbered_track(job, directory, layout, number), 1
        paths = {
            (stem, format_): filenames.with_number(
                filenames.output_path(directory, layout, track=track, stem=stem, ext=format_),
                number,
            )
            for stem, format_ in files
        }
        return filenames.make_distinct(paths)

    def reserve(self, job: Job, directory: Path, *, layout: str) -> None:
        """Number a job among its namesakes before it is finished: in order of submission."""
        key = filenames.collision_key(directory, layout, track=job.title)
        self._numbers.setdefault(key, []).append(job.id)

    async def _numbered_track(self, job: Job, directory: Path, layout: str, number: int) -> str:
        """Return the track's name with a number, unless another track has that name already."""
        while number > 1:
            track = filenames.numbered_track(job.title, number)
            key = filenames.collision_key(directory, layout, track=track)
            if await self._collision_number(job, key) == 1:
                return track
            number += 1
        return job.title

    def lock(self, target: Path) -> anyio.Lock:
        """Return the lock of a file: one download writes it, a second one finds it there."""
        return self._locks.setdefault(target, anyio.Lock())

    async def _collision_number(self, job: Job, key: str) -> int:
        """Number a job among its namesakes; with a journal, among those of other processes too."""
        task_id = job.record.task_id or job.id
        journal = self.context.store.journal
        if journal is not None:
            return await journal._assign_number(task_id, key)
        known = self._numbers.setdefault(key, [])
        if task_id not in known and job.id in known:
            known[known.index(job.id)] = task_id  # other handles of the task share its number
        elif task_id not in known:
            known.append(task_id)
        return known.index(task_id) + 1


class _JobDownload:
    """The files of one job."""

    def __init__(self, downloads: JobDownloads, job: Job, layout: str) -> None:
        self._downloads = downloads
        self._context = downloads.context
        self._job = job
        self._layout = layout
        self._target = job.primary or job
        outcome = job.outcome
        self._links: Mapping[str, StemLinks] = (
            outcome.stems if isinstance(outcome, Extraction) else {}
        )
        self._refresh = anyio.Lock()
        self._is_refreshed = False

    async def plan(
        self, directory: Path, stems: Collection[str] | None, choice: AudioFormat
    ) -> list[_PlannedFile]:
        """Return the files to download."""
        chosen = list(self._links if stems is None else stems)
        links = [self._links.get(stem, StemLinks()) for stem in chosen]
        if not links or any(formats.is_lacking(each, choice) for each in links):
            await self._late_links(has_some=any(formats.select_formats(x, choice) for x in links))
            chosen = list(self._links if stems is None else stems)
        for stem in chosen:
            self._check(stem, choice)
        if not chosen:
            raise self._error(
                DownloadError,
                f"MusicGPT gave no links for {self._job.title}; try job.download() again later.",
            )
        files = [
            (stem, format_)
            for stem in chosen
            for format_ in formats.select_formats(self._links[stem], choice)
        ]
        paths = await self._downloads.target_paths(self._job, directory, files, layout=self._layout)
        return [_PlannedFile(stem, format_, paths[stem, format_]) for stem, format_ in files]

    async def download_all(self, planned: list[_PlannedFile]) -> Files:
        """Download all files in parallel; one that fails does not delay the others."""
        errors: list[MusicGPTError] = []
        async with anyio.create_task_group() as group:
            for each in planned:
                on_failure = partial(self._on_failure, each, errors)
                group.start_soon(run_child, self._download_one, (each,), on_failure)
        if errors:
            raise errors[0]
        files: Files = {}
        for each in planned:
            files.setdefault(each.stem, {})[each.format] = each.target
        return files

    def _on_failure(
        self, planned: _PlannedFile, errors: list[MusicGPTError], error: Exception
    ) -> None:
        if isinstance(error, MusicGPTError):
            errors.append(error.copy(task_id=self._job.record.task_id, job=self._job.handle))
            return
        _log.error("Downloading %s failed unexpectedly", planned.target, exc_info=error)
        words = f"{planned.target} was not downloaded: {error!r}."
        errors.append(self._error(DownloadError, words))

    async def _download_one(self, planned: _PlannedFile) -> None:
        async with self._downloads.lock(planned.target):
            if await self._is_there(planned):
                return
            # While another process has the claim, that may have downloaded the file since.
            if self._target.claim is None:
                await self._downloads.merge_saved_files(self._target)
                if await self._is_there(planned):
                    return
            await self._download(planned)

    async def _download(self, planned: _PlannedFile) -> None:
        download = partial(
            self._downloads.downloader.download,
            content_key=f"{self._job.record.task_id}/{planned.stem}.{planned.format}",
            progress=partial(self._progress, planned),
        )
        try:
            downloaded = await download(self._url(planned.stem, planned.format), planned.target)
        except DownloadError as error:
            if error.status not in retrying.EXPIRED_LINK_STATUSES:
                raise
            await self._refresh_links()
            downloaded = await download(self._url(planned.stem, planned.format), planned.target)
        if self._context.store.journal is not None:
            file = StemFile(
                stem=planned.stem,
                format=planned.format,
                path=str(downloaded.path),
                size=downloaded.size,
                sha256=downloaded.sha256,
            )
            others = [each for each in self._target.record.files if each.path != file.path]
            self._context.jobs.update(self._target, files=(*others, file))

    async def _late_links(self, *, has_some: bool) -> None:
        """Poll once more for links that were not there at completion."""
        if has_some:
            await anyio.sleep(formats.LATE_LINKS_DELAY)
        try:
            await self._refresh_links()
        except MusicGPTError as error:
            if not has_some:
                raise
            _log.debug("%s is downloaded as it is: %s", self._job.title, error)
        self._is_refreshed = False  # links that expire later are polled for again

    async def _refresh_links(self) -> None:
        """Poll for the links again, once for all files of the job."""
        async with self._refresh:
            if self._is_refreshed:
                return
            self._is_refreshed = True
            task_id = self._job.record.task_id or ""
            conversion = await self._downloads.poller.poll_once(task_id, self._job.record.stems)
            self._links = payloads.merge_links(conversion.links, self._links)

    async def _is_there(self, planned: _PlannedFile) -> bool:
        """Return whether the record lists this very file, and it is on disk unharmed."""
        for file in self._target.record.files:
            if file.path == str(planned.target) and (file.stem, file.format) == (
                planned.stem,
                planned.format,
            ):
                matches = self._downloads.downloader.matches
                return await matches(planned.target, size=file.size, sha256=file.sha256)
        return False

    def _url(self, stem: str, format_: str) -> str:
        links = self._links.get(stem, StemLinks())
        return (links.wav if format_ == "wav" else links.mp3) or ""

    def _check(self, stem: str, choice: AudioFormat) -> None:
        if stem not in self._links:
            there = ", ".join(self._links) or "none"
            raise self._error(
                InvalidOptionError,
                f"{self._job.title} has no stem named {stem!r}; it has: {there}.",
            )
        if not formats.select_formats(self._links[stem], choice):
            kind = "file" if choice in ("best", "both") else choice.upper()
            raise self._error(
                DownloadError,
                f"MusicGPT gave no {kind} of {stem!r} for {self._job.title}; "
                'download it again with format="best", which takes what there is.',
            )

    def _error(self, kind: type[MusicGPTError], message: str) -> MusicGPTError:
        return kind(message, task_id=self._job.record.task_id, job=self._job.handle)

    def _progress(self, planned: _PlannedFile, received: int, total: int | None) -> None:
        if self._context.event_bus:
            self._context.event_bus.publish(
                self._job.make_event(
                    Downloading,
                    stem=planned.stem,
                    format=planned.format,
                    received=received,
                    total=total,
                )
            )
