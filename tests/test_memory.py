"""The worker's memory is that of the batches in flight, whatever waits in the queue."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis
from bench.cpu import peak_mib
from tests.support.workers import WorkerProcess

from writebehind_worker.embedded import EmbeddedServers
from writebehind_worker.testing.servers import private_servers
from writebehind_worker.testing.wait import wait_until

MIB = 1 << 20
BATCHES, BATCH_SIZE = 20, 500
SMALL, LARGE = 10_000, 10_000_000
_PUSH = """for _ = 1, tonumber(ARGV[1]) do redis.call('LPUSH', KEYS[1], unpack(ARGV, 2)) end"""


@pytest.fixture(scope="module")
def roomy() -> Iterator[EmbeddedServers]:
    """A Redis that keeps nothing on disk: many items come and go."""
    with private_servers({"appendonly": "no"}) as servers:
        yield servers


@pytest.fixture
def deep(roomy: EmbeddedServers) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(roomy.redis_url, socket_timeout=60) as client:
        client.flushall()
        yield client
        client.flushall()


@pytest.fixture
def options(
    roomy: EmbeddedServers, postgres_url: str, queue: str, pg: psycopg.Connection[Any]
) -> dict[str, Any]:
    pg.execute("CREATE TABLE counters (id int PRIMARY KEY, n bigint)")
    pg.execute("CREATE TABLE texts (id int PRIMARY KEY, body text)")
    return {"redis_url": roomy.redis_url, "postgres_url": postgres_url, "queue": queue}


def fill(client: redis.Redis, queue: str, length: int) -> None:
    """So many increments of two thousand rows."""
    items = [
        json.dumps(
            {"table": "counters", "id": i % 2000, "op": "increment", "data": {"n": 1}}, separators=(",", ":")
        )
        for i in range(5000)
    ]
    client.eval(_PUSH, 1, queue, str(length // len(items)), *items)


def resident_mib(worker: WorkerProcess) -> float:
    shown = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(worker.pid)], capture_output=True, text=True, check=True
    )
    return int(shown.stdout) / 1024


def test_with_ten_million_items_pending_it_is_the_same_as_with_ten_thousand(
    deep: redis.Redis, options: dict[str, Any], queue: str
) -> None:
    used = []
    for length in (SMALL, LARGE):
        fill(deep, queue, length)
        with WorkerProcess(batch_size=BATCH_SIZE, **options) as worker:
            worker.wait_for_event("flushed", BATCHES, timeout=60)
            used.append(resident_mib(worker))
            worker.terminate()
            assert worker.wait() == 0
    assert deep.llen(queue) > LARGE * 0.9
    assert used[1] <= used[0] * 1.2, used


@pytest.mark.parametrize("value_bytes", [8 * 1024, MIB])
def test_large_values_are_bounded_by_the_bytes_of_a_batch(
    value_bytes: int, deep: redis.Redis, options: dict[str, Any], queue: str
) -> None:
    """Beside the batches in flight there is a batch's JSON for Postgres, a few times on its way there."""
    batch_bytes, in_flight, total = 2 * MIB, 3, 64 * MIB
    items = [
        json.dumps({"table": "texts", "id": i, "data": {"body": "x" * value_bytes}})
        for i in range(batch_bytes // value_bytes)
    ]
    with WorkerProcess(batch_bytes=batch_bytes, max_in_flight=in_flight, **options) as worker:
        worker.wait_for_event("owner")
        idle = resident_mib(worker)
        for _ in range(total // batch_bytes):
            deep.lpush(queue, *items)
        worker.wait_for_event("flushed", total // batch_bytes, timeout=60)
        grown = resident_mib(worker) - idle
    assert grown * MIB < (in_flight + 6) * 2 * batch_bytes, grown


def test_of_hot_rows_a_transaction_may_have_two_thirds_of_what_is_held(
    deep: redis.Redis, options: dict[str, Any], queue: str
) -> None:
    """The larger it is, the fewer times each row is written."""
    batch_size, value_bytes, in_flight, batch_bytes, total = 400, 1024, 3, 2 * MIB, 48_000
    items = [
        json.dumps({"table": "texts", "id": i % 5, "data": {"body": "x" * value_bytes}})
        for i in range(batch_size)
    ]
    given = {"batch_size": batch_size, "batch_bytes": batch_bytes, "max_in_flight": in_flight}
    with WorkerProcess(**given, **options) as worker:
        worker.wait_for_event("owner")
        idle = resident_mib(worker)
        deep.eval(_PUSH, 1, queue, str(total // len(items)), *items)
        wait_until(lambda: sum(flush["writes"] for flush in worker.events("flushed")) >= total, timeout=60)
        grown = peak_mib(worker.pid) - idle
        most = max(flush["batches"] for flush in worker.events("flushed"))
    held = in_flight * batch_bytes
    batch = batch_size * len(items[0])
    assert held * 2 / 3 - batch < most * batch <= held * 2 / 3, most
    assert grown * MIB < 3 * held, grown
