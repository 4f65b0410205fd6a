"""Decide when polling a job is worth its price.

A job ends at an unknown time, each poll uses up one of the account's calls per minute, and the time
between the end and the next poll is lost. Evenly spaced polls are not optimal: the least time is
lost if the density of polls is proportional to the square root of the hazard, which is the
probability of ending now given that the job has not ended yet (R. E. Barlow, L. C. Hunter and
F. Proschan, "Optimum checking procedures", J. SIAM 11, 1963; J. B. Keller, "Optimum checking
schedules for systems subject to random failure", Management Science 21, 1974). If a poll has a
price of L seconds, this density means an interval of sqrt(2 L / hazard). The same rule, valid for
long intervals too: *poll when the undetected time expected since the last poll reaches L*. On
lognormal durations the result is within one per cent of the optimum from five polls per job on.

The hazard comes from the learned durations (`durations.DurationModel`). The price is learned too:
it is what the last polls were worth. Under a tight budget jobs are polled late, each poll is worth
more, and the rising price spreads all intervals. If the budget is idle, the price falls again, down
to the minimum. In this way the calls are spent where the expected undetected time is largest.

If a webhook is expected, a delivery may report the end instead. A poll then detects only jobs that
have ended *and* whose delivery is lost or late. The rule is the same, with the probability and the
delay of deliveries included, given that none has arrived so far. Jobs of a receiver without any
delivery so far are polled as if there were no webhook. Once deliveries arrive, a poll must be worth
`_EXPECTED_PRICE` more, and about one poll per job remains: the one that its delivery causes.
"""

from __future__ import annotations

from musicgpt_async._rules.durations import DurationDistribution, DurationModel
from musicgpt_async._rules.receiver_reliability import ReceiverReliability

_SHORT_DURATION = 10.0  # seconds; for shorter jobs the price of a poll is scaled down
_MIN_INTERVAL = 0.02  # seconds between two polls of one job, and the lowest price of one
_MIN_HAZARD = 5e-5  # ends per second, assumed for any job at any age
_EXPECTED_PRICE = 0.7  # seconds that a poll must be worth in addition if a delivery is certain


class PollPricing:
    """The worth of polls, and their learned price.

    Args:
        durations: The learned durations of jobs.
        reliability: The learned probability and delay of webhook deliveries.
        price: Lowest price of a poll in seconds of undetected time, even if the budget is idle;
            scaled down for jobs of a few seconds.
    """

    def __init__(
        self, durations: DurationModel, reliability: ReceiverReliability, price: float
    ) -> None:
        self._durations = durations
        self._reliability = reliability
        self._least_price = self._price = price

    def waits(
        self, eta: float | None, age: float, *, age_known: bool, loss: float
    ) -> tuple[float, float]:
        """Return the seconds from one poll to the next: at the lowest price, and at the current.

        Args:
            eta: MusicGPT's estimate in seconds from acceptance, or ``None``.
            age: Seconds from acceptance to the last poll, which found the job unfinished.
            age_known: Whether `age` counts from acceptance.
            loss: Probability that no delivery will report the end.
        """
        distribution, scale = self._durations.distribution(eta, age_known=age_known)
        price = self._price_of(loss, scale)
        soonest = self._wait(distribution, scale, age, price, loss)
        # A short eta is rounded to full seconds, so its error is large: poll in fifths of it.
        if scale < _SHORT_DURATION and age < scale and loss > 0.5:
            soonest = min(soonest, scale / 5)
        if self._price <= price:
            return soonest, soonest
        return soonest, self._wait(distribution, scale, age, self._price, loss)

    def learn(
        self, eta: float | None, last: float, age: float, *, age_known: bool, loss: float
    ) -> None:
        """Learn the price from a poll that is about to be sent.

        A poll that is expensive because its delivery is likely says nothing about the budget, and
        is ignored.

        Args:
            eta: MusicGPT's estimate in seconds from acceptance, or ``None``.
            last: Age in seconds at the previous poll.
            age: Age in seconds now.
            age_known: Whether both ages count from acceptance.
            loss: Probability that no delivery will report the end.
        """
        distribution, scale = self._durations.distribution(eta, age_known=age_known)
        if self._price_of(loss, scale) > self._price:
            return
        delay = self._reliability.delay / scale
        worth = scale * distribution.expected_delay(last / scale, age / scale, loss, delay)
        worth += 0.5 * loss * _MIN_HAZARD * (age - last) ** 2
        price = self._price + 0.03 * (min(worth, 4.0 * self._price) - self._price)
        self._price = max(price, self._least_price)

    def _price_of(self, loss: float, scale: float) -> float:
        """Return the lowest price in seconds; it rises with the probability of a delivery."""
        price = self._least_price + (1.0 - loss) * _EXPECTED_PRICE
        return max(price * min(scale / _SHORT_DURATION, 1.0), _MIN_INTERVAL)

    def _wait(
        self,
        distribution: DurationDistribution,
        scale: float,
        age: float,
        price: float,
        loss: float,
    ) -> float:
        delay = self._reliability.delay / scale
        ratio = distribution.next_poll(age / scale, price / scale, _MIN_HAZARD * scale, loss, delay)
        return max(ratio * scale - age, _MIN_INTERVAL)
