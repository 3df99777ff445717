"""A primary is lost and its replica promoted, with real processes: what may be lost, and how one sees it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis
from structlog.testing import capture_logs
from tests.conftest import SCHEMA
from tests.support.crashing_worker import CrashingWorker
from tests.support.owners import owning
from tests.support.replica import PostgresPair, RedisPair
from tests.support.tally import TABLES, WRITES, Tally, TallyDatabase, numbers
from tests.support.workers import RunningWorker, flags

from writebehind import OutcomeUnknown
from writebehind.keys import QueueKeys
from writebehind_worker.frozen import FrozenBatch
from writebehind_worker.testing.proxy import Proxy, proxied_url
from writebehind_worker.testing.wait import wait_until


@pytest.fixture
def redis_pair() -> Iterator[RedisPair]:
    with RedisPair() as pair:
        yield pair


@pytest.fixture
def database(pg: psycopg.Connection[Any], queue: str) -> TallyDatabase:
    """Of the tests in which Redis fails over."""
    pg.execute(TABLES)
    return TallyDatabase(pg, queue)


@pytest.fixture
def options(redis_pair: RedisPair, postgres_url: str, queue: str) -> dict[str, Any]:
    return {"redis_url": redis_pair.url, "postgres_url": postgres_url, "queue": queue, "batch_size": 20}


@pytest.fixture
def tally(redis_pair: RedisPair, queue: str) -> Iterator[Tally]:
    with Tally(redis_pair.url, queue) as tally:
        yield tally


def slow_down(database: TallyDatabase, seconds: float) -> None:
    """Each statement on ``tally`` takes so long."""
    database.conn.execute(
        "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END$$"
    )
    database.conn.execute("CREATE TRIGGER slow BEFORE INSERT ON tally EXECUTE FUNCTION slowly()")


def has_ended(worker: RunningWorker) -> bool:
    """Its tenure: what it had begun in Postgres is in, or is not."""
    return worker.facts["redis_up"] is False


def repeated_by(pair: RedisPair, tally: Tally, database: TallyDatabase) -> set[int]:
    """What is in Postgres, but waits on the replica, in no batch that the ledger knows."""
    return database.applied() & tally.pending(pair.on_replica, database.ledger("recent_batches"))


def lost_by(pair: RedisPair, tally: Tally, database: TallyDatabase) -> set[int]:
    """What was accepted, and is neither in Postgres nor on the replica."""
    return set(tally.ticks) - database.applied() - tally.pending(pair.on_replica)


def finish(options: dict[str, Any], tally: Tally) -> RunningWorker:
    """A worker takes over and does all there is to do."""
    with RunningWorker(**options) as worker:
        worker.wait_for_role("owner")
        tally.wait_until_drained()
    return worker


# Redis.


def test_a_batch_is_frozen_on_a_replica_alike_which_is_not_sent_its_items_again(
    redis_pair: RedisPair, queue: str
) -> None:
    keys = QueueKeys(queue)
    items = [b"%d" % n if n % 3 else b"%d " % n + b"x" * 5000 for n in range(300)]
    primary, replica = redis_pair.on_primary, redis_pair.on_replica
    with owning(redis_pair.url, keys) as owned:
        primary.lpush(queue, *items)
        redis_pair.catch_up()
        before = redis_pair.offset()
        batch = owned.claim(200, 1 << 20, 0.0)
        assert isinstance(batch, FrozenBatch)
        redis_pair.catch_up()
        assert redis_pair.offset() - before < 5000
    assert batch.items == items[:200] == replica.lrange(keys.processing(batch.id), 0, -1)
    assert replica.lrange(queue, 0, -1) == items[:199:-1]


def test_a_redis_replica_that_lags_is_promoted_under_load(
    redis_pair: RedisPair, options: dict[str, Any], tally: Tally, database: TallyDatabase
) -> None:
    with capture_logs() as logs, RunningWorker(**options) as worker:
        slow_down(database, 0.3)  # so that many writes wait, also where the producer is slow
        tally.start()
        tally.wait_for(100)
        redis_pair.lag()
        wait_until(lambda: len(repeated_by(redis_pair, tally, database)) > 20)
        wait_until(lambda: len(lost_by(redis_pair, tally, database)) > 20)  # more than a batch

        redis_pair.primary.kill()
        wait_until(lambda: has_ended(worker))
        accepted, applied = set(tally.ticks), database.applied()
        redis_pair.promote()
        waiting = tally.pending(redis_pair.on_replica, database.ledger("recent_batches"))
        held = tally.pending(redis_pair.on_replica)
        database.conn.execute("DROP TRIGGER slow ON tally")
        redis_pair.move_address()
        tally.wait_for(len(accepted) + 50)
        tally.stop()
        tally.wait_until_drained()
        [last] = tally.tick()  # what came before the worker saw the failover has receipts of the old history
        tally.wait_until_drained()
        assert worker.metric("rollbacks_total", server="redis") == 1
        repeated = waiting & applied
        assert worker.metric("writes_total", table="unknown", outcome="rollback") == len(repeated) * WRITES

    lost = accepted - applied - held
    assert repeated and lost
    database.check(set(tally.ticks) - lost)
    dead = database.dead("rollback")
    assert numbers(dead) == repeated
    assert len(dead) == len(repeated) * WRITES
    assert [log["log_level"] for log in logs if "redis went back" in log["event"]] == ["error"]
    for tick in (0, max(accepted)):
        with pytest.raises(OutcomeUnknown):
            tally.ticks[tick].wait(1)
    assert tally.ticks[last].is_durable()


@pytest.mark.parametrize(
    ("point", "frozen_on_both", "some_repeated"),
    [
        ("commit:before:1", False, False),
        ("commit:after:1", False, True),
        ("acknowledge:after:1", False, True),
        ("commit:before:1", True, False),
        ("commit:after:1", True, False),
    ],
)
def test_redis_fails_over_where_a_worker_was_killed(
    point: str,
    frozen_on_both: bool,
    some_repeated: bool,
    redis_pair: RedisPair,
    options: dict[str, Any],
    tally: Tally,
    database: TallyDatabase,
) -> None:
    tally.tick(35)
    if frozen_on_both:
        kill_at("claim:after:2", options, redis_pair.on_primary, tally)
    redis_pair.lag()
    tally.tick(5)
    kill_at(point, options, redis_pair.on_primary, tally)
    accepted, applied = set(tally.ticks), database.applied()
    resolved = database.ledger("recent_batches") or []
    redis_pair.fail_over()
    held = tally.pending(redis_pair.on_replica)
    repeated = tally.pending(redis_pair.on_replica, resolved) & applied
    assert held == accepted - set(range(35, 40))
    later = tally.tick(10)
    worker = finish(options, tally)
    database.check(applied | held | later)
    assert numbers(database.dead("rollback")) == repeated
    assert len(database.dead("rollback")) == len(repeated) * WRITES
    assert worker.metric("rollbacks_total", server="redis") == bool(repeated) == some_repeated


def kill_at(point: str, options: dict[str, Any], client: redis.Redis, tally: Tally) -> None:
    with CrashingWorker(point, flags(**options)) as worker:
        worker.wait_for_death()
    client.delete(tally.keys.lease)  # it would run out


def test_a_redis_replica_that_lags_nothing_loses_nothing(
    redis_pair: RedisPair, options: dict[str, Any], tally: Tally, database: TallyDatabase
) -> None:
    with capture_logs() as logs, RunningWorker(**options) as worker:
        slow_down(database, 0.02)
        tally.tick(100)
        wait_until(lambda: len(database.applied()) > 20)
        redis_pair.address.pause()  # what is under way ends, and no more is begun
        redis_pair.catch_up()
        redis_pair.primary.kill()
        redis_pair.address.drop_connections()
        redis_pair.address.resume()
        wait_until(lambda: has_ended(worker))
        redis_pair.promote()
        redis_pair.move_address()
        tally.tick(20)
        tally.wait_until_drained()
        assert worker.metric("rollbacks_total", server="redis") == bool(database.dead("rollback"))
    assert any("has failed over" in log["event"] for log in logs)
    database.check(set(tally.ticks))


def test_a_primary_that_is_promoted_again_is_not_taken_for_what_it_was(
    redis_pair: RedisPair, options: dict[str, Any], tally: Tally
) -> None:
    """It is the same process, and has lost what the other had not received. No worker was there meanwhile."""
    tally.tick()
    finish(options, tally)
    redis_pair.lag()
    (lost,) = tally.tick()
    redis_pair.promote()
    redis_pair.fail_back()
    tally.tick()
    finish(options, tally)
    with pytest.raises(OutcomeUnknown):
        tally.ticks[lost].wait(1)


@pytest.mark.parametrize("point", ["record:before:1", "commit:before:1", "acknowledge:before:1"])
def test_an_owner_that_is_left_with_the_old_primary_is_fenced_in_postgres(
    point: str, redis_pair: RedisPair, options: dict[str, Any], tally: Tally, database: TallyDatabase
) -> None:
    tally.tick(40)
    redis_pair.lag()
    with Proxy.to(redis_pair.primary.url) as way:
        cut_off = {**options, "redis_url": proxied_url(redis_pair.primary.url, way.port)}
        with CrashingWorker(point, flags(**cut_off), signal.SIGSTOP) as former:
            former.wait_for_pause()
            applied = database.applied()
            assert bool(applied) == point.startswith("acknowledge")
            tally.tick(10)  # nobody will hear of these
            redis_pair.promote()
            redis_pair.move_address()
            held = tally.pending(redis_pair.on_replica)
            with RunningWorker(**options) as owner:
                owner.wait_for_role("owner")
                tally.wait_until_drained()
                way.refuse()  # its connections stand, for as long as it uses them
                former.resume()
                former.wait_for_log("released")
                later = tally.tick(10)
                way.redirect(redis_pair.replica.url)
                way.accept()
                former.wait_for_log("standing by")
                tally.wait_until_drained()
                assert owner.facts["role"] == "owner"
    assert tally.pending(redis_pair.on_primary) >= set(range(40, 50))
    database.check(applied | held | later)
    assert numbers(database.dead("rollback")) == applied & held


def test_an_old_primary_that_was_paused_comes_back_and_nothing_takes_effect_twice(
    redis_pair: RedisPair, options: dict[str, Any], tally: Tally, database: TallyDatabase
) -> None:
    with Proxy.to(redis_pair.primary.url) as way:
        cut_off = {**options, "redis_url": proxied_url(redis_pair.primary.url, way.port)}
        cut_off["batch_bytes"] = 2000  # several transactions
        with CrashingWorker(None, flags(**cut_off)) as former:
            slow_down(database, 0.3)
            tally.tick(100)
            wait_until(database.applied)
            redis_pair.lag()
            pid = redis_pair.primary.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            way.refuse()
            redis_pair.promote()
            redis_pair.move_address()
            held = tally.pending(redis_pair.on_replica)
            redis_pair.on_replica.delete(tally.keys.lease)  # it would run out
            with RunningWorker(**options) as owner:
                owner.wait_for_role("owner")
                database.conn.execute("DROP TRIGGER slow ON tally")
                later = tally.tick(10)
                tally.wait_until_drained()
                os.kill(pid, signal.SIGCONT)
                way.redirect(redis_pair.replica.url)
                way.accept()
                former.wait_for_log("standing by")
                assert owner.facts["role"] == "owner"
    assert held
    database.check(set(range(100)) | later)  # what the replica lacked had been applied before
    assert numbers(database.dead("rollback")) <= held


def test_cache_entries_of_a_redis_that_went_back(
    redis_pair: RedisPair, options: dict[str, Any], tally: Tally, database: TallyDatabase
) -> None:
    def load(row: int) -> dict[str, Any] | None:
        found = database.conn.execute("SELECT write FROM latest WHERE id = %s", [row]).fetchone()
        return found and {"write": found[0]}

    def ttl(row: int) -> int:
        return int(redis_pair.on_replica.ttl(f"{tally.keys.queue}:cache:latest:{row}"))

    wb = tally.wb
    wb.put("latest", 1, {"write": 1})
    finish(options, tally)
    wb.put("latest", 2, {"write": 1})
    redis_pair.lag()
    wb.put("latest", 1, {"write": 2})
    finish(options, tally)
    wb.put("latest", 3, {"write": 1})
    redis_pair.fail_over()
    wb.put("latest", 4, {"write": 1})
    assert [ttl(row) for row in (2, 4)] == [-1, -1]
    finish(options, tally)

    # Older than Postgres, and known by nothing: until its time to live has passed, or it is removed.
    assert wb.get("latest", 1, load) == {"write": 1}
    assert 0 < ttl(1) <= wb.settings.ttl
    assert wb.invalidate("latest", 1)
    assert wb.get("latest", 1, load) == {"write": 2}
    # Pending in the replica though applied: set aside, and the entry removed.
    assert ttl(2) == -2
    assert wb.get("latest", 2, load) == {"write": 1}
    # Lost with Redis: neither has it.
    assert wb.get("latest", 3, load) is None
    # Of after: as ever.
    assert wb.get("latest", 4) == {"write": 1}
    assert 0 < ttl(4) <= wb.settings.ttl


def test_at_a_redis_replica_a_worker_waits_until_it_is_promoted(
    redis_pair: RedisPair, options: dict[str, Any], tally: Tally, database: TallyDatabase
) -> None:
    redis_pair.move_address()
    with capture_logs() as logs, RunningWorker(**options) as worker:
        wait_until(lambda: worker.metric("retries_total", reason="begin again") >= 3)
        ready, facts = worker.state.readiness()
        assert not ready
        assert any("is a replica" in reason for reason in facts["reasons"])
        assert [log["up"] for log in logs if log["event"] == "redis"] == [False]
        redis_pair.promote()
        worker.wait_for_role("owner")
        tally.tick(5)
        tally.wait_until_drained()
    database.check(set(tally.ticks))


def test_two_primaries_that_both_have_a_worker_let_nothing_take_effect_twice(
    redis_pair: RedisPair, options: dict[str, Any], queue: str, tally: Tally, database: TallyDatabase
) -> None:
    common = tally.tick(40)
    redis_pair.lag()
    redis_pair.promote()
    with Tally(redis_pair.replica.url, queue) as other:
        other.count = tally.count
        with RunningWorker(**options), RunningWorker(**{**options, "redis_url": redis_pair.replica.url}):
            for _ in range(5):
                tally.tick(4)
                other.tick(4)
            tally.wait_until_drained()
            other.wait_until_drained()
    applied = database.applied()
    assert applied >= common
    assert applied | numbers(database.dead("rollback")) == tally.ticks.keys() | other.ticks.keys()
    database.check(applied)


# Postgres.


@pytest.fixture
def postgres_pair() -> Iterator[PostgresPair]:
    with PostgresPair() as pair:
        with psycopg.connect(pair.url, autocommit=True) as conn:
            conn.execute(SCHEMA.read_bytes())
            conn.execute(TABLES)
        yield pair


@pytest.fixture
def beside(postgres_pair: PostgresPair, redis_url: str, queue: str) -> dict[str, Any]:
    """Options of a worker, where Postgres fails over."""
    return {"redis_url": redis_url, "postgres_url": postgres_pair.url, "queue": queue, "batch_size": 20}


@pytest.fixture
def ticks(redis_url: str, queue: str) -> Iterator[Tally]:
    with Tally(redis_url, queue) as tally:
        yield tally


@pytest.fixture
def standby(postgres_pair: PostgresPair, queue: str) -> Iterator[TallyDatabase]:
    """What the standby says; it may be read before it is promoted."""
    with psycopg.connect(postgres_pair.standby.url, autocommit=True) as conn:
        yield TallyDatabase(conn, queue)


def test_a_synchronous_standby_is_promoted_under_load_and_nothing_is_lost(
    postgres_pair: PostgresPair, beside: dict[str, Any], ticks: Tally, standby: TallyDatabase
) -> None:
    postgres_pair.wait_for_standby_at_commit()
    with RunningWorker(**beside) as worker:
        ticks.start()
        wait_until(standby.has_tables)  # what is on its disk is not always to be seen there yet
        wait_until(lambda: len(standby.applied()) > 50)
        postgres_pair.primary.kill()
        before = len(ticks.ticks)
        postgres_pair.promote()
        postgres_pair.move_address()
        ticks.wait_for(before + 50)
        ticks.stop()
        ticks.wait_until_drained()
        assert worker.metric("rollbacks_total", server="postgres") == 0
    standby.check(set(ticks.ticks))
    assert all(ticks.ticks[tick].is_durable() for tick in (0, max(ticks.ticks)))


def test_what_an_asynchronous_standby_has_not_received_is_lost_and_told(
    postgres_pair: PostgresPair, beside: dict[str, Any], ticks: Tally, standby: TallyDatabase
) -> None:
    kept = ticks.tick(20)
    finish(beside, ticks)
    postgres_pair.lag()
    lost = ticks.tick(20)
    ticks.wb.put("latest", 99, {"write": 1})
    finish(beside, ticks)
    waiting = ticks.tick(30)
    with CrashingWorker("commit:after:1", flags(**beside)) as worker:
        worker.wait_for_death()
    redis_client, keys = ticks.wb.redis, ticks.keys
    redis_client.delete(keys.lease)  # it would run out
    epoch, acked = (int(redis_client.get(key) or 0) for key in (keys.epoch, keys.acked))
    last, applied_seq = standby.ledger("recent_batches")[-1], standby.ledger("applied_seq")

    postgres_pair.fail_over()
    with capture_logs() as logs:
        owner = finish(beside, ticks)
    assert owner.metric("rollbacks_total", server="postgres") == 1
    assert owner.facts["postgres_up"]
    assert standby.ledger("epoch") > epoch
    [told] = [log for log in logs if "postgres went back" in log["event"]]
    assert told["log_level"] == "error"
    assert (told["last_batch"], told["acknowledged_batch"]) == (last, acked)
    assert last < acked
    assert told["lost_after_seq"] == applied_seq == ticks.ticks[max(kept)].seq
    assert ticks.ticks[max(lost)].seq < told["lost_up_to_seq"] < ticks.ticks[min(waiting)].seq
    assert told["accepted_after"] < told["accepted_until"]
    with pytest.raises(OutcomeUnknown):
        ticks.ticks[max(lost)].wait(1)

    later = ticks.tick(10)
    owner = finish(beside, ticks)
    assert owner.metric("rollbacks_total", server="postgres") == 0
    assert ticks.ticks[max(later)].is_durable()
    standby.check(kept | waiting | later)
    # The cache shows what is lost for as long as an entry lives.
    assert ticks.wb.get("latest", 99) == {"write": 1}
    assert ticks.wb.invalidate("latest", 99)


def test_what_was_announced_and_is_lost_before_it_was_acknowledged_is_committed_once_more(
    postgres_pair: PostgresPair, beside: dict[str, Any], ticks: Tally, standby: TallyDatabase
) -> None:
    kept = ticks.tick(20)
    finish(beside, ticks)
    postgres_pair.lag()
    frozen = ticks.tick(20)
    with CrashingWorker("announce:after:1", flags(**beside)) as worker:
        worker.wait_for_death()
    assert ticks.ticks[max(frozen)].is_durable()
    ticks.wb.redis.delete(ticks.keys.lease)  # it would run out
    postgres_pair.fail_over()
    with CrashingWorker("own:after:1", flags(**beside)) as worker:
        worker.wait_for_death()
    assert ticks.ticks[max(kept)].is_durable()
    assert not ticks.ticks[max(frozen)].is_durable()
    ticks.wb.redis.delete(ticks.keys.lease)
    owner = finish(beside, ticks)
    assert owner.metric("rollbacks_total", server="postgres") == 0, "it is still in Redis"
    assert ticks.ticks[max(frozen)].is_durable()
    standby.check(kept | frozen)


def test_a_commit_at_the_old_primary_counts_for_nothing(
    postgres_pair: PostgresPair, beside: dict[str, Any], ticks: Tally, standby: TallyDatabase
) -> None:
    ticks.tick(10)
    finish(beside, ticks)
    postgres_pair.lag()
    ticks.tick(30)
    with Proxy.to(postgres_pair.primary.url) as way:
        cut_off = {**beside, "postgres_url": proxied_url(postgres_pair.primary.url, way.port)}
        with CrashingWorker("commit:before:1", flags(**cut_off), signal.SIGSTOP) as former:
            former.wait_for_pause()
            epoch = int(ticks.wb.redis.get(ticks.keys.epoch) or 0)
            ticks.wb.redis.delete(ticks.keys.lease)  # it would run out
            postgres_pair.promote()
            postgres_pair.move_address()
            assert standby.ledger("epoch") < epoch
            with RunningWorker(**beside) as owner:
                owner.wait_for_role("owner")
                ticks.wait_until_drained()
                assert owner.facts["epoch"] > epoch
                way.refuse()
                former.resume()
                with psycopg.connect(postgres_pair.primary.url, autocommit=True) as conn:
                    old = TallyDatabase(conn, ticks.keys.queue)
                    wait_until(lambda: len(old.applied()) > 10)
                former.wait_for_log("ownership lost")
                way.redirect(postgres_pair.standby.url)
                way.accept()
                former.wait_for_log("standing by")
                ticks.tick(10)
                ticks.wait_until_drained()
                assert owner.facts["role"] == "owner"
                assert owner.metric("rollbacks_total", server="postgres") == 0
    standby.check(set(ticks.ticks))


def test_at_a_standby_a_worker_waits_until_it_is_promoted(
    postgres_pair: PostgresPair, beside: dict[str, Any], ticks: Tally, standby: TallyDatabase
) -> None:
    ticks.tick(10)
    postgres_pair.catch_up()
    postgres_pair.move_address()
    with capture_logs() as logs, RunningWorker(**beside) as worker:
        wait_until(lambda: worker.metric("retries_total", reason="begin again") >= 3)
        ready, facts = worker.state.readiness()
        assert not ready
        assert any("read-only" in reason for reason in facts["reasons"])
        assert [log["up"] for log in logs if log["event"] == "postgres"] == [False]
        assert not ticks.wb.redis.exists(ticks.keys.lease)  # a worker with a better connection may have it
        postgres_pair.promote()
        ticks.wait_until_drained()
        assert worker.metric("rollbacks_total", server="postgres") == 0
    standby.check(set(ticks.ticks))


@pytest.fixture
def both_hosts(postgres_pair: PostgresPair, beside: dict[str, Any]) -> dict[str, Any]:
    """Options of a worker that knows primary and standby, the standby first."""
    hosts = ",".join(f"127.0.0.1:{s.port}" for s in (postgres_pair.standby, postgres_pair.primary))
    return {
        **beside,
        "postgres_url": f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write",
    }


def test_with_both_hosts_a_synchronous_failover_under_load_loses_and_repeats_nothing(
    postgres_pair: PostgresPair, both_hosts: dict[str, Any], ticks: Tally, standby: TallyDatabase
) -> None:
    postgres_pair.wait_for_standby_at_commit()
    with RunningWorker(**both_hosts) as worker:
        ticks.start()
        wait_until(standby.has_tables)
        wait_until(lambda: len(standby.applied()) > 50)
        postgres_pair.primary.kill()
        before = len(ticks.ticks)
        postgres_pair.promote()
        ticks.wait_for(before + 50)
        ticks.stop()
        ticks.wait_until_drained()
        assert worker.metric("rollbacks_total", server="postgres") == 0
    standby.check(set(ticks.ticks))


def test_with_both_hosts_an_asynchronous_failover_tells_what_it_lost(
    postgres_pair: PostgresPair, both_hosts: dict[str, Any], ticks: Tally, standby: TallyDatabase
) -> None:
    with capture_logs() as logs, RunningWorker(**both_hosts) as worker:
        kept = ticks.tick(20)
        ticks.wait_until_drained()
        postgres_pair.lag()
        ticks.tick(20)
        ticks.wait_until_drained()
        postgres_pair.primary.kill()
        postgres_pair.promote()
        later = ticks.tick(20)
        ticks.wait_until_drained()
        assert worker.metric("rollbacks_total", server="postgres") == 1
    assert any(log["event"].startswith("postgres went back") for log in logs)
    standby.check(kept | later)


# Both.


@pytest.mark.parametrize("point", ["own:after:2", "acknowledge:after:1"])
def test_redis_fails_over_and_then_postgres_which_loses_that_it_was_noticed(
    point: str, redis_pair: RedisPair, postgres_pair: PostgresPair, queue: str, standby: TallyDatabase
) -> None:
    urls = {"redis_url": redis_pair.url, "postgres_url": postgres_pair.url}
    options = {**urls, "queue": queue, "batch_size": 20}
    with Tally(redis_pair.url, queue) as tally:
        repeated = tally.tick(20)
        redis_pair.lag()
        finish(options, tally)
        postgres_pair.lag()
        redis_pair.fail_over()
        kill_at(point, options, redis_pair.on_replica, tally)
        left = tally.pending(redis_pair.on_replica)
        postgres_pair.fail_over()
        later = tally.tick(10)
        finish(options, tally)
    standby.check(repeated | later)
    # What had been acknowledged was set aside at the old primary: the first batch of them, or both at once.
    second = {tick for tick in repeated if tick >= 10}
    assert left in ([second, set()] if point.startswith("acknowledge") else [repeated])
    assert numbers(standby.dead("rollback")) == left
