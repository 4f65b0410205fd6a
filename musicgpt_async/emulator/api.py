"""The API host: the routes of a generation, each a request read, worked on and answered."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import attrs
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from musicgpt_async.emulator import answers, listing
from musicgpt_async.emulator.api_faults import API_FAULTS, Struck
from musicgpt_async.emulator.catalogue import CONVERSION_TYPES
from musicgpt_async.emulator.faults import Fault, Occasion, Script, Stage, Target
from musicgpt_async.emulator.generations import Generation
from musicgpt_async.emulator.jobs import Jobs
from musicgpt_async.emulator.uploads import Receiver
from musicgpt_async.emulator.vendor import Refusal, Submission, Vendor, invalid

ShapeOf = Callable[[Submission], answers.Shape]


@attrs.frozen
class Call:
    """An API call: how its request is read, and the work it asks for."""

    on: Target
    read: Callable[[Occasion, web.Request], Awaitable[Occasion]]
    work: Callable[[Occasion, web.Request], Awaitable[web.Response]]


@attrs.frozen
class Api:
    """Answers API calls out of the vendor's state, or as a fault would have it."""

    generation: Generation
    path: str
    vendor: Vendor
    script: Script
    jobs: Jobs
    receiver: Receiver
    shape: ShapeOf
    refusals: answers.Shape
    links: Callable[[Submission, str], answers.Links]
    lists: bool | Literal["strict"]
    retry_after: bool

    def routes(self) -> Sequence[web.RouteDef]:
        """The routes of the API host's application."""
        submit = Call("submit", self._read_submit, self._submit)
        by_id = Call("byId", self._read_by_id, self._by_id)
        by_user = Call("byUser", self._read_by_user, self._by_user)
        routes = [web.get(f"{self.path}/v1/byId", self._handler(by_id))]
        routes += [
            web.post(f"{self.path}/{version}/Extraction", self._handler(submit))
            for version in self.generation.submits
        ]
        if self.lists:
            routes.append(web.get(f"{self.path}/v1/byUser", self._handler(by_user)))
        return routes

    def _handler(self, call: Call) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                return await self._answer(call, request)
            except Refusal as refused:
                return answers.refusal(self.refusals, refused, retry_after=self.retry_after)

        return handle

    async def _answer(self, call: Call, request: web.Request) -> web.StreamResponse:
        if call.on == "byId":
            self.vendor.asked()
        occasion = Occasion(on=call.on, request=request)
        if fault := self.script.take(occasion, Stage.ARRIVAL):
            return await self._strike(fault, request)
        self.vendor.check_key(request.headers.get(hdrs.AUTHORIZATION))
        occasion = await call.read(occasion, request)
        if fault := self.script.take(occasion, Stage.INSTEAD):
            await self.receiver.discard(occasion.upload)
            return await self._strike(fault, request)
        answer = await call.work(occasion, request)
        if fault := self.script.take(occasion, Stage.ANSWER):
            return await self._strike(fault, request, answer)
        return answer

    async def _strike(
        self, fault: Fault, request: web.Request, answer: web.Response | None = None
    ) -> web.StreamResponse:
        struck = Struck(fault, request, self.vendor.clock, answer)
        return await API_FAULTS[fault.kind](struck)

    async def _read_submit(self, occasion: Occasion, request: web.Request) -> Occasion:
        upload = await self.receiver.receive(request)
        if self.generation.checks_urls:
            await self.jobs.sources.check(upload)
        duration = await self.jobs.studio.duration(upload.audio, upload.size)
        return attrs.evolve(occasion, upload=attrs.evolve(upload, duration=duration))

    async def _submit(self, occasion: Occasion, _: web.Request) -> web.Response:
        assert occasion.upload is not None  # noqa: S101  _read_submit put it there
        try:
            submission = self.vendor.accept(occasion.upload)
        except Refusal:
            await self.receiver.discard(occasion.upload)
            raise
        await self.jobs.start(submission)
        return web.json_response(answers.accepted(self.shape(submission), submission))

    async def _read_by_id(self, occasion: Occasion, request: web.Request) -> Occasion:
        self.vendor.admit_look()
        _check_type(request)
        given = [
            request.query[name] for name in ("task_id", "conversion_id") if _has(request, name)
        ]
        if len(given) != 1:
            raise invalid(["query"], "Provide either task_id or conversion_id, not both")
        if request.query["conversionType"].upper() != "EXTRACTION":
            raise Refusal(404, "Conversion not found")
        submission = self.vendor.find(given[0])
        return attrs.evolve(occasion, upload=submission.upload, submission=submission)

    async def _by_id(self, occasion: Occasion, _: web.Request) -> web.Response:
        assert occasion.submission is not None  # noqa: S101  _read_by_id put it there
        self.vendor.looked_at(occasion.submission)
        return web.json_response(self._tell(answers.by_id, occasion.submission))

    def _tell(
        self,
        write: Callable[[answers.Shape, Submission, answers.Links, answers.Links], dict[str, Any]],
        submission: Submission,
    ) -> dict[str, Any]:
        shape = self.shape(submission)
        if not submission.is_completed:
            return write(shape, submission, {}, {})
        mp3, wav = self.links(submission, ".mp3"), self.links(submission, ".wav")
        return write(shape, submission, mp3, wav)

    async def _read_by_user(self, occasion: Occasion, request: web.Request) -> Occasion:
        if "conversionType" in request.query:
            _check_type(request)
        return occasion

    async def _by_user(self, _: Occasion, request: web.Request) -> web.Response:
        strict = self.lists == "strict"
        page, more = listing.page(self.vendor.submissions, request.query, strict=strict)
        conversions = [self._tell(answers.conversion, each) for each in page]
        told: dict[str, Any] = {"success": True, "conversions": conversions}
        if more:
            told["LastEvaluatedKey"] = page[-1].task_id
        return web.json_response(told)


def _has(request: web.Request, name: str) -> bool:
    return bool(request.query.get(name))


def _check_type(request: web.Request) -> None:
    kind = request.query.get("conversionType")
    if kind is None:
        raise invalid(["query", "conversionType"], "Field required", "missing")
    if kind.upper() not in CONVERSION_TYPES:
        expected = ", ".join(f"'{each}'" for each in CONVERSION_TYPES)
        raise invalid(["query", "conversionType"], f"Input should be {expected}", "enum")
