"""Shards where something comes at a bad moment: paused, late, twice, or of another number."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import psycopg
import pytest
import redis
from tests.support.fleets import RunningFleet
from tests.support.sharded import Run, divided, keys, rows, run

from writebehind import (
    FlushTimeout,
    RateLimit,
    RateLimited,
    RedisRefused,
    SessionStore,
    WriteBehind,
    WriteRejected,
)
from writebehind.keys import QueueKeys
from writebehind.route import shard_of
from writebehind.shards import shard_keys, shard_queues, stamp
from writebehind_worker import resharding
from writebehind_worker.errors import FatalError
from writebehind_worker.resharding import _Steps, divide, layout_of, still_draining
from writebehind_worker.testing.wait import wait_until

__all__ = ["keys", "rows", "run"]  # fixtures

Connect = Callable[..., WriteBehind]


def where(keys: QueueKeys, id: int, shards: int) -> QueueKeys:
    return QueueKeys(shard_queues(keys.queue, shards)[shard_of("rows", str(id), shards)])


def is_drained(client: redis.Redis, keys: QueueKeys) -> bool:
    return not layout_of(client, keys).draining


# The fleet.


def test_one_shard_is_served_again_after_a_drain_that_took_long(
    connect: Connect,
    redis_client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
) -> None:
    wb = connect()
    divide(redis_client, keys, 4)
    with RunningFleet(**options) as fleet:
        wait_until(lambda: len(fleet.owned()) == 5)
        paused = where(keys, 1, 4).paused
        redis_client.set(paused, "1|a test")
        wb.put("rows", 1, {"v": 1})
        before = dict(rows.execute("SELECT queue, epoch FROM writebehind.ledger"))
        divide(redis_client, keys, 1)
        time.sleep(3)
        assert dict(rows.execute("SELECT queue, epoch FROM writebehind.ledger")) == before, "it flaps"
        redis_client.delete(paused)
        wait_until(lambda: is_drained(redis_client, keys))
        wb.put("rows", 1, {"v": 7}, wait=20)
        assert fleet.state.health()[0]
    assert rows.execute("SELECT v FROM rows").fetchall() == [(7,)]


def test_workers_that_begin_at_once_agree(
    redis_client: redis.Redis, keys: QueueKeys, options: dict[str, Any]
) -> None:
    with ExitStack() as stack:
        fleets = [stack.enter_context(RunningFleet(**options, shards=8)) for _ in range(4)]
        wait_until(lambda: sum(len(fleet.owned()) for fleet in fleets) == 9)
    assert layout_of(redis_client, keys).shards == 8


def test_who_is_overtaken_at_the_first_look_takes_the_queue_for_no_shard_of_another(
    redis_client: redis.Redis, keys: QueueKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_shard_by_now(client: redis.Redis, own: QueueKeys) -> bool:
        monkeypatch.undo()
        divide(client, own, 8)
        return resharding.is_shard(client, own)

    monkeypatch.setattr(resharding, "is_shard", is_shard_by_now)
    assert divide(redis_client, keys, 8).shards == 8


# Somebody sleeps through another division.


def test_who_slept_does_not_let_a_later_division_go(
    connect: Connect,
    redis_client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
) -> None:
    divided(redis_client, keys, 2)
    divide(redis_client, keys, 4)
    seen = layout_of(redis_client, keys)
    assert still_draining(redis_client, keys, seen) == 0
    divided(redis_client, keys, 2)
    wb = connect()
    old = wb.put("rows", 1, {"v": 1})
    divide(redis_client, keys, 4)
    new = wb.put("rows", 1, {"v": 2})
    late = _Steps(redis_client, keys, [2], 4, seen.number)
    for shard in shard_keys(keys.queue, 4):
        assert not late("let go", shard.clock, shard.applied)
    assert not late("end")
    with RunningFleet(**options):
        new.wait(20)
        assert old.is_durable()
    assert [v for (v,) in rows.execute("SELECT v FROM history ORDER BY at")] == [1, 2]


def test_who_slept_does_not_switch_in_a_later_division(
    connect: Connect, redis_client: redis.Redis, keys: QueueKeys
) -> None:
    divided(redis_client, keys, 2)
    late = _Steps(redis_client, keys, [2], 4)
    assert late.begin()
    divided(redis_client, keys, 4)
    divided(redis_client, keys, 2)
    wb = connect()
    wb.put("rows", 1, {"v": 1})
    again = _Steps(redis_client, keys, [2], 4)
    assert again.begin()
    opened = [late.open(s, 0, stamp(n, 4)) for n, s in enumerate(shard_keys(keys.queue, 4))]
    assert not any(opened)
    assert not late("switch")
    assert wb.put("rows", 1, {"v": 2}).queue == where(keys, 1, 2).queue


# Pauses.


def test_a_pause_is_of_the_whole_queue_whatever_its_shards(
    connect: Connect,
    redis_client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    run: Run,
) -> None:
    wb = connect()
    with RunningFleet(**options):
        run("pause", "--reason", "a migration")
        run("reshard", "2")
        written = wb.put("rows", 1, {"v": 1})
        time.sleep(2)
        assert rows.execute("SELECT count(*) FROM rows").fetchone() == (0,)
        run("resume")
        written.wait(20)
        shard = where(keys, 1, 2)
        run("pause", queue=shard.queue)
        run("reshard", "1")
        run("reshard", "2")
        wb.put("rows", 1, {"v": 2}, wait=20)  # it is another shard now


# Dead letters.


def test_a_letter_that_a_former_shard_makes_late_is_superseded(
    connect: Connect,
    redis_client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    run: Run,
) -> None:
    rows.execute("ALTER TABLE rows ADD CONSTRAINT small CHECK (n < 100)")
    wb = connect()
    wb.put("rows", 1, {"v": 1, "n": 100})
    divide(redis_client, keys, 2)
    with RunningFleet(**options):
        wb.put("rows", 1, {"v": 2, "n": 2}, wait=20)
        rows.execute("ALTER TABLE rows DROP CONSTRAINT small")
        run("dead", "retry", "--all")
        run("drain", "--timeout", "20")
    assert rows.execute("SELECT v, n FROM rows").fetchall() == [(2, 2)]
    assert rows.execute("SELECT superseded_at IS NULL FROM writebehind.dead_letters").fetchall() == [(False,)]


def test_a_letter_is_corrected_to_another_row_and_sent_by_its_shard_s_name(
    connect: Connect,
    redis_client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    run: Run,
) -> None:
    rows.execute("ALTER TABLE rows ADD CONSTRAINT small CHECK (n < 100)")
    divide(redis_client, keys, 4)
    wb = connect()
    with RunningFleet(**options):
        for id in (1, 2):
            with pytest.raises(WriteRejected):
                wb.put("rows", id, {"n": 100}, wait=20)
        (letter, body), _ = rows.execute(
            "SELECT id, body FROM writebehind.dead_letters ORDER BY id"
        ).fetchall()
        message = json.loads(bytes(body)) | {"id": 77, "data": {"n": 7}}
        message = {name: message[name] for name in ("table", "id", "data")}
        run("dead", "retry", str(letter), "--body", json.dumps(message))
        wait_until(lambda: rows.execute("SELECT id, n FROM rows").fetchall() == [(77, 7)])
        rows.execute("ALTER TABLE rows DROP CONSTRAINT small")
        run("dead", "retry", "--all", queue=where(keys, 2, 4).queue)
        wait_until(lambda: rows.execute("SELECT count(*) FROM rows").fetchone() == (2,))
    assert rows.execute("SELECT count(*) FROM writebehind.dead_letters").fetchone() == (0,)


# Clients.


@pytest.mark.parametrize("knows", [False, True])
def test_all_sessions_of_a_user_are_ended_in_former_shards_too(
    connect: Connect, redis_client: redis.Redis, keys: QueueKeys, knows: bool
) -> None:
    def store(wb: WriteBehind) -> SessionStore:
        return SessionStore(wb, load=lambda _: None, load_ids_of_user=lambda _: [])

    writer, other = connect(), connect()
    before = store(writer).create("ada")
    divide(redis_client, keys, 4)
    after = store(writer).create("ada")
    if knows:
        other.put("rows", 1, {"v": 1})
    assert len(store(other).revoke_all("ada")) == 2
    assert [store(writer).get(token) for token in (before, after)] == [None, None]
    assert store(writer).rotate(store(writer).create("ada"))


def test_a_layout_that_is_lost_is_told_and_not_waited_for_without_end(
    connect: Connect, redis_client: redis.Redis, keys: QueueKeys, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setattr("writebehind.core.CLOSED_FOR_S", 0.3)
    divide(redis_client, keys, 2)
    run("reshard", "3", queue=where(keys, 1, 2).queue, code=2)
    connect().put("rows", 1, {"v": 1})
    with pytest.raises(RedisRefused, match="shard of another queue"):
        connect(queue=where(keys, 1, 2).queue).put("rows", 1, {"v": 1})
    redis_client.delete(keys.layout)
    with pytest.raises(RedisRefused, match="does not say"):
        connect().put("rows", 1, {"v": 1})


def test_a_reader_waits_no_longer_than_it_was_told_while_shards_are_closed(
    connect: Connect, redis_client: redis.Redis, keys: QueueKeys
) -> None:
    wb = connect()
    wb.increment("rows", 1, {"n": 1})
    redis_client.hset(keys.layout, mapping={"shards": 1, "closing": 2, "number": 1})
    began = time.monotonic()
    with pytest.raises(FlushTimeout):
        wb.get("rows", 1, lambda _: {"n": 1}, timeout=0.2)
    assert time.monotonic() - began < 5


def test_a_batch_is_let_in_once(connect: Connect, redis_client: redis.Redis, keys: QueueKeys) -> None:
    wb = connect(admit=lambda *_: RateLimit("r", 20, per=600))
    divide(redis_client, keys, 4)
    with wb.batch() as batch:
        for n in range(20):
            batch.put("rows", n, {"v": n})
    assert len(batch.receipts) == 20
    with pytest.raises(RateLimited):
        wb.put("rows", 1, {"v": 1})


def test_many_divide_at_once_and_one_is_made(redis_client: redis.Redis, keys: QueueKeys) -> None:
    def attempt(shards: int) -> None:
        with suppress(FatalError):
            divide(redis_client, keys, shards)

    for _ in range(10):
        with ThreadPoolExecutor(6) as threads:
            list(threads.map(attempt, (2, 3, 5, 2, 3, 5)))
        layout = layout_of(redis_client, keys)
        if layout.closing is not None:
            layout = divide(redis_client, keys, layout.closing)
        names = [redis_client.hget(s.clock, "shard") for s in shard_keys(keys.queue, layout.shards)]
        assert names == [stamp(n, layout.shards).encode() for n in range(layout.shards)]
        still_draining(redis_client, keys, layout)
