"""Early refresh: before a hot row expires one reader loads it anew, and never over a newer write."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from writebehind import AsyncWriteBehind, WriteBehind
from writebehind_worker.testing.wait import wait_until

OLD = {"name": "old"}
NEW = {"name": "new"}
Connect = Callable[..., WriteBehind]


@pytest.fixture
def wb(connect: Connect) -> WriteBehind:
    return connect(refresh_ahead=30, ttl=60, ttl_jitter=0)


def unexpected(_: Any) -> None:
    raise AssertionError("the loader was called")


@pytest.fixture
def due(wb: WriteBehind, redis_client: redis.Redis, key: str) -> None:
    """The row t, 1 is cached, and expires soon."""
    assert wb.get("t", 1, lambda _: OLD) == OLD
    assert wb.get("t", 1, unexpected) == OLD, "it is not due yet"
    redis_client.expire(key, 20)


@pytest.mark.usefixtures("due")
def test_one_reader_loads_and_the_others_are_served_at_once(
    wb: WriteBehind, redis_client: redis.Redis, key: str
) -> None:
    loading, done = threading.Event(), threading.Event()

    def load(_: Any) -> dict[str, str]:
        loading.set()
        assert done.wait(10)
        return NEW

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(wb.get, "t", 1, load)
        assert loading.wait(10)
        assert [wb.get("t", 1, unexpected) for _ in range(20)] == [OLD] * 20
        done.set()
        assert reader.result(10) == NEW
    assert wb.get("t", 1, unexpected) == NEW
    assert redis_client.ttl(key) > 50
    assert redis_client.hkeys(key) == [b"@seq", b"name"]


@pytest.mark.usefixtures("due")
def test_of_many_readers_at_once_one_loads(wb: WriteBehind) -> None:
    loads, start = [], threading.Barrier(30)

    def load(id: int) -> dict[str, str]:
        loads.append(id)
        time.sleep(0.05)
        return NEW

    def read(_: int) -> Any:
        start.wait()
        return wb.get("t", 1, load)

    with ThreadPoolExecutor(30) as pool:
        rows = list(pool.map(read, range(30)))
    assert loads == [1]
    assert all(row in (OLD, NEW) for row in rows)


def test_tasks_share_a_refresh_as_well(
    redis_url: str, queue: str, redis_client: redis.Redis, key: str
) -> None:
    loads = []

    async def job() -> None:
        another_has_read = asyncio.Event()

        async def load(id: int) -> dict[str, str]:
            loads.append(id)
            await another_has_read.wait()
            return NEW

        async def read(wb: AsyncWriteBehind) -> dict[str, str] | None:
            row = await wb.get("t", 1, load)
            another_has_read.set()
            return row

        options: Any = {"queue": queue, "prefix": f"{queue}:", "refresh_ahead": 30, "ttl": 60}
        async with AsyncWriteBehind.from_url(redis_url, **options) as wb:
            await wb.get("t", 1, lambda _: OLD)
            redis_client.expire(key, 20)
            rows = await asyncio.gather(*(read(wb) for _ in range(50)))
            assert NEW in rows  # of who loads, and of who comes after
            assert OLD in rows
            redis_client.expire(key, 20)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await wb.get("t", 1, lambda _: asyncio.sleep(60))
            assert await wb.get("t", 1, lambda _: OLD) == OLD, "a cancelled reader gives up its token"

    asyncio.run(job())
    assert loads == [1]


WRITES: dict[str, Callable[[WriteBehind], Any]] = {
    "put": lambda wb: wb.put("t", 1, {"name": "put", "n": 9}),
    "patch": lambda wb: wb.patch("t", 1, {"name": "patched"}),
    "increment": lambda wb: wb.increment("t", 1, {"n": 1}),
    "delete": lambda wb: wb.delete("t", 1),
}


@pytest.mark.parametrize("settled", [False, True], ids=["pending", "settled"])
@pytest.mark.parametrize("op", list(WRITES))
def test_a_refresh_never_overwrites_a_newer_write(
    wb: WriteBehind,
    redis_client: redis.Redis,
    key: str,
    settle: Callable[[int], None],
    op: str,
    settled: bool,
) -> None:
    wb.get("t", 1, lambda _: {"name": "old", "n": 1})
    redis_client.expire(key, 20)
    seen = None

    def load(_: Any) -> dict[str, Any]:
        nonlocal seen
        receipt = WRITES[op](wb)
        if settled:
            settle(receipt.seq)
            redis_client.expire(key, 20)  # even where it is due again
        seen = columns(redis_client, key)
        return {"name": "stale", "n": -1}

    wb.get("t", 1, load)
    assert columns(redis_client, key) == seen


def columns(client: redis.Redis, key: str) -> dict[bytes, bytes]:
    fields: Any = client.hgetall(key)
    return {name: value for name, value in fields.items() if name != b"@refresh"}


@pytest.mark.usefixtures("due")
@pytest.mark.parametrize("how", ["invalidated", "expired", "filled anew"])
def test_a_refresh_does_not_bring_back_what_was_removed(
    wb: WriteBehind, redis_client: redis.Redis, key: str, how: str
) -> None:
    def load(_: Any) -> dict[str, str]:
        assert wb.invalidate("t", 1) if how == "invalidated" else redis_client.delete(key)
        if how == "filled anew":
            wb.get("t", 1, lambda _: NEW)
        return OLD

    wb.get("t", 1, load)
    assert columns(redis_client, key) == ({b"@seq": b"0", b"name": b'"new"'} if how == "filled anew" else {})


@pytest.mark.usefixtures("due")
def test_a_loader_that_raises_leaves_the_cached_row_and_is_reported(
    wb: WriteBehind, caplog: pytest.LogCaptureFixture
) -> None:
    failures = []
    with caplog.at_level(logging.WARNING, "writebehind"):
        assert wb.get("t", 1, lambda _: {"n": 1 // 0}) == OLD
    assert "t: a cached row could not be refreshed (ZeroDivisionError)" in caplog.text
    wb._core._cache.refresh_failed = lambda table, error: failures.append((table, type(error)))
    assert wb.get("t", 1, unexpected) == OLD, "nobody tries again at once"
    assert failures == []


def test_a_failed_or_crashed_refresh_is_tried_again_after_the_fill_timeout(
    connect: Connect, redis_client: redis.Redis, key: str
) -> None:
    wb = connect(refresh_ahead=30, ttl=60, ttl_jitter=0, fill_timeout=0.1)
    connect(ttl=60, ttl_jitter=0).get("t", 1, lambda _: OLD)
    redis_client.expire(key, 20)
    wb._core._cache.refresh_failed = lambda *_: None
    assert wb.get("t", 1, lambda _: {"n": 1 // 0}) == OLD
    wait_until(lambda: wb.get("t", 1, lambda _: NEW) == NEW)


@pytest.mark.usefixtures("due")
def test_a_patch_frees_the_row_from_a_refresh_that_has_become_vain(
    wb: WriteBehind, redis_client: redis.Redis, key: str, settle: Callable[[int], None]
) -> None:
    def load(_: Any) -> dict[str, str]:
        settle(wb.patch("t", 1, {"name": "patched"}).seq)
        redis_client.expire(key, 20)
        assert wb.get("t", 1, lambda _: NEW) == NEW
        return OLD

    wb.get("t", 1, load)
    assert wb.get("t", 1, unexpected) == NEW


@pytest.mark.usefixtures("due")
def test_a_row_that_is_gone_when_it_is_refreshed_is_remembered_as_missing(
    wb: WriteBehind, redis_client: redis.Redis, key: str
) -> None:
    assert wb.get("t", 1, lambda _: None) is None
    assert redis_client.hgetall(key) == {b"@is": b"negative"}
    assert 0 < redis_client.ttl(key) <= 5
    assert wb.get("t", 1, unexpected) is None, "a negative entry is not refreshed"


def test_a_pending_row_and_what_is_no_row_are_not_refreshed(
    wb: WriteBehind, redis_client: redis.Redis, key: str
) -> None:
    wb.put("t", 1, NEW)
    assert wb.get("t", 1, unexpected) == NEW
    wb.delete("t", 1)
    assert wb.get("t", 1, unexpected) is None
    redis_client.set(key, "a string", ex=20)
    assert wb.get("t", 1, lambda _: OLD) == OLD
    assert redis_client.get(key) == b"a string"


def test_many_rows_are_refreshed_by_one_call(wb: WriteBehind, redis_client: redis.Redis, queue: str) -> None:
    calls: list[list[int]] = []

    def load(ids: list[int]) -> dict[int, Any]:
        calls.append(ids)
        return {id: {"call": len(calls)} for id in ids}

    ids = [1, 2, 3, 4]
    wb.get_many("t", ids, load)
    for id in (2, 3):
        redis_client.expire(f"{queue}:t:{id}", 20)
    rows = wb.get_many("t", [*ids, 5], load)
    assert calls == [[1, 2, 3, 4], [2, 3], [5]]
    assert rows == [{"call": n} for n in (1, 2, 2, 1, 3)]
    assert wb.get_many("t", [*ids, 5], lambda _: 1 // 0) == rows
    redis_client.expire(f"{queue}:t:1", 20)
    wb._core._cache.refresh_failed = lambda *_: None
    assert wb.get_many("t", ids, lambda _: 1 // 0) == rows[:4]


def test_a_hit_takes_one_round_trip_with_it_and_without(connect: Connect, redis_client: redis.Redis) -> None:
    for options in ({}, {"refresh_ahead": 30}):
        wb = connect(**options)
        wb.get("t", 1, lambda _: OLD)
        before = packets(redis_client)
        wb.get("t", 1, unexpected)
        wb.get_many("t", [1], unexpected)
        assert packets(redis_client) - before == 3  # two of ours, and that of the look itself


def packets(client: redis.Redis) -> int:
    stats: dict[str, Any] = client.info("stats")
    return int(stats["total_reads_processed"])


@pytest.mark.parametrize(
    "options",
    [{"refresh_ahead": 0}, {"refresh_ahead": 60, "ttl": 60}, {"refresh_ahead": 54, "ttl": 60},
     {"ttl_jitter": 1}, {"ttl_jitter": -0.1}, {"refresh_ahead": float("nan")}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(redis_client: redis.Redis, options: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        WriteBehind(redis_client, **options)


# Jitter.


def test_entries_filled_or_written_together_expire_apart(
    connect: Connect, redis_client: redis.Redis, queue: str
) -> None:
    wb = connect(ttl=1000, ttl_jitter=0.5)
    wb.get_many("t", list(range(60)), lambda ids: [{"id": id} for id in ids])
    with wb.batch() as batch:
        for id in range(60):
            batch.put("u", id, {"id": id})
    filled = [redis_client.ttl(f"{queue}:t:{id}") for id in range(60)]
    items: Any = redis_client.lrange(queue, 0, -1)
    written = [int(item.rpartition(b'"ttl":')[2][:-1]) for item in items]
    for ttls in (filled, written):
        assert min(ttls) >= 498
        assert max(ttls) <= 1000
        assert len(set(ttls)) > 30


def test_the_shortest_time_to_live_is_a_second(connect: Connect) -> None:
    settings = connect(ttl=1, ttl_jitter=0.9).settings
    assert {settings.entry_ttl() for _ in range(100)} == {1}
