"""How soon after the vendor each policy of polling sees a job's end, and at what cost.

A simulation with a virtual clock (waiting_simulation.py) runs the package's own schedule and
slots, and beside them, on the same jobs, the policies of clients that people use. Then webhooks
are lost (lost_webhooks.py), and uploads share a slow uplink (slow_uplink.py). Every table but the
one of many handles, which measures this machine, comes from fixed seeds and is the same on every
run.

    python benchmarks/waiting.py [--quick] [--plots DIRECTORY]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import random
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import attrs
from lost_webhooks import draw_losses, show_losses
from plots import Plot
from slow_uplink import draw_uplinks, show_sharing, show_uplinks
from verdicts import Verdicts
from waiting_simulation import (
    CLIENTS,
    PRICES,
    SIGMAS,
    STEM_GROUPS,
    Batch,
    Curve,
    Job,
    KnownLaw,
    Learned,
    Policy,
    Result,
    Timers,
    Trade,
    Turns,
    draw,
    exponential,
    lognormal,
    optimum,
    over_own_polls,
    simulate,
    unpaced,
)

from musicgpt_async._rules.polling import Schedule

PLANS = ((2, 20.0), (5, 200.0), (10, 500.0), (200, 500.0))
"""Unfinished jobs and polls a minute: each plan's, and many attached handles."""


@attrs.frozen
class Load:
    """What a schedule of many handles costs this machine."""

    handles: int
    bytes_a_handle: float
    microseconds_a_poll: float


def load(handles: int, polls: int) -> Load:
    """Attach handles, then poll through a pro account's budget in virtual time."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    schedule: Schedule[int] = Schedule(polls_per_minute=500.0, rng=random.Random(3))
    rng = random.Random(4)
    for key in range(handles):
        schedule.add(key, now=0.0, eta=rng.uniform(10.0, 200.0))
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    now, left = 0.0, polls
    started = time.process_time()
    while left > 0:
        now = max(now, schedule.next_due() or now)
        for key in schedule.take_due(now):
            schedule.on_success(now=now)
            schedule.on_unfinished(key, now=now)
            left -= 1
    spent = time.process_time() - started
    return Load(handles, held / handles, 1e6 * spent / polls)


def row(name: str, result: Result) -> str:
    """One line of a table."""
    return (
        f"  {name:<30}{result.mean:>9.2f}{result.quantile(0.95):>9.2f}{result.quantile(0.99):>9.2f}"
        f"{result.polls_per_job:>10.1f}{result.refused:>9}{result.worst_minute:>9}"
    )


HEADING = (
    f"  {'':<30}{'mean s':>9}{'p95 s':>9}{'p99 s':>9}{'polls/job':>10}{'429s':>9}{'/minute':>9}"
)


def show_trades(verdicts: Verdicts, count: int) -> dict[float, tuple[list[Trade], Curve]]:
    """Without a budget: the trade-off between polls and delay."""
    shown = {}
    for sigma in SIGMAS:
        best = optimum(sigma)
        trades = [Trade.of(lognormal(sigma), price, count) for price in PRICES]
        shown[sigma] = trades, best
        print(f"\nNo budget, sigma {sigma}, {count} jobs one after another: mean delay in seconds")
        print("  price  polls/job   ours  fixed  ratio  expon.  ratio | after 200:  optimum  ratio")
        for trade in trades:
            ideal = best.delay_at(trade.late_polls)
            print(
                f"  {trade.price:5.2f} {trade.result.polls_per_job:10.1f} {trade.result.mean:6.2f}"
                f" {trade.fixed:6.2f} {trade.result.mean / trade.fixed:6.2f}"
                f" {trade.exponential:7.2f} {trade.result.mean / trade.exponential:6.2f}"
                f" | {trade.late_mean:9.2f} {ideal:8.2f} {trade.late_mean / ideal:6.2f}"
            )
        judge_trades(verdicts, sigma, trades, best, draw(lognormal(sigma), count, seed=1))
    return shown


def judge_trades(
    verdicts: Verdicts, sigma: float, trades: list[Trade], best: Curve, jobs: list[Job]
) -> None:
    """Hold a table to what was asked: the worst price of it, and the exponential's own polls."""
    bounds = {0.15: (0.35, 0.3, 1.25), 0.3: (0.6, 0.35, 1.15), 0.6: (0.9, 0.5, 1.05)}[sigma]
    here = f"no budget, sigma {sigma}: mean delay over"
    fixed = max(trade.result.mean / trade.fixed for trade in trades)
    verdicts.at_most(f"{here} the fixed interval's at equal polls", fixed, bounds[0])
    ratio = over_own_polls(trades, jobs, exponential)
    verdicts.at_most(f"{here} the exponential's at its own polls", ratio, bounds[1])
    ideal = max(trade.late_mean / best.delay_at(trade.late_polls) for trade in trades)
    verdicts.at_most(f"{here} the optimum's after 200 jobs", ideal, bounds[2])


