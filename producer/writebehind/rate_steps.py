"""Asking rate limits, as steps."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from .errors import RateLimited
from .keys import QueueKeys
from .message import Write
from .rate import RateLimit, RateResult, whole
from .script import Argument, Script
from .settings import Admit
from .steps import Pause, Steps, run_script
from .translate import as_ours

if TYPE_CHECKING:
    from .core import Core

_RATE_LIMIT = Script("writebehind", "rate_limit")


class RateSteps:
    """One rate limit of a queue's."""

    def __init__(self, core: Core, limit: RateLimit) -> None:
        self._core, self._limit = core, limit

    def acquire(self, cost: int) -> Steps[RateResult]:
        """Takes so many slots, or none."""
        return self._core.call("rate_limit_acquire", None, 1, lambda: self._acquire(cost))

    def wait(self, timeout: float | None, cost: int) -> Steps[RateResult]:
        """The same, again and again; the last refusal if the next try would come too late."""
        return self._core.call("rate_limit_wait", None, 1, lambda: self._wait(timeout, cost))

    def _acquire(self, cost: int) -> Steps[RateResult]:
        whole("cost", cost, self._limit.limit)
        return (yield from _take(self._core.keys, {self._limit: cost}))[1]

    def _wait(self, timeout: float | None, cost: int) -> Steps[RateResult]:
        until = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            result = yield from self._acquire(cost)
            if result.allowed or time.monotonic() + result.retry_after > until:
                return result
            yield Pause(result.retry_after)


def admit_writes(keys: QueueKeys, admit: Admit, writes: Sequence[Write]) -> Steps[None]:
    """Takes the slots of all writes. Raises ``RateLimited``, and takes none, if one limit refuses."""
    costs: dict[RateLimit, int] = {}
    for write in writes:
        limit = admit(write.table, write.key, write.op)
        if limit is not None:
            costs[limit] = costs.get(limit, 0) + 1
    by_name = {limit.name: limit for limit in costs}
    if len(by_name) < len(costs):
        raise ValueError(f"admit gave different limits of one name: {sorted(map(str, costs))}")
    for limit, cost in costs.items():
        if cost > limit.limit:
            raise RateLimited(limit.name, math.inf, cost, limit.limit, limit.per)
    if costs:
        limit, result = yield from _take(keys, costs)
        if not result.allowed:
            raise RateLimited(limit.name, result.retry_after, costs[limit], limit.limit, limit.per)


def _take(keys: QueueKeys, costs: Mapping[RateLimit, int]) -> Steps[tuple[RateLimit, RateResult]]:
    """Slots of each, or of none; and which refused."""
    limits = list(costs)
    arguments: list[Argument] = [secrets.token_hex(8)]
    for limit, cost in costs.items():
        arguments += [limit.limit, _micros(limit), cost]
    names = [keys.rate(limit.name, _micros(limit)) for limit in limits]
    try:
        reply = yield from run_script(_RATE_LIMIT, names, arguments)
    except (RedisError, OSError) as error:
        told = ", ".join(limit.name for limit in limits)
        raise as_ours(f"rate limit {told!r}", error) from error
    refused, remaining, wait, at = map(int, reply)
    return limits[max(refused - 1, 0)], RateResult(not refused, remaining, wait / 1_000_000, at)


def _micros(limit: RateLimit) -> int:
    return math.ceil(limit.per * 1_000_000)
