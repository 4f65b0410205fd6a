"""What the rooms of a session share."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any, Protocol

import attrs

from musicgpt_async._io.http import Transport
from musicgpt_async._rules.lifecycle import Change
from musicgpt_async._work.ledger import Ledger
from musicgpt_async._work.mailroom import Mailroom
from musicgpt_async.errors import MusicGPTError
from musicgpt_async.events import Feed
from musicgpt_async.job import ExtractionJob
from musicgpt_async.models import Extraction


class End(Protocol):
    """Ends a job, once: gives back its slot, closes its letterbox, tells whoever waits."""

    def __call__(
        self,
        job: ExtractionJob,
        change: Change,
        outcome: Extraction | MusicGPTError,
        **facts: Any,
    ) -> None:
        """End ``job`` by ``change`` in ``outcome``."""


@attrs.frozen(kw_only=True)
class Desk:
    """What the rooms of a session share.

    Attributes:
        base_url: The API's, without a trailing slash.
        http: The transport.
        executor: Where files are read and written.
        feed: Where events go.
        ledger: The jobs' way into the journal.
        mail: Webhooks on their way to jobs.
        end: Ends a job; the session does it, in one place.
    """

    base_url: str
    http: Transport
    executor: Executor
    feed: Feed
    ledger: Ledger
    mail: Mailroom
    end: End
