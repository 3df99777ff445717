"""Receipts: whether a write is in Postgres by now."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from .carrier import Carrier
from .errors import FlushTimeout, OutcomeUnknown, WriteRejected
from .keys import QueueKeys
from .pauses import pauses
from .steps import Pause, Pipeline, Steps
from .translate import redis_errors_as_ours

REJECTED_BOUND = 10_000
"""How many rejections Redis remembers for receipts; older ones are in Postgres' dead letters only."""


class Rejection(msgspec.Struct, frozen=True):
    """Member of ``{q}:rejected``; ``seq`` makes it unique."""

    seq: int
    reason: str
    sqlstate: str | None = None


_decode_rejection = msgspec.json.Decoder(Rejection).decode


class AnyReceipt:
    """Stands for one accepted write: (queue, generation, seq)."""

    __slots__ = ("_keys", "generation", "seq")

    def __init__(self, keys: QueueKeys, generation: int, seq: int) -> None:
        self._keys = keys
        self.generation, self.seq = generation, seq

    @property
    def queue(self) -> str:
        """The queue that accepted the write."""
        return self._keys.queue

    def __repr__(self) -> str:
        return f"{type(self).__name__}(queue={self.queue!r}, generation={self.generation}, seq={self.seq})"


class Receipt(AnyReceipt):
    """Stands for one accepted write: (queue, generation, seq)."""

    __slots__ = ("_carrier",)

    def __init__(self, carrier: Carrier, keys: QueueKeys, generation: int, seq: int) -> None:
        super().__init__(keys, generation, seq)
        self._carrier = carrier

    def wait(self, timeout: float | None = None) -> None:
        """Returns when the write is committed in Postgres.

        Args:
            timeout: seconds; ``None`` waits for ever.

        Raises:
            WriteRejected: it became a dead letter.
            FlushTimeout: not committed in time. It is still queued.
            OutcomeUnknown: Redis went back in time since, or the receipt is older than what it remembers.
        """
        self._carrier.run(wait_durable(self, self, timeout))

    def is_durable(self) -> bool:
        """Whether the write is committed, by one look at Redis. Raises as :meth:`wait` does."""
        return self._carrier.run(all_durable(self, self))


def wait_durable(first: AnyReceipt, last: AnyReceipt, timeout: float | None) -> Steps[None]:
    """Waits until :func:`all_durable`; raises as :meth:`Receipt.wait` does."""
    deadline = None if timeout is None else time.monotonic() + timeout
    for pause in pauses():
        if (yield from all_durable(first, last)):
            return
        if deadline is not None and time.monotonic() + pause > deadline:
            raise FlushTimeout(f"write {last.seq} to {last.queue!r} not committed in {timeout} s")
        yield Pause(pause)


def all_durable(first: AnyReceipt, last: AnyReceipt) -> Steps[bool]:
    """Whether the writes from one receipt to another of the same call are committed, by one look at Redis.

    Raises :class:`WriteRejected` for the oldest that was rejected, :class:`OutcomeUnknown` as ``wait`` does.
    """
    keys, seq = last._keys, last.seq
    with redis_errors_as_ours(f"receipt {seq}"):
        applied, committed, generation, rejected, remembered, oldest = yield Pipeline(
            [
                ("GET", keys.applied),
                ("HGET", keys.clock, "committed"),  # ahead of `applied` while many cache entries are settled
                ("HGET", keys.clock, "generation"),
                ("ZRANGEBYSCORE", keys.rejected, first.seq, seq, "LIMIT", 0, 1),
                ("ZCARD", keys.rejected),
                ("ZRANGE", keys.rejected, 0, 0),
            ],
            at_once=True,
        )
    if int(generation or 0) != last.generation:
        raise OutcomeUnknown(
            f"write {seq}: Redis has lost its history since (generation {last.generation}, now "
            f"{int(generation or 0)}); look the row up in Postgres"
        )
    if max(int(applied or 0), int(committed or 0)) < seq:
        return False
    if rejected:
        found = _rejection(rejected)
        raise WriteRejected(found.seq, found.sqlstate, found.reason)
    if remembered >= REJECTED_BOUND and first.seq < _rejection(oldest).seq:
        raise OutcomeUnknown(
            f"write {first.seq}: settled, but too long ago to say whether it was rejected; "
            "see `writebehind dead list`"
        )
    return True


def _rejection(members: Sequence[bytes]) -> Rejection:
    return _decode_rejection(members[0])
