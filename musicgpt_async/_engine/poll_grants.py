"""PollGrants: the polls that the processes of an account may make, granted one by one.

A grant is one UPDATE of one number in the account's row, the moment at which the next poll is due:
see :class:`~musicgpt_async._rules.rate_budget.Spacing`. The schedule of each session decides which
job is polled. What a session has learned of the budget is saved with the next grant, unless another
session has saved something since; then it loads that.
"""

from __future__ import annotations

import json
import logging
from collections import deque

import anyio
import attrs

from musicgpt_async._io.account_connection import AccountConnection
from musicgpt_async._io.account_table import AccountTable
from musicgpt_async._rules.rate_budget import Budget, Spacing
from musicgpt_async.errors import JournalError

_log = logging.getLogger(__name__)

RETRY_INTERVAL = 1.0  # seconds between tries to reach the database
RELOAD_INTERVAL = 0.02  # seconds before a grant that another session's lesson forestalled
GRANT_LIFETIME = 0.5  # seconds after which a poll that was granted may not be made any more
MEMORY_SECONDS = 60.0  # in which the polls of all sessions are counted


@attrs.frozen
class PollGrant:
    """Permission to make one poll.

    Attributes:
        early: The moment from which an urgent poll may be made, on the loop's clock.
        due: The moment from which any poll may be made.
    """

    early: float
    due: float

    def has_expired(self, now: float) -> bool:
        """Return whether the grant is too old: the poll could coincide with a later grant's."""
        return now > self.due + GRANT_LIFETIME


class PollGrants:
    """Asks for the polls of one session.

    Args:
        table: The account's row.
        connection: Where it is asked.
        budget: What the session knows of the account's budget.
    """

    def __init__(self, table: AccountTable, connection: AccountConnection, budget: Budget) -> None:
        self._table = table
        self._connection = connection
        self._budget = budget
        self._known = ""  # what the row says of the budget, as far as this session has read it
        self._made: deque[tuple[float, int]] = deque()
        self._throttled: float | None = None
        self._is_throttled = False

    def on_throttled(self, retry_after: float | None) -> None:
        """Let the other sessions learn from a 429 that this one's budget has learned from."""
        self._is_throttled, self._throttled = True, retry_after

    @property
    def held(self) -> float | None:
        """Polls that all sessions made in the last minute, as far as is known."""
        return None if len(self._made) < 2 else self._made[-1][1] - self._made[0][1]

    async def take(self) -> PollGrant | None:
        """Ask for a poll; None if the account pauses, or cannot be asked now."""
        try:
            return await self._take()
        except JournalError as error:
            _log.debug("No poll was granted: %s", error)
            await anyio.sleep(RETRY_INTERVAL)
            return None

    async def _take(self) -> PollGrant | None:
        learned, spacing = self._learned(), Spacing.of(self._budget.estimate)
        row = await self._table.grant_poll(
            self._connection.execute,
            known=self._known,
            learned=learned,
            interval=spacing.interval,
            burst=spacing.burst,
        )
        if row is None:
            await self._reload()
            return None
        self._known = learned
        self._made.append((row.now, row.polls_made))
        while len(self._made) > 2 and self._made[1][0] <= row.now - MEMORY_SECONDS:
            self._made.popleft()
        due = row.due - row.now + anyio.current_time()
        return PollGrant(due - spacing.burst, due)

    async def share(self) -> None:
        """Have all sessions pause, and learn, if one of this session's polls got a 429."""
        while self._is_throttled:
            try:
                await self._share_throttle()
            except JournalError as error:
                _log.debug("A refused poll was not recorded: %s", error)
                return

    async def _share_throttle(self) -> None:
        pause, learned = self._budget.paused_until - anyio.current_time(), self._learned()
        if await self._table.pause_polls(
            self._connection.execute, known=self._known, learned=learned, pause=pause
        ):
            self._known, self._is_throttled = learned, False
            return
        await self._reload()
        now = anyio.current_time()
        self._budget.on_throttled(now, self._throttled, held=self.held)

    async def _reload(self) -> None:
        row = await self._table.read_polls(self._connection.execute)
        if row is not None:
            self._known = row.polls
            paused_until = row.paused_until - row.now + anyio.current_time()
            self._budget.load(json.loads(row.polls), paused_until=paused_until)
        await anyio.sleep(RELOAD_INTERVAL)

    def _learned(self) -> str:
        return json.dumps(self._budget.dump())
