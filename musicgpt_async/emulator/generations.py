"""The two generations of the API: their routes and the differences of their responses.

The first one has the version in its base URL, and MP3 and WAV results. The second one (August 2026)
has versions in its paths, MP3 results, `eco_mode`, and other error messages.
"""

from collections.abc import Mapping

import attrs

PATH = "/api/public"
"""The path of the API at its host."""


@attrs.frozen(kw_only=True)
class Generation:
    """One generation of the API.

    Attributes:
        base: Suffix of the documented base URL after the API's path.
        submits: Versions that have an Extraction route.
        wav: Whether its results have WAV files, according to its documentation.
        eco_mode: Whether it knows the field; an unknown field is ignored.
        wrong_key: Status and message for a key that is missing or wrong.
        invalid_options: Status for malformed `stems` or preprocessing options.
        checks_urls: Whether a submit with an `audio_url` that cannot be downloaded gets a 400.
        shape: Name of its response shape in `SHAPES`.
    """

    base: str
    submits: tuple[str, ...]
    wav: bool
    eco_mode: bool
    wrong_key: tuple[int, str]
    invalid_options: int
    checks_urls: bool
    shape: str


GENERATIONS: Mapping[int, Generation] = {
    1: Generation(
        base="/v1",
        submits=("v1",),
        wav=True,
        eco_mode=False,
        wrong_key=(401, "Invalid or missing API key"),
        invalid_options=422,
        checks_urls=False,
        shape="json",
    ),
    2: Generation(
        base="",
        submits=("v1", "v2"),
        wav=False,
        eco_mode=True,
        wrong_key=(403, "Forbidden, this may be due to incorrect API key"),
        invalid_options=400,
        checks_urls=True,
        shape="second",
    ),
}
"""The generations, by number."""
