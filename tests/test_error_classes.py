"""What real errors of Postgres do to the queue: waited for, with a next step, or the fault of one write."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql
from structlog.testing import capture_logs
from tests.support.workers import RunningWorker, Workload

from writebehind import WriteBehind, WriteRejected
from writebehind_worker.breaker import LIMIT
from writebehind_worker.status import read_status
from writebehind_worker.testing.servers import Servers
from writebehind_worker.testing.wait import wait_until

Pg = psycopg.Connection[Any]


class Account:
    """The role that the worker connects as."""

    def __init__(self, pg: Pg, options: dict[str, Any]) -> None:
        self.pg, self.name = pg, f"wb_{uuid.uuid4().hex[:12]}"
        self.run("CREATE ROLE {role} LOGIN PASSWORD 'test'")
        self.run("GRANT USAGE ON SCHEMA writebehind TO {role}")
        self.run("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA writebehind, public TO {role}")
        url = urlsplit(options["postgres_url"])
        place = url.netloc.rpartition("@")[2]
        self.options = {**options, "postgres_url": url._replace(netloc=f"{self.name}:test@{place}").geturl()}

    def run(self, statement: str) -> None:
        names = {"role": sql.Identifier(self.name), "database": sql.Identifier(self.pg.info.dbname)}
        self.pg.execute(sql.SQL(statement).format(**names))

    def end_sessions(self) -> None:
        self.pg.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [self.name]
        )


@pytest.fixture
def account(
    redis_url: str, postgres_url: str, queue: str, load: Workload, pg: Pg
) -> Iterator[Account]:  # after ``load``: its tables
    made = Account(pg, {"redis_url": redis_url, "postgres_url": postgres_url, "queue": queue})
    yield made
    made.run("DROP OWNED BY {role}")
    made.run("DROP ROLE {role}")


def wait_until_unready(worker: RunningWorker, *words: str) -> str:
    """Until readiness says so; the whole text."""

    def told() -> str:
        ready, page = worker.state.readiness()
        reasons = " ".join(page["reasons"])
        return reasons if not ready and all(word in reasons for word in words) else ""

    return wait_until(told, timeout=60, message=f"readiness did not say {words}")


def trigger(pg: Pg, body: str) -> None:
    """Runs before each INSERT into ``users``."""
    body = f"$$BEGIN {body} RETURN NEW; END$$"
    pg.execute(f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS {body}".encode())
    pg.execute(
        "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION refuse()"
    )


# Waited for.


@pytest.mark.parametrize(
    ("breaks", "mends", "words"),
    [
        (
            "ALTER ROLE {role} CONNECTION LIMIT 0",
            "ALTER ROLE {role} CONNECTION LIMIT -1",
            "too many connections",
        ),
        ("ALTER ROLE {role} NOLOGIN", "ALTER ROLE {role} LOGIN", "not permitted to log in"),
        (
            "ALTER ROLE {role} SET default_transaction_read_only = on",
            "ALTER ROLE {role} RESET default_transaction_read_only",
            "primary",
        ),
        (
            "REVOKE USAGE ON SCHEMA writebehind FROM {role}",
            "GRANT USAGE ON SCHEMA writebehind TO {role}",
            "GRANT USAGE",
        ),
    ],
    ids=["out of connections", "no login", "read-only", "no schema"],
)
def test_a_server_that_refuses_the_worker_under_load_is_waited_for(
    breaks: str, mends: str, words: str, account: Account, load: Workload
) -> None:
    load.add(100)
    with capture_logs() as logged, RunningWorker(**account.options) as worker:
        load.wait_until_done()
        account.run(breaks)
        account.end_sessions()
        load.add(100)
        reason = wait_until_unready(worker, words)
        wait_until(lambda: [e for e in logged if words in str(e.get("reason"))])
        assert reason.count(words) == 1
        assert not load.dead_letters()
        account.run(mends)
        load.check()
        wait_until(lambda: worker.state.readiness()[0])


def test_a_database_that_is_not_there_yet_is_waited_for(
    servers: Servers, postgres_url: str, load: Workload, redis_url: str, queue: str
) -> None:
    missing = f"wb_late_{uuid.uuid4().hex[:12]}"
    url = urlsplit(postgres_url)._replace(path=f"/{missing}").geturl()
    load.add(100)
    template = load.pg.info.dbname
    load.pg.close()
    with (
        psycopg.connect(servers.postgres_url, autocommit=True) as admin,
        RunningWorker(redis_url=redis_url, postgres_url=url, queue=queue) as worker,
    ):
        wait_until_unready(worker, f'database "{missing}" does not exist', "--postgres-url")
        admin.execute(f"CREATE DATABASE {missing} TEMPLATE {template}".encode())
        try:
            load.wait_until_done()
            with psycopg.connect(url) as conn:
                assert dict(conn.execute("SELECT id, n FROM counters").fetchall()) == load.counters
        finally:
            worker.stop()
            admin.execute(f"DROP DATABASE {missing} WITH (FORCE)".encode())


@pytest.mark.parametrize("table", ["ledger", "dead_letters"])
def test_a_right_on_our_own_tables_that_is_lost_is_asked_for_by_the_statement_that_mends_it(
    table: str, account: Account, load: Workload
) -> None:
    with capture_logs() as logged, RunningWorker(**account.options) as worker:
        load.add(10)
        load.wait_until_done()
        account.run(f"REVOKE INSERT, UPDATE ON writebehind.{table} FROM {{role}}")
        load.redis.lpush(load.keys.queue, b"not a message")
        load.add(10)
        reason = wait_until_unready(worker, "permission denied", table, "GRANT")
        wait_until(lambda: worker.metric("postgres_up") == 0)
        assert any(e["event"] == "ledger refused" and "GRANT" in e["reason"] for e in logged)
        assert not load.dead_letters()
        load.pg.execute(reason[reason.index("GRANT") :].encode())
        load.check(dead_letters=1)
        wait_until(lambda: worker.metric("postgres_up") == 1)


@pytest.mark.parametrize(
    ("state", "next_step"),
    [
        ("53100", "free disk space"),
        ("53200", "memory"),
        ("58030", "log"),
        ("40001", "lost"),
        ("72000", "lost"),
    ],
)
def test_what_is_no_fault_of_a_write_buries_none(
    state: str, next_step: str, account: Account, load: Workload, pg: Pg
) -> None:
    trigger(pg, f"RAISE EXCEPTION 'as if' USING ERRCODE = '{state}';")
    load.add(30)
    with RunningWorker(**account.options) as worker:
        wait_until_unready(worker, state, next_step)
        assert not load.dead_letters()
        assert load.pending
        pg.execute("DROP TRIGGER refuse ON users")
        load.check()


def test_a_limit_on_temporary_files_is_waited_for(account: Account, load: Workload, pg: Pg) -> None:
    account.run("ALTER ROLE {role} SET temp_file_limit = '100kB'")
    account.run("ALTER ROLE {role} SET work_mem = '64kB'")
    trigger(
        pg, "PERFORM FROM (SELECT g FROM generate_series(1, 100000) g ORDER BY -g OFFSET 99999) AS sorted;"
    )
    load.add(3)
    with RunningWorker(**account.options) as worker:
        wait_until_unready(worker, "53400", "temp_file_limit", "raise the limit")
        account.run("ALTER ROLE {role} RESET temp_file_limit")
        account.end_sessions()
        load.check()


def test_a_deadlock_with_somebody_else_is_tried_again(
    account: Account, load: Workload, postgres_url: str, pg: Pg
) -> None:
    pg.execute("INSERT INTO users VALUES (1, 'a'), (2, 'b')")
    account.run("ALTER ROLE {role} SET deadlock_timeout = '500ms'")  # the worker is the one that gives way
    load.users = {1: "c", 2: "d"}
    with psycopg.connect(postgres_url, options="-c deadlock_timeout=60s") as rival:
        rival.execute("SELECT FROM users WHERE id = 2 FOR UPDATE")
        with RunningWorker(**account.options) as worker:
            worker.wait_for_role("owner")
            with load.wb.batch() as batch:
                batch.put("users", 1, {"name": "c"})
                batch.put("users", 2, {"name": "d"})
            waits = "SELECT FROM pg_stat_activity WHERE usename = %s AND wait_event_type = 'Lock'"
            wait_until(lambda: pg.execute(waits, [account.name]).fetchall())
            other = threading.Thread(target=rival.execute, args=["SELECT FROM users WHERE id = 1 FOR UPDATE"])
            other.start()
            wait_until(lambda: worker.metric("retries_total", reason="DeadlockDetected"))
            assert worker.facts["postgres_up"], "it is no outage"
            other.join()
            rival.commit()
            load.check()


# The fault of a write.


@pytest.mark.parametrize("state", ["ZZ999", "P0001", "55000", "XX000", "XX001", "2D000", "40002"])
def test_any_other_code_costs_the_one_write(state: str, account: Account, load: Workload, pg: Pg) -> None:
    trigger(pg, f"IF NEW.id = 100 THEN RAISE EXCEPTION 'not this one' USING ERRCODE = '{state}'; END IF;")
    load.add(10)
    refused = load.wb.put("users", 100, {"name": "x"})
    load.add(10)
    with RunningWorker(**account.options):
        with pytest.raises(WriteRejected, match="not this one") as rejected:
            refused.wait(10)
        assert rejected.value.sqlstate == state
        load.check(dead_letters=1)


def test_a_write_that_takes_too_long_is_named_and_given_up_after_the_hold_time(
    account: Account, load: Workload, pg: Pg
) -> None:
    trigger(pg, "IF NEW.id = 100 THEN PERFORM pg_sleep(60); END IF;")
    load.add(10)
    slow = load.wb.put("users", 100, {"name": "x"})
    load.add(10)
    with RunningWorker(**account.options, statement_timeout_s=0.5, hold_timeout_s=1.0) as worker:
        assert "public.users" in wait_until(lambda: worker.facts["held"])
        with pytest.raises(WriteRejected) as rejected:
            slow.wait(20)
        assert rejected.value.sqlstate == "57014"
        load.check(dead_letters=1)


# What no write can mend, under load.


def produce(wb: WriteBehind, first: int, last: int) -> None:
    for start in range(first, last, 1000):
        with wb.batch() as batch:
            for i in range(start, start + 1000):
                batch.put("notes", i, {"text": f"note {i}"})


@pytest.mark.parametrize(
    ("breaks", "mends", "code"),
    [
        ("ALTER TABLE notes DROP COLUMN text", "ALTER TABLE notes ADD COLUMN text text", "42703"),
        ("REVOKE INSERT ON notes FROM {role}", "GRANT INSERT ON notes TO {role}", "42501"),
    ],
    ids=["dropped column", "lost grant"],
)
def test_a_table_that_refuses_every_write_under_full_load_pauses_the_queue_and_loses_nothing(
    breaks: str, mends: str, code: str, account: Account, load: Workload, pg: Pg
) -> None:
    pg.execute("CREATE TABLE notes (id int PRIMARY KEY, text text)")
    account.run("GRANT SELECT, INSERT, UPDATE ON notes TO {role}")
    with (
        capture_logs() as logged,
        RunningWorker(**account.options) as worker,
        ThreadPoolExecutor() as producers,
    ):
        produced = producers.submit(produce, load.wb, 0, 20_000)
        wait_until(lambda: pg.execute("SELECT FROM notes LIMIT 1").fetchall())
        account.run(breaks)
        reason = wait_until_unready(worker, "public.notes", code)
        wait_until(lambda: load.ledger("waiting_for"))
        status = read_status(worker.config)
        assert status.ledger is not None
        assert status.ledger.waiting_for == reason
        assert worker.metric("retries_total", reason="BreakerTripped")
        assert [e["reason"] for e in logged if e["event"] == "queue paused"] == [reason]
        produced.result()
        assert load.dead_letters() < LIMIT
        account.run(mends)
        load.wait_until_done(60)
        wait_until(lambda: worker.state.readiness()[0])
    rows = {id for (id,) in pg.execute("SELECT id FROM notes")}
    bodies = pg.execute("SELECT body FROM writebehind.dead_letters")
    refused = {json.loads(body)["id"] for (body,) in bodies}
    assert len(refused) < LIMIT
    assert rows | refused == set(range(20_000))


def test_a_column_that_a_table_gains_is_picked_up_by_the_running_worker(
    account: Account, load: Workload, pg: Pg
) -> None:
    with RunningWorker(**account.options) as worker:
        load.wb.put("users", 100, {"name": "a"}).wait(10)
        epoch = worker.facts["epoch"]
        with pytest.raises(WriteRejected, match=r'public\.users has no column "nick"'):
            load.wb.put("users", 101, {"name": "b", "nick": "too early"}).wait(10)
        pg.execute("ALTER TABLE users ADD COLUMN nick text")
        load.wb.put("users", 102, {"name": "c", "nick": "in time"}).wait(10)
        assert worker.facts["epoch"] == epoch
    found = pg.execute("SELECT id, nick FROM users ORDER BY id").fetchall()
    assert found == [(100, None), (102, "in time")]
