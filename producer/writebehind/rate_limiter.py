"""A rate limit that is asked."""

from __future__ import annotations

from .carrier import Carrier
from .rate import RateResult
from .rate_steps import RateSteps


class RateLimiter:
    """At most so many in any window of time, over all processes. Made by :meth:`WriteBehind.rate_limit`."""

    def __init__(self, carrier: Carrier, steps: RateSteps) -> None:
        self._carrier, self._steps = carrier, steps

    def acquire(self, cost: int = 1) -> RateResult:
        """Takes ``cost`` slots if so many are free; a refusal takes none.

        Raises:
            ValueError: ``cost`` is not from 1 to the limit.
            RedisUnavailable, RedisRefused, RedisFull: no answer; decide whether to go on without.
        """
        return self._carrier.run(self._steps.acquire(cost))

    def wait(self, timeout: float | None = None, cost: int = 1) -> RateResult:
        """Sleeps and tries again until slots are free, for ``timeout`` seconds at most; ``None``: for ever.

        Returns a refusal as soon as it is clear that the time will not do. There is no queue: of several that
        wait, any may be the next. Raises as :meth:`acquire`.
        """
        return self._carrier.run(self._steps.wait(timeout, cost))
