"""The shared in-process queue: what arrives at a door reaches the job that waits for it.

A letterbox is opened for a token before the job is submitted, so that a delivery finds its job even
when it comes before the submit's answer, and it is closed when nobody waits any more. Nothing here
knows HTTP or what a payload says.

A token is ``<public part>.<secret part>``. The letterbox is found by the public part; then the
whole token is compared in constant time, so that nothing can be learnt by measuring refusals.
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs

from musicgpt_async._rules.receiver_reliability import ReceiverReliability
from musicgpt_async.errors import ConfigurationError

KEPT_DELIVERIES = 256
KEPT_BYTES = 2 * 1024 * 1024
REMEMBERED_TOKENS = 4096

Payload = Mapping[str, Any]
Wake = Callable[[Payload], None]
Keep = Callable[[], Awaitable[None]]

_log = logging.getLogger(__name__)


@attrs.frozen(eq=False)
class _Letterbox:
    token: str = attrs.field(repr=False)
    wake: Wake = attrs.field(repr=False)
    keep: Keep | None = attrs.field(default=None, repr=False)
    thread: int = attrs.field(factory=threading.get_ident)


@attrs.frozen(eq=False)
class _Kept:
    token: str = attrs.field(repr=False)
    payload: Payload = attrs.field(repr=False)
    size: int


class Inbox:
    """Letterboxes by token, for all sessions of one event loop.

    A delivery for a genuine token whose letterbox is closed, or not open yet, is acknowledged, so
    that nobody sends it for ever, and kept for whoever opens that letterbox next: a job taken up
    after a restart may need it. The newest 256 such deliveries are kept, 2 MiB at most.

    Args:
        genuine: Tells whether a token that was never opened here is one of ours all the same.

    Attributes:
        reliability: How far deliveries can be relied on; the sessions' schedules teach it.
    """

    def __init__(self, genuine: Callable[[str], bool] = lambda _token: False) -> None:
        self._genuine = genuine
        self._letterboxes: dict[str, _Letterbox] = {}
        self._closed: dict[str, str] = {}
        self._kept: deque[_Kept] = deque()
        self._kept_bytes = 0
        self.reliability: ReceiverReliability = ReceiverReliability()

    def __len__(self) -> int:
        """Return how many letterboxes are open."""
        return len(self._letterboxes)

    def open(self, token: str, wake: Wake, keep: Keep | None = None) -> None:
        """Open the letterbox of a token; what was kept for it is handed over before this returns.

        Args:
            token: The job's own token.
            wake: Called with the payload of each delivery, from inside the door: it must return
                at once. What it raises is logged and goes no further.
            keep: Awaited by the door before it acknowledges a delivery.

        Raises:
            ConfigurationError: It is open already: two sessions follow one job.
        """
        public = _public_part(token)
        if public in self._letterboxes:
            raise ConfigurationError(
                "This job is being followed in this process already; "
                "close the session that follows it before another takes it up."
            )
        self._closed.pop(public, None)
        letterbox = self._letterboxes[public] = _Letterbox(token, wake, keep)
        for payload in self._take_kept(token):
            _hand_over(letterbox, payload)

    def close(self, token: str) -> None:
        """Close the letterbox of a token; harmless when it is not open."""
        public = _public_part(token)
        if self._letterboxes.pop(public, None) is None:
            return
        self._closed[public] = token
        if len(self._closed) > REMEMBERED_TOKENS:
            del self._closed[next(iter(self._closed))]

    def knows(self, token: str) -> bool:
        """Return whether a delivery for this token is taken: it is, or was, a job's own."""
        public = _public_part(token)
        if (letterbox := self._letterboxes.get(public)) is not None:
            return _same(letterbox.token, token)
        if (closed := self._closed.get(public)) is not None:
            return _same(closed, token)
        return self._genuine(token)

    def deliver(self, token: str, payload: Payload, *, size: int = 0) -> bool:
        """Hand a payload to the job that waits for it, or keep it.

        Args:
            token: As it came in.
            payload: What came with it.
            size: Bytes of the payload as it came in; bounds what is kept.

        Returns:
            False when there is no such letterbox and never was.
        """
        if not self.knows(token):
            return False
        letterbox = self._letterboxes.get(_public_part(token))
        if letterbox is None:
            self.reliability.arrived_late(token, now=time.monotonic())
            self._keep(_Kept(token, payload, size))
        else:
            _hand_over(letterbox, payload)
        return True

    async def kept(self, token: str) -> None:
        """Wait until whoever took the deliveries for a token has written down what they brought.

        Raises:
            MusicGPTError: It could not be written down.
        """
        letterbox = self._letterboxes.get(_public_part(token))
        if letterbox and letterbox.keep and letterbox.thread == threading.get_ident():
            await letterbox.keep()

    def _keep(self, delivery: _Kept) -> None:
        self._kept.append(delivery)
        self._kept_bytes += delivery.size
        while len(self._kept) > KEPT_DELIVERIES or self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= self._kept.popleft().size

    def _take_kept(self, token: str) -> list[Payload]:
        mine = [kept for kept in self._kept if _same(kept.token, token)]
        for kept in mine:
            self._kept.remove(kept)
            self._kept_bytes -= kept.size
        return [kept.payload for kept in mine]


def _hand_over(letterbox: _Letterbox, payload: Payload) -> None:
    if letterbox.thread != threading.get_ident():
        _log.error(
            "A webhook arrived in another thread than its session's, and was dropped; "
            "run the receiver's door in the event loop of the session."
        )
        return
    try:
        letterbox.wake(payload)
    except Exception as error:  # noqa: BLE001  # a job's trouble must not become the door's
        # The words of the error may hold what was delivered: only its kind and place are told.
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        kind, place = type(error).__name__, frame.f_code.co_qualname
        _log.error("A job did not take its webhook: %s in %s, line %d.", kind, place, line)


def _public_part(token: str) -> str:
    return token.partition(".")[0]


def _same(ours: str, theirs: str) -> bool:
    return hmac.compare_digest(ours.encode(), theirs.encode(errors="replace"))
