"""The file host: serves result files by signed links, on a separate port."""

import asyncio
import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path

import attrs
from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter

from musicgpt_async.emulator import raw_response, responses
from musicgpt_async.emulator.audio.renderer import StemRenderer
from musicgpt_async.emulator.catalogue import STEMS
from musicgpt_async.emulator.clock import Clock
from musicgpt_async.emulator.faults import Fault, FaultContext, FaultPlan, Stage
from musicgpt_async.emulator.file_faults import FILE_FAULTS, ServedFile, etag, replace_content
from musicgpt_async.emulator.vendor import Refusal, Submission, Vendor

TYPES = {".wav": "audio/wav", ".mp3": "audio/mpeg"}


@attrs.define(eq=False)
class FileHost:
    """The file host. It needs no API key, and records every key that is sent to it."""

    vendor: Vendor
    fault_plan: FaultPlan
    renderer: StemRenderer
    clock: Clock
    wav: bool = True
    root: str = ""
    leaked_keys: list[str] = attrs.field(factory=list)
    _secret: str = attrs.field(factory=lambda: secrets.token_hex(8))

    def links(self, submission: Submission, suffix: str) -> dict[str, str]:
        """Return the valid links of a conversion's stems; empty if it lacks the format."""
        if suffix == ".wav" and not self.wav:
            return {}
        return {stem: self._link(submission, f"{stem}{suffix}") for stem in submission.stems}

    def _link(self, submission: Submission, name: str) -> str:
        signature = self._signature(submission, name)
        return f"{self.root}/files/{submission.conversion_id}/{name}?signature={signature}"

    def _signature(self, submission: Submission, name: str) -> str:
        text = f"{self._secret}/{submission.conversion_id}/{name}/{submission.link_version}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def routes(self) -> Sequence[web.RouteDef]:
        """Return the routes of the file host's application."""
        return [web.get("/files/{conversion}/{name}", self._get)]

    async def _get(self, request: web.Request) -> web.StreamResponse:
        self._record_leaked_key(request)
        try:
            submission, name = self._find(request)
        except Refusal as refused:
            return responses.error(refused.status, refused.message, body="xml")
        context = FaultContext(
            on="file", request=request, upload=submission.upload, submission=submission, file=name
        )
        if fault := self.fault_plan.take(context, Stage.INSTEAD):
            return self._replace_response(fault, submission)
        path = await self.renderer.file(submission, Path(name).stem, Path(name).suffix)
        if fault := self.fault_plan.take(context, Stage.ANSWER):
            return await self._inject(fault, request, path)
        return _File(path)

    def _record_leaked_key(self, request: web.Request) -> None:
        if hdrs.AUTHORIZATION in request.headers or self.vendor.api_key in request.path_qs:
            self.leaked_keys.append(request.path)

    def _find(self, request: web.Request) -> tuple[Submission, str]:
        """Return the conversion and the file name of a link, or raise a 403 or 404."""
        name = request.match_info["name"]
        submission = self.vendor.find(request.match_info["conversion"])
        if request.query.get("signature") != self._signature(submission, name):
            raise Refusal(403, "Request has expired")
        stem, suffix = Path(name).stem, Path(name).suffix
        if not submission.is_completed or stem not in STEMS or suffix not in TYPES:
            raise Refusal(404, "The specified key does not exist.")
        return submission, name

    def _replace_response(self, fault: Fault, submission: Submission) -> web.Response:
        if fault.kind == "expired":
            self.vendor.expire_links(submission)
            return responses.error(403, "Request has expired", body="xml")
        if fault.kind == "redirect":
            return responses.error(
                fault.status or 302, fault.message, body="empty", location=fault.location
            )
        return responses.error(
            fault.status or 403,
            fault.message,
            body="xml" if fault.body is None else fault.body,
            retry_after=fault.retry_after,
        )

    async def _inject(self, fault: Fault, request: web.Request, path: Path) -> web.StreamResponse:
        if fault.kind == "slow_answer":
            await self.clock.sleep(fault.seconds)
            return _File(path)
        if fault.kind == "stall_answer":
            await raw_response.stall()
        if fault.kind in {"stall_answer", "drop_before_answer"}:
            return raw_response.drop(request)
        if fault.kind in {"changed", "changed_anyway"}:
            await asyncio.get_running_loop().run_in_executor(None, replace_content, path)
        if fault.kind == "changed":
            return _File(path)
        file_content = await ServedFile.of(request, path, content_type=TYPES[path.suffix])
        return await FILE_FAULTS[fault.kind](file_content, fault).send(request)


class _File(web.FileResponse):
    """A file response, which uses sendfile if the platform has it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, headers={hdrs.CONTENT_TYPE: TYPES[path.suffix]})
        self._file = path

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the file or a range of it; aiohttp ignores an If-Range that has an ETag."""
        condition = request.headers.get(hdrs.IF_RANGE, "")
        if condition.startswith(('"', "W/")):
            stat = await asyncio.get_running_loop().run_in_executor(None, self._file.stat)
            if condition != etag(stat):
                headers = request.headers.copy()
                headers.popall(hdrs.RANGE, None)
                request = request.clone(headers=headers)
        return await super().prepare(request)
