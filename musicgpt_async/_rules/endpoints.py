"""The URL of each API call, derived from the base URL alone.

MusicGPT has two generations of one API (MusicGPT docs: Extraction, and the OpenAPI pages of August
2026). The first has the version in its base, ``https://api.musicgpt.com/api/public/v1``. The second
has it in the paths below ``https://api.wav.com/api/public``: the submit has a version 2, the status
call has none. A base may therefore end in ``/v1``, in ``/v2`` or in no version, on any host and
below any path prefix; the status call is on version 1 in all three cases.

==================  ========================  =================
the base ends in    submit                    status, listing
==================  ========================  =================
``/v1``             ``{base}/Extraction``     ``{base}/byId``
``/v2``             ``{base}/Extraction``     ``…/v1/byId``
no version          ``{base}/v2/Extraction``  ``{base}/v1/byId``
==================  ========================  =================
"""

from __future__ import annotations

import re
from typing import Self

import attrs

DEFAULT_BASE_URL = "https://api.musicgpt.com/api/public/v1"

_VERSION = re.compile(r"(?<=[^/])/(v[12])$")


@attrs.frozen
class Endpoints:
    """The URLs of the API calls.

    Attributes:
        submit: POST a track here.
        status: GET a conversion here, by its id.
        listing: GET the account's conversions here.
    """

    submit: str
    status: str
    listing: str

    @classmethod
    def of(cls, base_url: str) -> Self:
        """Return the endpoints below a base URL, with or without a version or a trailing slash."""
        base = base_url.rstrip("/")
        version = _VERSION.search(base)
        root = base[: version.start()] if version else base
        submit = base if version else f"{root}/v2"
        return cls(f"{submit}/Extraction", f"{root}/v1/byId", f"{root}/v1/byUser")


def base_url_of(endpoint: str) -> str | None:
    """Return the base URL of an endpoint, or ``None`` if the URL is not an API endpoint."""
    base, _, call = endpoint.partition("?")[0].rpartition("/")
    return base if call in ("Extraction", "byId", "byUser") and "://" in base else None
