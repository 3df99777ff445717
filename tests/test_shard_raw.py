"""Raw writes to a queue that is being divided for the first time: it takes them as ever."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import redis
from tests.support.fleets import RunningFleet
from tests.support.sharded import keys, rows

from writebehind import WriteBehind
from writebehind.keys import QueueKeys
from writebehind_worker import resharding
from writebehind_worker.resharding import divide, layout_of, still_draining
from writebehind_worker.testing.wait import wait_until

__all__ = ["keys", "rows"]  # fixtures

Connect = Callable[..., WriteBehind]


def raw(client: redis.Redis, keys: QueueKeys, id: int, v: int) -> None:
    client.lpush(keys.queue, json.dumps({"table": "rows", "id": id, "data": {"v": v}}))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_raw_writes_of_after_do_not_delay_the_end_of_the_first_division(
    connect: Connect,
    redis_client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    batch_size: int,
) -> None:
    wb = connect()
    for v in range(4):
        raw(redis_client, keys, 1, v)
    wb.put("rows", 2, {"v": 1})
    before = wb.put("rows", 2, {"v": 2})
    layout = divide(redis_client, keys, 2)
    for v in range(1, 301):  # more than is frozen at once
        raw(redis_client, keys, 3, v)
    assert still_draining(redis_client, keys, layout) == 6
    rows.execute("INSERT INTO rows VALUES (3, 0)")
    with psycopg.connect(options["postgres_url"]) as other:
        other.execute("SELECT FROM rows WHERE id = 3 FOR UPDATE")  # they wait
        with RunningFleet(**options, batch_size=batch_size, lock_timeout_s=0.2):
            wb.put("rows", 2, {"v": 3}, wait=20)
            assert before.is_durable()
            assert rows.execute("SELECT v FROM rows WHERE id < 3 ORDER BY id").fetchall() == [(3,), (3,)]
            assert redis_client.llen(keys.queue) > 0
            other.rollback()
            wait_until(lambda: rows.execute("SELECT v FROM rows WHERE id = 3").fetchone() == (300,))


@pytest.mark.parametrize("batch_size", [1, 1000])
def test_raw_writes_of_before_are_waited_for(
    connect: Connect,
    redis_client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    batch_size: int,
) -> None:
    rows.execute("INSERT INTO rows VALUES (3, 0)")
    wb = connect()
    with psycopg.connect(options["postgres_url"]) as other:
        other.execute("SELECT FROM rows WHERE id = 3 FOR UPDATE")
        raw(redis_client, keys, 1, 1)
        raw(redis_client, keys, 3, 1)
        with RunningFleet(**options, batch_size=batch_size, lock_timeout_s=0.2):
            wait_until(lambda: redis_client.llen(keys.inflight) > 0)
            layout = divide(redis_client, keys, 2)
            written = wb.put("rows", 3, {"v": 2})
            raw(redis_client, keys, 1, 2)
            assert still_draining(redis_client, keys, layout) > 0
            assert not written.is_durable()
            assert layout_of(redis_client, keys).draining == (1,)
            other.rollback()
            written.wait(20)
    assert [v for (v,) in rows.execute("SELECT v FROM history WHERE id = 3 ORDER BY at")] == [0, 1, 2]


def test_what_is_left_is_marked_once_in_each_division(redis_client: redis.Redis, keys: QueueKeys) -> None:
    raw(redis_client, keys, 1, 1)
    step = resharding._Steps(redis_client, keys, [1], 2)
    for _ in range(2):
        assert step.begin()
        step.mark(keys)
        raw(redis_client, keys, 1, 2)
        assert redis_client.hget(keys.clock, "left") == b"1"
    assert still_draining(redis_client, keys, divide(redis_client, keys, 2)) == 1
    redis_client.delete(keys.queue)  # somebody's
    assert still_draining(redis_client, keys, layout_of(redis_client, keys)) == 0
    first = layout_of(redis_client, keys).number
    step.mark(keys)  # of one who slept
    divide(redis_client, keys, 1)
    assert still_draining(redis_client, keys, layout_of(redis_client, keys)) == 0
    late = resharding._Steps(redis_client, keys, [1], 2, number=first)
    for v in range(3):
        raw(redis_client, keys, 1, v)
    layout = divide(redis_client, keys, 3)
    late.mark(keys)
    raw(redis_client, keys, 1, 9)
    assert still_draining(redis_client, keys, layout) == 3
