"""What anybody may write into our keys ends no thread of the workers: it is told, and the others go on."""

from __future__ import annotations

import json
import time
from typing import Any

import psycopg
import pytest
import redis
from structlog.testing import capture_logs
from tests.support.fleets import RunningFleet
from tests.support.sharded import divided, keys, rows
from tests.support.workers import RunningWorker

from writebehind.keys import QueueKeys
from writebehind.shards import read_layout, shard_keys
from writebehind_worker import former_shards
from writebehind_worker.doctor_division import examine_division
from writebehind_worker.testing.wait import wait_until

__all__ = ["keys", "rows"]  # fixtures

STRANGE = b"nonsense \xff"
LOOKS_S = 1.5
"""Several looks of a worker."""


def push(client: redis.Redis, queue: QueueKeys, id: int) -> None:
    client.lpush(queue.queue, json.dumps({"table": "rows", "id": id, "data": {"v": 1}}))


def wait_for(rows: psycopg.Connection[Any], *ids: int) -> None:
    found = "SELECT count(*) FROM rows WHERE id = ANY(%s)"
    wait_until(lambda: rows.execute(found, [list(ids)]).fetchone() == (len(ids),))


@pytest.mark.parametrize("field", ["division", "another type"])
def test_the_clock_of_a_former_shard(
    redis_client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
    field: str,
) -> None:
    monkeypatch.setattr(former_shards, "_EVERY_S", 0.1)
    for shards in (3, 2, 1):
        divided(redis_client, keys, shards)
    strange, sibling, _ = shard_keys(keys.queue, 3)
    other, _ = shard_keys(keys.queue, 2)
    before: Any = redis_client.hgetall(strange.clock)
    if field == "another type":
        redis_client.set(strange.clock, STRANGE)
    else:
        redis_client.hset(strange.clock, field, STRANGE)
    finding = examine_division(redis_client, keys, [3])
    assert finding.severity == "fatal" and strange.queue in finding.what
    with capture_logs() as logged, RunningFleet(**options) as fleet:
        fleet.fleet._former._add([3, 2])
        for id, one in enumerate((strange, sibling, other)):
            push(redis_client, one, id)
        wait_for(rows, 1, 2)
        push(redis_client, other, 3)
        wait_for(rows, 3)
        assert rows.execute("SELECT count(*) FROM rows WHERE id = 0").fetchone() == (0,)
        redis_client.delete(strange.clock)
        redis_client.hset(strange.clock, mapping=before)
        wait_for(rows, 0)
    told = [line["reason"] for line in logged if "cannot be looked at" in line["event"]]
    assert len(told) == 1 and strange.queue in told[0]


def test_the_clock_of_a_present_shard(
    redis_client: redis.Redis, keys: QueueKeys, options: dict[str, Any], rows: psycopg.Connection[Any]
) -> None:
    divided(redis_client, keys, 2)
    strange, other = shard_keys(keys.queue, 2)
    with capture_logs() as logged, RunningFleet(**options) as fleet:
        wait_until(lambda: fleet.owned() == {keys.queue, strange.queue, other.queue})
        number = redis_client.hget(strange.clock, "division")
        assert number is not None
        redis_client.hset(strange.clock, "division", STRANGE)
        wait_until(lambda: fleet.state.facts()["redis_up"] is False)
        time.sleep(LOOKS_S)
        push(redis_client, other, 1)
        wait_for(rows, 1)
        fleet.stop()
        with RunningFleet(**options) as later:
            wait_until(lambda: later.owned() == {keys.queue, other.queue})
            redis_client.hset(strange.clock, "division", number)
            wait_until(lambda: later.owned() == {keys.queue, strange.queue, other.queue})
            assert later.state.facts()["redis_up"] is True
    told = [line["reason"] for line in logged if "redis refuses to tell" in line["event"]]
    assert len(told) == 2 and f"division of {strange.clock} in Redis is no number" in told[0]


@pytest.mark.parametrize("field", ["seq", "left"])
def test_the_clock_of_a_queue_that_is_served(
    redis_client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    field: str,
) -> None:
    with RunningWorker(**options) as worker:
        epoch = worker.wait_for_role("owner")["epoch"]
        redis_client.hset(keys.clock, field, STRANGE)
        push(redis_client, keys, 1)
        if field == "seq":
            wait_until(lambda: worker.facts["redis_up"] is False and "seq" in worker.facts["redis_reason"])
            redis_client.hset(keys.clock, "seq", 1)
        wait_for(rows, 1)
        assert (worker.facts["epoch"] == epoch) is (field == "left")


def test_names_that_are_no_text(
    redis_client: redis.Redis, keys: QueueKeys, options: dict[str, Any], rows: psycopg.Connection[Any]
) -> None:
    divided(redis_client, keys, 2)
    redis_client.zadd(keys.fleet, {STRANGE: time.time() * 1000 + LOOKS_S * 1000})
    redis_client.set(keys.lease, b"x|%d|" % (time.time() * 1000 + LOOKS_S * 1000) + STRANGE)
    with RunningWorker(**options), RunningFleet(**options):
        for id, one in enumerate((keys, *shard_keys(keys.queue, 2))):
            push(redis_client, one, id)
        wait_for(rows, 0, 1, 2)


def test_a_layout_with_tables_that_are_none() -> None:
    with pytest.raises(ValueError, match="tables"):
        read_layout([b"1", None, None, b"1", b"1", b"nonsense"])
