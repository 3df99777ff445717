"""The whole way of the data through a real PgBouncer, whose pool is smaller than its number of clients."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from signal import SIGSTOP
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from tests.support.crashing_worker import CrashingWorker
from tests.support.pooler import Pooler
from tests.support.workers import RunningWorker, Workload, flags

from writebehind import WriteBehind, WriteRejected
from writebehind_worker.cli import cli
from writebehind_worker.config import Config
from writebehind_worker.connections import reading_postgres
from writebehind_worker.dead import DeadLetters
from writebehind_worker.postgres import connect as connect_postgres
from writebehind_worker.testing.wait import wait_until

MANY = 1500  # rows of one kind: they go by COPY


@pytest.fixture
def pooler(postgres_url: str) -> Iterator[Pooler]:
    with Pooler(postgres_url, default_pool_size=3) as pooler:
        yield pooler


@pytest.fixture
def options(redis_url: str, pooler: Pooler, queue: str) -> dict[str, Any]:
    return {"redis_url": redis_url, "postgres_url": pooler.url, "queue": queue}


def command(options: dict[str, Any], *arguments: str) -> tuple[int, str]:
    """``writebehind`` with these; its exit code and what it prints."""
    environment = {f"WRITEBEHIND_{name.upper()}": value for name, value in options.items()}
    done = CliRunner().invoke(cli, list(arguments), env=environment)
    return done.exit_code, done.output


class Crowd:
    """Other clients of the pool, that begin and end transactions without a pause: sessions change hands."""

    def __init__(self, url: str, clients: int = 4) -> None:
        self._url, self._stop = url, threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(clients)]

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                with psycopg.connect(self._url, autocommit=True, prepare_threshold=None) as conn:
                    while not self._stop.is_set():
                        conn.execute("SELECT pg_sleep(0.001)")
            except psycopg.OperationalError:  # the pooler was killed
                self._stop.wait(0.05)

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)


def test_all_operations_dead_letters_and_copy_go_through_a_pool_that_others_use(
    pooler: Pooler, options: dict[str, Any], load: Workload
) -> None:
    load.pg.execute("CREATE TABLE many (id int PRIMARY KEY, v text)")
    with Crowd(pooler.url), RunningWorker(**options, batch_size=MANY) as worker:
        worker.wait_for_role("owner")
        for round in range(4):
            with load.wb.batch() as batch:
                for i in range(MANY):
                    batch.put("many", i, {"v": f"{round}"})
            load.add(200)
            load.wb.put("users", "x", {"name": "no number"})
            load.wb.patch("users", -1, {"name": "no row"})
            load.wait_until_done()
        load.wb.patch("many", 1, {"v": "patched"})
        load.wb.delete("many", 0)
        load.check(dead_letters=8)
    found = load.pg.execute("SELECT count(*), count(*) FILTER (WHERE v = '3') FROM many").fetchone()
    assert found == (MANY - 1, MANY - 2)


def test_a_group_is_applied_whole_or_refused_whole_through_a_pool_that_others_use(
    pooler: Pooler, options: dict[str, Any], load: Workload
) -> None:
    load.pg.execute("CREATE TABLE lines (id int PRIMARY KEY, n int CHECK (n > 0))")
    with Crowd(pooler.url), RunningWorker(**options):
        for id in range(0, 40, 2):
            with load.wb.atomic(route=id) as tx:
                tx.put("lines", id, {"n": 1})
                tx.put("lines", id + 1, {"n": 0 if id == 20 else 1})
            if id == 20:
                assert tx.receipt is not None
                with pytest.raises(WriteRejected):
                    tx.receipt.wait(timeout=20)
        load.wait_until_done()
    found = load.pg.execute("SELECT id FROM lines ORDER BY id").fetchall()
    assert [id for (id,) in found] == [id for id in range(40) if id not in (20, 21)]


def test_rows_go_by_copy_and_nothing_is_left_in_a_session(
    pooler: Pooler, options: dict[str, Any], load: Workload
) -> None:
    load.pg.execute("CREATE TABLE many (id int PRIMARY KEY, v text)")
    load.pg.execute(
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO told "
        "SELECT current_query(), current_setting('synchronous_commit') LIMIT 1; RETURN NULL; END$$"
    )
    load.pg.execute("CREATE TABLE told (query text, synchronous text)")
    load.pg.execute("CREATE TRIGGER t AFTER INSERT ON many EXECUTE FUNCTION tell()")
    database = load.pg.info.dbname
    load.pg.execute(f"ALTER DATABASE {database} SET synchronous_commit = off".encode())
    with RunningWorker(**options, batch_size=MANY):
        with load.wb.batch() as batch:
            for i in range(MANY):
                batch.put("many", i, {"v": "x"})
        load.wait_until_done()
    told = load.pg.execute("SELECT query ~ 'writebehind_once', synchronous FROM told").fetchall()
    assert told and set(told) == {(True, "on")}
    for _ in range(4):
        with psycopg.connect(pooler.url, autocommit=True) as conn:
            left = conn.execute(
                "SELECT current_setting('synchronous_commit'), current_setting('lock_timeout'), "
                "(SELECT count(*) FROM pg_class WHERE relname LIKE 'writebehind_once%'), "
                "(SELECT count(*) FROM pg_prepared_statements)"
            ).fetchone()
            assert left == ("off", "0", 0, 0)


def test_a_pooler_is_known_by_its_process_ids(pooler: Pooler, postgres_url: str) -> None:
    with connect_postgres(pooler.url) as pooled, connect_postgres(postgres_url) as straight:
        assert (pooled.is_pooled, straight.is_pooled) == (True, False)


@pytest.mark.parametrize("point", ["record:after:1", "commit:before:1"])
def test_the_transaction_of_a_paused_owner_is_ended_and_no_other(
    point: str, pooler: Pooler, options: dict[str, Any], load: Workload
) -> None:
    pooler.set(default_pool_size=1)
    with (
        connect_postgres(pooler.url) as bystander,
        CrashingWorker(point, flags(**options), SIGSTOP) as former,
    ):
        former.wait_for_log('"owner"')
        bystander.execute("BEGIN")  # now it has the only session, in which the ledger was taken
        pooler.set(default_pool_size=3)
        load.add(50)
        former.wait_for_pause()
        load.redis.delete(load.keys.lease)  # it would run out
        with RunningWorker(**options):
            load.wait_until_done()
            bystander.execute("COMMIT")
            former.resume()
            former.wait_for_log("standing by")
            load.add(20)
            load.check()


def test_a_pooler_that_is_killed_and_started_again_under_load(
    pooler: Pooler, options: dict[str, Any], load: Workload
) -> None:
    with Crowd(pooler.url), RunningWorker(**options, batch_size=20) as worker:
        worker.wait_for_role("owner")
        for _ in range(3):
            load.add(200)
            pooler.kill()
            wait_until(lambda: worker.facts["postgres_up"] is False)
            pooler.start()
            load.wait_until_done()
        load.check()


def test_a_pooler_that_is_paused_reloaded_and_resumed_under_load(
    pooler: Pooler, options: dict[str, Any], load: Workload
) -> None:
    with RunningWorker(**options, batch_size=20) as worker:
        epoch = worker.wait_for_role("owner")["epoch"]
        for _ in range(3):
            load.add(100)
            pooler.ask("PAUSE")
            load.add(100)
            pooler.ask("RELOAD")
            assert load.pending
            pooler.ask("RESUME")
            load.wait_until_done()
        pooler.ask("RECONNECT")
        load.add(100)
        load.check()
        assert worker.facts["epoch"] == epoch


def test_the_commands_work_and_leave_no_setting_behind(
    pooler: Pooler, options: dict[str, Any], load: Workload, connect: Callable[..., WriteBehind]
) -> None:
    assert command(options, "init")[0] == 0
    wb = connect()
    with RunningWorker(**options):
        wb.put("users", 1, {"name": "a"})
        wb.put("users", "x", {"name": "b"})
        load.wait_until_done()
        code, said = command(options, "doctor", "--json")
        checks = {f["check"]: f["severity"] for f in json.loads(said)["findings"]}
        assert checks["postgres.pooler"] == "ok" and "fatal" not in checks.values(), said
        assert command(options, "explain", "users", "1", "--prefix", f"{options['queue']}:")[0] == 0
        code, said = command(options, "verify", "--prefix", f"{options['queue']}:")
        assert code == 0, said
        assert "22P02" in command(options, "dead", "list")[1]
        assert command(options, "dead", "retry", "--all")[0] == 1  # refused again
        assert command(options, "status")[0] == 0
        load.wait_until_done()
        assert command(options, "dead", "drop", "--all", "--yes")[0] == 0
    for _ in range(4):
        with psycopg.connect(pooler.url, autocommit=True) as conn:
            assert conn.execute(
                "SELECT current_setting('default_transaction_read_only'), "
                "current_setting('statement_timeout')"
            ).fetchone() == ("off", "0")


def test_what_reads_can_write_nothing_and_is_limited_in_each_session(options: dict[str, Any]) -> None:
    with reading_postgres(Config(**options)) as conn:
        limits = "SELECT current_setting('lock_timeout'), current_setting('transaction_read_only')"
        assert conn.execute(limits).fetchone() == ("1s", "on")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            conn.execute("CREATE TABLE t ()")
        assert conn.execute(limits).fetchone() == ("1s", "on")


def test_what_is_dropped_stays_dropped_where_commits_are_not_durable(
    pooler: Pooler, options: dict[str, Any], load: Workload, pg: psycopg.Connection[Any]
) -> None:
    pg.execute(
        f"ALTER DATABASE {pg.info.dbname} SET synchronous_commit = off; CREATE TABLE told (level text); "
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO told VALUES "
        "(current_setting('synchronous_commit')); RETURN NULL; END$$; CREATE TRIGGER tell AFTER DELETE "
        "ON writebehind.dead_letters EXECUTE FUNCTION tell()"
    )
    row = pg.execute(
        "INSERT INTO writebehind.dead_letters (queue, batch, kind, position, body, reason) "
        "VALUES (%s, 1, 'rejected', 0, '', 'of a test') RETURNING id, batch",
        [options["queue"]],
    ).fetchone()
    assert row is not None
    letter: Any = SimpleNamespace(id=row[0], batch=row[1])
    with connect_postgres(pooler.url) as conn:
        assert DeadLetters(conn, options["queue"]).remove([letter]) == 1
    assert pg.execute("SELECT level FROM told").fetchall() == [("on",)]


def test_in_statement_mode_doctor_and_run_say_what_to_change(
    redis_url: str, postgres_url: str, queue: str
) -> None:
    with Pooler(postgres_url, pool_mode="statement") as pooler:
        options = {"redis_url": redis_url, "postgres_url": pooler.url, "queue": queue}
        _, said = command(options, "doctor", "--json")
        [found] = [f for f in json.loads(said)["findings"] if f["check"] == "postgres.pooler"]
        assert found["severity"] == "fatal" and "pool_mode" in found["remedy"]
        with RunningWorker(**options) as worker:
            wait_until(lambda: any("pool_mode" in r for r in worker.state.readiness()[1]["reasons"]))


def test_a_startup_parameter_that_the_pooler_refuses_is_said(options: dict[str, Any]) -> None:
    given = {**options, "postgres_url": f"{options['postgres_url']}?options=-c%20search_path%3Dpublic"}
    _, said = command(given, "doctor", "--json")
    [found] = [f for f in json.loads(said)["findings"] if f["check"] == "postgres.connection"]
    assert found["severity"] == "fatal" and "startup parameter" in found["what"]
