"""A lock with a fencing token."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Literal

from redis import lock as redis_lock
from redis.exceptions import LockError

from .carrier import Carrier
from .errors import LockLost, LockNotAcquired
from .lock_steps import LockSteps
from .translate import redis_errors_as_ours


class Lock(redis_lock.Lock):
    """redis-py's lock, with a fence: a number that grows with every acquisition of any lock of the queue.

    Made by :meth:`WriteBehind.lock`. A thread that shares it sees only what it has acquired itself.

    Raises of each call that asks Redis: RedisUnavailable, RedisRefused, RedisFull.
    """

    def __init__(self, redis: Any, carrier: Carrier, steps: LockSteps, **options: Any) -> None:
        super().__init__(redis, steps.key, timeout=steps.timeout_ms / 1000, **options)
        self._carrier, self._steps = carrier, steps

    def register_scripts(self) -> None:
        """Nothing: the scripts are the library's own."""

    @property
    def fence(self) -> int:
        """The number of this acquisition: higher than that of every earlier one.

        Raises:
            LockError: this lock has not been acquired, or was released.
        """
        return held_fence(self)

    def acquire(  # type: ignore[override]
        self,
        blocking: bool | None = None,
        blocking_timeout: float | None = None,
        token: str | bytes | None = None,
    ) -> bool:
        """Whether the lock is ours now.

        Args:
            blocking: whether to wait for it; as the lock was made, unless given.
            blocking_timeout: longest wait, in seconds; as the lock was made, unless given.
            token: tells this holder from others; made up unless given. With the token of the present holder,
                the lock is had at once, with the same fence.
        """
        return bool(
            super().acquire(blocking=blocking, blocking_timeout=blocking_timeout, token=token)  # type: ignore[arg-type]
        )

    def release(self) -> None:
        """Lets it go.

        Raises:
            LockLost: its time ran out; somebody else may have had it since.
            LockError: it was not acquired.
        """
        held_fence(self)
        super().release()

    def extend(self, additional_time: float, replace_ttl: bool = False) -> Literal[True]:
        """Adds seconds to the time that is left, or with ``replace_ttl`` lets it live so long from now.

        Raises:
            LockLost: as :meth:`release`.
        """
        held_fence(self)
        return super().extend(additional_time, replace_ttl)

    def reacquire(self) -> Literal[True]:
        """Lets it live as long from now as when it was acquired; raises as :meth:`extend`."""
        held_fence(self)
        return super().reacquire()

    def locked(self) -> bool:
        """Whether anybody has it."""
        with redis_errors_as_ours("lock"):
            return is_held(self.redis.get(self.name))

    def owned(self) -> bool:
        """Whether this lock still has it, as Redis sees it: it may have run out when the answer is here."""
        with redis_errors_as_ours("lock"):
            return is_held(self.redis.get(self.name), getattr(self.local, "token", None) or b"")

    def do_acquire(self, token: Any) -> bool:
        """One attempt."""
        fence = self._carrier.run(self._steps.acquire(token))
        if fence is None:
            return False
        self.local.fence = fence
        return True

    def do_release(self, expected_token: Any) -> None:
        """As :meth:`release`."""
        if not self._carrier.run(self._steps.release(expected_token)):
            raise LockLost(self._steps.name)

    def do_extend(self, additional_time: float, replace_ttl: bool) -> Literal[True]:
        """As :meth:`extend`."""
        if not self._carrier.run(self._steps.extend(self.local.token, additional_time, replace_ttl)):
            raise LockLost(self._steps.name)
        return True

    def do_reacquire(self) -> Literal[True]:
        """As :meth:`reacquire`."""
        return self.do_extend(self._steps.timeout_ms / 1000, True)

    def __enter__(self) -> Lock:
        if self.acquire():
            return self
        raise LockNotAcquired(self._steps.name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def held_fence(lock: Any) -> int:
    """The fence of a lock that this thread has acquired; ``LockError`` if it has not."""
    if getattr(lock.local, "token", None) is None:
        raise LockError("this lock has not been acquired here, or was released: acquire it first")
    fence: int = lock.local.fence
    return fence


def is_held(value: Any, token: bytes | None = None) -> bool:
    """Whether a lock that has this value in Redis is held, by this token if one is given."""
    holder, _, state = (value or b"").rpartition(b":")
    return bool(state.isdigit()) and (token is None or holder == token)
