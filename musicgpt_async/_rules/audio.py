"""Whether what came down is audio, and whole, as far as its bytes tell."""

from __future__ import annotations

# "RIFF", the size of what follows, "WAVE": the first 12 bytes of a WAV file (Microsoft, 1991).
WAV_HEADER = 12
# Writers that cannot seek back leave one of these as the size.
_UNTOLD_SIZES = frozenset({0, 0xFFFFFFFF, 0x7FFFFFFF})
_TEXT_TYPES = ("text/", "application/xml", "application/json", "application/xhtml")


def refusal(head: bytes, content_type: str) -> str | None:
    """Return why the start of a file shows that it is no audio, or ``None``."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if start in (b"<", b"{"):
        return "it is a page or a message, not audio"
    if content_type.lower().startswith(_TEXT_TYPES):
        return f"the host calls it {content_type.partition(';')[0]}, not audio"
    return None


def wav_size(head: bytes) -> int | None:
    """Return the bytes that a WAV file says it has, ``None`` where it says nothing."""
    if len(head) < WAV_HEADER or head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    size = int.from_bytes(head[4:8], "little")
    return None if size in _UNTOLD_SIZES else size + 8
