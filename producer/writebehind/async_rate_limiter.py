"""A rate limit that is asked, on an event loop."""

from __future__ import annotations

from .async_carrier import AsyncCarrier
from .rate import RateResult
from .rate_steps import RateSteps


class AsyncRateLimiter:
    """See :class:`RateLimiter`."""

    def __init__(self, carrier: AsyncCarrier, steps: RateSteps) -> None:
        self._carrier, self._steps = carrier, steps

    async def acquire(self, cost: int = 1) -> RateResult:
        """See :meth:`RateLimiter.acquire`."""
        return await self._carrier.run(self._steps.acquire(cost))

    async def wait(self, timeout: float | None = None, cost: int = 1) -> RateResult:
        """See :meth:`RateLimiter.wait`."""
        return await self._carrier.run(self._steps.wait(timeout, cost))
