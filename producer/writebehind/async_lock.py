"""A lock with a fencing token, on an event loop."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Literal

from redis.asyncio import lock as redis_lock

from .async_carrier import AsyncCarrier
from .errors import LockLost, LockNotAcquired
from .lock import held_fence, is_held
from .lock_steps import LockSteps
from .translate import redis_errors_as_ours


class AsyncLock(redis_lock.Lock):
    """See :class:`Lock`. Tasks that share it share what it has acquired: let each make its own.

    An ``acquire`` that is cancelled lets go of what Redis may have given it.
    """

    def __init__(self, redis: Any, carrier: AsyncCarrier, steps: LockSteps, **options: Any) -> None:
        super().__init__(redis, steps.key, timeout=steps.timeout_ms / 1000, **options)
        self._carrier, self._steps = carrier, steps

    def register_scripts(self) -> None:
        """Nothing: the scripts are the library's own."""

    @property
    def fence(self) -> int:
        """See :attr:`Lock.fence`."""
        return held_fence(self)

    async def acquire(
        self,
        blocking: bool | None = None,
        blocking_timeout: float | None = None,
        token: str | bytes | None = None,
    ) -> bool:
        """See :meth:`Lock.acquire`."""
        return bool(await super().acquire(blocking, blocking_timeout, token))

    async def release(self) -> None:
        """See :meth:`Lock.release`."""
        held_fence(self)
        token, self.local.token = self.local.token, None
        await self.do_release(token)

    async def extend(self, additional_time: float, replace_ttl: bool = False) -> Literal[True]:
        """See :meth:`Lock.extend`."""
        held_fence(self)
        return await self.do_extend(additional_time, replace_ttl)

    async def reacquire(self) -> Literal[True]:
        """See :meth:`Lock.reacquire`."""
        held_fence(self)
        return await self.do_reacquire()

    async def locked(self) -> bool:
        """See :meth:`Lock.locked`."""
        with redis_errors_as_ours("lock"):
            return is_held(await self.redis.get(self.name))

    async def owned(self) -> bool:
        """See :meth:`Lock.owned`."""
        with redis_errors_as_ours("lock"):
            return is_held(await self.redis.get(self.name), getattr(self.local, "token", None) or b"")

    async def do_acquire(self, token: Any) -> bool:
        """See :meth:`Lock.do_acquire`."""
        fence = await self._carrier.run(self._steps.acquire(token))
        if fence is None:
            return False
        self.local.fence = fence
        return True

    async def do_release(self, expected_token: Any) -> None:
        """See :meth:`Lock.do_release`."""
        if not await self._carrier.run(self._steps.release(expected_token)):
            raise LockLost(self._steps.name)

    async def do_extend(self, additional_time: float, replace_ttl: bool) -> Literal[True]:
        """See :meth:`Lock.do_extend`."""
        if not await self._carrier.run(self._steps.extend(self.local.token, additional_time, replace_ttl)):
            raise LockLost(self._steps.name)
        return True

    async def do_reacquire(self) -> Literal[True]:
        """See :meth:`Lock.do_reacquire`."""
        return await self.do_extend(self._steps.timeout_ms / 1000, True)

    async def __aenter__(self) -> AsyncLock:
        if await self.acquire():
            return self
        raise LockNotAcquired(self._steps.name)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.release()
