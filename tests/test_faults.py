"""What the network, the servers, the system and other clients do to a worker, and what must come of it."""

from __future__ import annotations

import json
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from psycopg import sql
from structlog.testing import capture_logs
from tests.conftest import SCHEMA
from tests.support.workers import RunningWorker, WorkerProcess, Workload

from writebehind import FlushTimeout, RedisFull, WriteRejected
from writebehind.script import Script
from writebehind_worker.breaker import LIMIT
from writebehind_worker.embedded import EmbeddedServers
from writebehind_worker.testing.proxy import Proxy, proxied_url
from writebehind_worker.testing.servers import private_servers
from writebehind_worker.testing.wait import wait_until

Pg = psycopg.Connection[Any]


@pytest.fixture
def options(redis_url: str, postgres_url: str, queue: str) -> dict[str, Any]:
    return {"redis_url": redis_url, "postgres_url": postgres_url, "queue": queue, "batch_size": 20}


@pytest.fixture(scope="module")
def breakable() -> Iterator[EmbeddedServers]:
    """Servers that a test may kill, fill or configure; it leaves them running, and as they were."""
    with private_servers() as servers:
        yield servers


@pytest.fixture
def breakable_options(breakable: EmbeddedServers, queue: str) -> dict[str, Any]:
    name = f"wb_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(breakable.postgres_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    url = urlsplit(breakable.postgres_url)._replace(path=f"/{name}").geturl()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SCHEMA.read_bytes())
    return {"redis_url": breakable.redis_url, "postgres_url": url, "queue": queue, "batch_size": 20}


@contextmanager
def locked_row(postgres_url: str, table: str, row: int) -> Iterator[Pg]:
    """A user's transaction holds the lock on a row; it lasts as long as the block, or until it commits."""
    with psycopg.connect(postgres_url) as user:
        user.execute(sql.SQL("SELECT FROM {} WHERE id = %s FOR UPDATE").format(sql.Identifier(table)), [row])
        yield user


def slow_down(pg: Pg, seconds: float) -> None:
    """Each statement on ``counters`` takes so long."""
    pg.execute(
        "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END$$"
    )
    pg.execute("CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON counters EXECUTE FUNCTION slowly()")


def add_until(load: Workload, is_so: Callable[[], bool]) -> None:
    """Writes, a few at a time: many at once would go to Postgres at once."""
    while not is_so():
        load.add(40)
        time.sleep(0.02)
    load.add(100)


def backends(pg: Pg, condition: str) -> list[int]:
    """Process ids of the workers' backends in this database."""
    found = pg.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
        f"AND application_name = 'writebehind' AND {condition}"
    )
    return [row[0] for row in found]


def batches(load: Workload) -> int:
    """How many batches the ledger remembers."""
    return len(load.ledger("recent_batches") or ())


# A paused worker.


def test_paused_in_the_middle_of_work_another_takes_over_and_nothing_is_applied_twice(
    options: dict[str, Any], load: Workload, pg: Pg
) -> None:
    slow_down(pg, 0.02)
    with WorkerProcess(**options, lease_ttl_s=0.5) as zombie:
        add_until(load, lambda: batches(load) > 2)
        zombie.pause()
        while not load.pending:  # this process was slower
            zombie.resume()
            load.add(100)
            zombie.pause()
        with RunningWorker(**options, lease_ttl_s=10.0) as other:
            epoch = other.wait_for_role("owner")["epoch"]
            load.add(40)
            zombie.resume()
            zombie.wait_for_event("standing by")
            load.add(40)
            load.check()
            assert other.facts["epoch"] == epoch
            zombie.terminate()
            assert zombie.wait() == 0


