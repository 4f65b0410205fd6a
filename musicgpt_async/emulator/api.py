"""The API host: reads the requests of a generation's routes and responds to them."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import attrs
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from musicgpt_async.emulator import listing, responses
from musicgpt_async.emulator.api_faults import API_FAULTS, FaultRequest
from musicgpt_async.emulator.catalogue import CONVERSION_TYPES
from musicgpt_async.emulator.conversions import Conversions
from musicgpt_async.emulator.faults import Fault, FaultContext, FaultPlan, Stage, Target
from musicgpt_async.emulator.generations import Generation
from musicgpt_async.emulator.uploads import UploadParser
from musicgpt_async.emulator.vendor import Refusal, Submission, Vendor, invalid

ShapeOf = Callable[[Submission], responses.ResponseShape]


@attrs.frozen
class Call:
    """An API call: the functions that read its request and carry it out."""

    on: Target
    read: Callable[[FaultContext, web.Request], Awaitable[FaultContext]]
    work: Callable[[FaultContext, web.Request], Awaitable[web.Response]]


@attrs.frozen
class Api:
    """Handler of API calls, which responds from the vendor's state or with a fault."""

    generation: Generation
    path: str
    vendor: Vendor
    fault_plan: FaultPlan
    conversions: Conversions
    upload_parser: UploadParser
    shape: ShapeOf
    refusals: responses.ResponseShape
    links: Callable[[Submission, str], responses.Links]
    listing: bool | Literal["strict"]
    retry_after: bool

    def routes(self) -> Sequence[web.RouteDef]:
        """Return the routes of the API host's application."""
        submit = Call("submit", self._read_submit, self._submit)
        by_id = Call("byId", self._read_by_id, self._by_id)
        by_user = Call("byUser", self._read_by_user, self._by_user)
        routes = [web.get(f"{self.path}/v1/byId", self._handler(by_id))]
        routes += [
            web.post(f"{self.path}/{version}/Extraction", self._handler(submit))
            for version in self.generation.submits
        ]
        if self.listing:
            routes.append(web.get(f"{self.path}/v1/byUser", self._handler(by_user)))
        return routes

    def _handler(self, call: Call) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                return await self._answer(call, request)
            except Refusal as refused:
                return responses.refusal(self.refusals, refused, retry_after=self.retry_after)

        return handle

    async def _answer(self, call: Call, request: web.Request) -> web.StreamResponse:
        if call.on == "byId":
            self.vendor.count_call()
        context = FaultContext(on=call.on, request=request)
        if fault := self.fault_plan.take(context, Stage.ARRIVAL):
            return await self._inject(fault, request)
        self.vendor.check_key(request.headers.get(hdrs.AUTHORIZATION))
        context = await call.read(context, request)
        if fault := self.fault_plan.take(context, Stage.INSTEAD):
            if call.on == "submit":  # the upload of a poll belongs to its conversion
                await self.upload_parser.discard(context.upload)
            return await self._inject(fault, request)
        answer = await call.work(context, request)
        if fault := self.fault_plan.take(context, Stage.ANSWER):
            return await self._inject(fault, request, answer)
        return answer

    async def _inject(
        self, fault: Fault, request: web.Request, answer: web.Response | None = None
    ) -> web.StreamResponse:
        faulty = FaultRequest(fault, request, self.vendor.clock, answer)
        return await API_FAULTS[fault.kind](faulty)

    async def _read_submit(self, context: FaultContext, request: web.Request) -> FaultContext:
        upload = await self.upload_parser.receive(request)
        if self.generation.checks_urls:
            await self.conversions.audio_sources.check(upload)
        duration = await self.conversions.renderer.duration(upload.audio, upload.size)
        return attrs.evolve(context, upload=attrs.evolve(upload, duration=duration))

    async def _submit(self, context: FaultContext, _: web.Request) -> web.Response:
        assert context.upload is not None  # noqa: S101  _read_submit put it there
        try:
            submission = self.vendor.accept(context.upload)
        except Refusal:
            await self.upload_parser.discard(context.upload)
            raise
        await self.conversions.start(submission)
        return web.json_response(responses.acceptance(self.shape(submission), submission))

    async def _read_by_id(self, context: FaultContext, request: web.Request) -> FaultContext:
        self.vendor.admit_poll()
        _check_type(request)
        given = [
            request.query[name] for name in ("task_id", "conversion_id") if _has(request, name)
        ]
        if len(given) != 1:
            raise invalid(["query"], "Provide either task_id or conversion_id, not both")
        if request.query["conversionType"].upper() != "EXTRACTION":
            raise Refusal(404, "Conversion not found")
        submission = self.vendor.find(given[0])
        return attrs.evolve(context, upload=submission.upload, submission=submission)

    async def _by_id(self, context: FaultContext, _: web.Request) -> web.Response:
        assert context.submission is not None  # noqa: S101  _read_by_id put it there
        self.vendor.count_poll(context.submission)
        return web.json_response(self._describe(responses.by_id, context.submission))

    def _describe(
        self,
        write: Callable[
            [responses.ResponseShape, Submission, responses.Links, responses.Links], dict[str, Any]
        ],
        submission: Submission,
    ) -> dict[str, Any]:
        shape = self.shape(submission)
        if not submission.is_completed:
            return write(shape, submission, {}, {})
        mp3, wav = self.links(submission, ".mp3"), self.links(submission, ".wav")
        return write(shape, submission, mp3, wav)

    async def _read_by_user(self, context: FaultContext, request: web.Request) -> FaultContext:
        if "conversionType" in request.query:
            _check_type(request)
        return context

    async def _by_user(self, _: FaultContext, request: web.Request) -> web.Response:
        strict = self.listing == "strict"
        page, more = listing.page(self.vendor.submissions, request.query, strict=strict)
        conversions = [self._describe(responses.conversion, each) for each in page]
        content: dict[str, Any] = {"success": True, "conversions": conversions}
        if more:
            content["LastEvaluatedKey"] = page[-1].task_id
        return web.json_response(content)


def _has(request: web.Request, name: str) -> bool:
    return bool(request.query.get(name))


def _check_type(request: web.Request) -> None:
    kind = request.query.get("conversionType")
    if kind is None:
        raise invalid(["query", "conversionType"], "Field required", "missing")
    if kind.upper() not in CONVERSION_TYPES:
        expected = ", ".join(f"'{each}'" for each in CONVERSION_TYPES)
        raise invalid(["query", "conversionType"], f"Input should be {expected}", "enum")
