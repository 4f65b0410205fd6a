"""An emulator of the MusicGPT API on a loopback port, for tests, demos and benchmarks.

```python
async with Emulator(seconds=0.2) as vendor:
    async with MusicGPTSession(vendor.api_key, base_url=vendor.base_url) as session:
        ...
    assert vendor.most_unfinished <= 10
```
"""

from musicgpt_async.emulator.catalogue import DEFAULT_STEMS, PREPROCESSING, STEM_GROUPS, STEMS
from musicgpt_async.emulator.emulator import Emulator
from musicgpt_async.emulator.faults import KINDS, Fault, FaultContext, FaultPlan
from musicgpt_async.emulator.request_log import LoggedRequest
from musicgpt_async.emulator.responses import ERROR_BODIES, SHAPES, ResponseShape
from musicgpt_async.emulator.vendor import Submission, Upload
from musicgpt_async.emulator.webhooks import BEHAVIOURS, DeliveryAttempt, WebhookDelivery

__all__ = [
    "BEHAVIOURS",
    "DEFAULT_STEMS",
    "ERROR_BODIES",
    "KINDS",
    "PREPROCESSING",
    "SHAPES",
    "STEMS",
    "STEM_GROUPS",
    "DeliveryAttempt",
    "Emulator",
    "Fault",
    "FaultContext",
    "FaultPlan",
    "LoggedRequest",
    "ResponseShape",
    "Submission",
    "Upload",
    "WebhookDelivery",
]
