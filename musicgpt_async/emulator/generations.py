"""The two generations of the vendor's API: their routes, and what they answer differently.

The first has the version in its base URL and results as MP3 and WAV. The second (August 2026) has
versions in its paths, MP3 results, `eco_mode`, and words of its own for refusals.
"""

from collections.abc import Mapping

import attrs

PATH = "/api/public"
"""Where the vendor's API lies below its host."""


@attrs.frozen(kw_only=True)
class Generation:
    """One generation.

    Attributes:
        base: what follows the API's path in the base URL that its documents name.
        submits: the versions that have an Extraction route.
        wav: whether its results have WAV files, as far as its documents tell.
        eco_mode: whether it knows the field; an unknown field is ignored.
        wrong_key: status and words for a key that is missing or wrong.
        invalid_options: status for `stems` or preprocessing options that cannot be read.
        checks_urls: whether a submit whose `audio_url` cannot be fetched is refused with a 400.
        shape: the name of its shape in `SHAPES`.
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
