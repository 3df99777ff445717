"""The shards as this client knows them, and asking Redis anew when they have become others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from .enqueue import Enqueue
from .errors import RedisRefused, ShardsDiffer
from .keys import QueueKeys
from .pauses import pauses
from .route import shard_of, shard_of_route
from .shards import LAYOUT_FIELDS, Layout, read_layout, shard_keys, stamp
from .steps import Command, Pause, Steps
from .translate import redis_errors_as_ours

CLOSED_FOR_S = 10.0  # longest that a write waits for shards to be closed and others to be opened

_UNKNOWN = "?"

MakeEnqueue = Callable[[QueueKeys, str], Enqueue]


class Shards(NamedTuple):
    """A layout, and the ways into the shards that it tells of, as they belong together.

    Who is accepted by a way knows by that that its layout still holds.
    """

    layout: Layout
    ways: Sequence[Enqueue]

    def way(self, table: str, key: str | Mapping[str, str], route: str | None = None) -> Enqueue:
        """Into the shard of a row, or of a routing value if there is one."""
        ways = self.ways
        return ways[0] if len(ways) == 1 else ways[_shard(table, key, route, len(ways))]


class Division:
    """The way into each shard of a queue.

    Args:
        keys: of the queue.
        shards: how many there have to be; ``None``: as many as Redis says.
        make: the way into one shard, of its keys and of what its clock says that it is.
        is_clustered: whether it also has to be of the last division, as on a cluster.
    """

    def __init__(
        self, keys: QueueKeys, shards: int | None, make: MakeEnqueue, *, is_clustered: bool = False
    ) -> None:
        self._keys, self._told, self._make = keys, shards, make
        self.is_clustered = is_clustered
        self.are(Layout(shards or 1))

    def are(self, layout: Layout) -> None:
        """So many shards there are from now on."""
        count = layout.shards
        each = shard_keys(self._keys.queue, count)
        mark = f"@{layout.number}" if self.is_clustered else ""
        ways = [
            self._make(keys, stamp(number, count, layout.moves) + mark) for number, keys in enumerate(each)
        ]
        self.now = Shards(layout, ways)

    def forget(self) -> None:
        """Nothing is known: who writes is refused, and looks; no shard's clock says what these ways say."""
        self.now = Shards(Layout(), [self._make(self._keys, _UNKNOWN)])

    @property
    def queue(self) -> str:
        """Its name."""
        return self._keys.queue

    @property
    def layout(self) -> Layout:
        """As it was heard last."""
        return self.now.layout

    @property
    def ways(self) -> Sequence[Enqueue]:
        """Into all shards."""
        return self.now.ways

    def have_changed(self) -> Steps[bool]:
        """Asks Redis whether there are others by now."""
        before = self.layout
        with suppress(RedisRefused):  # a user that was set up for an earlier version may not look
            layout = yield from self.read()
            if layout.closing is None and self._told in (None, layout.shards):
                self.are(layout)
        return self.layout != before

    def disagrees(self, way: Enqueue) -> RedisRefused:
        """The error for a shard that is still not what the layout says."""
        return RedisRefused(
            f"{way.keys.clock} in Redis does not say that {way.keys.queue!r} is the shard that "
            f"{self._keys.layout} makes it: nothing was written. Is it a shard of another queue, or was one "
            "of the two keys lost?"
        )

    @property
    def with_former(self) -> list[QueueKeys]:
        """The keys of all shards, and of those that still drain."""
        former = [keys for shards in self.layout.draining for keys in shard_keys(self._keys.queue, shards)]
        return [*(way.keys for way in self.ways), *former]

    def read(self) -> Steps[Layout]:
        """What Redis says; nothing is done by it yet."""
        with redis_errors_as_ours("shards"):
            return read_layout((yield Command(("HMGET", self._keys.layout, *LAYOUT_FIELDS))))

    def look_again(self) -> Steps[None]:
        """Some shard is not what it was taken for: asks Redis, and waits while shards are being closed.

        Raises:
            ShardsDiffer: there are not as many as this client was told.
            RedisRefused: they were not opened in time.
        """
        deadline = time.monotonic() + CLOSED_FOR_S
        for pause in pauses():
            layout = yield from self.read()
            if layout.closing is None:
                if self._told is not None and layout.shards != self._told:
                    raise ShardsDiffer(self._keys.queue, self._told, layout.shards)
                self.are(layout)
                return
            if time.monotonic() + pause > deadline:
                raise RedisRefused(
                    f"queue {self._keys.queue!r} is being divided into {layout.closing} shards, and takes no "
                    f"writes until that is done: run `writebehind reshard {layout.closing}` again, "
                    "it may have been ended"
                )
            yield Pause(pause)


def _shard(table: str, key: str | Mapping[str, str], route: str | None, shards: int) -> int:
    return shard_of(table, key, shards) if route is None else shard_of_route(route, shards)
