"""Steps of a division that Redis has lost: the layout and the clocks of the shards do not belong together.

By a failover a node goes back to what its replica had. On a cluster the layout and each shard are on nodes of
their own, and go back one without the other: clients then write where nobody reads, or nowhere. It shows in
the numbers of divisions, of which there are no two alike, and in shards that are not closed though they are
none any more. Which step is lost is no matter. The queue is divided anew, with all the shards that there ever
were as former ones: they are closed, and what they hold goes to Postgres before anything of the present ones.
"""

from __future__ import annotations

from collections.abc import Iterable

from redis import Redis

from writebehind.keys import QueueKeys
from writebehind.shards import MAX_SHARDS, Layout, shard_keys, shards_of

from .resharding import LostSteps, layout_of
from .shard_clocks import Clocks, read_clocks


def find_lost_steps(
    client: Redis, keys: QueueKeys, layout: Layout, counts: Iterable[int]
) -> LostSteps | None:
    """``counts``: numbers of shards to look at, besides those that are served and the queue itself."""
    return judge(client, keys, layout, read_clocks(client, keys, counts_served(layout).union(counts)))


def counts_served(layout: Layout) -> set[int]:
    """Numbers of shards without all of whose clocks nothing can be judged; the queue itself is one."""
    return {1, layout.shards, *layout.draining}


def judge(client: Redis, keys: QueueKeys, layout: Layout, clocks: Clocks) -> LostSteps | None:
    """By the clocks, of which none may be missing.

    The layout is read again, as it was before the clocks: what only happened meanwhile is none.
    """
    if not layout.number and shards_of(keys.queue.rpartition(":")[0], keys.queue):
        return None  # a shard that is served by its own name
    followed = {one.into for those in clocks.values() for one in those if one.division > layout.number}
    if more := {count for count in followed if 1 <= count <= MAX_SHARDS} - clocks.keys():
        clocks = {**clocks, **read_clocks(client, keys, more)}
    found = lost_steps(layout, clocks)
    return None if found is None or layout_of(client, keys) != layout else found


def lost_steps(layout: Layout, clocks: Clocks) -> LostSteps | None:
    """What is lost, if anything is: a pure matter of what Redis says."""
    if not (found := suspects(layout, clocks)):
        return None
    each = [(shards, one) for shards, those in clocks.items() for one in those]
    known = max(one.division for _, one in each)
    if known > layout.number:
        reason = f"shards know of division {known}, and the layout of {layout.number} only"
    else:
        reason = f"not all of {min(found)} former shards are closed"
    newer = [(one.division, shards) for shards, one in each if one.is_open and one.division > layout.number]
    target = max(newer)[1] if newer else layout.closing or layout.shards
    used = {shards for shards, one in each if one.is_open or one.is_closed}
    former = tuple(sorted(({1, layout.shards} | used) - {target}))
    return LostSteps(reason, target, former, known, since=max(one.seq for _, one in each))


def suspects(layout: Layout, clocks: Clocks) -> frozenset[int]:
    """Numbers of shards of which one knows a later division than the layout, or is open and should not be."""
    former = _former(layout, clocks)
    return frozenset(
        shards
        for shards, those in clocks.items()
        if any(one.division > layout.number or (shards in former and one.is_open) for one in those)
    )


def left_behind(keys: QueueKeys, layout: Layout, clocks: Clocks) -> list[QueueKeys]:
    """Shards that are none any more, and closed, and hold something: a raw push, or what it had long ago."""
    return [
        shard
        for shards in _former(layout, clocks)
        for shard, one in zip(shard_keys(keys.queue, shards), clocks[shards], strict=True)
        if one.holds and not one.is_open
    ]


def _former(layout: Layout, clocks: Clocks) -> set[int]:
    """Numbers of shards that are not the present ones, nor waited for, nor about to be."""
    return set() if layout.closing is not None else clocks.keys() - {layout.shards, *layout.draining}
