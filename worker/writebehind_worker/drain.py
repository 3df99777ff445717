"""Waiting until a queue is empty: nothing waits, nothing is frozen, at one instant."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redis import Redis

from writebehind.keys import QueueKeys

from .instant import at_one_instant
from .moments import as_number
from .pause import read_pause
from .pending import read_frozen
from .verify_view import many

_POLL_S = 0.1
_RATE_OVER_S = 10.0


@dataclass(frozen=True, slots=True)
class Backlog:
    """Writes that ``waiting`` are in the queue, ``frozen`` in batches; ``paused``: why an operator did."""

    waiting: int
    batches: int
    frozen: int
    paused: str | None

    @property
    def is_empty(self) -> bool:
        """Everything that had been accepted at that instant is in Postgres, or in its dead letters."""
        return not self.waiting and not self.batches

    @property
    def is_endless(self) -> bool:
        """What waits is not taken while the pause lasts; what was frozen before is still written."""
        return self.paused is not None and self.waiting > 0

    @property
    def pending(self) -> int:
        """Writes that are not acknowledged."""
        return self.waiting + self.frozen

    def __str__(self) -> str:
        text = f"{many(self.waiting, 'write')} in the queue"
        batches = many(self.batches, "frozen batch", "frozen batches")
        return f"{text}, {self.frozen:,} in {batches}" if self.batches else text


def read_backlog(client: Redis, keys: QueueKeys) -> Backlog:
    """Queue and frozen batches at one instant; how many writes the batches have, right after it.

    Of a queue that has shards, those of all of them that there are at that instant.
    """

    def ask(pipe: Any, one: QueueKeys) -> None:
        pipe.llen(one.queue).lrange(one.inflight, 0, -1).get(one.paused)

    instant = at_one_instant(client, keys, ask)
    waiting, batches, frozen = 0, 0, 0
    reason = None
    for one, replies in zip(instant.shards, instant.replies, strict=True):
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        length, inflight, paused = replies
        ids = [as_number(batch, one.inflight) for batch in inflight]
        lengths, _ = read_frozen(client, one, ids)
        waiting, batches, frozen = waiting + length, batches + len(ids), frozen + sum(lengths)
        if paused is not None and (length or reason is None):
            reason = read_pause(paused).reason
    return Backlog(waiting, batches, frozen, reason)


class Rate:
    """How fast a backlog shrinks, over the last seconds. ``now`` is in seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, now: float, pending: int) -> None:
        """So many are left."""
        self._seen.append((now, pending))
        while self._seen[0][0] < now - _RATE_OVER_S:
            self._seen.popleft()

    @property
    def per_s(self) -> float:
        """Writes a second that it has become less; negative where it grows, 0 where that is not known."""
        (first, had), (last, has) = self._seen[0], self._seen[-1]
        return (had - has) / (last - first) if last > first else 0.0

    def __str__(self) -> str:
        per_s, left = self.per_s, self._seen[-1][1]
        if per_s < 0:
            return f"{-per_s:,.0f} more a second: the producers are faster"
        return (
            f"{per_s:,.0f} less a second, about {left / per_s:,.0f} s left" if per_s else "nothing moves yet"
        )


def drain(
    client: Redis, keys: QueueKeys, timeout_s: float, progress: Callable[[Backlog, Rate], None]
) -> Backlog:
    """The backlog once it is empty, or would never be for a pause, or after ``timeout_s``."""
    deadline, rate = time.monotonic() + timeout_s, Rate()
    while True:
        backlog = read_backlog(client, keys)
        now = time.monotonic()
        rate.add(now, backlog.pending)
        if backlog.is_empty or backlog.is_endless or now >= deadline:
            return backlog
        progress(backlog, rate)
        time.sleep(min(_POLL_S, max(0.0, deadline - now)))
