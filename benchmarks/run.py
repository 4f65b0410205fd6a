"""Every comparison in one run: against the machine's limit and against other clients.

    python benchmarks/run.py [--quick] [--rounds N] [--only NAME …] [--json FILE] [--plots DIR]

Clients take turns, each in a process of its own on one core; the server is another process on
another core. Only ratios count, and nothing passes or fails: targets are shown beside the figures.
A table that takes long gets fewer rounds than the others, so that all of it ends within 20 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import attrs
import batches
import downloading
import handles
import plots
import polling
import scale
import servers
import starting
import targets
import uploading
from comparison import Table, cores

PEERS = ("aiohttp", "httpx2", "niquests", "pyreqwest", "requests", "uvloop", "fal-client")


@attrs.frozen
class Run:
    """How much is to be measured."""

    server: servers.Server
    quick: bool
    rounds: int

    def batch(self) -> Iterator[Table]:
        """Batches of large tracks, in clear."""
        yield from batches.tables(self.rounds, batches.LARGE, tls=False, quick=self.quick)

    def batch_tls(self) -> Iterator[Table]:
        """Batches of large tracks over TLS, as MusicGPT has it."""
        yield from batches.tables(self.rounds, batches.LARGE, tls=True, quick=self.quick)

    def small_tracks(self) -> Iterator[Table]:
        """What a track costs whatever its size."""
        yield from batches.small_tables(self.rounds, quick=self.quick)

    def uplink(self) -> Iterator[Table]:
        """Uploads that run ahead of their slots."""
        yield from batches.uplink_tables(self.rounds, quick=self.quick)

    def upload(self) -> Iterator[Table]:
        """One large upload over TLS."""
        yield from uploading.tables(self.server, 32 if self.quick else 512, self.rounds)

    def download(self) -> Iterator[Table]:
        """Four downloads at once over TLS."""
        yield from downloading.tables(self.server, 10 if self.quick else 50, self.rounds)

    def poll(self) -> Iterator[Table]:
        """The cost of a poll."""
        yield from polling.tables(self.server, 100 if self.quick else 1000, self.rounds)

    def handles(self) -> Iterator[Table]:
        """Many waiting handles."""
        yield from handles.tables(self.server, self.rounds, quick=self.quick)

    def scale(self) -> Iterator[Table]:
        """Large journals and long lists."""
        yield from scale.tables(self.rounds, quick=self.quick)

    def start(self) -> Iterator[Table]:
        """Imports."""
        yield from starting.tables(self.rounds)


PARTS: dict[str, Callable[[Run], Iterator[Table]]] = {
    "start": Run.start,
    "small-tracks": Run.small_tracks,
    "batch": Run.batch,
    "batch-tls": Run.batch_tls,
    "uplink": Run.uplink,
    "upload": Run.upload,
    "download": Run.download,
    "poll": Run.poll,
    "handles": Run.handles,
    "scale": Run.scale,
}
# The columns that are plotted, by the beginning of a table's title; the first one for the others.
PLOTTED = {
    "Batch of": ("wall s", "CPU s"),
    "Upload": ("MiB/s", "CPU s/GiB"),
    "Download": ("MiB/s", "CPU s/GiB"),
}


def describe_machine() -> dict[str, object]:
    """Return what the figures were taken on."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        **{name: _find_version(name) for name in ("musicgpt-async", *PEERS)},
    }


def _find_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def plot(name: str, tables: list[Table], directory: Path) -> None:
    """Plot a part's tables: the file has the name of the part, and a number if there are more."""
    for number, table in enumerate(tables):
        columns = next((c for title, c in PLOTTED.items() if table.title.startswith(title)), ())
        ending = f"-{number + 1}" if len(tables) > 1 else ""
        plots.plot_table(table, directory / f"{name}{ending}.svg", columns)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=re.split(r"\n\n", __doc__)[0])
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds")
    parser.add_argument("--rounds", type=int, help="how often each client has a turn")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", type=Path, help="where to write every figure")
    parser.add_argument("--plots", type=Path, help="a directory to plot into")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    machine, started = describe_machine(), time.monotonic()
    measured: dict[str, list[Table]] = {}
    failures: dict[str, str] = {}
    both = cores()
    with servers.running(None if both is None else both[0]) as server:
        run = Run(server, arguments.quick, rounds)
        for part in arguments.only:
            try:
                for table in PARTS[part](run):
                    table.print()
                    measured.setdefault(part, []).append(table)
            except Exception as error:  # noqa: BLE001 - the other parts are measured all the same
                failures[part] = repr(error)
                print(f"\n{part} failed: {error!r}")
            if arguments.plots is not None and part in measured:
                plot(part, measured[part], arguments.plots)
    shown = targets.show([table for tables in measured.values() for table in tables])
    print(f"\n{time.monotonic() - started:.0f} s")
    if arguments.json is not None:
        figures = {part: [each.as_json() for each in tables] for part, tables in measured.items()}
        document = {"machine": machine, "tables": figures, "targets": shown, "failed": failures}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if failures:
        sys.exit(f"failed: {', '.join(failures)}")


if __name__ == "__main__":
    main()
