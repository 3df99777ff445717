"""The pending writes of one row in all shards of a queue, and which of them it is that has the row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from redis import Redis

from writebehind.keys import QueueKeys
from writebehind.route import shard_of
from writebehind.shards import Layout, shard_keys, shard_queues

from .resharding import served
from .row_search import Found, RowMatcher, search


@dataclass(frozen=True, slots=True)
class Searched:
    """What was found, by the name of the queue or shard; the former shards first."""

    keys: QueueKeys
    layout: Layout
    parts: Mapping[str, Found]

    @property
    def whole(self) -> Found:
        """Of all of them: what a former shard has goes to Postgres first."""
        parts = self.parts.values()
        return Found(
            [write for part in parts for write in part.writes],
            sum(part.looked for part in parts),
            sum(part.length for part in parts),
            max(part.unreadable for part in parts),  # of one matcher: it counts on
            is_whole=all(part.is_whole for part in parts),
            moved=any(part.moved for part in parts),
        )

    def shard(self, table: str, key: Mapping[str, str]) -> str:
        """Which queue has the row: the one where its newest write of the library is, else by its hash."""
        if stamped := [(write.seq, write.queue) for write in self.whole.writes if write.seq is not None]:
            return max(stamped)[1]
        texts = next(iter(key.values())) if len(key) == 1 else key
        return self._present[shard_of(table, texts, self.layout.shards)]

    @property
    def _present(self) -> list[str]:
        return shard_queues(self.keys.queue, self.layout.shards)


def entries_of(keys: QueueKeys, layout: Layout, table: str, key: Mapping[str, str], plain: str) -> list[str]:
    """Where a row's cache entry may be on a cluster: in the shard of its hash, or by a route in another."""
    shards = [one.entry(plain, layout.number) for one in shard_keys(keys.queue, layout.shards)]
    texts = next(iter(key.values())) if len(key) == 1 else key
    return [shards.pop(shard_of(table, texts, layout.shards)), *shards]


def search_shards(
    client: Redis,
    keys: QueueKeys,
    layout: Layout,
    matcher: RowMatcher,
    limit: int | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Searched:
    """As `search` does, in each of them: anybody may push to the queue itself."""
    present = shard_queues(keys.queue, layout.shards)
    shards = sorted(served(keys, layout), key=lambda one: one.queue in present)
    found = {one.queue: search(client, one, matcher, limit, progress) for one in shards}
    return Searched(keys, layout, found)
