"""One bad message, one lock, one producer or one clock does not stop the others."""

from __future__ import annotations

import itertools
import json
from typing import Any

import psycopg
import pytest
from tests.support.workers import RunningWorker, Workload

from writebehind import WriteRejected
from writebehind_worker.heartbeat import reap_sessions
from writebehind_worker.testing.wait import wait_until


@pytest.fixture
def options(redis_url: str, postgres_url: str, queue: str) -> dict[str, Any]:
    return {"redis_url": redis_url, "postgres_url": postgres_url, "queue": queue}


def test_a_field_of_any_type_in_a_raw_message_stops_nobody(options: dict[str, Any], load: Workload) -> None:
    good = {"table": "users", "id": 100, "data": {"name": "good"}}
    values = [True, False, 1, 1.5, 2**70, "x", "\0", [], {}, {"a": None}, None]
    load.add(10)
    bad = 0
    for field, value in itertools.product(("table", "id", "data", "op", "seq", "key", "ttl"), values):
        load.redis.lpush(load.keys.queue, json.dumps(good | {"id": 7000 + bad} | {field: value}))
        bad += 1
    load.redis.lpush(load.keys.queue, json.dumps(good))
    load.add(10)
    with RunningWorker(**options):
        load.wait_until_done()
    assert load.pg.execute("SELECT name FROM users WHERE id = 100").fetchall() == [("good",)]
    assert dict(load.pg.execute("SELECT id, n FROM counters")) == load.counters
    assert load.dead_letters() > bad // 2


def test_a_seq_from_the_future_does_not_make_the_write_delay_endless(
    options: dict[str, Any], load: Workload
) -> None:
    """Redis' clock was set back, or a failover brought another one."""
    now = load.redis.time()[0] * 1_000_000
    load.redis.hset(load.keys.clock, mapping={"seq": now + 3_600_000_000, "generation": now})
    load.add(10)
    forged = {"seq": 9_999_999_999_999_999, "table": "users", "id": 1, "data": {}}
    load.redis.lpush(load.keys.queue, json.dumps(forged, separators=(",", ":")))
    with RunningWorker(**options, write_delay_s=0.2):
        load.check(dead_letters=1)


def test_a_locked_table_is_waited_for_and_costs_one_write_at_most(
    options: dict[str, Any], load: Workload, pg: psycopg.Connection[Any], postgres_url: str
) -> None:
    load.add(30)
    with psycopg.connect(postgres_url) as migration:
        migration.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        with RunningWorker(**options, lock_timeout_s=0.1, hold_timeout_s=2.0) as worker:
            wait_until(lambda: worker.state.facts()["held"] is not None)
            wait_until(lambda: load.ledger("waiting_for"))
            migration.rollback()
            load.wait_until_done()
    assert load.dead_letters() <= 1
    assert dict(pg.execute("SELECT id, n FROM counters")) == load.counters


def test_each_row_that_waits_has_a_time_of_its_own(
    options: dict[str, Any], load: Workload, postgres_url: str
) -> None:
    with RunningWorker(**options):
        load.wb.put("users", 100, {"name": "a"}).wait(10)
        load.wb.put("users", 101, {"name": "b"}).wait(10)
    first = load.wb.put("users", 100, {"name": "a2"})
    second = load.wb.put("users", 101, {"name": "b2"})
    with psycopg.connect(postgres_url) as a, psycopg.connect(postgres_url) as b:
        a.execute("SELECT FROM users WHERE id = 100 FOR UPDATE")
        b.execute("SELECT FROM users WHERE id = 101 FOR UPDATE")
        with RunningWorker(**options, lock_timeout_s=0.1, hold_timeout_s=3.0):
            waiting = wait_until(lambda: load.ledger("waiting_for"))
            assert "1 rows more" in waiting  # both are found by one attempt
            b.rollback()
            with pytest.raises(WriteRejected):
                first.wait(20)
            second.wait(20)


def test_a_hot_row_that_is_locked_costs_the_others_one_hold_time(
    options: dict[str, Any], load: Workload, postgres_url: str
) -> None:
    with RunningWorker(**options):
        load.wb.put("users", 100, {"name": "a"}).wait(10)
    with load.wb.batch() as hot:
        for i in range(8):
            hot.patch("users", 100, {"name": str(i)})
    other = load.wb.put("users", 101, {"name": "b"})
    with psycopg.connect(postgres_url) as user:
        user.execute("SELECT FROM users WHERE id = 100 FOR UPDATE")
        with RunningWorker(**options, lock_timeout_s=0.1, hold_timeout_s=1.0) as worker:
            other.wait(20)
        assert load.dead_letters() == 8
        assert worker.metric("retries_total", reason="HeldByLock") <= 8  # not a hold for each of them


