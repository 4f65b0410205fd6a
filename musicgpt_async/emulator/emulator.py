"""The emulator: builds its parts and serves them on two loopback ports."""

import asyncio
import functools
import math
import shutil
import ssl
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import aiohttp
import attrs
from aiohttp import web

from musicgpt_async.emulator.api import Api
from musicgpt_async.emulator.audio.renderer import (
    NoiseRenderer,
    SeparatingRenderer,
    StemRenderer,
    require_separation,
)
from musicgpt_async.emulator.clock import Clock
from musicgpt_async.emulator.conversions import AudioSources, Conversions
from musicgpt_async.emulator.faults import Fault, FaultPlan
from musicgpt_async.emulator.files import FileHost
from musicgpt_async.emulator.generations import GENERATIONS, PATH
from musicgpt_async.emulator.request_log import LoggedRequest, log_requests, record_response
from musicgpt_async.emulator.responses import SHAPES, ResponseShape
from musicgpt_async.emulator.tasks import TaskSet
from musicgpt_async.emulator.uploads import UploadParser
from musicgpt_async.emulator.vendor import PROGRESS, Submission, Vendor
from musicgpt_async.emulator.webhooks import (
    DeliveryAttempt,
    Payload,
    Webhooks,
    WebhookSender,
    deliveries,
)

GRACE = 0.05
"""Seconds that running requests have to finish when the emulator is closed."""

REQUESTS_KEPT = 100_000
"""Maximum length of `Emulator.requests`; the oldest ones are dropped."""

ShapeChoice = str | ResponseShape | Callable[[Submission], str | ResponseShape]
"""A name in `SHAPES`, a `ResponseShape`, or a function of the submission that returns one."""


