"""Which URL each call goes to, for every base URL that a user may set."""

from __future__ import annotations

import pytest

from musicgpt_async._rules.endpoints import DEFAULT_BASE_URL, Endpoints, base_url_of

FIRST = "https://api.musicgpt.com/api/public"
SECOND = "https://api.wav.com/api/public"


@pytest.mark.parametrize("root", [FIRST, SECOND])
@pytest.mark.parametrize(
    ("version", "submit", "status"),
    [
        ("/v1", "/v1/Extraction", "/v1/byId"),
        ("/v2", "/v2/Extraction", "/v1/byId"),
        ("", "/v2/Extraction", "/v1/byId"),
    ],
)
def test_a_base_may_end_in_v1_in_v2_or_in_no_version_on_either_host(
    root: str, version: str, submit: str, status: str
) -> None:
    """The submit goes to the version that the base says, or to 2; the status is always on 1."""
    endpoints = Endpoints.of(root + version)
    assert endpoints.submit == root + submit
    assert endpoints.status == root + status
    assert endpoints.listing == root + status.replace("byId", "byUser")


@pytest.mark.parametrize(
    ("base", "submit", "status"),
    [
        ("http://127.0.0.1:8000/v2", "http://127.0.0.1:8000/v2/Extraction", "/v1/byId"),
        ("https://proxy.example", "https://proxy.example/v2/Extraction", "/v1/byId"),
        ("https://h/gateway/v1/music/v2/", "https://h/gateway/v1/music/v2/Extraction", "/v1/byId"),
        ("https://h/api/v10", "https://h/api/v10/v2/Extraction", "/v1/byId"),
        ("https://v2", "https://v2/v2/Extraction", "/v1/byId"),
    ],
)
def test_any_host_and_path_prefix_will_do(base: str, submit: str, status: str) -> None:
    """Only the last part of the path is read as a version, behind a proxy's prefix too."""
    endpoints = Endpoints.of(base)
    assert endpoints.submit == submit
    root = base.rstrip("/") if base == "https://v2" else base.rstrip("/").removesuffix("/v2")
    assert endpoints.status == root + status


def test_the_default_is_the_first_generation() -> None:
    """Without settings the client calls the address of the first generation."""
    assert f"{FIRST}/v1" == DEFAULT_BASE_URL


@pytest.mark.parametrize(
    ("endpoint", "base"),
    [
        (f"{SECOND}/v1/Extraction", f"{SECOND}/v1"),
        (f"{SECOND}/v1/byId?conversionType=EXTRACTION", f"{SECOND}/v1"),
        ("/api/public/v1/Extraction", None),
        ("https://login.example/sign-in", None),
    ],
)
def test_the_base_url_of_an_endpoint(endpoint: str, base: str | None) -> None:
    """The base URL to set is derived from a redirect to an endpoint elsewhere."""
    assert base_url_of(endpoint) == base
