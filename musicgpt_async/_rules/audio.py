"""Detect files that are not audio, and read the size that a WAV file declares."""

from __future__ import annotations

# "RIFF", the size of what follows, "WAVE": the first 12 bytes of a WAV file (Microsoft, 1991).
WAV_HEADER_SIZE = 12
# Signatures of files that are named like audio by mistake (garykessler.net/library/file_sigs.html).
_OTHER_FORMATS = {
    b"%PDF-": "a PDF",
    b"\x89PNG\r\n": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"PK\x03\x04": "an archive",
    b"Rar!\x1a": "an archive",
    b"7z\xbc\xaf": "an archive",
    b"\x1f\x8b\x08": "an archive",
}
HEAD_SIZE = 64  # bytes that are enough to decide
_TEXT_TYPES = ("text/", "application/xml", "application/json", "application/xhtml")


def why_not_audio(head: bytes, content_type: str) -> str | None:
    """Return why a file is not audio, or ``None`` if it may be audio.

    Args:
        head: The first bytes of the file.
        content_type: The ``Content-Type`` header; may be empty.
    """
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if start in (b"<", b"{"):
        return "it is a page or a message, not audio"
    for signature, name in _OTHER_FORMATS.items():
        if head.startswith(signature):
            return f"it is {name}, not audio"
    if content_type.lower().startswith(_TEXT_TYPES):
        return f"the host calls it {content_type.partition(';')[0]}, not audio"
    return None


def is_text(head: bytes) -> bool:
    """Return whether a file begins with a line of text: a playlist, or Git LFS's pointer.

    All audio formats have control characters or bytes above 127 there.
    """
    has_lines = b"\n" in head and head.isascii()
    return has_lines and head.translate(None, b"\t\r\n").decode().isprintable()


def wav_size(head: bytes) -> int | None:
    """Return the size in bytes that a WAV header declares, or ``None`` if it declares none."""
    if len(head) < WAV_HEADER_SIZE or head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    size = int.from_bytes(head[4:8], "little")
    return None if _is_unknown(size) else size + 8


def _is_unknown(size: int) -> bool:
    """Return whether a size is the placeholder of a writer that could not seek back.

    ffmpeg writes 0xFFFFFFFF, others 0, SoX 0x7FFFF000 plus its header (0x24 to 0x44 bytes).
    """
    return size in (0, 0xFFFFFFFF) or 0x7FFFF000 <= size <= 0x7FFFFFFF
