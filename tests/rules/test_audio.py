from __future__ import annotations

import io
import wave

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgpt_async._rules.audio import WAV_HEADER_SIZE, is_text, wav_size, why_not_audio


def real_wav(frames: int) -> bytes:
    """Write silence as Python writes it."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(2)
        out.setframerate(44100)
        out.writeframes(bytes(4 * frames))
    return file.getvalue()


@pytest.mark.parametrize(
    "head",
    [
        b"<html>",
        b"  \r\n\t<!DOCTYPE html>",
        b"\xef\xbb\xbf<?xml version='1.0'?>",
        b"<Error><Code>AccessDenied</Code></Error>",
        b'{"message": "expired"}',
        b' \n{"a": 1}',
        b"%PDF-1.7",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0\x00\x10JFIF",
        b"GIF89a",
        b"PK\x03\x04\x14",
        b"Rar!\x1a\x07\x00",
        b"7z\xbc\xaf\x27\x1c",
        b"\x1f\x8b\x08\x00",
    ],
)
def test_pages_messages_pictures_and_archives_are_not_audio(head: bytes) -> None:
    """Content types do not matter."""
    for content_type in ("audio/wav", "application/octet-stream", ""):
        assert why_not_audio(head, content_type)


@pytest.mark.parametrize(
    "content_type",
    ["text/html", "TEXT/HTML; charset=utf-8", "text/plain", "application/xml", "application/json"],
)
def test_what_the_host_calls_text_is_no_audio(content_type: str) -> None:
    """The host's own word is believed when it says so, and named."""
    why = why_not_audio(b"\xff\xfb\x90\x00", content_type)
    assert why
    assert content_type.partition(";")[0] in why


@pytest.mark.parametrize(
    "head",
    [
        real_wav(10),
        b"ID3\x04",
        b"\xff\xfb\x90\x00",
        b"\xff\xf3",
        b"fLaC",
        b"OggS",
        b"FORM",
        b"\x00\x00\x00\x20ftypM4A ",
        b"\x00" * 40,
    ],
)
@pytest.mark.parametrize(
    "content_type",
    ["audio/wav", "audio/mpeg", "binary/octet-stream", "application/octet-stream", ""],
)
def test_audio_is_let_through(head: bytes, content_type: str) -> None:
    """WAV, MP3 with and without tags, and what the host has no name for."""
    assert why_not_audio(head, content_type) is None


@pytest.mark.parametrize("frames", [0, 1, 1000])
def test_a_wav_says_how_long_it_is(frames: int) -> None:
    """The size in a real header is the size of the file."""
    data = real_wav(frames)
    assert wav_size(data) == wav_size(data[:WAV_HEADER_SIZE]) == len(data)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF])
def test_a_writer_that_could_not_seek_says_nothing(size: int) -> None:
    """A placeholder is not a size."""
    assert wav_size(b"RIFF" + size.to_bytes(4, "little") + b"WAVEfmt ") is None


@pytest.mark.parametrize(
    "head", [b"", b"RIFF", b"RIFF\x10\0\0\0WAV", b"RIFX\x10\0\0\0WAVE", b"\xff" * 20]
)
def test_what_is_no_wav_says_nothing(head: bytes) -> None:
    """Too short, another kind, another byte order."""
    assert wav_size(head) is None


@given(st.binary(max_size=40), st.text(max_size=40))
def test_any_bytes_are_judged(head: bytes, content_type: str) -> None:
    """No content and no type makes the judges fail."""
    assert why_not_audio(head, content_type) is None or why_not_audio(head, content_type)
    size = wav_size(head)
    assert size is None or size >= 8


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", True),
        (b"#EXTM3U\r\nsong.mp3\r\n", True),
        (b"", False),
        (b"\n\x00", False),
        (b"fLaC\x00\x00\x00\x22", False),
        (b"ID3\x04\x00\x00", False),
        (b"RIFF\x24\x08\x00\x00WAVEfmt ", False),
        (b"#!AMR\n\x0c\x14", False),
        (b"\xff\xfbPd", False),
    ],
)
def test_text_is_not_audio(head: bytes, *, expected: bool) -> None:
    """Placeholders and playlists are text; audio has other bytes at its beginning."""
    assert is_text(head) is expected
