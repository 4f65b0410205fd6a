"""Learn the durations of jobs from those that have ended.

`DurationDistribution` is the distribution of the actual duration divided by the eta, as a table.
Each finished job adds a kernel. The kernel is placed where the distribution itself expects the end
within the job's last interval between polls; the middle of the interval would be far too low for a
job that was found finished at its first poll. Old jobs lose weight. `DurationModel` has a second
distribution, of durations that are not divided by the eta, and uses the one that predicted the
recent jobs better, since an eta may be meaningless. Jobs without an eta have their own one.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from operator import add, mul

TYPICAL = 60.0  # seconds; the scale of jobs without an eta

_LOW, _STEP, _KNOTS = -4.0, 0.04, 181  # the table's grid over ln(actual / scale)
_RATIOS = [math.exp(_LOW + _STEP * k) for k in range(_KNOTS)]
_HALF_WIDTHS = [0.5 * (right - left) for left, right in itertools.pairwise(_RATIOS)]


def _normal_table(mean: float, deviation: float) -> list[float]:
    """Tabulate a normal distribution function on the grid, 0 and 1 beyond six deviations."""
    first, last = (
        min(max(math.ceil((mean + side * deviation - _LOW) / _STEP), 0), _KNOTS)
        for side in (-6.0, 6.0)
    )
    scale = -math.sqrt(0.5) / deviation
    middle = [0.5 * math.erfc(scale * (_LOW + _STEP * k - mean)) for k in range(first, last)]
    return [0.0] * first + middle + [1.0] * (_KNOTS - last)


_UNINFORMATIVE = _normal_table(0.0, 1.2)


class DurationDistribution:
    """The learned distribution of the ratio of a duration to a scale.

    Args:
        mean: Mean of ln(ratio) in the prior.
        deviation: Standard deviation of ln(ratio) in the prior.
        confidence: Share of jobs for which `deviation` is right; for the rest the prior assumes
            three times as much.
    """

    _DECAY = 0.99  # weight that old jobs keep, per finished job
    _PRIOR = 5.0  # weight of the prior, in finished jobs
    _MIXTURE_WEIGHT = 0.002  # share of jobs that are assumed to be unpredictable
    _DOUBT = tuple(map(mul, _UNINFORMATIVE, itertools.repeat(_MIXTURE_WEIGHT)))

    def __init__(self, mean: float, deviation: float, *, confidence: float = 0.7) -> None:
        self._weight = self._PRIOR
        tables = _normal_table(mean, deviation), _normal_table(mean, 3.0 * deviation)
        self._below = [
            self._PRIOR * (confidence * narrow + (1.0 - confidence) * wide)
            for narrow, wide in zip(*tables, strict=True)
        ]
        self._tabulate()

    def observe(self, low: float, high: float) -> None:
        """Learn from a job that ended at a ratio between `low` and `high`."""
        mean, variance = self._expected_end(low, high)
        quartiles = math.log(self.quantile(0.75) / self.quantile(0.25))
        width = min(max(0.35 * quartiles * self._weight**-0.2, 0.03), 0.35)
        deviation = math.sqrt(width * width + variance)
        self._weight = self._DECAY * self._weight + 1.0
        kernel = _normal_table(mean, deviation)
        self._below = list(map(add, map(mul, self._below, itertools.repeat(self._DECAY)), kernel))
        self._tabulate()

    def probability(self, low: float, high: float) -> float:
        """Return the probability of an end between the ratios `low` and `high`."""
        return self._at(high)[0] - self._at(low)[0]

    def quantile(self, share: float) -> float:
        """Return the ratio by which this share of the jobs has ended."""
        return _RATIOS[min(bisect_left(self._ended, share), _KNOTS - 1)]

    def expected_delay(
        self, last: float, ratio: float, loss: float = 1.0, delay: float = 0.0
    ) -> float:
        """Return the expected time since the end of a job that had not ended at `last`.

        Args:
            last: Ratio at which the job had not ended.
            ratio: Ratio up to which no end was reported; the time is counted up to here.
            loss: Probability that no webhook will report the end.
            delay: Delay of the webhook after the end, as a ratio.

        Returns:
            The undetected time, as a ratio.
        """
        return self._undetected_since(last, loss, delay)(ratio, *self._at(ratio))

    def next_poll(
        self, last: float, worth: float, floor: float, loss: float = 1.0, delay: float = 0.0
    ) -> float:
        """Return the ratio at which the undetected time since `last` reaches `worth`.

        Args:
            last: Ratio of the previous poll.
            worth: Undetected time that the next poll must be worth, as a ratio.
            floor: Lowest hazard, in ends per unit of the ratio.
            loss: Probability that no webhook will report the end.
            delay: Delay of the webhook after the end, as a ratio.
        """
        expected_delay = self._undetected_since(last, loss, delay)
        floor *= loss

        def expected(k: int) -> float:
            wait = _RATIOS[k] - last
            learned = expected_delay(_RATIOS[k], self._ended[k], self._area[k])
            return learned + 0.5 * floor * wait * wait

        first = bisect_right(_RATIOS, last)
        k = bisect_left(range(_KNOTS), worth, lo=first, key=expected)
        if k == _KNOTS:
            # Beyond the table: assume that the hazard of an old job falls as 1 / age.
            begin = max(last, _RATIOS[-1])
            return begin + math.sqrt(2.0 * worth / max(floor, 0.25 * loss / begin))
        left, before = last, 0.0
        if k > first:
            left = _RATIOS[k - 1]
            before = expected(k - 1)
        part = (worth - before) / (expected(k) - before)
        return left + (_RATIOS[k] - left) * (math.sqrt(part) if k == first else part)

    def _undetected_since(
        self, last: float, loss: float, delay: float
    ) -> Callable[[float, float, float], float]:
        """Return a function that computes the undetected time since `last`.

        Its arguments are a ratio, the distribution function at that ratio, and the integral of the
        function up to it; they are passed in because `next_poll` has them in its tables.
        """
        ended, area = self._at(last)

        def expected_delay(ratio: float, ended_there: float, area_there: float) -> float:
            wait = ratio - last
            hidden = ended_there - ended
            missed = area_there - area - wait * ended
            if loss < 1.0 and wait > delay:
                # Ends before `ratio - delay` have been reported, except for lost deliveries.
                reported, reported_area = self._at(ratio - delay)
                hidden -= (1.0 - loss) * (reported - ended)
                missed *= loss
                missed += (1.0 - loss) * (area_there - reported_area - delay * reported)
            return missed / (1.0 - ended_there + hidden)

        return expected_delay

    def _expected_end(self, low: float, high: float) -> tuple[float, float]:
        """Return mean and variance of ln(ratio), given an end between `low` and `high`."""
        a = math.log(min(max(low, _RATIOS[0]), _RATIOS[-1]))
        b = math.log(min(max(high, _RATIOS[0]), _RATIOS[-1]))
        inner = range(math.floor((a - _LOW) / _STEP) + 1, math.ceil((b - _LOW) / _STEP))
        edges = [a, *(_LOW + _STEP * k for k in inner), b]
        first, last = (self._at(math.exp(edge))[0] for edge in (a, b))
        ended = [first, *self._ended[inner.start : inner.stop], last]
        total = ended[-1] - ended[0]
        if total <= 0.0:
            return (a + b) / 2.0, (b - a) ** 2 / 12.0
        cells = [
            ((q - p) / total, (left + right) / 2.0)
            for (p, q), (left, right) in zip(
                itertools.pairwise(ended), itertools.pairwise(edges), strict=True
            )
        ]
        mean = sum(share * middle for share, middle in cells)
        return mean, sum(share * (middle - mean) ** 2 for share, middle in cells)

    def _tabulate(self) -> None:
        """Tabulate the distribution function and its integral from 0."""
        # By map and operator: every finished job does this, and comprehensions take twice the time.
        confidence = itertools.repeat((1.0 - self._MIXTURE_WEIGHT) / self._weight)
        self._ended = list(map(add, map(mul, self._below, confidence), self._DOUBT))
        sums = map(add, self._ended, itertools.islice(self._ended, 1, None))
        cells = map(mul, _HALF_WIDTHS, sums)
        self._area = list(itertools.accumulate(cells, initial=0.5 * _RATIOS[0] * self._ended[0]))

    def _at(self, ratio: float) -> tuple[float, float]:
        """Return the distribution function at a ratio, and its integral from 0."""
        if ratio <= _RATIOS[0]:
            share = ratio / _RATIOS[0]
            return self._ended[0] * share, self._area[0] * share * share
        if ratio >= _RATIOS[-1]:
            return self._ended[-1], self._area[-1] + (ratio - _RATIOS[-1]) * self._ended[-1]
        k = min(int((math.log(ratio) - _LOW) / _STEP), _KNOTS - 2)
        wait = ratio - _RATIOS[k]
        share = wait / (_RATIOS[k + 1] - _RATIOS[k])
        ended = self._ended[k] + share * (self._ended[k + 1] - self._ended[k])
        return ended, self._area[k] + 0.5 * wait * (self._ended[k] + ended)


class DurationModel:
    """The learned durations of jobs, relative to their eta if the eta is meaningful."""

    def __init__(self) -> None:
        self._over_eta = DurationDistribution(0.0, 0.35)
        self._alone = DurationDistribution(0.0, 0.8)
        self._without_eta = DurationDistribution(0.0, 0.8)
        self._of_no_age = DurationDistribution(0.0, 1.5)
        self._log_odds = 2.0

    def distribution(
        self, eta: float | None, *, age_known: bool
    ) -> tuple[DurationDistribution, float]:
        """Return the distribution that applies to a job, and the scale of its ratio in seconds.

        Args:
            eta: MusicGPT's estimate in seconds from acceptance, or ``None``.
            age_known: Whether the time of acceptance is known.
        """
        if not age_known:
            return self._of_no_age, eta or TYPICAL
        if eta is None:
            return self._without_eta, TYPICAL
        return (self._over_eta, eta) if self._log_odds >= 0.0 else (self._alone, TYPICAL)

    def chance_of_end(
        self, eta: float | None, age: float, *, within: float, age_known: bool
    ) -> float:
        """Return the probability that a job unfinished at `age` ends within the next seconds.

        Args:
            eta: MusicGPT's estimate in seconds from acceptance, or ``None``.
            age: Seconds since acceptance.
            within: Seconds from now.
            age_known: Whether `age` counts from acceptance.
        """
        distribution, scale = self.distribution(eta, age_known=age_known)
        alive = 1.0 - distribution.probability(0.0, age / scale)
        return (
            distribution.probability(age / scale, (age + within) / scale) / alive
            if alive > 0.0
            else 1.0
        )

    def observe(self, eta: float | None, low: float, high: float) -> None:
        """Learn from a job that ended between `low` and `high` seconds after its acceptance."""
        if eta is None:
            self._without_eta.observe(low / TYPICAL, high / TYPICAL)
            return
        over = self._over_eta, low / eta, high / eta
        alone = self._alone, low / TYPICAL, high / TYPICAL
        gains = [
            math.log(max(distribution.probability(a, b * 1.001), 1e-3))
            for distribution, a, b in (over, alone)
        ]
        self._log_odds = min(max(0.98 * self._log_odds + gains[0] - gains[1], -20.0), 20.0)
        for distribution, a, b in (over, alone):
            distribution.observe(a, b)
