"""Raw servers in a process of their own, so that what is measured is the client.

Every POST is read to its end, thrown away and accepted; byId always says that the job is still
processing; /files/ serves audio of any size from memory. One port is in clear, one is over TLS with
a certificate that is made at the start.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import trustme

BLOCK = 1 << 20
BASE = "/api/public/v1"


@attrs.frozen
class Server:
    """A server that runs: where it listens, and the authority to trust."""

    pid: int
    clear: str
    tls: str
    ca: str

    def root(self, *, tls: bool) -> str:
        """Return the root in clear or over TLS."""
        return self.tls if tls else self.clear


def issue_certificate(directory: Path) -> tuple[Path, Path]:
    """Return the files of a new authority's certificate, and of a key and a chain by it."""
    authority = trustme.CA()
    ca, certificate = directory / "ca.pem", directory / "server.pem"
    authority.cert_pem.write_to_path(str(ca))
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(str(certificate))
    return ca, certificate


def trust(ca: str | Path) -> dict[str, str]:
    """Return the environment in which clients trust an authority."""
    return {"SSL_CERT_FILE": str(ca), "REQUESTS_CA_BUNDLE": str(ca)}


@contextmanager
def running(core: int | None = None) -> Iterator[Server]:
    """Run the server in a process of its own, on a core of its own where that is possible."""
    with tempfile.TemporaryDirectory(prefix="bench-tls-") as directory:
        ca, certificate = issue_certificate(Path(directory))
        arguments = [sys.executable, __file__, str(certificate), "" if core is None else str(core)]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            ports = json.loads(process.stdout.readline())
            try:
                yield Server(
                    process.pid,
                    f"http://127.0.0.1:{ports[0]}",
                    f"https://127.0.0.1:{ports[1]}",
                    str(ca),
                )
            finally:
                process.terminate()


class _Connection:
    """One connection, served by one thread."""

    def __init__(self, raw: socket.socket) -> None:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = raw
        self._buffer = bytearray(BLOCK)

    def serve(self) -> None:
        """Respond to requests until the client disconnects."""
        rest = b""
        while (found := self._head(rest)) is not None:
            head, rest = found
            line, *lines = head.decode("latin-1").split("\r\n")
            headers = dict(each.lower().split(": ", 1) for each in lines)
            method, path, _ = line.split(" ", 2)
            if method == "POST":
                self._discard(headers, rest)
                rest = b""
                self._respond(_accepted())
            elif path.startswith("/files/"):
                self._file(int(path[7:].split(".")[0].split("-")[0]), headers.get("range", ""))
            else:
                self._respond(_unfinished(path))

    def _head(self, rest: bytes) -> tuple[bytes, bytes] | None:
        while b"\r\n\r\n" not in rest:
            more = self._socket.recv(65536)
            if not more:
                return None
            rest += more
        head, _, rest = rest.partition(b"\r\n\r\n")
        return head, rest

    def _discard(self, headers: dict[str, str], rest: bytes) -> None:
        if "expect" in headers:
            self._socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "content-length" in headers:
            left = int(headers["content-length"]) - len(rest)
            while left > 0:
                left -= self._receive(min(left, BLOCK))
            return
        end = b"\r\n0\r\n\r\n"  # the empty chunk that is the last
        tail = rest[-len(end) :]
        while tail != end:
            count = self._receive(BLOCK)
            tail = (tail + bytes(self._buffer[max(0, count - len(end)) : count]))[-len(end) :]

    def _receive(self, most: int) -> int:
        count = self._socket.recv_into(self._buffer, most)
        if not count:
            raise ConnectionResetError
        return count

    def _respond(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._socket.sendall(head % len(body) + body)

    def _file(self, size: int, wanted: str) -> None:
        first, last = 0, size - 1
        if wanted.startswith("bytes="):
            begin, _, end = wanted[6:].partition("-")
            first, last = int(begin or 0), int(end or last)
        status = "206 Partial Content" if wanted else "200 OK"
        lines = [
            f"HTTP/1.1 {status}",
            "Content-Type: audio/wav",
            f"Content-Length: {last + 1 - first}",
            f'ETag: "{size}"',
            "Accept-Ranges: bytes",
        ]
        if wanted:
            lines.append(f"Content-Range: bytes {first}-{last}/{size}")
        self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        head = wav_head(size)[first : last + 1]
        self._socket.sendall(head)
        self._zeros(last + 1 - first - len(head))

    def _zeros(self, left: int) -> None:
        if isinstance(self._socket, ssl.SSLSocket):
            while left > 0:
                self._socket.sendall(_ZEROS[: min(left, BLOCK)])
                left -= min(left, BLOCK)
        while left > 0:
            left -= os.sendfile(self._socket.fileno(), _FILE, 0, min(left, BLOCK))


_ZEROS = memoryview(bytes(BLOCK))
_FILE = -1


def wav_head(size: int) -> bytes:
    """Return the head of a WAV file of so many bytes."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 2, 44100, 176400, 4, 16)
    return (
        struct.pack("<4sI4s", b"RIFF", size - 8, b"WAVE")
        + form
        + struct.pack("<4sI", b"data", size - 44)
    )


def _accepted() -> bytes:
    response = {
        "success": True,
        "message": "Message published to queue",
        "task_id": str(uuid.uuid4()),
        "conversion_id": str(uuid.uuid4()),
        "eta": 3600,
        "credit_estimate": 2.5,
    }
    return json.dumps(response).encode()


def _unfinished(path: str) -> bytes:
    conversion = {
        "task_id": path.rpartition("task_id=")[2],
        "conversion_id": "0191c0de-0000-7000-8000-000000000000",
        "status": "IN_PROGRESS",
        "status_msg": "",
        "audio_url": "",
        "conversion_cost": 0,
        "createdAt": "2026-01-01T00:00:00Z",
        "updatedAt": "2026-01-01T00:00:00Z",
    }
    return json.dumps({"success": True, "conversion": conversion}).encode()


def _accept(listener: socket.socket, context: ssl.SSLContext | None) -> None:
    while True:
        raw, _ = listener.accept()
        threading.Thread(target=_serve, args=(raw, context), daemon=True).start()


def _serve(raw: socket.socket, context: ssl.SSLContext | None) -> None:
    try:
        if context is not None:
            raw = context.wrap_socket(raw, server_side=True)
        with raw:
            _Connection(raw).serve()
    except OSError:  # the client disconnected
        raw.close()


def main(certificate: str, core: str) -> None:
    """Serve until standard input closes."""
    global _FILE  # noqa: PLW0603 - one file for all connections
    if core:
        os.sched_setaffinity(0, {int(core)})
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with tempfile.TemporaryFile() as file:
        file.write(_ZEROS)
        file.flush()
        _FILE = file.fileno()
        ports = []
        for kind in (None, context):
            listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
            ports.append(listener.getsockname()[1])
            threading.Thread(target=_accept, args=(listener, kind), daemon=True).start()
        sys.stdout.write(json.dumps(ports) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
