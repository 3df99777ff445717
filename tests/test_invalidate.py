"""Invalidation: one row or many, at once or when the pending write is durable; and keys with a version."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
import redis
from tests.support.workers import RunningWorker

from writebehind import AsyncWriteBehind, FlushTimeout, WriteBehind

Connect = Callable[..., WriteBehind]


@pytest.fixture
def wb(connect: Connect) -> WriteBehind:
    return connect()


def test_it_waits_for_a_pending_write_and_then_removes(
    wb: WriteBehind, users: psycopg.Connection[Any], options: dict[str, Any], redis_client: redis.Redis
) -> None:
    wb.put("users", 1, {"name": "Ada"})
    assert wb.invalidate("users", 1) is False
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wb.invalidate, "users", 1, wait=10)
        with RunningWorker(**options):
            assert waiting.result(15) is True
    assert users.execute("SELECT name FROM users").fetchall() == [("Ada",)]
    assert not redis_client.exists(f"{wb.settings.cache_prefix}users:1")


@pytest.mark.parametrize("op", ["put", "patch", "increment", "delete"])
def test_it_gives_up_where_no_worker_runs_and_removes_nothing(
    wb: WriteBehind, redis_client: redis.Redis, op: str
) -> None:
    wb.delete("t", 1) if op == "delete" else getattr(wb, op)("t", 1, {"n": 1})
    before = redis_client.dump(f"{wb.settings.cache_prefix}t:1")
    for wait in (0, 0.1):
        started = time.monotonic()
        with pytest.raises(FlushTimeout, match=f"t: .* in {wait} s"):
            wb.invalidate("t", 1, wait=wait)
        assert time.monotonic() - started < wait + 0.5
    assert redis_client.dump(f"{wb.settings.cache_prefix}t:1") == before


def test_what_is_not_pending_is_not_waited_for(wb: WriteBehind) -> None:
    assert wb.invalidate("t", 1, wait=0) is True
    wb.get("t", 1, lambda _: {"n": 1})
    assert wb.invalidate("t", 1, wait=0) is True
    assert wb.get("t", 1) is None


def test_a_task_that_waits_can_be_cancelled(redis_url: str, queue: str) -> None:
    async def job() -> None:
        async with AsyncWriteBehind.from_url(redis_url, queue=queue, prefix=f"{queue}:") as wb:
            await wb.put("t", 1, {"n": 1})
            for _ in range(40):  # wherever it is at that moment
                waiting = asyncio.create_task(wb.invalidate("t", 1, wait=60))
                for _ in range(random.randrange(100)):
                    await asyncio.sleep(0)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.wait_for(waiting, 10)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await wb.invalidate("t", 1, wait=60)
            assert await wb.get("t", 1) == {"n": 1}
            assert await wb.invalidate_many("t", [1, 2]) == [False, True]

    asyncio.run(job())


@pytest.mark.parametrize("known", [False, True], ids=["script new", "script known"])
def test_many_are_removed_in_one_round_trip(wb: WriteBehind, redis_client: redis.Redis, known: bool) -> None:
    wb.get_many("t", [1, 2, 3], lambda ids: [{"id": id} for id in ids])
    wb.put("t", 4, {"id": 4})
    redis_client.script_flush()
    if known:
        wb.invalidate("u", 1)
    stats: Any = redis_client.info("stats")
    assert wb.invalidate_many("t", [1, 2, 4, 5]) == [True, True, False, True]
    now: Any = redis_client.info("stats")
    reads = int(now["total_reads_processed"]) - int(stats["total_reads_processed"]) - 1
    assert reads == 1 or not known
    assert wb.get_many("t", [1, 2, 3, 4]) == [None, None, {"id": 3}, {"id": 4}]
    assert wb.invalidate_many("t", []) == []


def test_deploys_of_two_row_shapes_never_read_each_others_rows(
    connect: Connect, users: psycopg.Connection[Any], options: dict[str, Any]
) -> None:
    """Both run and write; each has an entry of its own, and sees the other's writes when that is gone."""
    users.execute("ALTER TABLE users ADD COLUMN email text")
    before, after = connect(version=1), connect(version=2)

    def load_before(id: int) -> dict[str, Any] | None:
        row = users.execute("SELECT name FROM users WHERE id = %s", [id]).fetchone()
        return None if row is None else {"name": row[0]}

    def load_after(id: int) -> dict[str, Any] | None:
        row = users.execute("SELECT name, email FROM users WHERE id = %s", [id]).fetchone()
        return None if row is None else {"name": row[0], "email": row[1]}

    before.put("users", 1, {"name": "Ada"})
    assert after.get("users", 1, load_after) is None, "a write that is pending in another version is not seen"
    with RunningWorker(**options):
        before.put("users", 1, {"name": "Ada"}).wait(10)
        assert after.get("users", 1, load_after) is None, "nor a durable one, while the entry lives"
        assert after.invalidate("users", 1)
        assert after.get("users", 1, load_after) == {"name": "Ada", "email": None}
        after.put("users", 1, {"name": "Ada L.", "email": "ada@example.com"}).wait(10)
        assert before.get("users", 1, load_before) == {"name": "Ada"}, "it answers from its own entry"
        assert before.invalidate("users", 1, wait=10)
        assert before.get("users", 1, load_before) == {"name": "Ada L."}
        assert after.get("users", 1) == {"name": "Ada L.", "email": "ada@example.com"}
        before.put("users", 1, {"name": "Bob"}).wait(10)
    row = users.execute("SELECT name, email FROM users WHERE id = 1").fetchone()
    assert row == ("Bob", "ada@example.com"), "a put of one shape leaves the other's columns as they are"
