"""When a look at a job is worth its price.

A job ends at an unknown moment, each look at it costs one of the account's calls a minute, and the
time from the end to the next look is lost. The looks that lose least are not evenly spaced: their
density is proportional to the square root of the hazard, the chance of ending now given that it
has not ended yet (R. E. Barlow, L. C. Hunter and F. Proschan, "Optimum checking procedures",
J. SIAM 11, 1963; J. B. Keller, "Optimum checking schedules for systems subject to random failure",
Management Science 21, 1974). With a price of L seconds a look that density means an interval of
sqrt(2 L / hazard), or, said without the limit of short intervals: *look when the undetected time
expected since the last look reaches L*. That is the rule here. On lognormal durations it costs
within one per cent of the true optimum from five looks a job on.

The hazard follows from the learned durations (`durations.DurationModel`). The price is learned as
well: what the last polls were worth. Under a tight budget jobs wait past their moment, the polls
made are worth more, the price rises and spreads all intervals; an idle budget lowers it again, down
to the least price. So the calls go where the expected undetected time is largest.

Where a webhook is expected a delivery may tell the end instead. What a look then detects is a job
that has ended *and* whose delivery does not come, or not yet: the same rule holds with the chance
and the delay of deliveries in it, given that nothing has come so far. A receiver that nothing was
heard from is polled for; once deliveries come, a look must be worth `_EXPECTED_PRICE` more, and
about one a job is left, the one that a delivery wakes.
"""

from __future__ import annotations

from musicgpt_async._rules.durations import DurationDistribution, DurationModel
from musicgpt_async._rules.receiver_reliability import ReceiverReliability

_SHORT_DURATION = 10.0  # seconds; the undetected time of a shorter one matters the more
_MIN_INTERVAL = 0.02  # seconds between two looks at one job, and the least that one is worth
_MIN_HAZARD = 5e-5  # ends a second, expected of any job at any age
_EXPECTED_PRICE = 0.7  # seconds that a look must be worth where a delivery surely comes


class PollPricing:
    """What looks are worth, and what they have to be worth.

    Args:
        durations: how long jobs take.
        reliability: how likely, and how late, the deliveries of those that expect one come.
        price: seconds of undetected time that a look must be worth, however idle the budget; a
            share of it at jobs of a few seconds.
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
        """The seconds after a look to the next one: if the budget is idle, and as it is.

        Args:
            eta: seconds from acceptance, as the vendor told; None: it told nothing.
            age: seconds since acceptance at the last look, which saw no end.
            age_known: whether that is since acceptance.
            loss: the chance that nothing but a look tells the end.
        """
        distribution, scale = self._durations.distribution(eta, age_known=age_known)
        price = self._price_of(loss, scale)
        soonest = self._wait(distribution, scale, age, price, loss)
        # An eta of a few whole seconds says little.
        if scale < _SHORT_DURATION and age < scale and loss > 0.5:
            soonest = min(soonest, scale / 5)
        if self._price <= price:
            return soonest, soonest
        return soonest, self._wait(distribution, scale, age, self._price, loss)

    def learn(
        self, eta: float | None, last: float, age: float, *, age_known: bool, loss: float
    ) -> None:
        """Learn the price from a look that is made: at what age, and at what age the last one was.

        One that is dear because a delivery surely comes says nothing of the budget.
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
        """Seconds that a look must be worth: more, the more surely a delivery will come."""
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
