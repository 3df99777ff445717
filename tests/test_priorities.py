"""A queue of its own for bulk: whatever happens to it, what is urgent does not wait for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import redis
from tests.support.workers import RunningWorker, WorkerProcess

from writebehind import WriteBehind
from writebehind.keys import QueueKeys
from writebehind_worker.breaker import LIMIT
from writebehind_worker.testing.wait import wait_until

Connect = Callable[..., WriteBehind]
TABLES = """
CREATE TABLE orders (id int PRIMARY KEY, n int);
CREATE TABLE events (id int PRIMARY KEY, n int, kind text);
"""
WRITES = 20_000
NEVER_S = 3600.0


@pytest.fixture
def bulk(queue: str, options: dict[str, Any], pg: psycopg.Connection[Any]) -> dict[str, Any]:
    """Options of the worker of the other queue."""
    pg.execute(TABLES)
    return {**options, "queue": f"{queue}:bulk"}


def fill(wb: WriteBehind, writes: int, **columns: Any) -> None:
    """So many increments, of rows that each get ten."""
    for start in range(0, writes, 10_000):
        with wb.batch() as batch:
            for n in range(start, min(start + 10_000, writes)):
                batch.increment("events", n // 10, {"n": 1, **columns})


def sum_of(pg: psycopg.Connection[Any]) -> int:
    (total,) = pg.execute("SELECT coalesce(sum(n), 0) FROM events").fetchone() or (0,)
    return int(total)


def is_drained(client: redis.Redis, options: dict[str, Any]) -> bool:
    keys = QueueKeys(options["queue"])
    return not client.llen(keys.queue) and not client.llen(keys.inflight)


def test_an_urgent_write_overtakes_bulk_that_still_waits(
    connect: Connect,
    redis_client: redis.Redis,
    options: dict[str, Any],
    bulk: dict[str, Any],
    pg: psycopg.Connection[Any],
) -> None:
    urgent, slow = connect(), connect(queue=bulk["queue"])
    fill(slow, WRITES)
    patient = {**bulk, "batch_size": 2 * WRITES, "write_delay_s": NEVER_S}
    with RunningWorker(**options), RunningWorker(**patient) as worker:
        worker.wait_for_role("owner")
        urgent.put("orders", 1, {"n": 1}).wait(30)
        assert pg.execute("SELECT n FROM orders").fetchall() == [(1,)]
        assert redis_client.llen(bulk["queue"]) == WRITES
        assert sum_of(pg) == 0
    with RunningWorker(**bulk):
        wait_until(lambda: is_drained(redis_client, bulk), 60)
    assert sum_of(pg) == WRITES


def test_bulk_that_waits_for_a_lock_holds_up_nothing_else(
    connect: Connect,
    redis_client: redis.Redis,
    options: dict[str, Any],
    bulk: dict[str, Any],
    pg: psycopg.Connection[Any],
    postgres_url: str,
) -> None:
    urgent, slow = connect(), connect(queue=bulk["queue"])
    with (
        RunningWorker(**options),
        RunningWorker(**bulk),
        psycopg.connect(postgres_url) as other,
    ):
        other.execute("LOCK TABLE events IN SHARE MODE")
        fill(slow, 1000)
        wait_until(lambda: redis_client.llen(QueueKeys(bulk["queue"]).inflight) > 0, 30)
        for n in range(3):
            urgent.put("orders", n, {"n": n}).wait(30)
        assert sum_of(pg) == 0
        other.rollback()
        wait_until(lambda: is_drained(redis_client, bulk), 60)
    assert sum_of(pg) == 1000


def test_a_broken_bulk_table_pauses_its_own_queue_only(
    connect: Connect,
    options: dict[str, Any],
    bulk: dict[str, Any],
    pg: psycopg.Connection[Any],
) -> None:
    urgent, slow = connect(), connect(queue=bulk["queue"])
    with RunningWorker(**options) as main, RunningWorker(**bulk) as other:
        slow.put("events", 1, {"n": 0, "kind": "a"}).wait(30)
        pg.execute("ALTER TABLE events DROP COLUMN kind")
        with slow.batch() as batch:
            for n in range(LIMIT + 1):
                batch.put("events", n, {"n": 1, "kind": "a"})
        wait_until(lambda: other.facts["breaker"] is not None, 30)
        urgent.put("orders", 1, {"n": 1}).wait(30)
        assert main.facts["breaker"] is None
        assert other.facts["breaker"] is not None
    assert pg.execute("SELECT n FROM orders").fetchall() == [(1,)]


def test_the_bulk_worker_is_killed_and_the_next_one_goes_on(
    connect: Connect,
    redis_client: redis.Redis,
    options: dict[str, Any],
    bulk: dict[str, Any],
    pg: psycopg.Connection[Any],
    postgres_url: str,
) -> None:
    urgent, slow = connect(), connect(queue=bulk["queue"])
    with RunningWorker(**options), psycopg.connect(postgres_url) as other:
        other.execute("LOCK TABLE events IN SHARE MODE")
        with WorkerProcess(**bulk, lease_ttl_s=1.0) as first:
            fill(slow, 1000)
            wait_until(lambda: redis_client.llen(QueueKeys(bulk["queue"]).inflight) > 0, 30)
            first.kill()
        urgent.put("orders", 1, {"n": 1}).wait(30)
        with RunningWorker(**bulk):
            urgent.put("orders", 1, {"n": 2}).wait(30)
            assert sum_of(pg) == 0
            other.rollback()
            wait_until(lambda: is_drained(redis_client, bulk), 60)
    assert sum_of(pg) == 1000
    assert pg.execute("SELECT n FROM orders").fetchall() == [(2,)]


def test_a_table_that_was_moved_after_a_drain_keeps_its_order_and_its_reads(
    connect: Connect,
    redis_client: redis.Redis,
    options: dict[str, Any],
    bulk: dict[str, Any],
    pg: psycopg.Connection[Any],
) -> None:
    before = connect()
    before.put("events", 1, {"n": 1, "kind": "a"})
    fill(before, 1000)
    with RunningWorker(**options):
        wait_until(lambda: is_drained(redis_client, options), 60)
    after = connect(queue=bulk["queue"])
    for n in (1, 2):
        after.increment("events", n, {"n": 5})
        after.patch("events", n, {"kind": "b"})
    with RunningWorker(**options), RunningWorker(**bulk):
        for n, total in ((1, 16), (2, 15)):  # the one is in the cache, the other has to be loaded
            found = after.get("events", n, load=lambda id: row_of(pg, id))
            assert found == {"n": total, "kind": "b"}
        wait_until(lambda: is_drained(redis_client, bulk), 60)
    assert [row_of(pg, n) for n in (1, 2)] == [{"n": 16, "kind": "b"}, {"n": 15, "kind": "b"}]


def row_of(pg: psycopg.Connection[Any], id: Any) -> dict[str, Any] | None:
    row = pg.execute("SELECT n, kind FROM events WHERE id = %s", [id]).fetchone()
    return None if row is None else dict(zip(("n", "kind"), row, strict=True))
