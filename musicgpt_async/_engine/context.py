"""Context: what the parts of a session share."""

from __future__ import annotations

from concurrent.futures import Executor

import attrs

from musicgpt_async._engine.jobs import Jobs
from musicgpt_async._engine.store import JobStore
from musicgpt_async._engine.supervision import Supervisor
from musicgpt_async._io.http import Transport
from musicgpt_async._rules.endpoints import Endpoints
from musicgpt_async.events import EventBus


@attrs.frozen(kw_only=True)
class Context:
    """What the parts of a session share.

    Attributes:
        endpoints: Where the API's calls go.
        stall_timeout: Seconds without MusicGPT taking a byte of an upload.
        http: The transport.
        executor: Where files are read and written.
        event_bus: Where events go.
        store: The jobs' way into the journal.
        jobs: The only writer of records.
        supervisor: Starts children.
    """

    endpoints: Endpoints
    stall_timeout: float
    http: Transport
    executor: Executor
    event_bus: EventBus
    store: JobStore
    jobs: Jobs
    supervisor: Supervisor