def test_stalled_inside_its_transaction_its_backend_is_ended_by_the_next_owner(
    options: dict[str, Any], load: Workload, pg: Pg
) -> None:
    pg.execute("INSERT INTO counters VALUES (1, 0)")
    load.add(100)
    patient = {**options, "lock_timeout_s": 30}  # it must still wait when it is paused
    with WorkerProcess(**patient, lease_ttl_s=10.0) as zombie:
        with locked_row(options["postgres_url"], "counters", 1):
            [backend] = wait_until(lambda: backends(pg, "wait_event_type = 'Lock'"))
            zombie.pause()
        # The user has gone; the zombie's transaction goes on holding the ledger's row.
        wait_until(lambda: backends(pg, "state = 'idle in transaction'") == [backend])
        load.redis.delete(load.keys.lease)  # it has run out; a short one could while it still lives
        with RunningWorker(**options, lease_ttl_s=10.0) as other:
            load.wait_until_done(timeout=15)  # half as long as the zombie would wait
            # It lets go of its locks a moment before it is no longer shown.
            wait_until(lambda: not backends(pg, f"pid = {backend}"))
            zombie.resume()
            zombie.wait_for_event("standing by")
            load.add(20)
            load.check()
            assert other.facts["role"] == "owner"


def test_cut_off_from_both_servers_inside_its_transaction_it_gives_way_and_comes_back(
    options: dict[str, Any], load: Workload, pg: Pg
) -> None:
    pg.execute("INSERT INTO counters VALUES (1, 0)")
    load.add(100)
    with (
        Proxy.to(options["redis_url"]) as to_redis,
        Proxy.to(options["postgres_url"]) as to_postgres,
        RunningWorker(
            **{
                **options,
                "redis_url": proxied_url(options["redis_url"], to_redis.port),
                "postgres_url": proxied_url(options["postgres_url"], to_postgres.port),
                "lease_ttl_s": 1.0,
            }
        ) as cut_off,
    ):
        with locked_row(options["postgres_url"], "counters", 1):
            [backend] = wait_until(lambda: backends(pg, "wait_event_type = 'Lock'"))
            to_redis.pause()
            to_postgres.pause()
        with RunningWorker(**options) as other:
            other.wait_for_role("owner")
            load.wait_until_done()
            assert backends(pg, f"pid = {backend}") == []
            to_redis.resume()
            to_postgres.resume()
            cut_off.wait_for_role("standby")
            load.add(20)
            load.check()


def test_two_workers_on_a_queue_are_never_owners_at_the_same_time(
    options: dict[str, Any], load: Workload, pg: Pg
) -> None:
    slow_down(pg, 0.01)
    with RunningWorker(**options) as first, RunningWorker(**options) as second:
        wait_until(lambda: {first.facts["role"], second.facts["role"]} == {"owner", "standby"})
        owner, other = (first, second) if first.facts["role"] == "owner" else (second, first)
        epoch = owner.facts["epoch"]
        add_until(load, lambda: batches(load) > 3)
        assert {b >> 32 for b in load.ledger("recent_batches")} == {epoch}
        assert other.facts["role"] == "standby"
        owner.stop()
        assert other.wait_for_role("owner")["epoch"] == epoch + 1
        load.add(1)
        load.check()
        found = [b >> 32 for b in load.ledger("recent_batches")]
        assert found == sorted(found)
        assert set(found) == {epoch, epoch + 1}


# While Postgres commits.


