"""MusicGPTSession: the options of a session, its lifetime, and its public methods."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp
import anyio

from musicgpt_async import batch
from musicgpt_async._engine.runtime import Runtime
from musicgpt_async._engine.settings import RuntimeSettings
from musicgpt_async._engine.startup import start_runtime
from musicgpt_async._io.api_key import KEY_FILE_VARIABLE, KEY_VARIABLE, find_key
from musicgpt_async._io.http import Transport
from musicgpt_async._io.sources import AudioSource, parse_source
from musicgpt_async._rules import arguments, filenames, fingerprint, hosts, plans, protocol
from musicgpt_async._rules.accounts import compute_account
from musicgpt_async._rules.credit import CreditBudget
from musicgpt_async._rules.endpoints import DEFAULT_BASE_URL
from musicgpt_async._rules.formats import DEFAULT_FORMAT, check_format
from musicgpt_async._rules.slots import Slots
from musicgpt_async.errors import ConfigurationError, InvalidOptionError, SessionClosedError
from musicgpt_async.events import Event, EventBus
from musicgpt_async.job import ExtractionJob
from musicgpt_async.journal import Journal
from musicgpt_async.models import (
    AudioFormat,
    Limits,
    Preprocessing,
    PreprocessingName,
    Stem,
    StemName,
)
from musicgpt_async.webhooks import WebhookReceiver

BASE_URL_VARIABLE = "MUSICGPT_BASE_URL"
# Threads that read and write files, apart from the loop's own executor, which looks names up.
FILE_THREADS = 8


class MusicGPTSession:
    """A connection to one MusicGPT account, for any number of jobs.

    Use it as an async context manager, or call :meth:`start` and :meth:`aclose`. Leaving the block
    normally waits for the jobs that are still running; leaving it by an exception detaches them.

    Args:
        api_key: The account's key; by default from ``MUSICGPT_API_KEY``.
        base_url: The API's; by default from ``MUSICGPT_BASE_URL``, else MusicGPT's own.
        limits: What the account may do; by default what ``MUSICGPT_PLAN`` (``free``, ``plus`` or
            ``pro``) allows, else the session learns it.
        webhooks: Receives MusicGPT's webhooks; without it jobs are polled.
        journal: The durable record of jobs, or its path or URL.
        http: The caller's own client session, used for all calls and never closed.
        deadline: Seconds from acceptance in which a job has to finish, ``None`` for no end.
        max_credits: Credits after which nothing more is submitted.
        request_timeout: Seconds without a byte after which one call is given up.
        stall_timeout: Seconds without progress after which an upload is given up.
        downloads: Maximum number of concurrent file downloads.
        layout: Names of the files in a directory, out of ``{track}``, ``{stem}``, ``{ext}`` and
            ``{folder}`` (``BatchItem.folder``; empty for other tracks).

    Raises:
        ConfigurationError: There is no key, or a URL, plan or limit that cannot be used.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        limits: Limits | None = None,
        webhooks: WebhookReceiver | None = None,
        journal: Journal | str | os.PathLike[str] | None = None,
        http: aiohttp.ClientSession | None = None,
        deadline: float | None = 3600.0,
        max_credits: float | None = None,
        request_timeout: float = 60.0,
        stall_timeout: float = 60.0,
        downloads: int = 8,
        layout: str = filenames.DEFAULT_LAYOUT,
    ) -> None:
        arguments.check_types(
            api_key=(api_key, str),
            base_url=(base_url, str),
            limits=(limits, Limits),
            webhooks=(webhooks, WebhookReceiver),
            journal=(journal, (Journal, str, os.PathLike)),
            http=(http, aiohttp.ClientSession),
            layout=(layout, str),
        )
        url = hosts.validate_base_url(
            base_url or os.environ.get(BASE_URL_VARIABLE) or DEFAULT_BASE_URL
        )
        if limits is None:
            limits = plans.make_limits(plans.check_plan(os.environ.get(plans.PLAN_VARIABLE)))
        on_loopback = hosts.is_loopback(url)
        arguments.check_seconds("deadline", deadline, may_be_none=True)
        arguments.check_seconds("request_timeout", request_timeout)
        arguments.check_seconds("stall_timeout", stall_timeout)
        self._executor = ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="musicgpt-files")
        self._event_bus = EventBus()
        key = _validate_api_key(api_key or find_key().key)
        self._settings = RuntimeSettings(
            base_url=url,
            account=compute_account(key, url),
            on_loopback=on_loopback,
            http=Transport(
                key,
                http=http,
                request_timeout=request_timeout,
                downloads=arguments.validate_downloads(downloads),
                is_allowed=lambda address: (
                    hosts.is_public(address) or (on_loopback and hosts.is_loopback_address(address))
                ),
            ),
            executor=self._executor,
            event_bus=self._event_bus,
            slots=Slots(parallel=None if limits is None else limits.parallel),
            credit=CreditBudget(arguments.validate_credits(max_credits)),
            polls_per_minute=None if limits is None else limits.polls_per_minute,
            journal=Journal(journal) if isinstance(journal, (str, os.PathLike)) else journal,
            webhooks=webhooks,
            deadline=deadline,
            request_timeout=request_timeout,
            stall_timeout=stall_timeout,
            layout=filenames.validate_layout(layout),
        )
        self._runtime: Runtime | None = None
        self._is_started = self._is_closed = False
        self._lifetime = anyio.Lock()

    def __repr__(self) -> str:
        runtime = self._runtime
        if runtime is None:
            return f"<MusicGPTSession {'closed' if self._is_closed else 'not started'}>"
        state = "open" if runtime.is_open else "closed"
        return f"<MusicGPTSession {state}, {len(runtime)} jobs>"

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose(drain=error is None)

    async def start(self) -> Self:
        """Open the session in the loop that runs now.

        Raises:
            ConfigurationError: It was started before, or ``http`` is closed.
            JournalError: The journal cannot be used.
        """
        if self._is_started or self._is_closed:
            raise ConfigurationError("A session is started once; make another one.")
        self._is_started = True
        async with self._lifetime:
            self._runtime = await start_runtime(self._settings)
        return self

    async def aclose(self, *, drain: bool = True) -> None:
        """Close the session.

        What is left to do takes ten seconds at most; cancelled once more it ends at once. Called by
        code that the session itself runs (a source, an iterable, a hook of ``http``) it returns at
        once, and the session ends as soon as that code does, without waiting for jobs. A task that
        such code started with asyncio may not drain, because that code may wait for it.

        Args:
            drain: Whether to wait for the jobs that still run, or to detach them.

        Raises:
            ConfigurationError: Such a task would drain the session; nothing was closed.
            MusicGPTError: A part of the session had stopped before.
        """
        if drain and self._runtime is not None:
            self._runtime.check_caller_may_drain()
        self._is_closed = True
        if not self._is_started:
            return
        if self._runtime is None:  # a start under way is waited for
            with anyio.CancelScope(shield=True):
                async with self._lifetime:
                    pass
        if self._runtime is None:
            return
        if self._runtime.runs_caller():  # the two would wait for each other
            self._runtime.leave()
            return
        try:
            if drain:
                await self._runtime.wait_idle()
        finally:
            await self._runtime.close()

    def submit(
        self,
        source: AudioSource,
        *,
        stems: Iterable[StemName | Stem] = (),
        preprocessing: Iterable[PreprocessingName | Preprocessing] = (),
        eco_mode: bool = False,
        label: str | None = None,
        key: str | None = None,
        force: bool = False,
    ) -> ExtractionJob:
        """Submit a track and return its handle at once.

        Args:
            source: A path, an http(s) URL that MusicGPT fetches, bytes, anything with ``read()``
                (file objects, uploads, aiofiles handles) or an async iterable of bytes; the last
                three may come with a name: ``(name, source)``.
            stems: Which stems; MusicGPT's default is drums, bass, piano and guitar.
            preprocessing: What to do to the track before it is split.
            eco_mode: Whether to ask for MusicGPT's faster parallel separation. The first generation
                of the API does not know it (MusicGPT docs, Extraction).
            label: The track's name in files and messages; its file name by default.
            key: Your own name for this piece of work, such as the id of a task queue's task. It
                replaces the track's path and content as identity. The same key is never paid for
                twice, whatever path or machine the track comes from: among all that share the
                journal; without one, among this session's jobs. With other options the job ends
                in an InvalidOptionError. Up to 1,024 characters.
            force: Whether to submit it even if the journal has the same track already.

        Raises:
            InvalidOptionError: A stem, an option, the key or the source cannot be sent.
            SessionClosedError: The session is not open.
        """
        return self._submit(
            source,
            stems=stems,
            preprocessing=preprocessing,
            eco_mode=eco_mode,
            label=label,
            key=key,
            force=force,
        )

    def _submit(
        self,
        source: AudioSource,
        *,
        stems: Iterable[StemName | Stem] = (),
        preprocessing: Iterable[PreprocessingName | Preprocessing] = (),
        eco_mode: bool = False,
        label: str | None = None,
        key: str | None = None,
        force: bool = False,
        retry_failed: bool = True,
    ) -> ExtractionJob:
        runtime = self._open_runtime()
        arguments.check_label(label)
        fingerprint.check_key(key)
        return runtime.submit(
            source,
            parse_source(source, label=label),
            label=label,
            key=key,
            force=force,
            retry_failed=retry_failed,
            stems=protocol.validate_names(stems, Stem, "stem"),
            preprocessing=protocol.validate_names(preprocessing, Preprocessing, "option"),
            eco_mode=protocol.check_flag(eco_mode, "eco_mode"),
        )

    def attach(self, task_id: str) -> ExtractionJob:
        """Return a handle on a task that was submitted elsewhere.

        Raises:
            SessionClosedError: The session is not open.
        """
        runtime = self._open_runtime()
        arguments.check_task_id(task_id)
        return runtime.attach(task_id)

    async def retrieve(self, job_id: str) -> ExtractionJob:
        """Return the handle of a job by the library's own id, live or finished.

        The handle comes from memory or from the journal, whichever process submitted the job, and
        its :meth:`ExtractionJob.download` finds the files that are there already. A job that
        another session or process works on is followed. A job without an owner is resumed as by
        :meth:`resume`. Without a journal the session's own jobs are found; of those that have
        ended, the latest 1,024.

        Args:
            job_id: ``ExtractionJob.id``. Another process finds it once the job's submit has begun:
                give it out after :meth:`ExtractionJob.accepted`.

        Raises:
            JobNotFoundError: There is no such job.
            InvalidOptionError: The id is not a string.
            JournalError: The journal cannot be read, or this job of it.
            SessionClosedError: The session is not open, or was closed meanwhile.
        """
        runtime = self._open_runtime()
        if not isinstance(job_id, str):
            raise InvalidOptionError(f"job_id is a text, the job's id; not {job_id!r}.")
        return await runtime.retrieve(job_id)

    async def bind(
        self,
        job_id: str,
        task_id: str,
        *,
        format: AudioFormat | None = None,  # noqa: A002 - as in download()
    ) -> ExtractionJob:
        """Assign the task that you found to a job whose response was lost, and resume the job.

        A job that ended in a SubmissionUnknownError is in the journal without a task, and is never
        sent again automatically. If MusicGPT's dashboard shows its task, this saves the task's id
        and resumes the job as by :meth:`resume`.

        Args:
            job_id: The job's id: it is in the error and in ``musicgpt-async jobs``.
            task_id: MusicGPT's id of the task; it is polled first.
            format: As in resume().

        Raises:
            ConfigurationError: The session has no journal.
            InvalidOptionError: No such job waits for its task; nothing was changed.
            NotFoundError: MusicGPT does not know the task; nothing was changed.
            MusicGPTError: MusicGPT or the journal could not be reached; nothing was changed.
        """
        runtime = self._open_runtime()
        arguments.check_task_id(task_id)
        if format is not None:
            check_format(format)
        return await runtime.bind(job_id, task_id, format)

    async def extract(
        self,
        source: AudioSource,
        directory: str | Path,
        *,
        stems: Iterable[StemName | Stem] = (),
        preprocessing: Iterable[PreprocessingName | Preprocessing] = (),
        eco_mode: bool = False,
        label: str | None = None,
        key: str | None = None,
        force: bool = False,
        format: Literal["best", "wav", "mp3"] = "best",  # noqa: A002 - as in download()
    ) -> dict[str, Path]:
        """Submit a track, wait for it and download its stems: see submit() and download()."""
        check_format(format)
        job = self.submit(
            source,
            stems=stems,
            preprocessing=preprocessing,
            eco_mode=eco_mode,
            label=label,
            key=key,
            force=force,
        )
        self._open_runtime().set_output(job, _absolute(directory), format)
        try:
            return await job.download(directory, format=format)
        except BaseException:
            job.cancel()  # the caller has no handle to do it
            raise

    def extract_many(
        self,
        sources: batch.BatchSources,
        directory: str | Path,
        *,
        stems: Iterable[StemName | Stem] = (),
        preprocessing: Iterable[PreprocessingName | Preprocessing] = (),
        eco_mode: bool = False,
        force: bool = False,
        retry_failed: bool = False,
        format: AudioFormat = DEFAULT_FORMAT,  # noqa: A002 - as in download()
    ) -> AsyncIterator[batch.Outcome]:
        """Submit, wait for and download many tracks; yield one outcome each, as they finish.

        The iterable is consumed lazily, as slots become free. A track's failure is its outcome,
        never the batch's: there are as many outcomes as tracks, or an exception.

        Args:
            sources: An iterable or async iterable of what submit() takes, or of ``BatchItem``,
                whose ``options`` may hold a ``key``.
            directory: Output directory for the stems.
            stems: As in submit(), for every track.
            preprocessing: As in submit(), for every track.
            eco_mode: As in submit(), for every track.
            force: As in submit(), for every track.
            retry_failed: Whether to submit tracks again, and pay for them again, that MusicGPT
                could not process in an earlier run, as the journal remembers; by default the
                remembered failure is the track's outcome.
            format: As in download().

        Raises:
            InvalidOptionError: A stem, option or format name does not exist.
            SessionClosedError: The session is not open.
        """
        runtime = self._open_runtime()
        check_format(format)
        options: dict[str, Any] = {
            "stems": protocol.validate_names(stems, Stem, "stem"),
            "preprocessing": protocol.validate_names(preprocessing, Preprocessing, "option"),
            "eco_mode": protocol.check_flag(eco_mode, "eco_mode"),
            "force": force,
            "retry_failed": protocol.check_flag(retry_failed, "retry_failed"),
        }
        submit = partial(self._submit, **options)
        many = batch.Batch(runtime, submit, _absolute(directory), format=format)
        return many.outcomes(sources)

    async def resume(
        self,
        *,
        format: AudioFormat | None = None,  # noqa: A002 - as in download()
    ) -> list[ExtractionJob]:
        """Resume the unfinished jobs of the journal that have no live owner.

        Accepted jobs are polled, completed ones are downloaded, and those that were never delivered
        are submitted. A job whose response was lost is searched for in the account's listing and
        through its webhook; if neither finds it, its handle ends in a SubmissionUnknownError.

        Args:
            format: Which files of each stem to download; by default the format in the journal.

        Returns:
            The handles, oldest first.

        Raises:
            ConfigurationError: The session has no journal.
            JournalError: The journal cannot be used.
        """
        if format is not None:
            check_format(format)
        return await self._open_runtime().resume(format)

    def events(self) -> AsyncIterator[Event]:
        """Return the events of all jobs of the session from now on, until the session ends."""
        return self._event_bus.stream()

    @property
    def credits_estimated(self) -> float:
        """Credits that MusicGPT expects to charge for what this session submitted.

        With a journal: for what all sessions on it submitted to the account, in all their time, as
        far as this session knows.
        """
        runtime, credit = self._runtime, self._settings.credit
        return credit.expected if runtime is None else runtime.account.credits_expected

    @property
    def slots(self) -> tuple[int, int]:
        """Slots taken, and how many there are as far as is known.

        With a journal the slots that other sessions on it have taken are counted too, as of the
        last time that this session asked for one or freed one.
        """
        account = self._settings.slots if self._runtime is None else self._runtime.account
        return account.taken, account.limit

    def _open_runtime(self) -> Runtime:
        """Return the runtime; refuse to be used when not open, or in another event loop."""
        if self._runtime is None:
            raise SessionClosedError(
                "The session is not open; use `async with MusicGPTSession() as session:`."
            )
        self._runtime.check_loop()
        return self._runtime


def _absolute(directory: str | Path) -> Path:
    return Path(os.path.abspath(directory))  # noqa: PTH100 - Path.absolute() keeps the ".."


def _validate_api_key(api_key: str | None) -> str:
    key = (api_key or "").strip()
    if not key:
        raise ConfigurationError(
            f"There is no API key: give MusicGPTSession(api_key=…), or set {KEY_VARIABLE} or "
            f"{KEY_FILE_VARIABLE}."
        )
    if not key.isascii() or not key.isprintable():
        raise ConfigurationError(f"The API key contains invalid characters; check {KEY_VARIABLE}.")
    return key
