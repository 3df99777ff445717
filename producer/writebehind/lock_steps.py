"""What a lock does in Redis, as steps."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from .names import check_name
from .script import Argument, Script
from .steps import Steps, run_script
from .translate import as_ours

if TYPE_CHECKING:
    from .core import Core

_LOCK, _UNLOCK, _EXTEND = (Script("writebehind", name) for name in ("lock", "unlock", "extend_lock"))
_MAX_S = 365 * 86_400
_REMEMBERED_MS = 60_000  # redis-py re-sends a call within seconds


class LockSteps:
    """One lock of a queue's. ``token`` tells one holder from another."""

    def __init__(self, core: Core, name: str, timeout: float) -> None:
        self.name = check_name("lock", name)
        self._call, keys = core.call, core.keys
        self.key, self._fence = keys.lock(name), keys.fence
        self.timeout_ms = milliseconds("a lock's timeout", timeout)

    def acquire(self, token: bytes) -> Steps[int | None]:
        """The fence, or nothing if somebody else has the lock."""
        return self._call("lock_acquire", None, 1, lambda: self._acquire(token))

    def _acquire(self, token: bytes) -> Steps[int | None]:
        try:
            reply = yield from self._run(_LOCK, (self.key, self._fence), token, self.timeout_ms)
        except GeneratorExit:
            raise
        except BaseException:  # interrupted, or no answer: Redis may have given it to us all the same
            with suppress(Exception):  # it runs out by itself; the first error says more
                yield from self._release(token)
            raise
        return None if reply is None else int(reply)

    def release(self, token: bytes) -> Steps[bool]:
        """Whether the token held it. A call that is re-sent gets the first answer."""
        return self._call("lock_release", None, 1, lambda: self._release(token))

    def _release(self, token: bytes) -> Steps[bool]:
        return bool((yield from self._run(_UNLOCK, (self.key,), token, _REMEMBERED_MS)))

    def extend(self, token: bytes, seconds: float, replace: bool) -> Steps[bool]:
        """Whether the token holds it."""
        return self._call("lock_extend", None, 1, lambda: self._extend_by(token, seconds, replace))

    def _extend_by(self, token: bytes, seconds: float, replace: bool) -> Steps[bool]:
        ms, how = milliseconds("the time that is added", seconds), "replace" if replace else "add"
        return bool((yield from self._run(_EXTEND, (self.key,), token, ms, how)))

    def _run(self, script: Script, keys: tuple[str, ...], *args: Argument) -> Steps[bytes | int | None]:
        try:
            reply: bytes | int | None = yield from run_script(script, keys, args)
        except (RedisError, OSError) as error:
            raise as_ours(f"lock {self.name!r}", error) from error
        return reply


def milliseconds(what: str, seconds: float) -> int:
    """Raises ``ValueError`` unless it is from a millisecond to a year."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0.001 <= seconds <= _MAX_S:
        raise ValueError(f"{what} must be from 0.001 s to a year, not {seconds!r}")
    return math.ceil(seconds * 1000)
