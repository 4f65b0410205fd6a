"""The emulator: puts the vendor's parts together and stands them on two loopback ports."""

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
"""Seconds that requests under way have to end by themselves when the emulator goes."""

REQUESTS_KEPT = 100_000
"""Requests that `Emulator.requests` remembers before it forgets the oldest."""

ShapeChoice = str | ResponseShape | Callable[[Submission], str | ResponseShape]
"""A name out of `SHAPES`, a `ResponseShape`, or either for each submission."""


class Emulator:
    """The MusicGPT vendor on a loopback port, to test against and to try things with.

    It stands while its `async with` block is open: the API on one port, the result files on
    another, as the vendor has them on different hosts. Everything a submit costs there is free
    here; nothing leaves the machine but webhooks to the URLs they are asked for.

    Args:
        generation: 1 for the API whose base URL ends in its version, with MP3 and WAV results; 2
            for that of August 2026, with versions in its paths, MP3 results and `eco_mode`.
        wav: whether results have WAV files; None: as the generation's documents tell.
        path: where the API lies below its host, such as behind a proxy's prefix.
        api_key: the key that is accepted; any other gets 401, or 403 in the second generation.
        forbidden_keys: keys that get 403.
        host: where to listen; leave it on loopback.
        port: the API's port; 0 for any free one.
        file_port: the file host's port; 0 for any free one.
        tls: serves both over TLS with this context.
        parallel: conversions that may be unfinished at once; past it a submit gets 429.
            None for no limit.
        polls_per_minute: byId calls in any minute of the vendor's; past it 429. None: no limit.
        retry_after: whether a 429 for byId calls tells how long to wait.
        credits: the account's balance; a submit whose estimate exceeds what is left gets 402.
        seconds: the vendor seconds a conversion takes, or a function of the submission. With
            `separate` it takes at least as long as the separation.
        eta: what a submit's answer says; None for `seconds`, rounded up and at least 1; an int
            such as -1 for all, or a function of the submission.
        speed: the vendor seconds that pass in a real one. It counts for everything timed here.
        separate: whether the track that is sent is split (extra `emulator`: numpy and
            soundfile). False serves quickly made pseudo-audio, valid and deterministic.
        stem_bytes: the size of a file of pseudo-audio, at least 2048.
        keep_audio: False counts uploads and throws them away, for benchmarks: no
            `upload.audio` and no `sha256`. Needs `separate=False`.
        shape: which of the documented shapes answers have; None: that of the generation.
        webhooks: how deliveries behave: names out of `BEHAVIOURS`, a `WebhookDelivery`, several of
            them, or a function of the submission that gives one of these.
        payload: which of the documented payloads a webhook has: "extraction", "general", "status".
        progress: the status words of an unfinished conversion, in order.
        listing: whether the vendor has byUser; without it, 404. "strict" refuses what the vendor's
            own n8n node would not send.
        faults: what goes wrong; see `Fault`. More can be scripted later.

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
        credits: float = 10_000.0,  # noqa: A002  the vendor's word
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
                raise ValueError("keep_audio=False leaves nothing to separate: separate=False")
        if not callable(webhooks):
            deliveries(webhooks)  # refuses a name there is none of
        self.api_key: str = api_key
        """The key that is accepted."""
        self.faults: FaultPlan = FaultPlan(faults)
        """The faults to come; see `script`."""
        self.deliveries: list[DeliveryAttempt] = []
        """Every attempt at a webhook delivery, in order, and what it got."""
        self.requests: deque[LoggedRequest] = deque(maxlen=REQUESTS_KEPT)
        """Every request to either port, in order of arrival."""
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
        """What a client takes for its base URL: it ends in /v1, or in no version."""
        return f"{self.url}{self._path}{self._generation.base}"

    @property
    def submissions(self) -> list[Submission]:
        """Every submit that was accepted, in order."""
        return self._vendor.submissions

    @property
    def unfinished(self) -> int:
        """Conversions accepted and not finished."""
        return self._vendor.unfinished

    @property
    def most_unfinished(self) -> int:
        """The highest that `unfinished` has ever been."""
        return self._vendor.most_unfinished

    @property
    def polls(self) -> int:
        """All byId calls so far, refused ones too."""
        return self._vendor.polls

    @property
    def throttled(self) -> Counter[str]:
        """How many 429s the limits have given: "parallel" and "polls"; faults do not count."""
        return self._vendor.throttled

    @property
    def credits(self) -> float:
        """The account's balance; completed conversions have been charged to it."""
        return self._vendor.credits

    @property
    def leaked_keys(self) -> list[str]:
        """The paths of requests to the file host that bore an Authorization header or the key."""
        return self._leaked

    @property
    def speed(self) -> float:
        """The vendor seconds that pass in a real one."""
        return self._clock.speed

    def script(self, *faults: Fault) -> None:
        """Have more things go wrong from now on, after those scripted before."""
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
        """Build the parts from the ground up; `stack` takes them down in reverse order."""
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
    """A pool that is waited for, off the event loop, when the emulator goes."""
    executor = ThreadPoolExecutor(2, thread_name_prefix=f"musicgpt-emulator-{name}")
    end = functools.partial(executor.shutdown, cancel_futures=True)
    stack.push_async_callback(asyncio.to_thread, end)
    return executor


async def _directory(stack: AsyncExitStack) -> Path:
    """A directory for everything that is written, gone when the emulator is."""
    loop = asyncio.get_running_loop()
    make = functools.partial(tempfile.mkdtemp, prefix="musicgpt-emulator-")
    path = Path(await loop.run_in_executor(None, make))

    async def remove() -> None:
        await loop.run_in_executor(None, functools.partial(shutil.rmtree, path, ignore_errors=True))

    stack.push_async_callback(remove)
    return path