def show_clients(count: int) -> None:
    """Without a budget: what people's clients do at their own settings."""
    for sigma in SIGMAS:
        print(f"\nNo budget, sigma {sigma}, everyone at their own setting")
        print(HEADING)
        jobs = draw(lognormal(sigma), count, seed=2)
        policies: dict[str, Policy] = {"ours": unpaced(0.05)}
        policies |= {name: Timers(wait) for name, wait in CLIENTS.items()}
        policies["oracle, ours knowing the law"] = unpaced(0.05, KnownLaw(sigma))
        for name, policy in policies.items():
            print(row(name, simulate(policy, jobs, at_once=1)))


def policies(polls_per_minute: float, sigma: float) -> Iterator[tuple[str, Policy]]:
    """Every policy, for one account."""
    given = Schedule[int](polls_per_minute=polls_per_minute, rng=random.Random(5))
    yield "ours, budget given", Learned(given)
    yield "ours, budget learned", Learned(Schedule[int](rng=random.Random(5)))
    oracle = Schedule[int](
        polls_per_minute=polls_per_minute, rng=random.Random(5), durations=KnownLaw(sigma)
    )
    yield "oracle, ours knowing the law", Learned(oracle)
    yield "in turn, paced to the budget", Turns(polls_per_minute)
    for name, wait in CLIENTS.items():
        yield name, Timers(wait)


def show_budgets(verdicts: Verdicts, count: int) -> None:
    """Under each plan's budget."""
    bounds = {0.15: 0.15, 0.3: 0.25, 0.6: 0.4}
    for (at_once, polls), sigma, told in itertools.product(PLANS, SIGMAS, (True, False)):
        if not told and sigma != SIGMAS[1]:
            continue
        lot = draw(lognormal(sigma), 3 * count if at_once > 10 else count, seed=3, told=told)
        print(
            f"\n{at_once} unfinished, {polls:g} polls a minute, sigma {sigma},"
            f" {len(lot)} jobs{'' if told else ', eta unknown'}"
        )
        print(HEADING)
        results = {}
        for name, policy in policies(polls, sigma):
            results[name] = simulate(policy, lot, at_once=at_once, polls_per_minute=polls)
            print(row(name, results[name]))
        ours, sdk = results["ours, budget given"], results["every 3 s (the vendor's SDK)"]
        here = f"{at_once} unfinished, {polls:g} a minute, sigma {sigma}"
        here += "" if told else ", eta unknown"
        verdicts.at_most(f"{here}: polls in the worst minute", ours.worst_minute, polls)
        if at_once == 2:
            verdicts.at_most(f"{here}: mean delay", ours.mean, 3.0)
        if at_once == 200 and told:
            verdicts.at_most(f"{here}: of every 3 s", ours.mean / sdk.mean, bounds[sigma])


def show_families(verdicts: Verdicts, count: int) -> None:
    """On durations that no constant was chosen on."""
    print(f"\nOther families, no budget, {count} jobs one after another")
    print("  family                     price  polls/job   mean s   p99 s  fixed s   gain")
    for name, family in STEM_GROUPS.items():
        trades = [Trade.of(family, price, count) for price in (0.05, 0.1, 0.4)]
        for trade in trades:
            ours = trade.result
            print(
                f"  {name:<25} {trade.price:6.2f} {ours.polls_per_job:10.1f} {ours.mean:8.2f}"
                f" {ours.quantile(0.99):7.1f} {trade.fixed:8.2f} {trade.fixed / ours.mean:6.2f}"
            )
        worst = max(trade.result.mean / trade.fixed for trade in trades)
        verdicts.at_most(f"{name}: mean delay over the fixed interval's", worst, 1.0)
        worst = max(trade.result.quantile(0.99) for trade in trades)
        verdicts.at_most(f"{name}: p99 at any price", worst, 30.0)