def test_a_breaker_that_has_tripped_is_not_forgotten_with_the_ownership(
    options: dict[str, Any], load: Workload, pg: psycopg.Connection[Any]
) -> None:
    pg.execute("CREATE TABLE notes (id int PRIMARY KEY, v text, w text)")
    with RunningWorker(**options) as worker:
        load.wb.put("notes", -1, {"w": "x"}).wait(10)
        pg.execute("ALTER TABLE notes DROP COLUMN w")
        with load.wb.batch() as batch:
            for i in range(1200):
                batch.put("notes", i, {"w": "x"})
        wait_until(lambda: worker.state.facts()["breaker"], timeout=30)
        epoch = worker.state.facts()["epoch"]
        load.redis.delete(load.keys.lease)  # ownership is lost, and taken again
        wait_until(lambda: (worker.state.facts()["epoch"] or 0) > epoch, timeout=30)
        wait_until(lambda: worker.state.facts()["breaker"], timeout=30)
        assert load.dead_letters() == 0
        pg.execute("ALTER TABLE notes ADD COLUMN w text")
        load.wait_until_done(30)
    assert load.dead_letters() == 0


@pytest.mark.parametrize("name", ["epoch", "producers", "inflight"])
def test_what_others_write_to_our_keys_never_ends_the_process(
    name: str, options: dict[str, Any], load: Workload
) -> None:
    key = getattr(load.keys, name)
    with RunningWorker(**options) as worker:
        worker.wait_for_role("owner")
        if name == "producers":
            load.redis.hset(key, "forged", "nonsense")
            assert reap_sessions(load.redis, load.keys, 0) == 0
        elif name == "inflight":
            load.redis.rpush(key, "nonsense")
            wait_until(lambda: worker.metric("retries_total", reason="begin again") > 1)
            load.redis.lrem(key, 0, "nonsense")
        else:
            load.redis.set(key, "nonsense")
            wait_until(lambda: worker.metric("retries_total", reason="begin again") > 1)
            load.redis.delete(key)
        load.add(10)
        load.check()


def test_the_applications_own_insert_of_the_row_is_no_reason_to_refuse_a_put(
    options: dict[str, Any], load: Workload, pg: psycopg.Connection[Any], postgres_url: str
) -> None:
    pg.execute("CREATE TABLE shared (id int PRIMARY KEY, v text)")
    pg.execute("CREATE FUNCTION same() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'")
    pg.execute("CREATE TRIGGER t BEFORE INSERT ON shared FOR EACH ROW EXECUTE FUNCTION same()")
    with psycopg.connect(postgres_url) as application, RunningWorker(**options) as worker:
        worker.wait_for_role("owner")
        application.execute("INSERT INTO shared VALUES (1, 'application')")
        receipt = load.wb.put("shared", 1, {"v": "library"})
        wait_until(
            lambda: pg.execute(
                "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT%shared%' "
                "AND datname = current_database()"
            ).fetchall()
        )
        application.commit()
        receipt.wait(10)
    assert pg.execute("SELECT v FROM shared").fetchall() == [("library",)]


def test_what_a_trigger_says_of_values_reaches_no_log_and_no_status(
    options: dict[str, Any], load: Workload, pg: psycopg.Connection[Any]
) -> None:
    pg.execute("CREATE TABLE guarded (id int PRIMARY KEY, v text)")
    pg.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN RAISE insufficient_privilege USING MESSAGE = 'no right for ' || NEW.v; END$$"
    )
    pg.execute("CREATE TRIGGER t BEFORE INSERT ON guarded FOR EACH ROW EXECUTE FUNCTION refuse()")
    with load.wb.batch() as batch:
        for i in range(1000):
            batch.put("guarded", i, {"v": "secret-value"})
    with RunningWorker(**options) as worker:
        paused = wait_until(lambda: worker.state.facts()["breaker"], timeout=30)
        assert "public.guarded" in paused
        assert "secret-value" not in json.dumps(worker.state.readiness()[1])
        assert "secret-value" not in wait_until(lambda: load.ledger("waiting_for"))
        pg.execute("DROP TRIGGER t ON guarded")
        load.wait_until_done()
    assert load.dead_letters() == 0


def test_while_a_server_is_away_the_worker_is_alive(options: dict[str, Any]) -> None:
    """A liveness probe that fails in an outage would restart it again and again."""
    away = {**options, "redis_url": "redis://127.0.0.1:1/0"}
    with RunningWorker(**away) as worker:
        wait_until(lambda: worker.state.facts()["redis_up"] is False)
        before = worker.state.health()[1]["since_progress_s"]
        assert wait_until(lambda: worker.state.health()[1]["since_progress_s"] < before + 0.05)
        assert worker.state.health()[0]
        assert not worker.state.readiness()[0]
