"""Where a row is at home on a cluster: its entry is in the slot of its shard, named by the division. No I/O.

Which shard that is, the shard's own clock says; it is asked in the same round trip, after the entry: once a
shard was closed it is never again that of the same division.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from .enqueue import ShardMoved
from .keys import QueueKeys
from .message import Id
from .script import Argument
from .steps import Pipeline, Steps
from .translate import redis_errors_as_ours


class Wanted(NamedTuple):
    """A row that is asked for: its cache key, its id as the caller has it, and the keys of its shard.

    ``shard``: which one that has to be, as its clock says. ``None`` where it does not matter: only on a
    cluster do entries have another name after a division.
    """

    where: str
    id: Id
    keys: QueueKeys
    shard: str | None = None


def homes(wanted: Iterable[Wanted]) -> dict[QueueKeys, str]:
    """The shards of rows, and what their clocks have to say."""
    return {w.keys: w.shard for w in wanted if w.shard is not None}


def home_commands(shards: Iterable[QueueKeys]) -> list[Sequence[Argument]]:
    """What their clocks are asked."""
    return [("HMGET", keys.clock, "shard", "division", "hold") for keys in shards]


def held(shards: dict[QueueKeys, str], replies: Iterable[Any]) -> set[QueueKeys]:
    """Those of which a row may have a write pending in a former shard.

    Raises :class:`ShardMoved` where one is not what it was taken for.
    """
    found = set()
    for (keys, shard), reply in zip(shards.items(), replies, strict=True):
        if isinstance(reply, Exception):
            raise reply
        stamp, division, hold = reply
        if f"{(stamp or b'').decode()}@{(division or b'0').decode()}" != shard:
            raise ShardMoved
        if hold is not None:
            found.add(keys)
    return found


def look_home(wanted: Sequence[Wanted]) -> Steps[set[QueueKeys]]:
    """Asks the clocks alone: :func:`held`."""
    shards = homes(wanted)
    if not shards:
        return set()
    with redis_errors_as_ours("shards"):
        return held(shards, (yield Pipeline(home_commands(shards), keeps_errors=True)))
