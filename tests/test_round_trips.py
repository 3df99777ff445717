"""What a flush costs where Postgres is far away: how often it waits for a reply."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from tests.support.two_ways import Copy, copies

from writebehind_worker import row_lines
from writebehind_worker.errors import OwnershipLost
from writebehind_worker.postgres import Connection, begin, one_trip, roll_back
from writebehind_worker.testing.proxy import Proxy, proxied_url

FlushTwice = Callable[[Sequence[bytes]], int]

TABLES = """
CREATE TABLE alone.users (id int PRIMARY KEY, n int, t text);
CREATE TABLE alone.parts (id int, n int, t text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE alone.part PARTITION OF alone.parts FOR VALUES FROM (0) TO (1000);
"""


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    with Proxy.to(postgres_url) as found:
        yield found


@pytest.fixture
def copy(postgres_url: str, pg: psycopg.Connection[Any], queue: str, proxy: Proxy) -> Iterator[Copy]:
    with copies(proxied_url(postgres_url, proxy.port), pg, queue, "alone") as (found,):
        found.run(TABLES)
        found.begin()
        yield found


def put(id: int, table: str = "users", **columns: object) -> bytes:
    return json.dumps({"table": f"alone.{table}", "id": id, "data": columns or {"n": id}}).encode()


def round_trips(copy: Copy, flush: Callable[[], object]) -> int:
    """How often what we send is answered while it runs: as libpq's own trace has it."""
    with tempfile.NamedTemporaryFile() as file:
        copy.conn.pgconn.trace(file.fileno())
        try:
            flush()
        finally:
            copy.conn.pgconn.untrace()
        lines = Path(file.name).read_text().splitlines()
    directions = [words[1] for line in lines if len(words := line.split("\t")) > 1 and words[1] in "FB"]
    return [direction for direction, _ in groupby(directions)].count("B")


@pytest.fixture
def flush_twice(copy: Copy, proxy: Proxy) -> Callable[[Sequence[bytes]], int]:
    """The round trips of the second time: what is made once is there."""

    def flush_twice(batch: Sequence[bytes]) -> int:
        copy.flush_at_once(batch)
        proxy.delay_s = 0.05  # no reply comes before all is sent that is sent together
        trips = round_trips(copy, lambda: copy.flush_at_once(batch))
        assert copy.at_once == [1, 1]
        return trips

    return flush_twice


def test_a_small_batch_takes_two_one_of_them_for_the_commit(flush_twice: FlushTwice) -> None:
    assert flush_twice([put(1), put(2), put(3, t="x")]) == 2


def test_rows_that_are_looked_for_first_take_one_more(copy: Copy, flush_twice: FlushTwice) -> None:
    assert flush_twice([put(1), put(7, "parts")]) == 3
    assert copy.rows("SELECT id, n FROM alone.parts") == [(7, 7)]


def test_what_goes_by_copy_takes_those_that_copy_needs(
    flush_twice: FlushTwice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_lines, "COPIED_FROM", 1)
    assert flush_twice([put(1), put(2)]) == 5  # BEGIN; COPY; its rows; all else; COMMIT


def test_an_old_libpq_waits_for_each_reply(
    copy: Copy, flush_twice: FlushTwice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psycopg.Pipeline, "is_supported", lambda: False)
    assert flush_twice([put(1), put(2)]) == 5
    assert copy.rows("SELECT id, n FROM alone.users ORDER BY id") == [(1, 1), (2, 2)]


def test_the_statements_of_a_trip_are_sent_when_it_ends(copy: Copy, pg: psycopg.Connection[Any]) -> None:
    """One by one each would wake up the server, and the worker for its reply."""
    last = "SELECT query FROM pg_stat_activity WHERE pid = %s"
    copy.conn.execute("SELECT 'before'")
    with one_trip(copy.conn):
        found = [copy.conn.execute(f"SELECT {n}") for n in range(20)]
        assert pg.execute(last, [copy.conn.info.backend_pid]).fetchone() == ("SELECT 'before'",)
    assert [cursor.fetchall() for cursor in found] == [[(n,)] for n in range(20)]


def test_a_trip_may_be_larger_than_what_a_socket_holds(copy: Copy) -> None:
    with one_trip(copy.conn) as arrive:
        lengths = [copy.conn.execute("SELECT length($1::text)", ["x" * 3_000_000]) for _ in range(5)]
        arrive()
        texts = [copy.conn.execute("SELECT $1::text", ["y" * 3_000_000]) for _ in range(5)]
    assert [cursor.fetchone() for cursor in lengths] == [(3_000_000,)] * 5
    assert [len(text) for cursor in texts for (text,) in cursor] == [3_000_000] * 5


BROKEN = {
    "first": "SELECT 1 / 0",
    "in the middle": "SELECT n FROM nowhere",
    "last": "SELECT 'x'::int",
}


@pytest.mark.parametrize("where", BROKEN)
def test_the_first_error_of_a_trip_is_raised_and_nothing_after_it_is_run(
    where: str, copy: Copy, caplog: pytest.LogCaptureFixture
) -> None:
    statements = {"first": "SELECT 1", "in the middle": "SELECT 2", "last": "SELECT 3"} | {
        where: BROKEN[where]
    }
    with pytest.raises(psycopg.Error) as error, one_trip(copy.conn):
        begin(copy.conn)
        for statement in statements.values():
            copy.conn.execute(statement.encode())
        copy.conn.execute("SELECT 4 / 0")
        copy.conn.execute("COMMIT")
    assert error.value.sqlstate in {"22012", "42P01", "22P02"}
    assert not isinstance(error.value, psycopg.errors.PipelineAborted)
    assert copy.conn.info.transaction_status is TransactionStatus.INERROR
    copy.conn.execute("ROLLBACK")
    assert not caplog.records


@pytest.mark.parametrize("fails", [(0, 1, 3, 4, 6, 7), (4, 5, 6), range(5), (5,), (1, 5, 6)], ids=str)
def test_what_was_not_run_any_more_in_a_trip_is_not_taken_for_prepared(
    fails: Collection[int], copy: Copy
) -> None:
    for number in range(14):
        try:
            with one_trip(copy.conn):
                begin(copy.conn, lock_timeout="'1s'")
                copy.conn.execute("SELECT 1 / $1::int", [int(number not in fails)])
                copy.conn.execute("INSERT INTO alone.users VALUES ($1)", [number])
                copy.conn.execute("SELECT n FROM alone.users WHERE id = $1", [number])
            copy.conn.execute("COMMIT")
        except psycopg.errors.DivisionByZero:
            roll_back(copy.conn)
    assert copy.rows("SELECT id FROM alone.users ORDER BY 1") == [(n,) for n in range(14) if n not in fails]


def test_what_is_prepared_stays_so_while_dead_letters_are_counted(copy: Copy) -> None:
    """Each second, by a transaction that is rolled back."""
    copy.flusher.count_dead_letters(())
    for n in range(6):
        copy.flush_at_once([put(1, n=n)])
    prepared = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%users%'"
    for _ in range(3):
        copy.flusher.count_dead_letters(())
        assert copy.conn.execute(prepared).fetchone() == (1,)


def test_whoever_is_no_owner_any_more_has_the_server_refuse_what_is_on_its_way(copy: Copy) -> None:
    """It could be paused there: locks of its would hold up the owner."""
    copy.run(
        "CREATE SEQUENCE alone.seen",
        "CREATE FUNCTION alone.see() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM nextval('alone.seen'); RETURN new; END $$",
        "CREATE TRIGGER see AFTER INSERT ON alone.users FOR EACH STATEMENT EXECUTE FUNCTION alone.see()",
    )
    copy.flush_at_once([put(1)])
    seen = copy.rows("SELECT last_value FROM alone.seen")
    copy.run("UPDATE writebehind.ledger SET epoch = epoch + 1")
    with pytest.raises(OwnershipLost):
        copy.flush_at_once([put(2)])
    assert copy.rows("SELECT last_value FROM alone.seen") == seen
    assert copy.rows("SELECT id FROM alone.users") == [(1,)]


def test_batches_that_are_there_already_are_not_written_again(copy: Copy) -> None:
    batch = copy.freeze([put(1)])
    digest = copy.digest_of(batch)
    assert copy.flusher.flush_at_once([batch.id], digest) is not None
    copy.run("UPDATE alone.users SET n = 5")
    assert copy.flusher.flush_at_once([batch.id], digest) is None
    assert copy.rows("SELECT n FROM alone.users") == [(5,)]
    assert copy.conn.info.transaction_status is TransactionStatus.IDLE


def test_a_flush_that_is_interrupted_within_a_statement_leaves_no_lock(
    copy: Copy, pg: psycopg.Connection[Any]
) -> None:
    copy.flush_at_once([put(1)])
    heard = itertools.count()

    def interrupt() -> None:
        if next(heard) > 4:  # within the write
            raise MemoryError

    assert isinstance(copy.conn, Connection)
    copy.conn.heard = interrupt
    with pytest.raises(MemoryError):
        copy.flush([put(1, n=5)])
    assert copy.conn.closed
    pg.execute("SET lock_timeout = '5s'")  # the server may take a moment to see it
    assert copy.rows("SELECT n FROM alone.users FOR UPDATE") == [(1,)]


def test_a_trip_that_is_interrupted_leaves_nothing_unfinished_behind(copy: Copy) -> None:
    """Else Python complains when that goes, in this test or a later one."""

    def interrupt() -> None:
        raise MemoryError

    assert isinstance(copy.conn, Connection)
    copy.conn.heard = interrupt
    with pytest.raises(MemoryError):
        copy.flush_at_once([put(1)])
    assert copy.conn.closed


def test_statements_that_are_slow_together_are_no_silence(
    copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may take its time, and the connection is closed where one is not answered in time."""
    copy.run(
        "CREATE FUNCTION alone.slow() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(0.4); RETURN new; END $$",
        *(f"CREATE TABLE alone.slow_{n} (id int PRIMARY KEY, n int)" for n in range(4)),
        *(
            f"CREATE TRIGGER slow AFTER INSERT ON alone.slow_{n} FOR EACH STATEMENT "
            "EXECUTE FUNCTION alone.slow()"
            for n in range(4)
        ),
    )
    copy.begin()
    monkeypatch.setattr(copy.conn, "reply_timeout_s", 1.0)
    copy.flush_at_once([put(1, f"slow_{n}") for n in range(4)])
    assert copy.at_once == [1]
