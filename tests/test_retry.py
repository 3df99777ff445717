"""A retried dead letter in a batch: applied once, in its place in the order, back with its history."""

from __future__ import annotations

import itertools
import json
import random
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from writebehind_worker.apply import Patience
from writebehind_worker.breaker import Breaker
from writebehind_worker.dead import Choice, DeadLetters
from writebehind_worker.flush import Flushed, Flusher
from writebehind_worker.frozen import FrozenBatch
from writebehind_worker.ledger import MOST_HISTORY, Ledger
from writebehind_worker.postgres import connect
from writebehind_worker.testing.servers import Servers

CLOCK = 10**15
BATCHES = itertools.count(1)


class Desk:
    """Flushes batches of increments and puts to ``t``, whose ``n`` must not exceed a limit."""

    def __init__(self, conn: psycopg.Connection[Any], queue: str, breaker_limit: int = 1000) -> None:
        self.conn, self.ledger = conn, Ledger(conn, queue)
        self.row = self.ledger.take("test", 0)
        self.breaker = Breaker(breaker_limit)
        self.flusher = self.make_flusher(0, 0)
        self.allow(10)

    def make_flusher(self, rollback_seq: int, rollback_items: int) -> Flusher:
        return Flusher(
            self.conn,
            self.ledger,
            replace(self.row, rollback_seq=rollback_seq, rollback_items=rollback_items),
            tables=(),
            lock_timeout_s=0.2,
            statement_timeout_s=30,
            breaker=self.breaker,
            publish=lambda _: None,
        )

    def allow(self, most: int) -> None:
        """What Postgres takes for ``n`` from now on."""
        self.conn.execute(
            "CREATE TABLE IF NOT EXISTS t (id int PRIMARY KEY, n int, name text);"
            "ALTER TABLE t DROP CONSTRAINT IF EXISTS small;"
            f"ALTER TABLE t ADD CONSTRAINT small CHECK (n <= {most}) NOT VALID".encode()
        )

    def flush(self, *items: dict[str, Any] | bytes) -> Flushed:
        bodies = [item if isinstance(item, bytes) else json.dumps(item).encode() for item in items]
        return self.flusher.flush(FrozenBatch(next(BATCHES), bodies, CLOCK), Patience())

    def rows(self) -> dict[int, int]:
        return dict(self.conn.execute("SELECT id, n FROM t").fetchall())

    def letters(self) -> dict[int, bool]:
        """Id → whether it is open."""
        found = self.conn.execute(
            "SELECT id, superseded_at IS NULL FROM writebehind.dead_letters ORDER BY id"
        )
        return dict(found.fetchall())

    def letter(self, id: int, columns: str) -> Any:
        query = f"SELECT {columns} FROM writebehind.dead_letters WHERE id = $1"
        found = self.conn.execute(query.encode(), [id]).fetchone()
        assert found is not None
        return found


def put(n: Any, id: int = 1, **fields: Any) -> dict[str, Any]:
    return {"table": "t", "id": id, "data": {"n": n}} | fields


def add(n: Any, id: int = 1, **fields: Any) -> dict[str, Any]:
    return put(n, id, op="increment", **fields)


