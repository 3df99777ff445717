"""`writebehind drain`: it ends when nothing is pending at one instant, and says why it does not."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from tests.support.rows import Rows

from writebehind_worker.drain import Backlog, Rate, drain, read_backlog
from writebehind_worker.pause import pause
from writebehind_worker.testing.wait import wait_until


@pytest.fixture(autouse=True)
def users(pg: psycopg.Connection[Any]) -> None:
    pg.execute("CREATE TABLE users (id bigint PRIMARY KEY, name text)")


def test_an_empty_queue_is_drained_at_once(rows: Rows) -> None:
    unused = f"Nothing has used {rows.queue} in this Redis so far"
    for timeout in ("0", "5"):
        result = rows.run("drain", "--timeout", timeout)
        assert (result.exit_code, result.output.startswith("Empty: at one instant")) == (0, True)
        assert "Producers that go on have perhaps written since" in result.output
        assert unused in result.stderr, "its name may be mistyped"
    rows.wb.put("users", 1, {"name": "x"})
    rows.flush()
    assert unused not in rows.run("drain").output


def test_it_returns_when_all_is_in_postgres_and_acknowledged(rows: Rows) -> None:
    with rows.wb.batch() as batch:
        for i in range(3000):
            batch.put("users", i, {"name": "x"})
    with rows.process(batch_size=100):
        result = rows.run("drain", "--timeout", "30")
    assert result.exit_code == 0
    assert rows.pg.execute("SELECT count(*) FROM users").fetchone() == (3000,)
    assert not rows.client.exists(rows.queue, rows.keys.inflight)
    assert rows.client.ttl(rows.name("users:2999")) > 0


@pytest.mark.parametrize("point", ["commit:before:1", "acknowledge:before:1"])
def test_a_frozen_batch_is_not_empty(rows: Rows, point: str) -> None:
    rows.wb.put("users", 1, {"name": "x"})
    with rows.process(point) as worker:
        worker.wait_for_end()
    result = rows.run("drain", "--timeout", "0")
    assert result.exit_code == 1
    assert "0 writes in the queue, 1 in 1 frozen batch" in result.output


def test_without_a_worker_it_says_so(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "x"})
    result = rows.run("drain", "--timeout", "0.3")
    assert result.exit_code == 1
    assert "Not empty after 0.3 s: 1 write in the queue" in result.output
    assert "no worker runs" in result.output


def test_a_paused_queue_would_never_be_empty(rows: Rows) -> None:
    pause(rows.client, rows.keys, "a migration")
    assert rows.run("drain", "--timeout", "30").exit_code == 0, "nothing is in it"
    rows.wb.put("users", 1, {"name": "x"})
    result = rows.run("drain", "--timeout", "30")
    assert result.exit_code == 1
    assert "paused by an operator: a migration" in result.output
    assert "writebehind resume" in result.output


def test_a_pause_that_begins_meanwhile_ends_it(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "x"})
    timer = threading.Timer(0.3, pause, (rows.client, rows.keys, "late"))
    timer.start()
    left = drain(rows.client, rows.keys, 30, lambda *_: None)
    timer.join()
    assert (left.is_endless, left.paused) == (True, "late")


def test_what_was_frozen_before_a_pause_is_waited_for(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "x"})
    with psycopg.connect(rows.options["postgres_url"]) as other, rows.process():
        other.execute("LOCK TABLE users")
        wait_until(lambda: rows.client.llen(rows.keys.inflight))
        pause(rows.client, rows.keys, "a migration")
        timer = threading.Timer(0.3, other.rollback)
        timer.start()
        assert rows.run("drain", "--timeout", "30").exit_code == 0
        timer.join()


def test_a_lock_that_holds_it_up_is_named(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "x"})
    rows.flush()
    rows.wb.put("users", 1, {"name": "y"})
    with psycopg.connect(rows.options["postgres_url"]) as other:
        other.execute("SELECT FROM users FOR UPDATE")
        with rows.process(lock_timeout_s=0.1):
            ledger = "SELECT waiting_for FROM writebehind.ledger WHERE waiting_for IS NOT NULL"
            wait_until(lambda: rows.pg.execute(ledger).fetchone())
            result = rows.run("drain", "--timeout", "0.1")
            other.rollback()
    assert result.exit_code == 1
    assert "the oldest batch waits: put of public.users" in result.output


def test_servers_that_are_down(rows: Rows) -> None:
    result = rows.run("drain", redis_url="redis://:hunter2@127.0.0.1:1/0")
    assert (result.exit_code, "check --redis-url" in result.output) == (2, True)
    assert "hunter2" not in result.output
    rows.wb.put("users", 1, {"name": "x"})
    down = "postgresql://ada:hunter2@127.0.0.1:1/app"
    result = rows.run("drain", "--timeout", "0", postgres_url=down)
    assert (result.exit_code, "127.0.0.1:1" in result.output) == (1, True)
    assert "hunter2" not in result.output


def test_a_key_of_a_wrong_type_is_an_error(rows: Rows) -> None:
    rows.client.set(rows.queue, "x")
    result = rows.run("drain")
    assert (result.exit_code, "WRONGTYPE" in result.output) == (2, True)


def test_empty_is_true_at_one_instant(rows: Rows) -> None:
    """On its way from the queue to a batch, and from there to Postgres, a write is never taken for gone."""
    with rows.process():
        for i in range(100):
            rows.wb.put("users", 1, {"name": str(i)})
            wait_until(lambda: read_backlog(rows.client, rows.keys).is_empty, interval=0.0002)
            assert rows.pg.execute("SELECT name FROM users").fetchone() == (str(i),)


def test_progress_where_there_is_no_terminal_is_a_line_now_and_then(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("writebehind_worker.meter._LINE_EVERY_S", 0.0)
    with rows.wb.batch() as batch:
        for i in range(500):
            batch.put("users", i, {"name": "x"})
    result = rows.run("drain", "--timeout", "0.5")
    assert "drain: 500 writes left, nothing moves yet" in result.stderr


def test_on_a_terminal_there_is_a_bar_and_what_is_printed_is_apart_from_it(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "x"})
    code, printed, shown = rows.on_terminal("drain", "--timeout", "0.5")
    assert (code, printed) == (1, "")
    assert "1 write left" in shown
    assert "━" in shown
    assert "Not empty after 0.5 s: 1 write in the queue" in shown


def test_rates() -> None:
    rate = Rate()
    rate.add(0, 1000)
    assert "nothing moves" in str(rate)
    rate.add(2, 800)
    assert (rate.per_s, str(rate)) == (100, "100 less a second, about 8 s left")
    rate.add(4, 2000)
    assert str(rate) == "250 more a second: the producers are faster"
    rate.add(13, 1100)
    rate.add(14.5, 950)
    assert rate.per_s == pytest.approx((1100 - 950) / 1.5)


def test_a_backlog_in_words() -> None:
    assert str(Backlog(1234, 2, 5000, None)) == "1,234 writes in the queue, 5,000 in 2 frozen batches"
