"""The MusicGPT vendor on a loopback port: for tests, demonstrations and benchmarks.

```python
async with Emulator(seconds=0.2) as vendor:
    async with MusicGPTSession(vendor.api_key, base_url=vendor.base_url) as session:
        ...
    assert vendor.most_unfinished <= 10
```
"""

from musicgpt_async.emulator.answers import ERROR_BODIES, SHAPES, Shape
from musicgpt_async.emulator.catalogue import DEFAULT_STEMS, FAMILIES, PREPROCESSING, STEMS
from musicgpt_async.emulator.emulator import Emulator
from musicgpt_async.emulator.faults import KINDS, Fault, Occasion, Script
from musicgpt_async.emulator.log import Exchange
from musicgpt_async.emulator.vendor import Submission, Upload
from musicgpt_async.emulator.webhooks import BEHAVIOURS, Delivered, Delivery

__all__ = [
    "BEHAVIOURS",
    "DEFAULT_STEMS",
    "ERROR_BODIES",
    "FAMILIES",
    "KINDS",
    "PREPROCESSING",
    "SHAPES",
    "STEMS",
    "Delivered",
    "Delivery",
    "Emulator",
    "Exchange",
    "Fault",
    "Occasion",
    "Script",
    "Shape",
    "Submission",
    "Upload",
]