@pytest.mark.parametrize(("most_early", "frozen"), [(1e9, 2), (0.0, 1)], ids=["soon", "long"])
def test_one_more_batch_is_frozen_while_postgres_commits_if_that_will_be_soon(
    most_early: float,
    frozen: int,
    options: dict[str, Any],
    load: Workload,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("writebehind_worker.tenure._MOST_EARLY", most_early)
    with (
        Proxy.to(options["postgres_url"]) as proxy,
        RunningWorker(
            **{**options, "postgres_url": proxied_url(options["postgres_url"], proxy.port)}
        ) as worker,
    ):
        worker.wait_for_role("owner")
        load.add(1)
        load.wait_until_done()  # how long a COMMIT takes is known then
        proxy.pause_at(lambda chunk: b"COMMIT\0" in chunk, "before")
        load.add(1)
        proxy.wait_for_pause()
        load.add(5)
        wait_until(lambda: load.redis.llen(load.keys.inflight) == frozen)
        load.add(5)
        time.sleep(0.3)  # nothing else tells that no other one comes
        assert load.redis.llen(load.keys.inflight) == frozen
        assert load.redis.llen(load.keys.queue) >= 5
        proxy.resume()
        load.check()


# Lost replies.


def _script(name: str) -> Callable[[bytes], bool]:
    sha = Script("writebehind_worker", name).sha.encode()
    return lambda chunk: sha in chunk


LOST_IN_REDIS = ["lease", "own", "claim", "announce", "settle", "acknowledge"]
LOST_IN_POSTGRES = {
    "take": b"UPDATE writebehind.ledger SET epoch",
    "record": b"UPDATE writebehind.ledger SET recent_batches",
    "commit": b"COMMIT\0",
}


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("script", LOST_IN_REDIS)
def test_the_reply_of_a_script_is_lost(
    script: str, times: int, options: dict[str, Any], load: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script == "settle":  # else what few entries there are is settled by the call that acknowledges
        monkeypatch.setattr("writebehind_worker.tenure.SETTLED_AT_ONCE", 0)
    if script == "announce":  # else receipts are told so early only where there is much to settle
        monkeypatch.setattr("writebehind_worker.tenure.MANY_ENTRIES", 0)
    for name in LOST_IN_REDIS:  # known to Redis: the reply that is lost is not NOSCRIPT
        load.redis.script_load(Script("writebehind_worker", name).source)
    load.add(100)
    with Proxy.to(options["redis_url"]) as proxy:
        proxy.drop_reply_after(_script(script), times)
        with RunningWorker(**{**options, "redis_url": proxied_url(options["redis_url"], proxy.port)}):
            for lost in range(1, times + 1):
                proxy.wait_for_drops(lost)
                load.add(10)  # the first may have been of all that there was
            load.check()


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("statement", LOST_IN_POSTGRES)
def test_the_reply_of_postgres_is_lost(
    statement: str, times: int, options: dict[str, Any], load: Workload
) -> None:
    load.add(100)
    with Proxy.to(options["postgres_url"]) as proxy:
        proxy.drop_reply_after(lambda chunk: LOST_IN_POSTGRES[statement] in chunk, times)
        with RunningWorker(**{**options, "postgres_url": proxied_url(options["postgres_url"], proxy.port)}):
            proxy.wait_for_drops(times)
            load.add(10)
            load.check()


def test_connections_that_are_cut_again_and_again_under_load(options: dict[str, Any], load: Workload) -> None:
    with (
        Proxy.to(options["redis_url"]) as to_redis,
        Proxy.to(options["postgres_url"]) as to_postgres,
        RunningWorker(
            **{
                **options,
                "redis_url": proxied_url(options["redis_url"], to_redis.port),
                "postgres_url": proxied_url(options["postgres_url"], to_postgres.port),
            }
        ),
    ):
        for proxy in (to_redis, to_postgres) * 3:
            before = load.ledger("applied_seq") or 0
            load.add(150)
            wait_until(lambda old=before: (load.ledger("applied_seq") or 0) > old)  # type: ignore[misc]
            proxy.drop_connections()
        load.check()


# Servers that go and come.


def test_redis_and_postgres_are_killed_under_load(
    breakable: EmbeddedServers, breakable_options: dict[str, Any]
) -> None:
    with psycopg.connect(breakable_options["postgres_url"], autocommit=True) as pg:
        load = Workload(breakable_options["redis_url"], breakable_options["queue"], pg)
    done = threading.Event()

    def produce() -> None:
        while not done.wait(0.005):
            load.add(5)

    producer = threading.Thread(target=produce)
    with load, RunningWorker(**breakable_options) as worker:
        producer.start()
        try:
            for server in (breakable.redis, breakable.postgres) * 2:
                flushed = worker.metric("batch_size_count")
                wait_until(lambda old=flushed: worker.metric("batch_size_count") > old)  # type: ignore[misc]
                server.kill()
                server.start()
        finally:
            done.set()
            producer.join(20)
        assert not producer.is_alive()
        load.wait_until_done()
        with psycopg.connect(breakable_options["postgres_url"], autocommit=True) as load.pg:
            load.check()


@pytest.mark.parametrize("server", ["redis", "postgres"])
def test_a_server_that_is_away_at_the_start_is_waited_for_and_logged_once(
    server: str, options: dict[str, Any], load: Workload
) -> None:
    load.add(10)
    url = options[f"{server}_url"]
    with Proxy.to(url) as proxy:
        proxy.drop_request_matching(lambda _: True, times=5)
        with WorkerProcess(**{**options, f"{server}_url": proxied_url(url, proxy.port)}) as worker:
            proxy.wait_for_drops(5)
            load.check()
            assert [event["up"] for event in worker.events(server)] == [False, True]
            assert worker.events(server)[0]["reason"]


def test_an_idle_owner_notices_that_postgres_is_gone(
    breakable: EmbeddedServers, breakable_options: dict[str, Any]
) -> None:
    with RunningWorker(**breakable_options) as worker:
        worker.wait_for_role("owner")
        breakable.postgres.stop("fast")
        try:
            wait_until(lambda: worker.state.facts()["postgres_up"] is False, timeout=15)
        finally:
            breakable.postgres.start()
        wait_until(lambda: worker.state.facts()["postgres_up"], timeout=15)


def test_while_both_servers_are_down_nothing_says_that_postgres_is_up(
    breakable: EmbeddedServers, breakable_options: dict[str, Any]
) -> None:
    with RunningWorker(**breakable_options) as worker:
        worker.wait_for_role("owner")
        assert worker.state.facts()["postgres_up"]
        breakable.redis.kill()
        breakable.postgres.stop("immediate")
        try:
            wait_until(lambda: worker.state.facts()["redis_up"] is False, timeout=15)
            _, told = worker.state.readiness()
            assert not told["postgres_up"]
        finally:
            breakable.redis.start()
            breakable.postgres.start()
        wait_until(lambda: worker.state.readiness()[0], timeout=15)


def test_without_the_ledgers_tables_it_ends_and_names_the_command_that_makes_them(
    options: dict[str, Any], pg: Pg
) -> None:
    pg.execute("DROP SCHEMA writebehind CASCADE")
    with WorkerProcess(**options) as worker:
        assert worker.wait() == 2
        assert "writebehind init" in worker.log


def test_a_redis_that_would_evict_the_queue_is_refused_unless_allowed(
    breakable: EmbeddedServers, breakable_options: dict[str, Any]
) -> None:
    with redis.Redis.from_url(breakable.redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with WorkerProcess(**breakable_options) as worker:
                assert worker.wait() == 2
                assert "allkeys-lru" in worker.log
                assert "--allow-eviction" in worker.log
            with WorkerProcess(**breakable_options, allow_eviction=True) as worker:
                worker.wait_for_event("owner")
        finally:
            client.config_set("maxmemory-policy", "noeviction")


def test_a_full_redis_refuses_writes_and_is_still_drained(
    breakable: EmbeddedServers, breakable_options: dict[str, Any]
) -> None:
    with (
        psycopg.connect(breakable_options["postgres_url"], autocommit=True) as pg,
        Workload(breakable.redis_url, breakable_options["queue"], pg) as load,
    ):
        load.add(300)
        load.redis.config_set("maxmemory", 1)
        try:
            with pytest.raises(RedisFull):
                load.wb.put("users", 1, {"name": "one too many"})
            with RunningWorker(**breakable_options):
                load.check()
                # An idle owner of a full Redis polls, and sees what comes when there is room again.
                load.redis.config_set("maxmemory", 0)
                load.add(30)
                load.check()
        finally:
            load.redis.config_set("maxmemory", 0)


# Stopping.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_finishes_what_is_frozen_and_lets_the_next_in_at_once(
    number: signal.Signals, options: dict[str, Any], load: Workload, pg: Pg
) -> None:
    slow_down(pg, 0.05)
    load.add(400)
    with WorkerProcess(**options, lease_ttl_s=10.0) as worker:
        wait_until(lambda: batches(load) > 2)
        with RunningWorker(**options) as standby:
            standby.wait_for_role("standby")
            worker.terminate(number)
            assert worker.wait(10) == 0, worker.log
            assert worker.events("released")
            standby.wait_for_role("owner", timeout=5)  # half as long as the lease
            load.check()


def test_stopped_it_leaves_nothing_frozen_and_no_lease(options: dict[str, Any], load: Workload) -> None:
    load.add(400)
    with WorkerProcess(**options) as worker:
        wait_until(lambda: batches(load) > 2)
        worker.terminate()
        assert worker.wait(10) == 0
    assert load.redis.llen(load.keys.inflight) == 0
    assert not load.redis.exists(load.keys.lease)


def test_killed_the_next_takes_over_when_the_lease_has_run_out(
    options: dict[str, Any], load: Workload
) -> None:
    with WorkerProcess(**options, lease_ttl_s=2.0) as worker:
        worker.wait_for_event("owner")
        with RunningWorker(**options) as standby:
            standby.wait_for_role("standby")
            load.add(100)
            worker.kill()
            standby.wait_for_role("owner", timeout=5)
            load.check()


def test_asked_to_stop_while_postgres_hangs_it_ends_in_time_and_the_next_finishes(
    options: dict[str, Any], load: Workload
) -> None:
    with (
        Proxy.to(options["postgres_url"]) as proxy,
        WorkerProcess(
            **{**options, "postgres_url": proxied_url(options["postgres_url"], proxy.port)},
            lease_ttl_s=3.0,
            stop_timeout_s=1.0,
        ) as worker,
    ):
        worker.wait_for_event("owner")
        load.add(10)
        load.wait_until_done()
        proxy.pause()
        load.add(100)
        wait_until(lambda: load.redis.llen(load.keys.inflight))
        worker.terminate()
        assert worker.wait(8) == 0, worker.log
        assert "stays frozen" in worker.log
        with RunningWorker(**options):
            load.check()


# Locks and breakers.


def test_while_a_user_locks_a_row_the_rest_waits_and_the_write_is_named(
    options: dict[str, Any], load: Workload, pg: Pg
) -> None:
    pg.execute("INSERT INTO counters VALUES (1, 0)")
    load.add(15)
    with (
        locked_row(options["postgres_url"], "counters", 1) as user,
        RunningWorker(**options, lock_timeout_s=0.1) as worker,
    ):
        held = wait_until(lambda: worker.facts["held"])
        assert "increment of public.counters" in held
        ready, told = worker.state.readiness()
        assert ready
        assert told["held"] == held
        assert told["delay"] == 'a lock in "counters" (SQLSTATE 55P03)', "that was known before"
        waiting_for = wait_until(lambda: load.ledger("waiting_for"))
        assert "increment of public.counters" in waiting_for
        assert "55P03" in waiting_for
        assert not pg.execute("SELECT FROM users").fetchall()
        user.commit()
        load.check()
        assert wait_until(lambda: worker.facts["held"] is None)
        assert worker.facts["delay"] is None
        wait_until(lambda: load.ledger("waiting_for") is None)


def test_a_lock_held_for_too_long_costs_the_one_write_that_waits_for_it(
    options: dict[str, Any], load: Workload, pg: Pg
) -> None:
    pg.execute("INSERT INTO users VALUES (100, 'before')")
    load.add(8)
    held = load.wb.put("users", 100, {"name": "after"})
    load.add(8)
    with (
        locked_row(options["postgres_url"], "users", 100),
        RunningWorker(**options, lock_timeout_s=0.1, hold_timeout_s=0.5),
    ):
        with pytest.raises(WriteRejected) as refused:
            held.wait(15)
        assert refused.value.sqlstate == "55P03"
    load.users[100] = "before"
    load.check(dead_letters=1)


class Paused:
    """A table for which every write comes to be refused alike, and how that is mended."""

    def __init__(self, how: str, pg: Pg, options: dict[str, Any]) -> None:
        role = f"wb_{uuid.uuid4().hex[:12]}"
        self.role, self.pg = sql.Identifier(role), pg
        pg.execute("CREATE TABLE notes (id int PRIMARY KEY, text text)")
        pg.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'test'").format(self.role))
        pg.execute(sql.SQL("GRANT USAGE ON SCHEMA writebehind TO {}").format(self.role))
        pg.execute(sql.SQL("GRANT ALL ON ALL TABLES IN SCHEMA writebehind, public TO {}").format(self.role))
        url = urlsplit(options["postgres_url"])
        place = url.netloc.rpartition("@")[2]
        self.options = {**options, "postgres_url": url._replace(netloc=f"{role}:test@{place}").geturl()}
        statements: dict[str, tuple[sql.SQL | sql.Composed, sql.SQL | sql.Composed]] = {
            "dropped column": (
                sql.SQL("ALTER TABLE notes DROP COLUMN text"),
                sql.SQL("ALTER TABLE notes ADD COLUMN text text"),
            ),
            "lost grant": (
                sql.SQL("REVOKE ALL ON notes FROM {}").format(self.role),
                sql.SQL("GRANT ALL ON notes TO {}").format(self.role),
            ),
            "renamed table": (
                sql.SQL("ALTER TABLE notes RENAME TO elsewhere"),
                sql.SQL("ALTER TABLE elsewhere RENAME TO notes"),
            ),
        }
        self._breaks, self._mends = statements[how]

    def start(self) -> None:
        self.pg.execute(self._breaks)

    def mend(self) -> None:
        self.pg.execute(self._mends)


@pytest.fixture
def paused(request: pytest.FixtureRequest, pg: Pg, options: dict[str, Any]) -> Iterator[Paused]:
    found = Paused(request.param, pg, options)
    yield found
    pg.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(found.role))


@pytest.mark.parametrize(
    ("paused", "batch_size"),
    [("dropped column", 5000), ("lost grant", 300), ("renamed table", 300)],
    indirect=["paused"],
)
def test_where_every_write_is_refused_alike_the_queue_pauses_until_it_is_mended(
    paused: Paused, batch_size: int, load: Workload, pg: Pg
) -> None:
    def write(first: int, last: int) -> None:
        with load.wb.batch() as batch:
            for i in range(first, last):
                batch.put("notes", i, {"text": f"note {i}"})

    with RunningWorker(**{**paused.options, "batch_size": batch_size}) as worker:
        write(0, 50)
        load.wait_until_done()
        paused.start()
        write(50, 2500)
        reason = wait_until(lambda: worker.facts["breaker"], timeout=30)
        assert "public.notes" in reason
        assert not worker.state.readiness()[0]
        wait_until(lambda: load.ledger("waiting_for") == reason)
        assert load.dead_letters() <= LIMIT
        paused.mend()
        load.wait_until_done()
        assert load.dead_letters() <= LIMIT
        wait_until(lambda: worker.facts["breaker"] is None)
        assert worker.state.readiness()[0]
        wait_until(lambda: load.ledger("waiting_for") is None)
        # Of the first fifty the dropped column has taken the text along.
        found = pg.execute("SELECT id FROM notes WHERE id < 50 OR text = 'note ' || id")
        applied = {row[0] for row in found}
        bodies = pg.execute("SELECT body FROM writebehind.dead_letters")
        refused = {json.loads(row[0])["id"] for row in bodies}
        assert applied | refused == set(range(2500))
        assert not applied & refused


def test_a_standby_is_ready_though_the_queue_was_paused_when_it_lost_it(
    options: dict[str, Any], load: Workload
) -> None:
    with RunningWorker(**options) as first:
        first.wait_for_role("owner")
        first.state.breaker_is("every write is refused")
        first.state.held_is("increment of public.counters")
        load.redis.set(load.keys.lease, f"another|{(time.time_ns() // 1_000_000) + 60_000}|elsewhere")
        first.wait_for_role("standby")
        assert first.state.readiness()[0]
        assert first.facts["held"] is None
        load.redis.delete(load.keys.lease)


# Others who touch the queue's keys.


def _foreign_batch(load: Workload) -> None:
    load.redis.rpush(load.keys.inflight, 7)


def _lease_deleted(load: Workload) -> None:
    load.redis.delete(load.keys.lease)


def _epoch_changed(load: Workload) -> None:
    load.redis.set(load.keys.epoch, 12345)


def _acked_deleted(load: Workload) -> None:
    load.redis.delete(load.keys.acked)


def _applied_deleted(load: Workload) -> None:
    load.redis.delete(load.keys.applied, load.keys.acked, load.keys.epoch)


@pytest.mark.parametrize(
    "tamper", [_foreign_batch, _lease_deleted, _epoch_changed, _acked_deleted, _applied_deleted]
)
def test_keys_that_were_tampered_with_make_the_owner_read_again(
    tamper: Callable[[Workload], None], options: dict[str, Any], load: Workload, pg: Pg
) -> None:
    slow_down(pg, 0.01)
    with RunningWorker(**options) as worker:
        epoch = worker.wait_for_role("owner")["epoch"]
        load.add(200)
        wait_until(lambda: batches(load) > 2)
        if tamper in (_acked_deleted, _applied_deleted):  # an acknowledgement would write them again
            load.wait_until_done()
        with capture_logs() as logs:
            tamper(load)
            wait_until(lambda: (worker.facts["epoch"] or 0) > epoch)
            assert any(log["event"] == "ownership lost" for log in logs)
        load.add(30)
        load.check()


# The write delay.


@pytest.mark.parametrize("raw", [False, True])
def test_with_a_write_delay_items_wait_that_long_and_are_coalesced(
    raw: bool, options: dict[str, Any], load: Workload, redis_client: redis.Redis
) -> None:
    with RunningWorker(**{**options, "batch_size": 1000}, write_delay_s=0.7) as worker:
        worker.wait_for_role("owner")
        accepted = time.monotonic()
        if raw:
            with load.redis.pipeline() as at_once:
                load.add_raw(70, at_once)
                at_once.execute()
        else:
            load.add(70)
        load.wait_until_done()
        assert 0.65 < time.monotonic() - accepted < 5
        load.check()
        assert worker.metric("batch_size_count") == 1
        assert worker.metric("rows_total", table="public.counters") == 7


@pytest.mark.parametrize("raw", [False, True])
def test_a_full_batch_does_not_wait_for_the_write_delay(
    raw: bool, options: dict[str, Any], load: Workload
) -> None:
    with RunningWorker(**options, write_delay_s=30.0) as worker:
        worker.wait_for_role("owner")
        load.add_raw(40) if raw else load.add(40)
        load.wait_until_done(timeout=20)
        load.check()
        young = load.wb.put("users", 1, {"name": "young"})
        with pytest.raises(FlushTimeout):
            young.wait(0.3)


def test_no_key_of_the_queue_has_a_time_to_live(
    options: dict[str, Any], load: Workload, redis_client: redis.Redis
) -> None:
    def keys() -> set[bytes]:
        found = {load.keys.queue.encode(), *redis_client.scan_iter(match=f"{{{load.keys.queue}}}:*")}
        assert {redis_client.pttl(key) for key in found} <= {-1, -2}
        return {key.rpartition(b":")[2] for key in found}

    with locked_row(options["postgres_url"], "users", 1) as user:
        user.execute("LOCK TABLE counters, users")
        load.wb.put("users", 1000, {"name": None})
        load.add(60)
        with RunningWorker(**options):
            wait_until(lambda: load.redis.llen(load.keys.inflight))
            names = keys()
            assert {b"inflight", b"lease", b"epoch", b"clock", b"producers", b"tables"} <= names
            user.commit()
            load.check(dead_letters=1)
            assert keys() >= {b"applied", b"acked", b"rejected"}
