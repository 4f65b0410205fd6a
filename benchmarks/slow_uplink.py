"""What a slow uplink costs, with a slot taken first, one upload ahead, and by the rule."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

import attrs
from plots import Axis, Plot
from slot_simulation import share_account
from upload_simulation import Batch, Fixed, Outcome, Rule, SlotFirst, tracks
from verdicts import Verdicts

SHARES = (0.1, 1 / 3, 1.0, 2.0)
SIGMAS = (0.15, 0.3, 0.6)
SLOTS = (1, 2, 3, 10)
COUNT = 100
"""Tracks in a batch."""

Uplinks = dict[tuple[int, float, float], list["Mean"]]


@attrs.frozen
class Mean:
    """A rule's batches, on average."""

    ratio: float
    sent_twice: float
    max_hold: float
    refused: int

    @classmethod
    def of(cls, outcomes: list[Outcome]) -> Mean:
        """Take the mean of the same batch from several seeds."""
        return cls(
            statistics.fmean(each.ratio for each in outcomes),
            statistics.fmean(each.sent_twice for each in outcomes),
            max(max(each.held) for each in outcomes),
            sum(each.refused for each in outcomes),
        )


def rules() -> tuple[Rule | None, ...]:
    """Slot first, one ahead, the rule."""
    return SlotFirst(), Fixed(1), None


def show_uplinks(verdicts: Verdicts, seeds: int) -> Uplinks:
    """Batches by slots, by the upload's share of a job, and by the spread of durations."""
    print(f"\n{COUNT} tracks through a slow uplink: batch time over the ideal, {seeds} seeds")
    print("  slots  upload/job  sigma  slot first  one ahead   rule  sent twice  longest hold s")
    shown: Uplinks = {}
    for parallel, share, sigma in itertools.product(SLOTS, SHARES, SIGMAS):
        means = [
            Mean.of(
                [
                    Batch(
                        tracks(COUNT, share=share, sigma=sigma, seed=seed),
                        parallel=parallel,
                        rule=rule,
                    ).run()
                    for seed in range(1, seeds + 1)
                ]
            )
            for rule in rules()
        ]
        shown[parallel, share, sigma] = means
        first, one, ours = means
        print(
            f"  {parallel:5}{share:12.2f}{sigma:7.2f}{first.ratio:12.3f}{one.ratio:11.3f}"
            f"{ours.ratio:7.3f}{ours.sent_twice:12.1%}{ours.max_hold:16.0f}"
        )
        here = f"{parallel} slots, upload {share:.2f} of a job, sigma {sigma}"
        if share == SHARES[1] and parallel <= 3:
            bound = 1.15 if sigma == SIGMAS[-1] else 1.05
            verdicts.at_most(f"{here}: batch time over the ideal", ours.ratio, bound)
    for parallel in SLOTS:
        means = [each for key, each in shown.items() if key[0] == parallel]
        twice = max(ours.sent_twice for _, _, ours in means)
        verdicts.at_most(f"{parallel} slots: most bytes sent twice, as a share", twice, 0.05)
        slower = max(ours.ratio / first.ratio for first, _, ours in means)
        verdicts.at_most(f"{parallel} slots: worst batch time over slot first's", slower, 1.005)
    return shown


def show_sharing(verdicts: Verdicts, seeds: int) -> None:
    """Another client that takes a part of the account, and leaves."""
    print("\nAnother client takes conversions for half an hour, jobs of 20 s")
    print("  slots  others  limit    recovery s  429s meanwhile  of accepted  429s after")
    for parallel, part, given in itertools.product((2, 5, 10), (0.5, 0.9, 1.0), (True, False)):
        others = int(part * parallel)
        runs = [
            share_account(
                parallel=parallel,
                others=lambda _, n=others: n,
                until=1800.0,
                given=given,
                seed=seed,
            )
            for seed in range(1, seeds + 1)
        ]
        worst = max(run.recovery for run in runs)
        print(
            f"  {parallel:5}{others:8}  {'given' if given else 'learned':<8}{worst:11.0f}"
            f"{max(run.refused_meanwhile for run in runs):16}"
            f"{min(run.accepted_meanwhile for run in runs):13}"
            f"{max(run.refused_after for run in runs):12}"
        )
        here = f"{parallel} slots, {others} taken by others, {'given' if given else 'learned'}"
        verdicts.at_most(f"{here}: seconds until the whole limit is back", worst, 120.0)


def draw_uplinks(path: Path, uplinks: Uplinks) -> None:
    """Draw the batch time over the upload's share of a job, for one slot."""
    plot = Plot(
        f"{COUNT} tracks, one slot, durations off by sigma 0.3",
        x=Axis(0.08, 2.5, "upload over processing time", (0.1, 0.33, 1, 2)),
        y=Axis(0.98, 2.2, "batch time over the ideal", (1, 1.1, 1.2, 1.5, 2)),
    )
    for name, which in (("ours", 2), ("slot first", 0), ("one upload ahead", 1)):
        points = [(share, uplinks[1, share, 0.3][which].ratio) for share in SHARES]
        plot.curve(name, points)
    plot.save(path)
