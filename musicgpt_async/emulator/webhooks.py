"""Webhook deliveries: MusicGPT's payloads, and faulty deliveries."""

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import attrs

from musicgpt_async.emulator import responses
from musicgpt_async.emulator.clock import Clock
from musicgpt_async.emulator.faults import Fault, FaultContext, FaultPlan, Stage
from musicgpt_async.emulator.tasks import TaskSet
from musicgpt_async.emulator.vendor import COMPLETED, Submission

Payload = Literal["extraction", "general", "status"]
Moment = Literal["finished", "before_answer", "processing"]

RETRIES = (1.0, 2.0, 4.0)
"""Emulated seconds before each new attempt of a delivery that was not acknowledged by a 2xx."""

TIMEOUT = aiohttp.ClientTimeout(total=10)


@attrs.frozen(kw_only=True)
class WebhookDelivery:
    """A planned delivery.

    Args:
        moment: "finished": after the end of the conversion; "before_answer": after its end and
            before the response to the submit; "processing": while byId reports it unfinished.
        delay: Emulated seconds to wait after that moment.
        payload: Shape of the body, a name in `PAYLOADS`; None for the emulator's setting.
        forged: Whether to change the last path segment of the URL, and send broken links.
        other_task: Whether to send the id of another task, and broken links.
        garbled: Whether to send a body that is not JSON.
        wav: Whether to send the links to the WAV files, if there are any.
    """

    moment: Moment = "finished"
    delay: float = 0.0
    payload: Payload | None = None
    forged: bool = False
    other_task: bool = False
    garbled: bool = False
    wav: bool = True


BEHAVIOURS: Mapping[str, tuple[WebhookDelivery, ...]] = {
    "normal": (WebhookDelivery(),),
    "before_answer": (WebhookDelivery(moment="before_answer"),),
    "early": (WebhookDelivery(moment="processing"),),
    "twice": (WebhookDelivery(), WebhookDelivery()),
    "late": (WebhookDelivery(delay=5.0),),
    "lost": (),
    "garbled": (WebhookDelivery(garbled=True),),
    "forged": (WebhookDelivery(forged=True),),
    "other_task": (WebhookDelivery(other_task=True),),
}
"""Behaviours by name; they can be combined: `webhooks=("forged", "early", "normal")`."""

Behaviour = str | WebhookDelivery | Sequence["str | WebhookDelivery"]
"""A name in `BEHAVIOURS`, a `WebhookDelivery`, or several of them, each of which is sent."""

Webhooks = Behaviour | Callable[[Submission], Behaviour]
"""The behaviour of deliveries, for all submissions or as a function of each."""


@attrs.define(eq=False)
class DeliveryAttempt:
    """One attempt of a delivery, and its result: a status or an error.

    Attributes:
        task_id: Id of the conversion's task.
        url: URL to which it was sent.
        delivery: The planned delivery.
        attempt: Number of the attempt, starting at 1.
        started: Start time, by `time.monotonic()`.
        ended: End time, by `time.monotonic()`, or None while it is running.
        status: Status of the receiver's response, or None without one.
        error: The error, if there was no response.
    """

    task_id: str
    url: str
    delivery: WebhookDelivery
    attempt: int
    started: float
    ended: float | None = None
    status: int | None = None
    error: str | None = None

    @property
    def is_taken(self) -> bool:
        """Whether the receiver responded with a 2xx."""
        return self.status is not None and 200 <= self.status < 300


def deliveries(behaviour: Behaviour) -> tuple[WebhookDelivery, ...]:
    """Return the deliveries of a behaviour or of several."""
    if isinstance(behaviour, WebhookDelivery):
        return (behaviour,)
    if isinstance(behaviour, str):
        if behaviour not in BEHAVIOURS:
            raise ValueError(
                f"unknown behaviour {behaviour!r}; choose one of: {', '.join(BEHAVIOURS)}"
            )
        return BEHAVIOURS[behaviour]
    return tuple(each for one in behaviour for each in deliveries(one))


def _extraction(
    submission: Submission, mp3: responses.Links, wav: responses.Links
) -> dict[str, Any]:
    """Build the sample of the Extraction page: links as JSON strings, cost as a string."""
    content: dict[str, Any] = {
        "success": True,
        "conversion_type": "Extraction",
        "task_id": submission.task_id,
        "conversion_id": submission.conversion_id,
    }
    if submission.is_finished and not submission.is_completed:
        return content | {"success": False, "message": submission.status_msg}
    return content | {
        "audio_url": responses.format_links(mp3),
        **({"audio_url_wav": responses.format_links(wav)} if wav else {}),
        "conversion_cost": str(submission.cost or submission.credit_estimate),
        "conversion_duration": submission.duration or 0.0,
    }


