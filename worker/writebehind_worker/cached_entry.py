"""A cache entry as it stands in Redis at one instant, for commands that look at it from outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import redis
from redis import Redis

from writebehind.entry import Entry, read_entry
from writebehind.keys import QueueKeys

from .instant import at_one_instant
from .moments import AllMoments, Moments, ask

Standing = Literal["absent", "foreign", "filling", "pending", "stuck", "row", "gone"]
"""``pending``: it shows a write that may not be in Postgres yet. ``stuck``: that write is known to be
settled, whichever queue has it, and yet the entry has no time to live. ``gone``: a tombstone or a
negative entry. ``foreign``: not one of ours."""

NO_TTL = -1
_AT_ONCE = 200
"""Entries read in one transaction: Redis answers others in between."""


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

    instant = at_one_instant(client, keys, ask, entries)
    moments = AllMoments(client, keys, instant)
    return [
        CachedEntry(name, _fields(fields), expires, moments.of(name))
        for name, fields, expires in zip(names, instant.first[::2], instant.first[1::2], strict=True)
    ]


def _fields(reply: Any) -> dict[bytes, bytes] | None:
    if isinstance(reply, redis.ResponseError) and "WRONGTYPE" in str(reply):
        return None
    if isinstance(reply, Exception):
        raise reply
    return dict(reply)