@pytest.fixture(scope="module")
def database(servers: Servers, template_database: str) -> Iterator[str]:
    """One for all tests here: to empty it takes a tenth of the time of a new one."""
    name = f"wb_retry_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(servers.postgres_url, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name} TEMPLATE {template_database}".encode())
        try:
            yield urlsplit(servers.postgres_url)._replace(path=f"/{name}").geturl()
        finally:
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def conn(database: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(database) as conn:
        yield conn
        conn.execute("DROP TABLE IF EXISTS t")
        conn.execute("TRUNCATE writebehind.ledger, writebehind.dead_letters RESTART IDENTITY")


@pytest.fixture
def desk(conn: psycopg.Connection[Any], queue: str) -> Desk:
    return Desk(conn, queue)


def test_a_retry_that_is_applied_takes_its_letter_away(desk: Desk) -> None:
    desk.flush(put(11))
    desk.allow(20)
    flushed = desk.flush(put(11, retry=1))
    assert (desk.rows(), desk.letters()) == ({1: 11}, {})
    assert (flushed.buried, flushed.passed_over) == ([], [])
    assert flushed.writes == {("public.t", "applied"): 1}


def test_a_letter_sent_twice_is_applied_once_within_a_batch_and_beyond(desk: Desk) -> None:
    desk.flush(add(11))
    desk.allow(100)
    flushed = desk.flush(add(11, retry=1), add(11, retry=1))
    assert flushed.passed_over == [1]
    assert flushed.writes == {("public.t", "applied"): 1, ("unknown", "passed_over"): 1}
    assert desk.flush(add(11, retry=1)).passed_over == [1]
    assert (desk.rows(), desk.letters()) == ({1: 11}, {})


def test_a_letter_sent_twice_in_other_words_is_applied_once_even_by_force(desk: Desk) -> None:
    desk.flush(add(11))
    desk.allow(100)
    again = [add(11, retry=1, force=True), add(12, retry=1, force=True), add(11, id=2, retry=1)]
    assert desk.flush(*again).passed_over == [1, 1]
    assert (desk.rows(), desk.letters()) == ({1: 11}, {})


def test_a_letter_that_has_come_back_since_it_was_read_is_not_dropped(desk: Desk, queue: str) -> None:
    """Its new batch may still be in flight."""
    letters = DeadLetters(desk.conn, queue)
    desk.flush(add(11), add(11, id=2))
    (read,) = letters.pages(Choice())
    desk.flush(add(11, retry=1))
    assert letters.remove(read) == 1
    assert desk.letters() == {1: True}


def test_a_retry_of_a_letter_that_was_dropped_has_no_effect(desk: Desk) -> None:
    desk.flush(add(11))
    desk.conn.execute("DELETE FROM writebehind.dead_letters")
    desk.allow(100)
    assert desk.flush(add(11, retry=1, force=True), put("x", id=2, retry=1)).passed_over == [1, 1]
    assert (desk.rows(), desk.letters()) == ({}, {})


def test_rejected_again_it_is_the_same_letter_with_its_history(desk: Desk) -> None:
    desk.flush(put(0, id=2), add(11))
    first = desk.letter(1, "batch, created_at")
    flushed = desk.flush(put(0, id=3), put(0, id=4), add("1x", retry=1, nonsense=1))
    assert [b.position for b in flushed.buried] == [2]
    columns = "batch, position, sqlstate, body, created_at, retried_at > created_at"
    batch, position, sqlstate, body, created_at, is_retried = desk.letter(1, columns)
    assert (position, sqlstate, created_at, is_retried) == (2, "22P02", first[1], True)
    assert json.loads(body)["data"] == {"n": "1x"}
    desk.flush(add(12, retry=1))
    (history,) = desk.letter(1, "history")
    assert [(h["batch"], h["sqlstate"]) for h in history] == [(first[0], "23514"), (batch, "22P02")]
    assert "nonsense" in history[1]["reason"]
    assert desk.letters() == {1: True}


def test_of_a_long_history_the_first_and_the_last_are_kept(desk: Desk) -> None:
    desk.flush(put(11))
    for n in range(MOST_HISTORY + 5):
        desk.flush(put(100 + n, retry=1))
    (history,) = desk.letter(1, "history")
    assert len(history) == MOST_HISTORY
    assert "11," in history[0]["reason"]
    assert f"{100 + MOST_HISTORY + 3}," in history[-1]["reason"]


def test_one_superseded_since_it_was_sent_has_no_effect_unless_forced(desk: Desk) -> None:
    desk.flush(put(11))
    desk.flush(put(5))
    desk.allow(100)
    assert desk.flush(put(11, retry=1)).passed_over == [1]
    assert (desk.rows(), desk.letters()) == ({1: 5}, {1: False})
    desk.flush(put(11, retry=1), put(12, retry=1, force=True))
    assert (desk.rows(), desk.letters()) == ({1: 12}, {})


def test_a_forced_one_that_is_rejected_again_stays_superseded(desk: Desk) -> None:
    desk.flush(put(11))
    desk.flush(put(5))
    assert [b.sqlstate for b in desk.flush(put(11, retry=1, force=True)).buried] == ["23514"]
    assert desk.letters() == {1: False}


def test_a_retried_write_supersedes_older_letters_of_its_row_only(desk: Desk) -> None:
    for n in (11, 12, 13):
        desk.flush(put(n))
    desk.flush(put(14, id=2))
    desk.allow(12)
    desk.flush(put(12, retry=2))
    assert (desk.rows(), desk.letters()) == ({1: 12}, {1: False, 3: True, 4: True})


@pytest.mark.parametrize("together", [True, False])
def test_all_letters_of_a_row_are_retried_in_order(desk: Desk, together: bool) -> None:
    items = [add(n, id) for n in (11, 12, 13) for id in (1, 2)]
    desk.flush(*items)
    desk.allow(100)
    retries = [item | {"retry": i} for i, item in enumerate(items, start=1)]
    for batch in [retries] if together else [[retry] for retry in retries]:
        desk.flush(*batch)
    assert (desk.rows(), desk.letters()) == ({1: 36, 2: 36}, {})


@pytest.mark.parametrize("together", [True, False])
def test_an_earlier_one_that_fails_again_is_superseded_by_a_later_one_that_lands(
    desk: Desk, together: bool
) -> None:
    desk.flush(add(50), add(11))
    desk.allow(20)
    retries = [add(50, retry=1), add(11, retry=2)]
    for batch in [retries] if together else [[retry] for retry in retries]:
        desk.flush(*batch)
    assert (desk.rows(), desk.letters()) == ({1: 11}, {1: False})


@pytest.mark.parametrize("together", [True, False])
def test_a_newer_write_in_front_of_a_retry_wins(desk: Desk, together: bool) -> None:
    """Batches are cut anywhere: it must not matter whether both are in one."""
    desk.flush(put(11))
    desk.allow(20)
    items = [put(12), put(11, retry=1)]
    for batch in [items] if together else [[item] for item in items]:
        desk.flush(*batch)
    assert (desk.rows(), desk.letters()) == ({1: 12}, {1: False})


def test_a_newer_write_in_front_of_a_retry_that_is_refused_leaves_the_letter_to_be_retried(
    desk: Desk,
) -> None:
    desk.flush(put(11))
    desk.allow(20)
    assert desk.flush(put(50), put(11, retry=1)).passed_over == [1]
    assert desk.letters() == {1: True, 2: True}
    desk.flush(put(11, retry=1))
    assert (desk.rows(), desk.letters()) == ({1: 11}, {2: True})


def test_a_forced_retry_that_is_rejected_behind_a_newer_write_is_superseded_by_it(desk: Desk) -> None:
    desk.flush(put(11))
    desk.flush(put(2), put(11, retry=1, force=True))
    assert (desk.rows(), desk.letters()) == ({1: 2}, {1: False})


def test_a_forced_retry_overwrites_a_newer_write_in_front_of_it(desk: Desk) -> None:
    desk.flush(put(11))
    desk.allow(20)
    desk.flush(put(12), put(11, retry=1, force=True))
    assert (desk.rows(), desk.letters()) == ({1: 11}, {})


@pytest.mark.parametrize("together", [True, False])
def test_letters_of_a_row_retried_in_the_wrong_order_do_not_go_back(desk: Desk, together: bool) -> None:
    desk.flush(put(11), put(12))
    desk.allow(20)
    items = [put(12, retry=2), put(11, retry=1)]
    for batch in [items] if together else [[item] for item in items]:
        desk.flush(*batch)
    assert (desk.rows(), desk.letters()) == ({1: 12}, {1: False})


def test_a_later_write_supersedes_a_retry_that_failed_in_the_same_batch(desk: Desk) -> None:
    desk.flush(add(11))
    desk.flush(add(11, retry=1), add(5))
    assert (desk.rows(), desk.letters()) == ({1: 5}, {1: False})


def test_what_was_applied_before_a_rollback_is_retried_only_by_force(desk: Desk) -> None:
    desk.flusher = desk.make_flusher(100, 1)
    desk.flush(add(1, seq=100, key="t:1"))
    assert desk.letter(1, "kind") == ("rollback",)
    assert desk.flush(add(1, retry=1)).passed_over == [1]
    assert desk.rows() == {}
    desk.flush(add(1, retry=1, force=True))
    assert (desk.rows(), desk.letters()) == ({1: 1}, {})


def test_a_forced_rollback_letter_that_is_rejected_still_needs_force(desk: Desk) -> None:
    desk.flusher = desk.make_flusher(100, 1)
    desk.flush(add(11, seq=100, key="t:1"))
    desk.flush(add(11, retry=1, force=True))
    assert desk.letter(1, "kind, sqlstate, jsonb_array_length(history)") == ("rollback", "23514", 1)
    desk.allow(100)
    assert desk.flush(add(11, retry=1)).passed_over == [1]


def test_retries_from_before_a_rollback_have_no_effect_and_leave_no_second_letter(desk: Desk) -> None:
    """They had one: the letter is gone if it was applied, and is there to be retried if it was not."""
    desk.flush(add(11), add(12, id=2))
    desk.allow(11)
    desk.flusher = desk.make_flusher(100, 3)
    desk.flush(add(11, retry=1), add(12, id=2, retry=2), add(1, id=3, seq=100, key="t:3"))
    assert desk.rows() == {}
    kinds = desk.conn.execute("SELECT id, kind FROM writebehind.dead_letters ORDER BY id").fetchall()
    assert kinds == [(1, "rejected"), (2, "rejected"), (3, "rollback")]


def test_a_letter_that_somebody_has_locked_holds_nothing_up(desk: Desk, database: str) -> None:
    desk.flush(add(11), add(12, id=2))
    desk.allow(100)
    with psycopg.connect(database) as other:
        other.execute("SELECT FROM writebehind.dead_letters WHERE id = 1 FOR UPDATE")
        assert desk.flush(add(11, retry=1), add(12, id=2, retry=2), add(1, id=3)).passed_over == [1]
    assert (desk.rows(), desk.letters()) == ({2: 12, 3: 1}, {1: True})


def test_the_letters_of_another_queue_are_not_ours(desk: Desk) -> None:
    desk.flush(add(11))
    desk.allow(100)
    other = Desk(desk.conn, "other")
    other.allow(100)
    assert other.flush(add(11, retry=1)).passed_over == [1]
    assert (desk.rows(), desk.letters()) == ({}, {1: True})


def test_a_batch_that_is_tried_again_since_a_table_was_altered_takes_the_letter_once(desk: Desk) -> None:
    desk.flush(add(11))
    desk.allow(100)
    desk.conn.execute("ALTER TABLE t ALTER n TYPE numeric")
    desk.flush(add(11, retry=1))
    assert (desk.rows(), desk.letters()) == ({1: 11}, {})


def test_bad_ones_among_retries_are_found_and_the_others_land(desk: Desk) -> None:
    items = [add(11 + i % 2 * 50, id=i) for i in range(20)]
    desk.flush(*items)
    desk.allow(20)
    desk.flush(*(item | {"retry": i + 1} for i, item in enumerate(items)), add(1, id=99))
    assert desk.rows() == {**dict.fromkeys(range(0, 20, 2), 11), 99: 1}
    assert list(desk.letters()) == list(range(2, 21, 2))


def test_retries_that_come_too_early_do_not_pause_the_queue(
    conn: psycopg.Connection[Any], queue: str
) -> None:
    desk = Desk(conn, queue, breaker_limit=5)
    desk.flush(*(put(11, id=i) for i in range(20)))
    conn.execute("ALTER TABLE t DROP COLUMN n; ALTER TABLE t ADD COLUMN m int")
    again = [put(11, id=i, retry=i + 1) for i in range(20)]
    assert {b.sqlstate for b in desk.flush(*again).buried} == {"42703"}
    assert len(desk.letters()) == 20


def test_letters_are_numbered_in_the_order_of_the_list(desk: Desk) -> None:
    """Whether the worker or Postgres refused them."""
    desk.flush(put(11), b"no message", put(12), put(1, id=2, table="nowhere"), put(13))
    found = desk.conn.execute("SELECT position FROM writebehind.dead_letters ORDER BY id").fetchall()
    assert found == [(0,), (1,), (2,), (3,), (4,)]


@pytest.mark.parametrize(
    "fields",
    [*({"retry": value} for value in (0, -1, 1 << 63, "1", 1.5, True)), {"force": True}],
)
def test_a_forged_retry_is_a_bad_message(desk: Desk, fields: dict[str, Any]) -> None:
    assert [b.sqlstate for b in desk.flush(put(5) | fields).buried] == ["22P02"]
    assert desk.rows() == {}


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_retried_each_write_has_taken_effect_or_has_one_letter(desk: Desk, seed: int) -> None:
    """Write number i adds 2**i, so that each row shows which have been applied, and a twofold one."""
    source = random.Random(seed)
    desk.conn.execute("ALTER TABLE t ALTER n TYPE bigint")
    known: dict[int, dict[str, Any]] = {}  # what each letter there has been holds
    written = 0
    for _ in range(12):
        blocked = sum(1 << bit for bit in range(40) if source.random() < 0.3)
        desk.conn.execute("ALTER TABLE t DROP CONSTRAINT small")
        desk.conn.execute(f"ALTER TABLE t ADD CONSTRAINT small CHECK (n & {blocked} = 0) NOT VALID".encode())
        items: list[dict[str, Any]] = []
        for _ in range(source.randint(1, 6)):
            if known and source.random() < 0.6:
                letter = source.choice(list(known))
                items.append(known[letter] | {"retry": letter, "force": source.random() < 0.3})
            elif written < 40:
                items.append(add(1 << written, source.randint(1, 3)))
                written += 1
        desk.flush(*items)
        found = desk.conn.execute("SELECT id, body FROM writebehind.dead_letters").fetchall()
        known |= {id: json.loads(body) for id, body in found}
        in_letters = [known[id]["data"]["n"] for id, _ in found]
        assert sum(desk.rows().values()) + sum(in_letters) == (1 << written) - 1
        assert len(set(in_letters)) == len(in_letters)
