"""Run conversions, from their acceptance to the delivery of their webhooks."""

import asyncio
import hashlib
import ipaddress
import logging
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import aiohttp
import attrs

from musicgpt_async.emulator.audio.renderer import StemRenderer, UnreadableAudioError
from musicgpt_async.emulator.clock import Clock
from musicgpt_async.emulator.faults import Fault, FaultContext, FaultPlan, Stage
from musicgpt_async.emulator.tasks import TaskSet
from musicgpt_async.emulator.vendor import Refusal, Submission, Upload, Vendor
from musicgpt_async.emulator.webhooks import WebhookDelivery, WebhookSender

T = TypeVar("T")

_logger = logging.getLogger(__name__)

_BLOCK = 1 << 20


@attrs.frozen
class AudioSources:
    """Provider of a conversion's audio: the upload, or a download of its `audio_url`."""

    client: aiohttp.ClientSession
    executor: Executor
    directory: Path
    tone: Callable[[Path, str], None] | None

    async def audio(self, submission: Submission) -> tuple[Path | None, int]:
        """Return the file of the audio and its size in bytes."""
        upload = submission.upload
        if upload.audio_url is None:
            return upload.audio, upload.size
        path = await self._run(self._new_file)
        if _is_loopback(upload.audio_url):
            size = await self._fetch(upload.audio_url, path)
        elif self.tone is not None:
            await self._run(self.tone, path, upload.audio_url)
            size = await self._run(lambda: path.stat().st_size)
        else:
            size = _BLOCK
        return path, size

    async def check(self, upload: Upload) -> None:
        """Refuse a submit with a loopback `audio_url` that cannot be downloaded (400)."""
        if upload.audio_url is None or not _is_loopback(upload.audio_url):
            return
        try:
            async with self.client.get(upload.audio_url) as answer:
                is_there = answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            is_there = False
        if not is_there:
            raise Refusal(400, "The file could not be downloaded from the provided URL")

    async def _fetch(self, url: str, path: Path) -> int:
        try:
            async with self.client.get(url) as answer:
                if answer.status != 200:
                    raise UnreadableAudioError(f"audio_url answered {answer.status}")
                size = 0
                with await self._run(path.open, "wb") as file:
                    async for chunk in answer.content.iter_chunked(_BLOCK):
                        size += await self._run(file.write, chunk)
                return size
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UnreadableAudioError("audio_url could not be fetched") from error

    async def digest(self, path: Path | None) -> str | None:
        """Return the SHA-256 of a file, in hexadecimal."""
        return None if path is None else await self._run(_sha256, path)

    def _new_file(self) -> Path:
        with tempfile.NamedTemporaryFile(dir=self.directory, prefix="url-", delete=False) as file:
            return Path(file.name)

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.executor, work, *args)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@attrs.frozen
class Conversions:
    """Runner of accepted conversions, each in its own task."""

    vendor: Vendor
    clock: Clock
    tasks: TaskSet
    fault_plan: FaultPlan
    renderer: StemRenderer
    audio_sources: AudioSources
    webhook_sender: WebhookSender
    progress: Sequence[str]

    async def start(self, submission: Submission) -> None:
        """Start a conversion. Return at once, unless it must end before the submit's response."""
        plan = self.webhook_sender.plan(submission)
        job = self.tasks.start(self._run(submission, plan))
        if any(delivery.moment == "before_answer" for delivery in plan):
            await asyncio.shield(job)

    async def _run(self, submission: Submission, plan: Sequence[WebhookDelivery]) -> None:
        context = FaultContext(on="job", upload=submission.upload, submission=submission)
        fault = self.fault_plan.take(context, Stage.INSTEAD)
        worked, _ = await asyncio.gather(self._work(submission), self._wait(submission, plan))
        if fault is not None and fault.kind == "never_finishes":
            return
        self._settle(submission, fault, worked)
        await self.webhook_sender.send(submission, plan, "before_answer")
        self.tasks.start(self.webhook_sender.send(submission, plan, "finished"))

    def _settle(
        self, submission: Submission, fault: Fault | None, worked: float | Exception
    ) -> None:
        if fault is not None:
            self.vendor.fail(submission, fault.message, status=fault.word)
        elif isinstance(worked, Exception):
            self.vendor.fail(submission, str(worked))
        else:
            self.vendor.complete(submission, duration=worked)

    async def _work(self, submission: Submission) -> float | Exception:
        """Return the seconds of audio that were processed, or the error."""
        try:
            audio, size = await self.audio_sources.audio(submission)
            digest = await self.audio_sources.digest(audio)
            self.vendor.received(submission, sha256=digest)
            return await self.renderer.prepare(submission, audio, size)
        except UnreadableAudioError as error:
            return error
        except Exception:  # a bug in the emulator must not leave a conversion unfinished
            _logger.exception("conversion %s raised an error", submission.conversion_id)
            return RuntimeError("Internal error")

    async def _wait(self, submission: Submission, plan: Sequence[WebhookDelivery]) -> None:
        """Go through the status words during the configured time of the conversion."""
        share = submission.seconds / len(self.progress)
        for index, word in enumerate(self.progress):
            self.vendor.advance(submission, word)
            if index == len(self.progress) // 2:
                self.tasks.start(self.webhook_sender.send(submission, plan, "processing"))
            await self.clock.sleep_until(submission.created + share * (index + 1))
