"""Freezing a batch, by Redis itself: what is taken, in which order, and where it ends."""

from __future__ import annotations

import itertools
import json
import zlib
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.support.owners import owning
from tests.support.replica import started_in

from writebehind.keys import QueueKeys
from writebehind_worker.embedded import EmbeddedRedis
from writebehind_worker.errors import OwnershipLost
from writebehind_worker.frozen import FrozenBatch
from writebehind_worker.redis_rights import missing
from writebehind_worker.settle import Settlement
from writebehind_worker.testing.servers import FAST_REDIS


def packed(number: int, table: str, size: int) -> bytes:
    """A message that unpacks to so many bytes."""
    frame = b64encode(zlib.compress(b"1" * size)).decode()
    message = {"table": table, "id": number, "data": {}, "v": 2, "packed": {"a": frame}, "unpacked": size}
    return json.dumps(message, separators=(",", ":")).encode()


_sizes = st.lists(st.one_of(st.integers(1, 60), st.integers(900, 3000)), min_size=1, max_size=40)


@pytest.fixture
def url_without_sort(redis_url: str, redis_client: redis.Redis) -> Iterator[str]:
    """Of a user with the rights of an earlier version."""
    may = ["+@all", "-sort"]
    redis_client.acl_setuser("no-sort", enabled=True, passwords="+secret", keys="*", commands=may)
    yield redis_url.replace("//", "//no-sort:secret@", 1)
    redis_client.acl_deluser("no-sort")


@pytest.mark.parametrize("is_full", [False, True], ids=["", "full"])
@pytest.mark.parametrize("sorts", [True, False], ids=["", "without SORT"])
def test_every_item_comes_once_in_order_and_within_the_bounds(
    redis_url: str, url_without_sort: str, redis_client: redis.Redis, queue: str, is_full: bool, sorts: bool
) -> None:
    """Items are copied by Redis itself, or one by one where the user may not sort."""
    keys = QueueKeys(queue)
    numbers = itertools.count()
    with owning(redis_url if sorts else url_without_sort, keys) as owned:
        redis_client.config_resetstat()
        before = redis_client.config_get("maxmemory")["maxmemory"] or 0

        @settings(max_examples=100)
        @given(_sizes, st.integers(1, 30), st.integers(1, 6000))
        @example([1] * 2500, 2300, 1 << 20)
        @example([5, *[100_000] * 60, *[5] * 100], 150, 4 << 20)
        @example([5] * 100 + [100_000] * 60, 150, 4 << 20)
        def check(sizes: list[int], most_items: int, most_bytes: int) -> None:
            # Some are numbers: Redis keeps them as such.
            items = [b"%d" % next(numbers) + b"x" * max(0, size - 10) for size in sizes]
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
        assert ("cmdstat_sort" in redis_client.info("commandstats")) is sorts


def test_a_server_that_calls_sort_otherwise_freezes_batches_too(tmp_path: Path) -> None:
    with ExitStack() as stack:
        server = EmbeddedRedis(tmp_path / "redis", options=FAST_REDIS | {"rename-command": 'SORT ""'})
        started_in(stack, server)
        client = stack.enter_context(redis.Redis.from_url(server.url))
        keys = QueueKeys("queue")
        owned = stack.enter_context(owning(server.url, keys))
        client.lpush("queue", *range(5))
        batch = owned.claim(3, 100, 0.0)
        assert isinstance(batch, FrozenBatch)
        assert batch.items == [b"0", b"1", b"2"] and client.lrange("queue", 0, -1) == [b"4", b"3"]
        assert "SORT queue" in missing(client, keys)


