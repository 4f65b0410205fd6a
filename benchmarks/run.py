"""Run all comparisons: with the machine's limit, other clients, and this library without parts.

    python benchmarks/run.py [--quick] [--rounds N] [--only NAME …] [--json FILE] [--pictures DIR]

Contenders run alternately, each in its own process on one core; the server is another process on
another core. Only ratios are meaningful. Nothing passes or fails: targets are printed beside the
results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import attrs
import bars
import batches
import downloading
import handles
import polling
import servers
import starting
import targets
import uploading
from contest import Table, cores


@attrs.frozen
class Run:
    """The settings of a run, and its parts as methods."""

    server: servers.Server
    quick: bool
    rounds: int

    def upload(self) -> Iterator[Table]:
        """Measure uploads, small and large."""
        for mib in (32,) if self.quick else (64, 1024):
            yield from uploading.tables(self.server, mib, self.rounds, uploading.PEERS)

    def download(self) -> Iterator[Table]:
        """Measure downloads, one large file and four at once."""
        for count, mib in ((4, 10),) if self.quick else ((1, 256), (4, 50)):
            names = downloading.PEERS
            yield from downloading.tables(self.server, mib, self.rounds, names, count=count)

    def poll(self) -> Iterator[Table]:
        """Measure the cost of a poll."""
        yield from polling.tables(
            self.server, 100 if self.quick else 1000, self.rounds, polling.PEERS
        )

    def handles(self) -> Iterator[Table]:
        """Measure many waiting handles."""
        yield from handles.tables(self.server, self.rounds, quick=self.quick)

    def start(self) -> Iterator[Table]:
        """Measure the import."""
        yield from starting.tables(2 * self.rounds)

    def batch(self) -> Iterator[Table]:
        """Measure a complete batch."""
        yield from batches.tables(self.rounds, batches.PEERS, quick=self.quick)

    def ablations(self) -> Iterator[Table]:
        """Measure what each part of the design contributes: the library without it."""
        upload, download = (32, 10) if self.quick else (512, 50)
        for table in itertools.chain(
            uploading.tables(self.server, upload, self.rounds, uploading.ABLATIONS),
            downloading.tables(self.server, download, self.rounds, downloading.ABLATIONS),
            batches.tables(self.rounds, batches.ABLATIONS, quick=self.quick),
        ):
            table.title = f"Ablations: {table.title}"
            yield table


PARTS: dict[str, Callable[[Run], Iterator[Table]]] = {
    "start": Run.start,
    "poll": Run.poll,
    "upload": Run.upload,
    "download": Run.download,
    "handles": Run.handles,
    "batch": Run.batch,
    "ablations": Run.ablations,
}


def machine() -> dict[str, str | int]:
    """Return a description of the machine and its software."""
    names = ("aiohttp", "httpx", "requests", "uvloop")
    versions = {name: metadata.version(name) for name in names}
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": len(cores() or (0,)),
        **versions,
    }


def main() -> None:
    """Run the selected parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds")
    parser.add_argument("--rounds", type=int, help="number of rounds per contender")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--pictures", type=Path, help="directory for charts, as SVG")
    arguments = parser.parse_args()
    tables: list[Table] = []
    both = cores()
    with servers.running(None if both is None else both[0]) as server:
        rounds = arguments.rounds or (3 if arguments.quick else 7)
        run = Run(server, arguments.quick, rounds)
        for part in arguments.only:
            for table in PARTS[part](run):
                table.print()
                tables.append(table)
    shown = targets.show(tables)
    if arguments.json is not None:
        figures = [table.as_json() for table in tables]
        document = {"machine": machine(), "tables": figures, "targets": shown}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if arguments.pictures is not None:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
        bars.draw(tables, arguments.pictures)


if __name__ == "__main__":
    main()
