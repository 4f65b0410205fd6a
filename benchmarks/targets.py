"""Compare measured figures with their targets; figures that were not measured are omitted."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import attrs
from contest import OURS, Table


@attrs.frozen
class Line:
    """One figure and its target."""

    what: str
    figure: float
    bound: float
    least: bool

    @property
    def holds(self) -> bool:
        """Whether the figure meets its target."""
        return self.figure >= self.bound if self.least else self.figure <= self.bound


def show(tables: Sequence[Table]) -> list[dict[str, object]]:
    """Print all figures with their targets."""
    lines = [line for table in tables for line in lines_of(table)]
    print("\nWhat should hold (medians; of ratios, those of the same round)")
    for line in lines:
        verdict = "ok    " if line.holds else "missed"
        words = "at least" if line.least else "at most"
        print(f"  {verdict} {line.what}: {line.figure:.2f} ({words} {line.bound:g})")
    print(f"  {sum(line.holds for line in lines)} of {len(lines)} hold")
    return [{**attrs.asdict(line), "holds": line.holds} for line in lines]


def lines_of(table: Table) -> Iterator[Line]:
    """Yield the targets of a table."""
    if OURS not in table.rounds:
        return
    if table.title.startswith("Upload"):
        yield from _of_uploads(table)
    elif table.title.startswith("Download"):
        yield from _of_downloads(table)
    elif table.title.startswith("A poll"):
        yield from _ratios(table, "CPU us/poll", {"aiohttp GET": 1.15}, least=False)
    elif "waiting handles" in table.title:
        yield _own(table, "bytes/handle", 2048)
        if "pro plan" in table.title:
            yield _own(table, "loop held ms", 20)
    elif table.title.startswith("Import"):
        yield from _ratios(table, "CPU ms", {"bare dependencies": 1.1}, least=False)
    elif table.title.startswith("A batch"):
        yield from _of_batches(table)


def _of_uploads(table: Table) -> Iterator[Line]:
    yield from _ratios(table, "MiB/s", {"bare": 0.95}, least=True)
    yield from _ratios(table, "CPU s/GiB", {"bare": 1.1}, least=False)
    yield _own(table, "added MiB", 16)


def _of_downloads(table: Table) -> Iterator[Line]:
    curl = 0.9 if "TLS" in table.title else 0.75
    behind = ("aria2c", "requests, threads", "httpx async")
    yield from _ratios(table, "MiB/s", {"curl": curl} | dict.fromkeys(behind, 1.0), least=True)
    yield _own(table, "added MiB", 16)


def _of_batches(table: Table) -> Iterator[Line]:
    peers = dict.fromkeys(("requests, threads", "aiohttp gather"), 1 / 1.5)
    yield from _ratios(table, "wall s", {"bound": 1.35} | peers, least=False)
    yield from _ratios(table, "CPU s", dict.fromkeys(peers, 0.65), least=False)
    yield from _ratios(table, "added MiB", {"aiohttp gather": 1.0}, least=False)


def _ratios(table: Table, column: str, over: dict[str, float], *, least: bool) -> Iterator[Line]:
    for name, bound in over.items():
        if name in table.rounds:
            what = f"{table.title}: {column} over that of {name}"
            yield Line(what, table.ratio(column, name).median, bound, least)


def _own(table: Table, column: str, bound: float) -> Line:
    median = statistics.median(table.figure(OURS, column).values)
    return Line(f"{table.title}: {column}", median, bound, least=False)