class Emulator:
    """An emulator of the MusicGPT API on a loopback port.

    It runs while its `async with` block is open, with the API on one port and the result files on
    another, since MusicGPT has different hosts for them. Nothing is charged, and only webhooks
    leave the machine, if their URLs do.

    Args:
        generation: 1 for the API whose base URL ends in its version, with MP3 and WAV results; 2
            for that of August 2026, with versions in its paths, MP3 results and `eco_mode`.
        wav: Whether results have WAV files; None for the generation's default.
        path: Path of the API at its host, for example with a proxy's prefix.
        api_key: The accepted key; any other gets a 401, or a 403 in the second generation.
        forbidden_keys: Keys that get a 403.
        host: Address to listen on; keep it on loopback.
        port: Port of the API; 0 for any free one.
        file_port: Port of the file host; 0 for any free one.
        tls: Serve both ports over TLS with this context.
        parallel: Maximum number of unfinished conversions; beyond it a submit gets a 429. None for
            no limit.
        polls_per_minute: Maximum number of byId calls in any emulated minute; beyond it a call gets
            a 429. None for no limit.
        retry_after: Whether a 429 of a byId call has a `Retry-After` header.
        credits: Balance of the account; a submit whose estimate exceeds it gets a 402.
        seconds: Emulated seconds of a conversion, or a function of the submission. With `separate`
            it takes at least as long as the separation.
        eta: Estimate in the response to a submit: None for `seconds`, rounded up and at least 1; an
            int such as -1 for all; or a function of the submission.
        speed: Emulated seconds per real second, for everything that is timed here.
        separate: Whether to separate the submitted track (extra `emulator`: numpy and soundfile).
            False serves valid, deterministic pseudo-audio, which is fast.
        stem_bytes: Size of a file of pseudo-audio in bytes, at least 2048.
        keep_audio: False counts uploads and discards them, for benchmarks: no `upload.audio` and
            no `sha256`. Requires `separate=False`.
        shape: Shape of the responses; None for the generation's default.
        webhooks: Behaviour of deliveries: names in `BEHAVIOURS`, a `WebhookDelivery`, several of
            them, or a function of the submission that returns one of these.
        payload: Payload of webhooks: "extraction", "general" or "status".
        progress: Status words of an unfinished conversion, in order.
        listing: Whether byUser exists; False gives a 404. "strict" refuses queries that MusicGPT's
            own n8n node would not send.
        faults: Planned faults; see `Fault`. `script` adds more.

    Raises:
        ImportError: `separate` is set, and numpy or soundfile is not installed.
    """

    def __init__(
        self,
        *,
        generation: Literal[1, 2] = 1,
        wav: bool | None = None,
        path: str = PATH,
        api_key: str = "emulator-key",
        forbidden_keys: Collection[str] = (),
        host: str = "127.0.0.1",
        port: int = 0,
        file_port: int = 0,
        tls: ssl.SSLContext | None = None,
        parallel: int | None = 10,
        polls_per_minute: int | None = 500,
        retry_after: bool = False,
        credits: float = 10_000.0,  # noqa: A002  MusicGPT's word
        seconds: float | Callable[[Submission], float] = 0.2,
        eta: int | Callable[[Submission], int] | None = None,
        speed: float = 1.0,
        separate: bool = True,
        stem_bytes: int | None = None,
        keep_audio: bool = True,
        shape: ShapeChoice | None = None,
        webhooks: Webhooks = "normal",
        payload: Payload = "extraction",
        progress: Sequence[str] = PROGRESS,
        listing: bool | Literal["strict"] = True,
        faults: Iterable[Fault] = (),
    ) -> None:
        if separate:
            require_separation()
            if not keep_audio:
                raise ValueError("keep_audio=False requires separate=False")
        if not callable(webhooks):
            deliveries(webhooks)  # raises for an unknown name
        self.api_key: str = api_key
        """The accepted key."""
        self.faults: FaultPlan = FaultPlan(faults)
        """The planned faults; see `script`."""
        self.deliveries: list[DeliveryAttempt] = []
        """Every attempt of a webhook delivery with its result, in order."""
        self.requests: deque[LoggedRequest] = deque(maxlen=REQUESTS_KEPT)
        """The requests to both ports, in order of arrival."""
        self._host, self._port, self._file_port, self._tls = host, port, file_port, tls
        self._separate, self._stem_bytes, self._keep_audio = separate, stem_bytes, keep_audio
        self._generation, self._path = GENERATIONS[generation], path.rstrip("/")
        self._wav = self._generation.wav if wav is None else wav
        self._shape = self._generation.shape if shape is None else shape
        self._webhooks, self._payload = webhooks, payload
        self._progress, self._listing, self._retry_after = tuple(progress), listing, retry_after
        self._clock = Clock(speed)
        self._vendor = Vendor(
            clock=self._clock,
            api_key=api_key,
            forbidden_keys=frozenset(forbidden_keys),
            wrong_key=self._generation.wrong_key,
            parallel=math.inf if parallel is None else parallel,
            polls_per_minute=math.inf if polls_per_minute is None else polls_per_minute,
            credits=credits,
            seconds=seconds if callable(seconds) else lambda _: seconds,
            eta=_eta(eta),
        )
        self._stack = AsyncExitStack()
        self._leaked: list[str] = []
        self.url: str = ""
        """The root of the API host, such as http://127.0.0.1:40001."""
        self.files_url: str = ""
        """The root of the file host."""

    @property
    def base_url(self) -> str:
        """The base URL for a client; it ends in /v1 or has no version."""
        return f"{self.url}{self._path}{self._generation.base}"

    @property
    def submissions(self) -> list[Submission]:
        """The accepted submits, in order."""
        return self._vendor.submissions

    @property
    def unfinished(self) -> int:
        """Number of conversions that are accepted and not finished."""
        return self._vendor.unfinished

    @property
    def most_unfinished(self) -> int:
        """The highest value of `unfinished` so far."""
        return self._vendor.most_unfinished

    @property
    def polls(self) -> int:
        """Number of byId calls so far, including refused ones."""
        return self._vendor.polls

    @property
    def throttled(self) -> Counter[str]:
        """Number of 429s by limit, "parallel" or "polls"; faults are not counted."""
        return self._vendor.throttled

    @property
    def credits(self) -> float:
        """The account's balance after the completed conversions."""
        return self._vendor.credits

    @property
    def leaked_keys(self) -> list[str]:
        """The paths of requests to the file host with an Authorization header or the key."""
        return self._leaked

    @property
    def speed(self) -> float:
        """Emulated seconds per real second."""
        return self._clock.speed

    def script(self, *faults: Fault) -> None:
        """Append faults to the plan."""
        self.faults.add(*faults)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def _start(self, stack: AsyncExitStack) -> None:
        """Build the parts in order of dependency; `stack` closes them in reverse order."""
        directory = await _directory(stack)
        disk = _threads(stack, "disk")
        client = await stack.enter_async_context(aiohttp.ClientSession())
        renderer = self._make_renderer(directory, stack)
        tasks = TaskSet()
        stack.push_async_callback(tasks.aclose)
        files = FileHost(
            vendor=self._vendor,
            fault_plan=self.faults,
            renderer=renderer,
            clock=self._clock,
            wav=self._wav,
            leaked_keys=self._leaked,
        )
        conversions = Conversions(
            vendor=self._vendor,
            clock=self._clock,
            tasks=tasks,
            fault_plan=self.faults,
            renderer=renderer,
            audio_sources=AudioSources(client, disk, directory, self._tone()),
            webhook_sender=WebhookSender(
                client=client,
                clock=self._clock,
                tasks=tasks,
                fault_plan=self.faults,
                behaviour=self._webhooks,
                payload=self._payload,
                links=files.links,
                record=self.deliveries,
            ),
            progress=self._progress,
        )
        api = Api(
            generation=self._generation,
            path=self._path,
            vendor=self._vendor,
            fault_plan=self.faults,
            conversions=conversions,
            upload_parser=UploadParser(
                disk, directory if self._keep_audio else None, self._generation
            ),
            shape=self._shape_of,
            refusals=self._shape_of(None),
            links=files.links,
            listing=self._listing,
            retry_after=self._retry_after,
        )
        self.files_url = files.root = await self._listen(stack, files.routes(), self._file_port)
        self.url = await self._listen(stack, api.routes(), self._port)

    def _make_renderer(self, directory: Path, stack: AsyncExitStack) -> StemRenderer:
        executor = _threads(stack, "studio")
        if self._separate:
            renderer = SeparatingRenderer(directory, executor)
            stack.callback(renderer.stop)
            return renderer
        return NoiseRenderer(directory, executor, self._stem_bytes)

    def _tone(self) -> Callable[[Path, str], None] | None:
        if not self._separate:
            return None
        from musicgpt_async.emulator.audio.song import tone  # noqa: PLC0415  numpy is an extra

        return tone

    def _shape_of(self, submission: Submission | None) -> ResponseShape:
        shape = self._shape
        if callable(shape):
            shape = ResponseShape() if submission is None else shape(submission)
        chosen = SHAPES[shape] if isinstance(shape, str) else shape
        return chosen if self._wav else attrs.evolve(chosen, wav=False)

    async def _listen(
        self, stack: AsyncExitStack, routes: Sequence[web.RouteDef], port: int
    ) -> str:
        application = web.Application(middlewares=[log_requests(self.requests)])
        application.on_response_prepare.append(record_response)
        application.add_routes(routes)
        runner = web.AppRunner(
            application, access_log=None, shutdown_timeout=GRACE, read_bufsize=1 << 20
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, self._host, port, ssl_context=self._tls)
        await site.start()
        scheme = "http" if self._tls is None else "https"
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{scheme}://{host}:{runner.addresses[0][1]}"


def _eta(eta: int | Callable[[Submission], int] | None) -> Callable[[Submission], int]:
    if eta is None:
        return lambda submission: max(1, math.ceil(submission.seconds))
    return eta if callable(eta) else lambda _: eta


def _threads(stack: AsyncExitStack, name: str) -> ThreadPoolExecutor:
    """Create a thread pool; closing the emulator waits for it without blocking the loop."""
    executor = ThreadPoolExecutor(2, thread_name_prefix=f"musicgpt-emulator-{name}")
    end = functools.partial(executor.shutdown, cancel_futures=True)
    stack.push_async_callback(asyncio.to_thread, end)
    return executor


async def _directory(stack: AsyncExitStack) -> Path:
    """Create a directory for all files; it is removed when the emulator is closed."""
    loop = asyncio.get_running_loop()
    make = functools.partial(tempfile.mkdtemp, prefix="musicgpt-emulator-")
    path = Path(await loop.run_in_executor(None, make))

    async def remove() -> None:
        await loop.run_in_executor(None, functools.partial(shutil.rmtree, path, ignore_errors=True))

    stack.push_async_callback(remove)
    return path
