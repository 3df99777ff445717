"""Freezing a batch, by Redis itself: what is taken, in which order, and where it ends."""

from __future__ import annotations

import itertools

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from writebehind.keys import QueueKeys
from writebehind_worker.frozen import FrozenBatch
from writebehind_worker.lease import Lease
from writebehind_worker.owned_queue import CONNECTIONS, OwnedQueue
from writebehind_worker.redis_server import RedisLink

_sizes = st.lists(st.one_of(st.integers(1, 60), st.integers(900, 3000)), min_size=1, max_size=40)


@pytest.mark.parametrize("is_full", [False, True], ids=["", "full"])
def test_every_item_comes_once_in_order_and_within_the_bounds(
    redis_url: str, redis_client: redis.Redis, queue: str, is_full: bool
) -> None:
    """Large items and small ones take different ways."""
    keys = QueueKeys(queue)
    numbers = itertools.count()
    with RedisLink(redis_url) as link:
        assert Lease(redis_client, keys, "token", "me", 60).take() is None
        link.open(CONNECTIONS)
        owned = OwnedQueue(link, keys, "token")
        owned.own(1, 0)
        before = redis_client.config_get("maxmemory")["maxmemory"] or 0

        @settings(max_examples=100)
        @given(_sizes, st.integers(1, 30), st.integers(1, 6000))
        def check(sizes: list[int], most_items: int, most_bytes: int) -> None:
            items = [(b"%d " % next(numbers)).ljust(size, b"x") for size in sizes]
            redis_client.lpush(queue, *items)
            redis_client.config_set("maxmemory", 1 if is_full else before)
            left = list(items)
            while isinstance(batch := owned.claim(most_items, most_bytes, 0.0), FrozenBatch):
                count = len(batch.items)
                assert batch.items == left[:count]
                assert 1 <= count <= most_items
                assert count == 1 or batch.size_bytes <= most_bytes
                is_end = count == len(left) or count == most_items
                assert is_end or batch.size_bytes + len(left[count]) > most_bytes
                left = left[count:]
                assert redis_client.llen(queue) == len(left)
                owned.acknowledge([batch.id], 0, batch.id, [])
            assert left == []
            redis_client.config_set("maxmemory", before)

        try:
            check()
        finally:
            redis_client.config_set("maxmemory", before)