def show_families_under_budgets(verdicts: Verdicts, count: int) -> None:
    """The same under each plan's budget."""
    print(f"\nOther families under a plan's budget, {count} jobs")
    print(HEADING)
    for name, family in STEM_GROUPS.items():
        lot = draw(family, count, seed=6)
        for at_once, polls in PLANS[:3]:
            policy = Learned(Schedule[int](polls_per_minute=polls, rng=random.Random(6)))
            ours = simulate(policy, lot, at_once=at_once, polls_per_minute=polls)
            print(row(f"{name}, {at_once}", ours))
            here = f"{name}, {at_once} unfinished"
            verdicts.at_most(f"{here}: polls in the worst minute", ours.worst_minute, polls)
            verdicts.at_most(f"{here}: p99", ours.quantile(0.99), 30.0)


def show_batches(verdicts: Verdicts) -> None:
    """Slots and schedule together on an account of which nothing was said."""
    print("\n100 tracks, no limit given")
    print("  account                 429 on submit  429 on byId  slots busy  limit at the end")
    for parallel, polls in PLANS[:3]:
        account = Batch(parallel=parallel, polls_per_minute=polls, tracks=100).run()
        print(
            f"  {parallel:2} at once, {polls:3g} a minute{account.submits_refused:13}"
            f"{account.polls_refused:13}{account.busy:12.1%}{account.limit:18}"
        )
        if parallel == 2:
            verdicts.at_most("free plan, 100 tracks: 429s on byId", account.polls_refused, 0)
            verdicts.at_most("free plan, 100 tracks: 429s on submit", account.submits_refused, 5)
            verdicts.at_most("free plan, 100 tracks: slots idle", 1.0 - account.busy, 0.1)


def show_load(verdicts: Verdicts, polls: int) -> None:
    """Many handles on one schedule."""
    print("\nMany handles on one schedule of 500 polls a minute")
    loads = [load(handles, polls) for handles in (100, 1000, 10_000)]
    for each in loads:
        print(
            f"  {each.handles:6} handles: {each.bytes_a_handle:6.0f} bytes a handle,"
            f" {each.microseconds_a_poll:6.1f} us of CPU a poll"
        )
    growth = loads[-1].microseconds_a_poll / loads[0].microseconds_a_poll
    verdicts.at_most("CPU a poll at 10,000 handles over that at 100", growth, 2.0)


def draw_trade_off(path: Path, trades: list[Trade], best: Curve, sigma: float) -> None:
    """Draw delay over polls for one sigma."""
    plot = Plot(f"Waiting for jobs of 10 to 200 s whose eta is off by sigma {sigma}")
    polls = [trade.result.polls_per_job for trade in trades]
    plot.curve("the optimum, knowing the law", best.points)
    means = [trade.result.mean for trade in trades]
    plot.curve("ours, learning", zip(polls, means, strict=True))
    plot.curve("fixed interval", zip(polls, (t.fixed for t in trades), strict=True))
    plot.curve("exponential", zip(polls, (t.exponential for t in trades), strict=True))
    jobs = draw(lognormal(sigma), 400, seed=2)
    for name, wait in CLIENTS.items():
        result = simulate(Timers(wait), jobs, at_once=1)
        plot.spot(name, result.polls_per_job, result.mean)
    plot.save(path)


def main() -> None:
    """Print every table, then what must hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer jobs, in about ten seconds")
    parser.add_argument("--plots", type=Path, help="the directory to plot into")
    arguments = parser.parse_args()
    quick = arguments.quick
    verdicts = Verdicts()
    shown = show_trades(verdicts, 400 if quick else 1500)
    show_clients(100 if quick else 500)
    show_budgets(verdicts, 60 if quick else 400)
    show_families(verdicts, 400 if quick else 1500)
    show_families_under_budgets(verdicts, 100 if quick else 600)
    show_batches(verdicts)
    show_load(verdicts, 2000 if quick else 20_000)
    losses = show_losses(verdicts, 300 if quick else 1000)
    uplinks = show_uplinks(verdicts, 1 if quick else 3)
    show_sharing(verdicts, 1 if quick else 3)
    if arguments.plots:
        draw_trade_off(arguments.plots / "waiting.svg", *shown[0.3], 0.3)
        draw_losses(arguments.plots / "lost-webhooks.svg", losses)
        draw_uplinks(arguments.plots / "slow-uplink.svg", uplinks)
    verdicts.print()


if __name__ == "__main__":
    main()
