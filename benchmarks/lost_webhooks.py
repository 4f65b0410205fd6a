"""What lost webhooks cost, by the rule, by the rule before it and by polling alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from plots import Axis, Plot
from verdicts import Verdicts
from waiting_simulation import draw, lognormal
from webhook_simulation import IsLost, SafetyPolls, Waited, after, at_random, wait_for

PLANS = ((2, 20.0), (5, 200.0), (10, 500.0))
LOSSES = (0.0, 0.01, 0.1, 0.5, 1.0)
LEARNING = 50
"""Jobs after which a receiver that hears is known to."""

Losses = dict[float, tuple[Waited, Waited, Waited]]


def networks(count: int) -> Iterator[tuple[str, IsLost]]:
    """Every way to lose deliveries."""
    for share in LOSSES:
        yield f"{share:.0%} lost", at_random(share)
    yield "dies midway", after(count // 2)


def show_losses(verdicts: Verdicts, count: int) -> Losses:
    """Each plan on each network; return those of the pro plan by the share that is lost."""
    shown: Losses = {}
    jobs = draw(lognormal(0.3), count, seed=3)
    for at_once, plan in PLANS:
        print(f"\n{at_once} unfinished, {plan:g} polls a minute, {count} jobs with webhooks")
        print("  deliveries     mean s  p95 s  polls/job | after 50 | 90th perc. + 30 s | polling")
        polling = wait_for(jobs, at_once=at_once, polls_per_minute=plan, is_lost=None)
        for name, is_lost in networks(count):
            ours, before = (
                wait_for(jobs, at_once=at_once, polls_per_minute=plan, is_lost=is_lost, rule=rule)
                for rule in (None, SafetyPolls)
            )
            known = ours.since(LEARNING)
            print(
                f"  {name:<13}{ours.mean:8.2f}{ours.quantile(0.95):7.1f}{ours.polls_per_job:10.2f}"
                f" |{known.mean:5.2f}{known.polls_per_job:6.2f}"
                f" |{before.mean:11.2f}{before.polls_per_job:7.2f}"
                f" |{polling.mean:5.2f}{polling.polls_per_job:6.1f}"
            )
            here = f"{at_once} unfinished, webhooks {name}"
            judge(verdicts, here, name, (ours, polling), at_once=at_once)
            if at_once == PLANS[-1][0] and name.endswith("lost"):
                shown[float(name.partition("%")[0]) / 100.0] = ours, before, polling
    return shown


def judge(
    verdicts: Verdicts, here: str, name: str, results: tuple[Waited, Waited], *, at_once: int
) -> None:
    """Hold one network to what was asked of it."""
    ours, polling = results
    if name == "0% lost":
        polls = ours.since(LEARNING).polls_per_job
        verdicts.at_most(f"{here}: polls a job after the first {LEARNING}", polls, 1.1)
    elif name == "10% lost":
        verdicts.at_most(f"{here}: mean delay", ours.mean, 2.0)
    elif name == "100% lost":
        verdicts.at_most(f"{here}: mean delay over polling's", ours.mean / polling.mean, 1.3)
    elif name == "dies midway":
        half = len(ours.delays) // 2
        found = (ours.silence_reported_at or len(ours.delays)) - half
        verdicts.at_most(f"{here}: jobs until it is found silent", found, at_once + 3)
        polls = ours.since(half).polls_per_job / polling.since(half).polls_per_job
        verdicts.at_most(f"{here}: polls from then on over polling's", polls, 1.05)


def draw_losses(path: Path, losses: Losses) -> None:
    """Draw the mean delay over the share that is lost."""
    plot = Plot(
        "Jobs whose webhooks may be lost, 10 at once on the pro plan",
        x=Axis(0.005, 1.0, "deliveries lost", (0.01, 0.1, 0.5, 1.0)),
        y=Axis(0.2, 120.0, "mean delay, s", (0.3, 1, 3, 10, 30, 100)),
    )
    for name, which in (("ours", 0), ("90th percentile + 30 s", 1), ("polling alone", 2)):
        points = [(share, each[which].mean) for share, each in losses.items() if share > 0.0]
        plot.curve(name, points)
    plot.save(path)
