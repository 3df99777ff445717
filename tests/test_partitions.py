"""Partitions that are missing, taken away, or that rows move between: no write is lost, none lands twice."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from click.testing import CliRunner
from tests.support.rows import Rows
from tests.support.workers import RunningWorker

from writebehind import WriteRejected
from writebehind_worker.cli import cli
from writebehind_worker.config import SETTINGS
from writebehind_worker.testing.wait import wait_until

EVENTS = """
CREATE TABLE events (id int, day int, v int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE low PARTITION OF events FOR VALUES FROM (0) TO (10);
CREATE TABLE high PARTITION OF events FOR VALUES FROM (10) TO (20);
"""
MISSING = "23514"


@pytest.fixture
def events(rows: Rows) -> Rows:
    rows.pg.execute(EVENTS.encode())
    return rows


def found(rows: Rows, query: str) -> list[tuple[object, ...]]:
    return rows.pg.execute(query.encode()).fetchall()


def letters(rows: Rows) -> Counter[object]:
    return Counter(state for (state,) in found(rows, "SELECT sqlstate FROM writebehind.dead_letters"))


def retry_all(rows: Rows) -> None:
    wait_until(lambda: not rows.client.exists(rows.keys.inflight))  # their batch is finished
    names = ("redis_url", "postgres_url", "queue")
    servers = [part for name in names for part in (SETTINGS[name].flag, rows.options[name])]
    result = CliRunner().invoke(cli, ["dead", "retry", "--all", *servers])
    assert result.exit_code == 0, result.output
    assert not letters(rows)


def test_a_row_without_a_partition_takes_none_of_a_large_batch_along(events: Rows) -> None:
    """600 rows go by COPY: the statement that moves them on is what Postgres refuses."""
    with events.wb.batch() as batch:
        for id in range(600):
            batch.put("events", {"id": id, "day": 25 if id == 321 else id % 20}, {"v": id})
    with RunningWorker(**events.options):
        wait_until(lambda: letters(events) == {MISSING: 1}, 20)
        assert found(events, "SELECT count(*), sum(v) FROM events") == [(599, sum(range(600)) - 321)]
        events.pg.execute("CREATE TABLE more PARTITION OF events FOR VALUES FROM (20) TO (30)")
        retry_all(events)
    assert found(events, "SELECT * FROM more") == [(321, 25, 321)]


def test_a_partition_that_is_detached_under_load_and_attached_again_costs_no_write(events: Rows) -> None:
    accepted: Counter[tuple[int, int]] = Counter()
    stop = threading.Event()

    def produce() -> None:
        for n in itertools.count():
            row = (n % 6, n % 20)
            receipt = events.wb.increment("events", {"id": row[0], "day": row[1]}, {"v": 1})
            accepted[row] += 1
            if n % 20 == 19:  # one that has its partition all the time: no faster than the worker
                receipt.wait(timeout=30)
                if stop.is_set():
                    return

    with RunningWorker(**events.options), ThreadPoolExecutor(1) as pool:
        load = pool.submit(produce)
        try:
            wait_until(lambda: found(events, "SELECT count(*) > 30 FROM events") == [(True,)], 20)
            events.pg.execute("ALTER TABLE events DETACH PARTITION low")
            wait_until(lambda: letters(events).total() >= 20, 20)
        finally:
            stop.set()
        load.result(timeout=40)
        wait_until(lambda: not events.client.exists(events.keys.queue, events.keys.inflight), 20)
        assert set(letters(events)) == {MISSING}
        events.pg.execute("ALTER TABLE events ATTACH PARTITION low FOR VALUES FROM (0) TO (10)")
        retry_all(events)
    assert {(i, day): v for i, day, v in found(events, "SELECT id, day, v FROM events")} == accepted


@pytest.mark.parametrize("op", ["put", "patch"])
def test_a_row_that_somebody_moves_to_another_partition_is_looked_for_again(
    events: Rows, postgres_url: str, op: str
) -> None:
    """Postgres says 40001 to who waited for such a row; by its key it is another row from then on."""
    events.pg.execute("INSERT INTO events VALUES (1, 5, 0)")
    with RunningWorker(**events.options), psycopg.connect(postgres_url) as other:
        other.execute("UPDATE events SET day = 15")
        write = events.wb.put if op == "put" else events.wb.patch
        receipt = write("events", {"id": 1, "day": 5}, {"v": 1})
        waits = "SELECT count(*) FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"
        wait_until(lambda: found(events, waits) == [(1,)], 20)
        other.commit()
        if op == "put":
            receipt.wait(timeout=20)
        else:
            with pytest.raises(WriteRejected) as refused:
                receipt.wait(timeout=20)
            assert refused.value.sqlstate == "P0002"
    expected = [(1, 5, 1), (1, 15, 0)] if op == "put" else [(1, 15, 0)]
    assert found(events, "SELECT * FROM events ORDER BY day") == expected
