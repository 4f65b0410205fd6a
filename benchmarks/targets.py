"""Targets beside what was measured; a figure that was not taken is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import attrs
from comparison import OURS, Table


@attrs.frozen
class Target:
    """One figure and its bound."""

    what: str
    figure: float
    bound: float
    is_lower: bool  # whether the figure has to reach the bound, or must not exceed it

    @property
    def is_met(self) -> bool:
        """Whether it is met."""
        return self.figure >= self.bound if self.is_lower else self.figure <= self.bound


def show(tables: Sequence[Table]) -> list[dict[str, object]]:
    """Print every target, and whether it is met; return them."""
    targets = [target for table in tables for target in targets_of(table)]
    print("\nTargets (medians; of ratios, those of the same round)")
    for target in targets:
        words = "at least" if target.is_lower else "at most"
        print(
            f"  {'met   ' if target.is_met else 'missed'} {target.what}: {target.figure:.2f} "
            f"({words} {target.bound:g})"
        )
    print(f"  {sum(target.is_met for target in targets)} of {len(targets)} are met")
    return [{**attrs.asdict(target), "is_met": target.is_met} for target in targets]


def targets_of(table: Table) -> Iterator[Target]:
    """Return what is asked of a table."""
    for beginning, targets in TARGETS.items():
        if table.title.startswith(beginning):
            yield from targets(table)


def _of_uploads(table: Table) -> Iterator[Target]:
    yield from _ratios(table, "MiB/s", {"bare sockets": 0.95}, is_lower=True)
    yield from _ratios(table, "CPU s/GiB", {"bare sockets": 1.1, "aiohttp, open file": 1.0})
    yield from _own(table, "added MiB", 16)


def _of_downloads(table: Table) -> Iterator[Target]:
    peers = dict.fromkeys(("aria2c", "requests, threads", "httpx2 async"), 1.0)
    yield from _ratios(table, "MiB/s", {"curl": 0.9, **peers}, is_lower=True)
    yield from _own(table, "added MiB", 16)


def _of_batches(table: Table) -> Iterator[Target]:
    if "uplink" in table.title:
        yield from _ratios(table, "wall s", {"ours, no upload ahead": 0.7})
        return
    yield from _ratios(table, "wall s", {"lower bound": 1.25})
    yield from _ratios(table, "wall s", {"lower bound": 1.1}, name="ours, webhooks")
    yield from _ratios(table, "CPU s", {"aiohttp, gather": 0.6, "requests, threads": 0.6})
    if "TLS" not in table.title:  # what it was before the engine, the files and the account changed
        yield from _own(table, "added MiB", 23)
        yield from _own(table, "added MiB", 22, name="ours, webhooks")


def _of_tracks(table: Table) -> Iterator[Target]:
    has_one_stem = table.title.endswith("1 stem")
    yield from _own(table, "CPU ms/track", 2.5 if has_one_stem else 5.0)
    yield from _own(table, "CPU ms/track", 6.0 if has_one_stem else 9.0, name="ours, journal")


def _of_polls(table: Table) -> Iterator[Target]:
    yield from _ratios(table, "CPU us/poll", {"aiohttp GET": 1.15})


def _of_handles(table: Table) -> Iterator[Target]:
    yield from _own(table, "bytes/handle", 2048)
    yield from _own(table, "loop held ms", 20)


def _of_imports(table: Table) -> Iterator[Target]:
    session = "ours, its session"
    yield from _ratios(table, "CPU ms", {"bare dependencies": 1.1}, name=session)


def _of_commands(table: Table) -> Iterator[Target]:
    for name in table.rounds:
        yield from _own(table, "wall ms", 250, name=name)


def _of_journals(table: Table) -> Iterator[Target]:
    names = list(table.rounds)
    if len(names) > 1:
        figure = table.ratio("CPU ms/track", names[0], names[-1]).median
        yield Target(f"CPU of a track, {names[-1]} over {names[0]}", figure, 1.1, is_lower=False)
    if "tenth" in table.title:
        return
    largest = "100,000 finished"  # bounds: what it took before these changes
    for column, bound in {"file MiB": 107, "resume s": 0.6, "jobs --json CPU s": 5.8}.items():
        yield from _own(table, column, bound, name=largest)


TARGETS: dict[str, Callable[[Table], Iterator[Target]]] = {
    "Upload": _of_uploads,
    "Download": _of_downloads,
    "Batch of": _of_batches,
    "Cost of a track": _of_tracks,
    "Poll": _of_polls,
    "100 waiting": _of_handles,
    "10000 waiting": _of_handles,
    "Import": _of_imports,
    "Commands": _of_commands,
    "Journals": _of_journals,
}


def _ratios(
    table: Table,
    column: str,
    over: dict[str, float],
    *,
    name: str = OURS,
    is_lower: bool = False,
) -> Iterator[Target]:
    for other, bound in over.items():
        if other in table.rounds and name in table.rounds:
            what = f"{table.title}: {column} of {name} over that of {other}"
            yield Target(what, table.ratio(column, other, name).median, bound, is_lower)


def _own(table: Table, column: str, bound: float, *, name: str = OURS) -> Iterator[Target]:
    if name in table.rounds:
        what = f"{table.title}: {column} of {name}"
        yield Target(what, table.figure(name, column).median, bound, is_lower=False)