def _general(submission: Submission, mp3: responses.Links, wav: responses.Links) -> dict[str, Any]:
    """Build the sample of the general page: a status, one plain URL, cost as a number."""
    failed = submission.is_finished and not submission.is_completed
    return {
        "success": not failed,
        "conversion_type": "EXTRACTION",
        "task_id": submission.task_id,
        "conversion_id": submission.conversion_id,
        "status": submission.status if failed else COMPLETED,
        "status_msg": submission.status_msg,
        "audio_url": None if failed else next(iter(mp3.values())),
        **({"audio_url_wav": None if failed else next(iter(wav.values()))} if wav else {}),
        "conversion_cost": submission.cost or 0.0,
        "createdAt": responses.date(submission.created_at),
        "updatedAt": responses.date(submission.updated_at),
    }


def _status(submission: Submission, mp3: responses.Links, wav: responses.Links) -> dict[str, Any]:
    """Build the general sample without `success`: only the status reports the result."""
    content = _general(submission, mp3, wav)
    del content["success"]
    return content


PAYLOADS: Mapping[str, Callable[[Submission, responses.Links, responses.Links], dict[str, Any]]] = {
    "extraction": _extraction,
    "general": _general,
    "status": _status,
}
"""The documented payloads, by name."""


@attrs.define(eq=False)
class WebhookSender:
    """Sender of deliveries, which retries them and records each attempt."""

    client: aiohttp.ClientSession
    clock: Clock
    tasks: TaskSet
    fault_plan: FaultPlan
    behaviour: Webhooks
    payload: Payload
    links: Callable[[Submission, str], responses.Links]
    record: list[DeliveryAttempt]

    def plan(self, submission: Submission) -> tuple[WebhookDelivery, ...]:
        """Return the planned deliveries of a conversion."""
        if submission.webhook_url is None:
            return ()
        context = FaultContext(on="webhook", upload=submission.upload, submission=submission)
        fault = self.fault_plan.take(context, Stage.ANSWER)
        if fault is not None:
            return _plan_fault(fault)
        behaviour = self.behaviour(submission) if callable(self.behaviour) else self.behaviour
        return deliveries(behaviour)

    async def send(
        self, submission: Submission, plan: Sequence[WebhookDelivery], moment: Moment
    ) -> None:
        """Start the deliveries of this moment; return after the first attempt of each."""
        due = [delivery for delivery in plan if delivery.moment == moment]
        tried = [asyncio.Event() for _ in due]
        for delivery, event in zip(due, tried, strict=True):
            self.tasks.start(self._deliver(submission, delivery, event))
        for event in tried:
            await event.wait()

    async def _deliver(
        self, submission: Submission, delivery: WebhookDelivery, tried: asyncio.Event
    ) -> None:
        await self.clock.sleep(delivery.delay)
        url, body = self._build_request(submission, delivery)
        for attempt, pause in enumerate((*RETRIES, None), start=1):
            record = DeliveryAttempt(
                task_id=submission.task_id,
                url=url,
                delivery=delivery,
                attempt=attempt,
                started=time.monotonic(),
            )
            self.record.append(record)
            await self._try(record, body)
            tried.set()
            if record.is_taken or pause is None:
                return
            await self.clock.sleep(pause)

    def _build_request(
        self, submission: Submission, delivery: WebhookDelivery
    ) -> tuple[str, bytes]:
        url = submission.webhook_url or ""
        if delivery.forged:
            url = _tampered_url(url)
        if delivery.garbled:
            return url, b'{"success": true, "task_id": '
        mp3 = self.links(submission, ".mp3")
        wav = self.links(submission, ".wav") if delivery.wav else {}
        if delivery.forged or delivery.other_task:
            mp3, wav = _broken_links(mp3), _broken_links(wav)
        content = PAYLOADS[delivery.payload or self.payload](submission, mp3, wav)
        if delivery.other_task:
            content |= {"task_id": str(uuid.uuid4()), "conversion_id": str(uuid.uuid4())}
        return url, json.dumps(content).encode()

    async def _try(self, record: DeliveryAttempt, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        try:
            async with self.client.post(
                record.url, data=body, headers=headers, allow_redirects=False, timeout=TIMEOUT
            ) as answer:
                record.status = answer.status
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            record.error = f"{type(error).__name__}: {error}"
        finally:
            record.ended = time.monotonic()


def _plan_fault(fault: Fault) -> tuple[WebhookDelivery, ...]:
    planned = BEHAVIOURS[fault.kind]
    if fault.kind == "late":
        return tuple(attrs.evolve(delivery, delay=fault.seconds) for delivery in planned)
    return planned


def _tampered_url(url: str) -> str:
    """Return the URL with another last path segment of the same length."""
    parts = urlsplit(url)
    head, slash, last = parts.path.rpartition("/")
    altered = "".join("b" if char == "a" else "a" for char in last) or "a"
    return urlunsplit(parts._replace(path=head + (slash or "/") + altered))


def _broken_links(links: responses.Links) -> responses.Links:
    return {stem: url.replace("/files/", "/files/nowhere-") for stem, url in links.items()}
