"""Receipts: whether a write is in Postgres by now."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from .errors import FlushTimeout, OutcomeUnknown, WriteRejected
from .keys import QueueKeys
from .translate import redis_errors_as_ours

if TYPE_CHECKING:
    from redis import Redis

REJECTED_BOUND = 10_000
"""How many rejections Redis remembers for receipts; older ones are in Postgres' dead letters only."""


class Rejection(msgspec.Struct, frozen=True):
    """Member of ``{q}:rejected``; ``seq`` makes it unique."""

    seq: int
    reason: str
    sqlstate: str | None = None


def pauses(first_s: float = 0.001, longest_s: float = 0.05) -> Iterator[float]:
    """Growing pauses between two looks at Redis, in seconds."""
    pause = first_s
    while True:
        yield pause
        pause = min(pause * 2, longest_s)


class Receipt:
    """Stands for one accepted write: (queue, generation, seq)."""

    __slots__ = ("_client", "_keys", "generation", "seq")

    def __init__(self, client: Redis, keys: QueueKeys, generation: int, seq: int) -> None:
        self._client, self._keys = client, keys
        self.generation, self.seq = generation, seq

    @property
    def queue(self) -> str:
        """The queue that accepted the write."""
        return self._keys.queue

    def __repr__(self) -> str:
        return f"Receipt(queue={self.queue!r}, generation={self.generation}, seq={self.seq})"

    def wait(self, timeout: float | None = None) -> None:
        """Returns when the write is committed in Postgres.

        Args:
            timeout: seconds; ``None`` waits for ever.

        Raises:
            WriteRejected: it became a dead letter.
            FlushTimeout: not committed in time. It is still queued.
            OutcomeUnknown: Redis went back in time since, or the receipt is older than what it remembers.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for pause in pauses():
            if self.is_durable():
                return
            if deadline is not None and time.monotonic() + pause > deadline:
                raise FlushTimeout(f"write {self.seq} to {self.queue!r} not committed in {timeout} s")
            time.sleep(pause)

    def is_durable(self) -> bool:
        """Whether the write is committed, by one look at Redis. Raises as :meth:`wait` does."""
        return all_durable(self, self)


def wait_durable(first: Receipt, last: Receipt, timeout: float | None) -> None:
    """Waits until :func:`all_durable`; raises as :meth:`Receipt.wait` does."""
    deadline = None if timeout is None else time.monotonic() + timeout
    for pause in pauses():
        if all_durable(first, last):
            return
        if deadline is not None and time.monotonic() + pause > deadline:
            raise FlushTimeout(f"write {last.seq} to {last.queue!r} not committed in {timeout} s")
        time.sleep(pause)


def all_durable(first: Receipt, last: Receipt) -> bool:
    """Whether the writes from one receipt to another of the same call are committed, by one look at Redis.

    Raises :class:`WriteRejected` for the oldest that was rejected, :class:`OutcomeUnknown` as ``wait`` does.
    """
    keys, seq = last._keys, last.seq
    with redis_errors_as_ours(f"receipt {seq}"), last._client.pipeline() as pipe:
        pipe.get(keys.applied)
        pipe.hget(keys.clock, "generation")
        pipe.zrangebyscore(keys.rejected, first.seq, seq, start=0, num=1)
        pipe.zcard(keys.rejected)
        pipe.zrange(keys.rejected, 0, 0, withscores=True)
        applied, generation, rejected, remembered, oldest = pipe.execute()
    if int(generation or 0) != last.generation:
        raise OutcomeUnknown(
            f"write {seq}: Redis has lost its history since (generation {last.generation}, now "
            f"{int(generation or 0)}); look the row up in Postgres"
        )
    if int(applied or 0) < seq:
        return False
    if rejected:
        found = msgspec.json.decode(rejected[0], type=Rejection)
        raise WriteRejected(found.seq, found.sqlstate, found.reason)
    if remembered >= REJECTED_BOUND and first.seq < int(oldest[0][1]):
        raise OutcomeUnknown(
            f"write {first.seq}: settled, but too long ago to say whether it was rejected; "
            "see `writebehind dead list`"
        )
    return True
