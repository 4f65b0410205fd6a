"""Settings: the checked options of a session."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import attrs

from musicgpt_async._io.http import Transport
from musicgpt_async._rules.credit import CreditBudget
from musicgpt_async._rules.slots import Slots
from musicgpt_async.events import EventBus
from musicgpt_async.journal import Journal
from musicgpt_async.webhooks import WebhookReceiver


@attrs.frozen(kw_only=True)
class RuntimeSettings:
    """The checked options of a session.

    Attributes:
        base_url: The API's, without a trailing slash.
        account: A digest of the key and the base URL.
        on_loopback: Whether that is on this machine.
        http: The transport.
        executor: Where files are read and written.
        event_bus: Where events go.
        slots: How many jobs may be unfinished at MusicGPT.
        credit: How much may be spent.
        polls_per_minute: The account's, ``None`` to learn it.
        journal: The durable record.
        webhooks: Gets webhooks.
        deadline: Seconds from acceptance in which a job has to finish.
        request_timeout: Seconds without a byte after which a call is given up.
        stall_timeout: Seconds without MusicGPT taking a byte of an upload.
        layout: Names of the files in a directory.
    """

    base_url: str
    account: str
    on_loopback: bool
    http: Transport
    executor: ThreadPoolExecutor
    event_bus: EventBus
    slots: Slots
    credit: CreditBudget
    polls_per_minute: float | None
    journal: Journal | None
    webhooks: WebhookReceiver | None
    deadline: float | None
    request_timeout: float
    stall_timeout: float
    layout: str
