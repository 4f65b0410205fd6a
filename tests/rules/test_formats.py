"""The formats that are downloaded for each stem, and when a download is complete."""

from __future__ import annotations

from typing import Any

import pytest

from musicgpt_async._rules.formats import (
    check_format,
    describe_formats,
    is_downloaded,
    is_lacking,
    select_formats,
)
from musicgpt_async.errors import InvalidOptionError
from musicgpt_async.models import JobRecord, StemFile, StemLinks

LINKS = {
    "both": StemLinks(mp3="https://h/a.mp3", wav="https://h/a.wav"),
    "mp3": StemLinks(mp3="https://h/a.mp3"),
    "wav": StemLinks(wav="https://h/a.wav"),
    "none": StemLinks(),
}


@pytest.mark.parametrize(
    ("choice", "there", "selected", "lacking"),
    [
        ("best", "both", ("wav",), False),
        ("best", "mp3", ("mp3",), True),
        ("best", "wav", ("wav",), False),
        ("best", "none", (), True),
        ("both", "both", ("wav", "mp3"), False),
        ("both", "mp3", ("mp3",), True),
        ("both", "none", (), True),
        ("wav", "both", ("wav",), False),
        ("wav", "mp3", (), True),
        ("mp3", "both", ("mp3",), False),
        ("mp3", "mp3", ("mp3",), False),
        ("mp3", "wav", (), True),
    ],
)
def test_best_and_both_take_what_there_is_and_the_others_are_strict(
    choice: Any, there: str, selected: tuple[str, ...], lacking: bool
) -> None:
    """WAV before MP3, everything available, or exactly the requested format."""
    assert select_formats(LINKS[there], choice) == selected
    assert is_lacking(LINKS[there], choice) is lacking


@pytest.mark.parametrize("name", ["flac", "", "BEST", None, ["wav"], 3])
def test_a_format_that_does_not_exist_is_refused(name: Any) -> None:
    """The message names those that do."""
    with pytest.raises(InvalidOptionError, match="best, wav, mp3, both"):
        check_format(name)


@pytest.mark.parametrize(
    ("choice", "there", "files", "whole"),
    [
        (None, "both", ["wav"], True),
        ("best", "both", ["wav"], True),
        ("best", "both", ["mp3"], False),
        ("best", "mp3", ["mp3"], True),
        ("best", "mp3", ["wav"], True),
        ("best", "mp3", [], False),
        ("best", "none", [], False),
        ("both", "both", ["mp3", "wav"], True),
        ("both", "both", ["wav"], False),
        ("both", "mp3", ["mp3"], True),
        ("wav", "mp3", ["mp3"], False),
        ("wav", "both", ["wav"], True),
        ("mp3", "both", ["wav"], False),
        ("mp3", "both", ["mp3"], True),
    ],
)
def test_a_download_is_complete_with_all_requested_files(
    choice: Any, there: str, files: list[str], whole: bool
) -> None:
    """A late WAV in place of the MP3 is as good; a strict format that is not there is not."""
    record = JobRecord(
        id="j",
        fingerprint="f",
        source="a",
        format=choice,
        links={"drums": LINKS[there]},
        files=tuple(
            StemFile(stem="drums", format=each, path="p", size=1, sha256="") for each in files
        ),
    )
    assert is_downloaded(record) is whole


def test_downloads_are_described_by_their_formats() -> None:
    """The summary says whether it was the WAV or the MP3."""
    assert describe_formats({"a": ["mp3"], "b": ["mp3"]}) == "MP3"
    assert describe_formats({"a": ["mp3"], "b": ["wav"]}) == "WAV and MP3"
    assert describe_formats({}) == ""
