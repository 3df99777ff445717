"""What a queue's shards were at one instant: whether any can have the write of a cache entry pending."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from redis import Redis

from writebehind.keys import QueueKeys

from .errors import FatalError
from .instant import Instant
from .nodes import home, is_clustered


class Moment(msgspec.Struct, frozen=True):
    """What a queue, or shard, was when entries were read; ``is_idle``: nothing waited, nor was frozen."""

    applied: int = 0
    clock: int = 0
    generation: int = 0
    is_idle: bool = True

    def has_settled(self, seq: int) -> bool:
        """Whether the write is known to be settled: ``applied`` advances after the entries have their TTL.

        Of an older generation it tells only where nothing is pending: a new one begins with the ledger's.
        """
        return seq == 0 or (seq <= self.applied and (seq >= self.generation or self.is_idle))

    def has_passed(self, seq: int) -> bool:
        """Whether no write of this queue with that seq can be pending: it is settled, or never was given."""
        return self.clock < seq or self.has_settled(seq)


class Moments(msgspec.Struct, frozen=True):
    """What the shards were that may have the write of an entry: without any, nothing is known of it."""

    shards: tuple[Moment, ...] = (Moment(),)

    def has_settled(self, seq: int) -> bool:
        """As of a `Moment`: one has settled it, and none can have it pending."""
        return any(one.has_settled(seq) for one in self.shards) and all(
            one.has_passed(seq) for one in self.shards
        )


class AllMoments:
    """Of all shards of a queue; :meth:`of` an entry are those that may have its write.

    On a cluster the name tells by which shard it was written, and in which division. Of a former one all are
    asked, that shard among them: where it is none any more, or the layout is not what it was, none is.
    """

    def __init__(self, client: Redis, keys: QueueKeys, instant: Instant) -> None:
        self._keys, self._number, self._is_clustered = keys, instant.layout.number, is_clustered(client)
        each = zip(instant.shards, instant.replies, strict=True)
        self._by_queue = {one.queue: moment_of(one, replies) for one, replies in each}
        self._every = Moments(tuple(self._by_queue.values()))

    def of(self, name: bytes) -> Moments:
        """By the name of the entry."""
        told = self._keys.home_of(name.decode(errors="surrogateescape")) if self._is_clustered else None
        if told is None:
            return self._every
        queue, number = told
        own = self._by_queue.get(queue)
        if own is None:
            return Moments(())
        return Moments((own,)) if number == self._number else self._every


def read_moment(client: Redis, keys: QueueKeys) -> Moment:
    """What this one queue, or shard, is now. Raises as `read_entries` does."""
    pipe: Any = home(client, keys.clock).pipeline()
    ask(pipe, keys)
    return moment_of(keys, pipe.execute(raise_on_error=False))


def ask(pipe: Any, keys: QueueKeys) -> None:
    """What :func:`moment_of` takes the replies to."""
    pipe.get(keys.applied).hmget(keys.clock, "seq", "generation").llen(keys.queue).llen(keys.inflight)


def moment_of(keys: QueueKeys, replies: Sequence[Any]) -> Moment:
    """Raises what is among them, and `FatalError` for what is none of ours."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    applied, clock, waiting, frozen = replies
    seq, generation = (as_number(value, keys.clock) for value in clock)
    is_idle = waiting == 0 and frozen == 0
    return Moment(as_number(applied, keys.applied), seq, generation, is_idle)


def as_number(value: bytes | None, key: str) -> int:
    """What a key of the queue holds; 0 if it is not there. Raises `FatalError` for what is no number."""
    if value is None:
        return 0
    if not value.isdigit():
        raise FatalError(f"{key} in Redis holds what no worker has put there", "look at it with redis-cli")
    return int(value)