def test_what_is_packed_counts_as_it_is_unpacked(
    redis_url: str, redis_client: redis.Redis, queue: str
) -> None:
    keys = QueueKeys(queue)
    numbers = itertools.count()
    with owning(redis_url, keys) as owned:
        kinds = st.one_of(
            st.integers(1, 5000).map(lambda size: (False, size)),
            st.integers(1, 5000).map(lambda size: (True, size)),
        )
        tables = st.sampled_from(["t", "t" * 1000])  # large items take another way

        @settings(max_examples=60)
        @given(st.lists(kinds, min_size=1, max_size=20), tables, st.integers(1, 10_000))
        def check(items: list[tuple[bool, int]], table: str, most_bytes: int) -> None:
            left = [
                packed(next(numbers), table, size) if is_packed else b"%d".ljust(size) % next(numbers)
                for is_packed, size in items
            ]
            weights = [
                len(item) + (size if is_packed else 0)
                for item, (is_packed, size) in zip(left, items, strict=True)
            ]
            redis_client.lpush(queue, *left)
            while isinstance(batch := owned.claim(1000, most_bytes, 0.0), FrozenBatch):
                count = len(batch.items)
                assert batch.items == left[:count]
                assert batch.size_bytes == sum(weights[:count])
                assert batch.size_bytes == FrozenBatch(1, batch.items, 0).size_bytes, "as it is read again"
                assert count == 1 or batch.size_bytes <= most_bytes
                assert count == len(left) or batch.size_bytes + weights[count] > most_bytes
                left, weights = left[count:], weights[count:]
                owned.acknowledge([batch.id], 0, batch.id, [])
            assert left == []

        check()


@pytest.mark.parametrize(
    "item",
    [
        b'{"table":"t","id":1,"data":{"unpacked":5000000}}',
        b'{"table":"t","id":1,"data":{},"unpacked":5000000}',
        b'{"table":"t","id":1,"packed":{},"unpacked":67108865}',
        b'{"table":"t","id":1,"packed":{},"unpacked":99999999999999999999}',
        b'{"table":"t","id":1,"packed":{},"unpacked":"5000000"}',
        b'{"table":"t","id":1,"packed":{},"unpacked":-5000000}',
        b'{"table":"t","id":1,"packed":{},"unpacked":5000000,"key":"' + b"k" * 200 + b'"}',
        b'{"table":"t","id":1,"packed":{},"unpacked":',
        b'{"packed":"unpacked":',
    ],
    ids=repr,
)
def test_what_is_not_unpacked_counts_as_it_is(
    redis_url: str, redis_client: redis.Redis, queue: str, item: bytes
) -> None:
    keys = QueueKeys(queue)
    with owning(redis_url, keys) as owned:
        redis_client.lpush(queue, item)
        batch = owned.claim(10, 100, 0.0)
        assert isinstance(batch, FrozenBatch)
        assert batch.size_bytes == len(item) == FrozenBatch(1, [item], 0).size_bytes


def test_entries_are_settled_by_the_call_that_acknowledges_if_it_is_the_owners(
    redis_url: str, redis_client: redis.Redis, queue: str
) -> None:
    keys = QueueKeys(queue)
    redis_client.hset(f"{queue}:row", mapping={"@seq": "7", "name": "x"})
    entries = [Settlement(f"{queue}:row", 60, applied_seq=7)]
    with owning(redis_url, keys) as owned:
        redis_client.lpush(queue, "first", "second")
        first, second = (owned.claim(1, 1000, 0.0) for _ in range(2))
        assert isinstance(first, FrozenBatch)
        assert isinstance(second, FrozenBatch)
        with pytest.raises(OwnershipLost, match="oldest frozen batch"):
            owned.acknowledge([second.id], 7, second.id, [], entries)
        assert redis_client.ttl(f"{queue}:row") == -1
        redis_client.config_resetstat()
        owned.acknowledge([first.id, second.id], 7, second.id, [], entries)
        calls = redis_client.info("commandstats")
    assert calls["cmdstat_evalsha"]["calls"] == 1
    assert 0 < redis_client.ttl(f"{queue}:row") <= 60
    assert (redis_client.llen(keys.inflight), redis_client.get(keys.applied)) == (0, b"7")
