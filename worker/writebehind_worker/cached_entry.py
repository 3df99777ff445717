"""A cache entry as it stands in Redis at one instant, for commands that look at it from outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import redis
from redis import Redis

from writebehind.entry import Entry, read_entry
from writebehind.keys import QueueKeys

from .errors import FatalError
from .instant import at_one_instant
from .nodes import home

Standing = Literal["absent", "foreign", "filling", "pending", "stuck", "row", "gone"]
"""``pending``: it shows a write that may not be in Postgres yet. ``stuck``: that write is known to be
settled, whichever queue has it, and yet the entry has no time to live. ``gone``: a tombstone or a
negative entry. ``foreign``: not one of ours."""

NO_TTL = -1
_AT_ONCE = 200
"""Entries read in one transaction: Redis answers others in between."""


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
    """What all shards of a queue were at that instant: any of them may have the write of an entry."""

    shards: tuple[Moment, ...] = (Moment(),)

    def has_settled(self, seq: int) -> bool:
        """As of a `Moment`: one has settled it, and none can have it pending."""
        return any(one.has_settled(seq) for one in self.shards) and all(
            one.has_passed(seq) for one in self.shards
        )


class CachedEntry(msgspec.Struct, frozen=True):
    """``fields`` of the hash, ``None`` where the key holds something else; ``expires_ms``: Unix time.

    ``is_no_others``: its write is known not to be pending in another queue, as `OtherQueues` finds out.
    """

    name: bytes
    fields: dict[bytes, bytes] | None
    expires_ms: int
    moment: Moments
    is_no_others: bool = False

    @property
    def entry(self) -> Entry:
        """What it says to a reader, but that columns may be frames: see `unpacked_columns`."""
        if self.fields is None:
            return Entry("foreign", {})
        try:
            return read_entry(self.fields, unpacks=False)
        except UnicodeDecodeError:  # the name of a field: no column
            return Entry("foreign", {})

    @property
    def standing(self) -> Standing:
        """As :data:`Standing` says."""
        entry = self.entry
        if entry.state in ("absent", "foreign", "filling"):
            return entry.state
        if self.has_no_ttl:
            return "stuck" if self.is_no_others and self.moment.has_settled(entry.seq) else "pending"
        return "pending" if entry.state == "marker" else entry.state

    @property
    def has_no_ttl(self) -> bool:
        """Whether a write of some queue has taken the time to live away."""
        return self.expires_ms == NO_TTL and b"@seq" in (self.fields or {})

    @property
    def kind(self) -> str:
        """Its state by its proper name: row, marker, tombstone, negative, fill, foreign or absent."""
        if self.entry.state in ("absent", "row", "foreign"):
            return self.entry.state
        return (self.fields or {}).get(b"@is", b"").decode()

    def is_still(self, other: CachedEntry) -> bool:
        """Whether nobody has touched it in between: each write changes its seq, each fill its expiry."""
        return self.fields == other.fields and self.expires_ms == other.expires_ms


def read_entries(client: Redis, keys: QueueKeys, names: Sequence[bytes]) -> list[CachedEntry]:
    """The entries of these cache keys, each parcel of them at one instant.

    Raises:
        redis.RedisError: it does not answer, or a key of the queue is of another type.
        FatalError: a key of the queue holds what nobody of us has put there.
    """
    found: list[CachedEntry] = []
    for start in range(0, len(names), _AT_ONCE):
        found += _read(client, keys, names[start : start + _AT_ONCE])
    return found


def _read(client: Redis, keys: QueueKeys, names: Sequence[bytes]) -> list[CachedEntry]:
    def entries(pipe: Any) -> None:
        for name in names:
            pipe.hgetall(name).pexpiretime(name)

    instant = at_one_instant(client, keys, _ask, entries)
    moments = Moments(tuple(map(_moment, instant.shards, instant.replies)))
    return [
        CachedEntry(name, _fields(fields), expires, moments)
        for name, fields, expires in zip(names, instant.first[::2], instant.first[1::2], strict=True)
    ]


def read_moment(client: Redis, keys: QueueKeys) -> Moment:
    """What this one queue, or shard, is now. Raises as :func:`read_entries` does."""
    pipe: Any = home(client, keys.clock).pipeline()
    _ask(pipe, keys)
    return _moment(keys, pipe.execute(raise_on_error=False))


def _ask(pipe: Any, keys: QueueKeys) -> None:
    pipe.get(keys.applied).hmget(keys.clock, "seq", "generation").llen(keys.queue).llen(keys.inflight)


def _moment(keys: QueueKeys, replies: Sequence[Any]) -> Moment:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    applied, clock, waiting, frozen = replies
    seq, generation = (as_number(value, keys.clock) for value in clock)
    is_idle = waiting == 0 and frozen == 0
    return Moment(as_number(applied, keys.applied), seq, generation, is_idle)


def _fields(reply: Any) -> dict[bytes, bytes] | None:
    if isinstance(reply, redis.ResponseError) and "WRONGTYPE" in str(reply):
        return None
    if isinstance(reply, Exception):
        raise reply
    return dict(reply)


def as_number(value: bytes | None, key: str) -> int:
    """What a key of the queue holds; 0 if it is not there. Raises `FatalError` for what is no number."""
    if value is None:
        return 0
    if not value.isdigit():
        raise FatalError(f"{key} in Redis holds what no worker has put there", "look at it with redis-cli")
    return int(value)
