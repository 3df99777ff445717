"""A bad write never blocks a good one, nor takes it along; it is kept, with the reason."""

from __future__ import annotations

import contextlib
import itertools
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from psycopg import errors as pg_errors
from tests.support.workers import RunningWorker

from writebehind import WriteBehind
from writebehind_worker.apply import Patience
from writebehind_worker.breaker import LIMIT, Breaker
from writebehind_worker.errors import BreakerTripped
from writebehind_worker.flush import Flushed, Flusher
from writebehind_worker.frozen import FrozenBatch
from writebehind_worker.ledger import Ledger
from writebehind_worker.postgres import connect
from writebehind_worker.testing.servers import Servers
from writebehind_worker.testing.wait import wait_until

CLOCK = 10**15
BATCHES = itertools.count(1)
Item = dict[str, Any] | bytes

USERS = "CREATE TABLE users (id int PRIMARY KEY, name text, age int CHECK (age >= 0), email text UNIQUE)"


def put(table: str, id: Any, /, **data: Any) -> Item:
    return {"table": table, "id": id, "data": data}


def patch(table: str, id: Any, /, **data: Any) -> Item:
    return {"table": table, "id": id, "op": "patch", "data": data}


def increment(table: str, id: Any, /, **data: Any) -> Item:
    return {"table": table, "id": id, "op": "increment", "data": data}


def delete(table: str, id: Any) -> Item:
    return {"table": table, "id": id, "op": "delete"}


def as_bytes(item: Item) -> bytes:
    return item if isinstance(item, bytes) else json.dumps(item).encode()


@dataclass(frozen=True)
class DeadLetter:
    position: int
    sqlstate: str
    reason: str
    body: bytes
    seq: int | None
    table: str | None
    key: str | None
    superseded: bool


class Target:
    """A database that batches are flushed into, and what has become of it."""

    def __init__(self, conn: psycopg.Connection[Any], queue: str, tables: tuple[str, ...] = ()) -> None:
        self.conn, self.queue = conn, queue
        ledger = Ledger(conn, queue)
        self._flusher = Flusher(
            conn,
            ledger,
            ledger.take("test", 0),
            tables=tables,
            lock_timeout_s=0.2,
            statement_timeout_s=30,
            breaker=Breaker(),
            publish=lambda _: None,
        )

    def flush(self, *items: Item) -> Flushed:
        batch = FrozenBatch(next(BATCHES), [as_bytes(i) for i in items], CLOCK)
        return self._flusher.flush(batch, Patience())

    def rejected(self, *items: Item) -> dict[int, str | None]:
        """Flushes them as one batch; position → SQLSTATE of its dead letters."""
        return {b.position: b.sqlstate for b in self.flush(*items).buried}

    def run(self, *statements: str) -> None:
        for statement in statements:
            self.conn.execute(statement.encode())

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.conn.execute(query.encode()).fetchall()

    def dead_letters(self) -> list[DeadLetter]:
        columns = "position, sqlstate, reason, body, seq, table_name, key, superseded_at IS NOT NULL"
        return [
            DeadLetter(*row)
            for row in self.rows(f"SELECT {columns} FROM writebehind.dead_letters ORDER BY id")
        ]


@pytest.fixture(scope="module")
def database(servers: Servers, template_database: str) -> Iterator[str]:
    """One for all tests here: to empty it takes a tenth of the time of a new one."""
    name = f"wb_bad_writes_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(servers.postgres_url, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name} TEMPLATE {template_database}".encode())
        try:
            yield urlsplit(servers.postgres_url)._replace(path=f"/{name}").geturl()
        finally:
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def postgres_url(database: str) -> Iterator[str]:
    yield database
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("DROP SCHEMA public CASCADE; DROP SCHEMA IF EXISTS app CASCADE; CREATE SCHEMA public")
        conn.execute("TRUNCATE writebehind.ledger, writebehind.dead_letters RESTART IDENTITY")


@pytest.fixture
def target(postgres_url: str, queue: str) -> Iterator[Target]:
    with connect(postgres_url) as conn:
        yield Target(conn, queue)


@pytest.fixture
def users(target: Target) -> Target:
    target.run(USERS)
    return target


# One among many.


@pytest.mark.parametrize("position", [0, 2713, 4999])
def test_one_bad_row_among_five_thousand_is_the_only_one_lost(users: Target, position: int) -> None:
    items: list[dict[str, Any]] = [
        {
            "seq": i + 1,
            "key": f"users:{i}",
            "table": "users",
            "id": i,
            "data": {"name": f"n{i}", "age": i % 90},
        }
        for i in range(5000)
    ]
    items[position]["data"]["age"] = -1
    flushed = users.flush(*items)
    assert users.rows("SELECT count(*), min(id), max(id), sum(id) FROM users") == [
        (4999, 1 if position == 0 else 0, 4998 if position == 4999 else 4999, sum(range(5000)) - position)
    ]
    (letter,) = users.dead_letters()
    assert (letter.position, letter.seq, letter.sqlstate) == (position, position + 1, "23514")
    assert "users_age_check" in letter.reason
    assert letter.body == json.dumps(items[position]).encode()
    assert (letter.table, letter.key, letter.superseded) == (
        "public.users",
        json.dumps([str(position)]),
        False,
    )
    assert flushed.writes == {("public.users", "applied"): 4999, ("public.users", "rejected"): 1}


def test_every_tenth_of_a_thousand_is_found(users: Target) -> None:
    items = [put("users", i, age=-1 if i % 10 == 0 else 1) for i in range(1000)]
    assert users.rejected(*items) == dict.fromkeys(range(0, 1000, 10), "23514")
    assert users.rows("SELECT count(*) FROM users") == [(900,)]


def test_a_batch_of_nothing_but_bad_rows_leaves_only_dead_letters(users: Target) -> None:
    assert users.rejected(*(put("users", i, age=-1) for i in range(300))) == dict.fromkeys(
        range(300), "23514"
    )
    assert users.rows("SELECT count(*) FROM users") == [(0,)]
    assert users.rejected(put("users", 1, age=1)) == {}


GARBAGE = [
    b"",
    b"\x00",
    b"not json",
    b"\xff\xfe\xfd",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"17",
    b"[" * 50_000,
    b'{"table":"users"}',
    b'{"table":"users","id":null,"data":{}}',
    b'{"table":"users","id":1,"data":{"name":"\\ud800"}}',
    b'{"table":"users","id":1,"data":{"name":"\\udc00"}}',
    b'{"table":"users","id":1,"data":{"id":"\\udc00"}}',
    b'{"table":"users","id":1,"data":{"id":"\\ud800x"}}',
    b'{"table":"users","id":1,"data":{"id":2}}',
    b'{"table":"users","id":1,"data":{"id":null}}',
    b'{"table":"users","id":1,"data":{"id":[1]}}',
    b'{"table":"users","id":1,"data":{"name":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    b'{"table":"users","id":1,"op":"drop","data":{}}',
    b'{"table":"users; DROP TABLE users","id":1,"data":{}}',
    b'{"table":"users\\u0000","id":1,"data":{}}',
    b'{"table":"users","id":1,"data":{"na\\u0000me":1}}',
    b'{"table":"users","id":1,"data":{"name":"a\\u0000b"}}',
    b'{"table":"users","id":"1; DROP TABLE users","data":{"name":"x"}}',
    b'{"table":"users","id":"","data":{"name":"x"}}',
    b'{"table":"users","id":"abc","data":{"name":"x"}}',
    b'{"table":"users","id":1.5,"data":{"name":"x"}}',
    b'{"table":"users","id":1e2,"data":{"name":"x"}}',
    b'{"table":"users","id":true,"data":{"name":"x"}}',
    b'{"table":"users","id":99999999999999999999,"data":{"name":"x"}}',
    b'{"table":"users","id":{"id":1,"more":2},"data":{"name":"x"}}',
    b'{"table":"users","id":{"other":1},"data":{"name":"x"}}',
    b'{"table":"users","id":1,"op":"increment","data":{"age":1e99999999999999999999}}',
    b'{"table":"users","id":1,"op":"increment","data":{"age":1.5}}',
    b'{"table":"users","id":1,"op":"increment","data":{"name":1}}',
    b'{"table":"users","id":1,"op":"increment","data":{"id":1}}',
    b'{"table":"users","id":1,"data":{"age":"forty"}}',
    b'{"table":"users","id":1,"data":{"age":{}}}',
    b'{"table":"users","id":1,"data":{"age":99999999999}}',
    b'{"table":"users","id":1,"seq":1e3,"data":{}}',
    b'{"table":"users","id":1,"seq":99999999999999999,"data":{}}',
    b'{"table":"users","id":1,"ttl":0,"data":{}}',
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda g: repr(g)[2:70])
def test_a_bad_item_is_kept_as_it_was_and_its_neighbours_are_written(users: Target, garbage: bytes) -> None:
    assert users.rejected(put("users", 7, name="a"), garbage, put("users", 8, name="b")).keys() == {1}
    assert users.rows("SELECT id, name FROM users ORDER BY id") == [(7, "a"), (8, "b")]
    (letter,) = users.dead_letters()
    assert letter.body == garbage
    assert letter.reason
    assert letter.sqlstate


def test_all_kinds_of_garbage_in_one_batch_leave_the_good_ones_standing(users: Target) -> None:
    items: list[Item] = []
    for i, garbage in enumerate(GARBAGE):
        items += [put("users", 100 + i, name="good"), garbage]
    assert users.rejected(*items).keys() == set(range(1, 2 * len(GARBAGE), 2))
    assert users.rows("SELECT count(*) FROM users WHERE name = 'good'") == [(len(GARBAGE),)]
    assert [d.body for d in sorted(users.dead_letters(), key=lambda d: d.position)] == GARBAGE


def test_numeric_deltas_with_absurd_exponents_are_dead_letters(target: Target) -> None:
    target.run("CREATE TABLE sums (id int PRIMARY KEY, n numeric, m numeric(10,2))")
    deltas = [b"1e99999999999999999999", b"-1E+99999999999999999999", b"1e999999"]
    items = [
        b'{"table":"sums","id":1,"op":"increment","data":{"%b":%b}}' % (column, delta)
        for column in (b"n", b"m")
        for delta in deltas
    ]
    assert target.rejected(increment("sums", 1, n=1), *items).keys() == set(range(1, 7))
    assert target.rows("SELECT n FROM sums") == [(1,)]


def test_a_delta_of_more_digits_than_any_number_takes_is_refused_before_postgres_reads_it(
    target: Target,
) -> None:
    target.run("CREATE TABLE sums (id int PRIMARY KEY, n numeric, i int, f float8)")
    longest = b'{"table":"sums","id":1,"op":"increment","data":{"n":%b}}' % (b"9" * 131_072)
    items = [
        b'{"table":"sums","id":1,"op":"increment","data":{"%b":%b}}' % (column, delta)
        for column in (b"n", b"i", b"f")
        for delta in (b"1" * 1_000_000, b"0." + b"1" * 1_000_000)
    ]
    assert target.rejected(longest, *items) == dict.fromkeys(range(1, 7), "22003")
    assert "public.sums.n: the delta has 1000000 characters" in target.dead_letters()[0].reason
    assert target.rows("SELECT length(n::text), i, f FROM sums") == [(131_072, None, None)]


def test_the_reasons_name_table_and_column(users: Target) -> None:
    users.run("CREATE TABLE heap (id int)")
    users.flush(
        put("nowhere", 1, name="x"),
        put("users", 1, nick="x"),
        put("heap", 1, id=1),
        put("users", {"a": 1, "b": 2}, name="x"),
        increment("users", 1, name=1),
        put("users", 1, id=2),
    )
    found = {d.position: (d.sqlstate, d.reason) for d in users.dead_letters()}
    assert found == {
        0: ("42P01", 'unknown table "nowhere": it does not exist, or --table does not allow it'),
        1: ("42703", 'public.users has no column "nick"'),
        2: ("42P10", "public.heap has no primary key: its rows cannot be told apart"),
        3: ("42P10", 'the primary key of public.users is (id), but `id` gives "a", "b"'),
        4: ("42804", "public.users.name is text: it cannot be incremented"),
        5: ("22023", '`data` would change "id", which is part of the primary key'),
    }


@pytest.mark.parametrize(
    "table",
    [
        "writebehind.ledger",
        "writebehind.dead_letters",
        "ledger",
        "dead_letters",
        '"writebehind"."ledger"',
        "pg_catalog.pg_class",
        "pg_class",
        "pg_catalog.pg_authid",
        "information_schema.sql_features",
        "public.users_view",
        "users_view",
    ],
)
def test_our_own_tables_and_those_of_postgres_cannot_be_written(users: Target, table: str) -> None:
    users.run(
        "CREATE VIEW users_view AS SELECT * FROM users",
        "SET search_path = writebehind, pg_catalog, public, information_schema",
    )
    before = users.rows("SELECT queue, epoch FROM writebehind.ledger")
    data = {"epoch": 99, "relname": "x", "name": "x"}
    assert users.rejected(put(table, users.queue, **data), delete(table, users.queue)) == {
        0: "42P01",
        1: "42P01",
    }
    assert users.rows("SELECT queue, epoch FROM writebehind.ledger") == before


def test_only_the_allowed_tables_are_written(postgres_url: str, queue: str) -> None:
    with connect(postgres_url) as conn:
        for statement in (USERS, USERS.replace("users", "secrets"), "CREATE SCHEMA app"):
            conn.execute(statement.encode())
        conn.execute(USERS.replace("users", "app.users").encode())
        target = Target(conn, queue, tables=("public.users",))
        names = ["users", "public.users", "secrets", "public.secrets", "app.users"]
        found = target.rejected(*(put(name, i, name="x") for i, name in enumerate(names)))
        assert found == {2: "42P01", 3: "42P01", 4: "42P01"}
        assert target.rows("SELECT id FROM users ORDER BY id") == [(0,), (1,)]


# Constraints.


def test_each_kind_of_constraint_has_its_sqlstate(target: Target) -> None:
    target.run(
        "CREATE TABLE parents (id int PRIMARY KEY)",
        "CREATE DOMAIN percent AS int CHECK (VALUE BETWEEN 0 AND 100)",
        "CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL DEFAULT 0 CHECK (n >= 0), u int UNIQUE, "
        "parent int REFERENCES parents, p percent, span int4range, "
        "EXCLUDE USING gist (span WITH &&), v varchar(3))",
    )
    bad: list[tuple[str, dict[str, Any]]] = [
        ("23502", {"n": None}),
        ("23514", {"n": -1}),
        ("23505", {"u": 1}),
        ("23503", {"parent": 9}),
        ("23514", {"p": 101}),
        ("23P01", {"span": "[5,7)"}),
        ("22001", {"v": "long"}),
        ("22P02", {"n": "x"}),
        ("22P05", {"v": "\0"}),
    ]
    items = [put("t", 1, u=1, span="[1,9)"), *(put("t", 10 + i, **data) for i, (_, data) in enumerate(bad))]
    assert target.rejected(*items, put("t", 2, n=5)) == {i + 1: state for i, (state, _) in enumerate(bad)}
    assert target.rows("SELECT id FROM t ORDER BY id") == [(1,), (2,)]


def test_after_a_bad_write_a_later_one_to_the_same_row_still_lands(users: Target) -> None:
    """Whether the bad one is a dead letter is open: the batch's net effect is good."""
    users.flush(put("users", 1, name="bad", age=-1), put("users", 1, name="good", age=1))
    assert users.rows("SELECT name, age FROM users") == [("good", 1)]


def test_a_later_write_that_does_not_mend_a_bad_one_lands_without_it(users: Target) -> None:
    assert users.rejected(put("users", 1, age=-1), put("users", 1, name="good")) == {0: "23514"}
    assert users.rows("SELECT name, age FROM users") == [("good", None)]


def test_a_bad_write_does_not_take_along_the_good_one_that_it_replaced(users: Target) -> None:
    items = [put("users", 1, name="good", age=1), put("users", 1, name="bad", age=-1), put("users", 2, age=2)]
    assert users.rejected(*items) == {1: "23514"}
    assert users.rows("SELECT id, name, age FROM users ORDER BY id") == [(1, "good", 1), (2, None, 2)]


def test_a_bad_write_between_two_good_ones_leaves_both(users: Target) -> None:
    items = [put("users", 1, name="a"), patch("users", 1, age=-1), patch("users", 1, email="e")]
    assert users.rejected(*items) == {1: "23514"}
    assert users.rows("SELECT name, age, email FROM users") == [("a", None, "e")]


def test_increments_around_a_bad_one_all_count(users: Target) -> None:
    items = [increment("users", 1, age=5), increment("users", 1, age=-50), increment("users", 1, age=-3)]
    assert users.rejected(*items) == {1: "23514"}
    assert users.rows("SELECT age FROM users") == [(2,)]


def test_a_patch_of_a_missing_row_is_rejected_and_inserts_nothing(users: Target) -> None:
    assert users.rejected(patch("users", 1, name="x"), put("users", 2, name="y")) == {0: "P0002"}
    assert users.rows("SELECT id FROM users") == [(2,)]
    assert "no row with this key" in users.dead_letters()[0].reason


def test_a_patch_before_the_put_of_its_row_is_rejected_and_the_put_lands(users: Target) -> None:
    assert users.rejected(patch("users", 1, name="x"), put("users", 1, age=1)) == {0: "P0002"}
    assert users.rows("SELECT id, name, age FROM users") == [(1, None, 1)]


def test_a_delete_of_a_missing_row_is_no_error(users: Target) -> None:
    assert users.rejected(delete("users", 1), delete("users", 1)) == {}


# Partial writes.


@pytest.fixture
def accounts(target: Target) -> Target:
    target.run(
        "CREATE TABLE accounts (id int PRIMARY KEY, owner text NOT NULL, "
        "balance int NOT NULL CHECK (balance >= 0), slot int UNIQUE DEFAULT 1, note text)",
        "INSERT INTO accounts VALUES (1, 'ada', 10, 1), (2, 'bob', 10, 2)",
    )
    return target


def test_a_partial_put_changes_a_row_that_exists(accounts: Target) -> None:
    assert accounts.rejected(put("accounts", 1, note="x"), put("accounts", 2, note="y", balance=3)) == {}
    assert accounts.rows("SELECT * FROM accounts ORDER BY id") == [
        (1, "ada", 10, 1, "x"),
        (2, "bob", 3, 2, "y"),
    ]


def test_a_partial_put_of_a_new_row_that_lacks_a_column_is_rejected(accounts: Target) -> None:
    assert accounts.rejected(put("accounts", 3, note="x"), put("accounts", 1, note="y")) == {0: "23502"}
    assert accounts.rows("SELECT note FROM accounts ORDER BY id") == [("y",), (None,)]


def test_a_partial_put_leaves_a_unique_column_with_a_default_alone(accounts: Target) -> None:
    """Proposed to INSERT, the default 1 would collide with another row's."""
    assert accounts.rejected(put("accounts", 2, owner="bob", balance=7)) == {}
    assert accounts.rows("SELECT balance, slot FROM accounts WHERE id = 2") == [(7, 2)]


def test_a_put_of_the_key_alone_leaves_a_row_alone_or_makes_one(users: Target) -> None:
    users.run("INSERT INTO users VALUES (1, 'ada')")
    assert users.rejected(put("users", 1), put("users", 2)) == {}
    assert users.rows("SELECT id, name FROM users ORDER BY id") == [(1, "ada"), (2, None)]


def test_an_increment_of_a_row_with_other_required_columns(accounts: Target) -> None:
    items = [
        increment("accounts", 1, balance=-4),
        increment("accounts", 2, balance=5),
        increment("accounts", 3, balance=1),
    ]
    assert accounts.rejected(*items) == {2: "23502"}
    assert accounts.rows("SELECT balance FROM accounts ORDER BY id") == [(6,), (15,)]


def test_an_increment_below_what_a_check_allows_is_rejected(accounts: Target) -> None:
    assert accounts.rejected(
        increment("accounts", 1, balance=-11), increment("accounts", 2, balance=-10)
    ) == {0: "23514"}
    assert accounts.rows("SELECT balance FROM accounts ORDER BY id") == [(10,), (0,)]


def test_a_negative_delta_of_a_checked_column_or_domain_is_a_delta_and_no_value(target: Target) -> None:
    target.run(
        "CREATE DOMAIN positive AS int CHECK (VALUE >= 0)",
        "CREATE TABLE stock (id int PRIMARY KEY, n int DEFAULT 0 CHECK (n >= 0), p positive)",
        "INSERT INTO stock VALUES (1, 5, 5), (2, 5, NULL)",
    )
    items = [increment("stock", 1, n=-2, p=-5), increment("stock", 2, n=-1), increment("stock", 3, n=-1)]
    assert target.rejected(*items, increment("stock", 2, p=-1)) == {2: "23514", 3: "23514"}
    assert target.rows("SELECT * FROM stock ORDER BY id") == [(1, 3, 0), (2, 4, None)]


def test_a_delta_wider_than_its_column_counts_if_the_sum_fits(target: Target) -> None:
    target.run(
        "CREATE TABLE narrow (id int PRIMARY KEY, s smallint, m numeric(4,1))",
        "INSERT INTO narrow VALUES (1, 30000, 999), (2, -30000, 0)",
    )
    items = [
        increment("narrow", 1, s=-60000),
        increment("narrow", 2, s=60000),
        increment("narrow", 1, m=-1998),
    ]
    assert target.rejected(*items, increment("narrow", 3, s=40000), increment("narrow", 2, m=0.04)) == {
        3: "22003"
    }
    assert target.rows("SELECT s, m::text FROM narrow ORDER BY id") == [(-30000, "-999.0"), (30000, "0.0")]


def test_partial_writes_under_a_partial_unique_index_look_at_the_row_that_exists(target: Target) -> None:
    """The row proposed to INSERT would be active by default, and collide; the row that exists is not."""
    target.run(
        "CREATE TABLE members (id int PRIMARY KEY, email text, active bool NOT NULL DEFAULT true)",
        "CREATE UNIQUE INDEX ON members (email) WHERE active",
        "INSERT INTO members VALUES (1, 'a', true), (2, 'b', false)",
    )
    assert target.rejected(put("members", 2, email="a")) == {}
    assert target.rows("SELECT email, active FROM members ORDER BY id") == [("a", True), ("a", False)]


def test_partial_writes_under_a_unique_index_on_an_expression(target: Target) -> None:
    target.run(
        "CREATE TABLE members (id int PRIMARY KEY, email text DEFAULT 'none', note text)",
        "CREATE UNIQUE INDEX ON members (lower(email))",
        "INSERT INTO members VALUES (1, 'None'), (2, 'b')",
    )
    assert target.rejected(put("members", 2, note="x"), put("members", 3, note="y")) == {1: "23505"}
    assert target.rows("SELECT note FROM members ORDER BY id") == [(None,), ("x",)]


# Foreign keys.


def family(target: Target, clause: str) -> None:
    target.run(
        "CREATE TABLE parents (id int PRIMARY KEY, name text)",
        "CREATE TABLE children (id int PRIMARY KEY, name text, "
        f"parent int DEFAULT 0 REFERENCES parents {clause})",
        "INSERT INTO parents VALUES (0, 'nobody'), (1, 'old')",
        "INSERT INTO children VALUES (10, 'a', 1), (11, 'b', 1)",
    )


@pytest.mark.parametrize(
    ("clause", "left"),
    [
        ("ON DELETE CASCADE", [(10, 1, "new")]),
        ("ON DELETE SET NULL", [(10, 1, "new"), (11, None, "b")]),
        ("ON DELETE SET DEFAULT", [(10, 1, "new"), (11, 0, "b")]),
        ("ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED", [(10, 1, "new")]),
    ],
)
@pytest.mark.parametrize("poison", [None, 0, 1, 2, 3], ids=lambda p: f"poison {p}")
def test_a_row_put_again_after_a_delete_that_reached_it_is_there(
    target: Target, clause: str, left: list[Any], poison: int | None
) -> None:
    family(target, clause)
    items = [delete("parents", 1), put("parents", 1, name="new"), put("children", 10, parent=1, name="new")]
    if poison is not None:
        items.insert(poison, put("children", 99, parent="x"))
    assert target.rejected(*items) == ({} if poison is None else {poison: "22P02"})
    assert target.rows("SELECT id, parent, name FROM children ORDER BY id") == left
    assert target.rows("SELECT name FROM parents WHERE id = 1") == [("new",)]


def test_children_written_before_a_cascading_delete_go_with_it(target: Target) -> None:
    family(target, "ON DELETE CASCADE")
    items = [put("children", 12, parent=1), delete("parents", 1), put("parents", 1, name="new")]
    assert target.rejected(*items) == {}
    assert target.rows("SELECT id FROM children") == []


def test_a_child_moved_to_another_parent_survives_the_delete_of_its_first(target: Target) -> None:
    family(target, "ON DELETE CASCADE")
    assert target.rejected(put("children", 10, parent=0), delete("parents", 1)) == {}
    assert target.rows("SELECT id, parent FROM children") == [(10, 0)]


def test_a_cascading_delete_that_fails_at_first_does_not_take_later_rows_along(target: Target) -> None:
    """Tried again at the end of the batch, it must not reach rows that were accepted after it."""
    family(target, "ON DELETE CASCADE")
    target.run(
        "CREATE TABLE bills (id int PRIMARY KEY, parent int REFERENCES parents)",
        "INSERT INTO bills VALUES (5, 1)",
    )
    target.flush(
        delete("parents", 1),  # refused where it stands: a bill is left
        put("parents", 0, name="x"),
        delete("bills", 5),
        put("parents", 1, name="new"),
        put("children", 12, parent=1, name="accepted after the delete"),
    )
    assert target.rows("SELECT name FROM parents WHERE id = 1") == [("new",)]
    assert target.rows("SELECT name FROM children WHERE id = 12") == [("accepted after the delete",)]


def test_a_bad_write_does_not_delay_the_next_one_past_a_cascading_delete(target: Target) -> None:
    """The child has been moved away by the time its first parent goes."""
    family(target, "ON DELETE CASCADE")
    items = [put("children", 10, name="\0"), put("children", 10, parent=0), delete("parents", 1)]
    assert target.rejected(*items) == {0: "22P05"}
    assert target.rows("SELECT id, name, parent FROM children") == [(10, "a", 0)]


def test_a_delete_that_the_children_forbid_is_rejected(target: Target) -> None:
    family(target, "ON DELETE RESTRICT")
    items = [delete("parents", 1), put("parents", 0, name="x"), put("children", 10, name="c")]
    assert target.rejected(*items).keys() == {0}
    assert target.rows("SELECT count(*) FROM parents") == [(2,)]
    assert target.rejected(delete("parents", 1), delete("children", 10), delete("children", 11)) == {}
    assert target.rows("SELECT id FROM parents") == [(0,)]


@pytest.mark.parametrize("clause", ["", "DEFERRABLE", "DEFERRABLE INITIALLY DEFERRED"])
def test_a_parent_may_come_after_its_child_in_the_list(target: Target, clause: str) -> None:
    family(target, clause)
    items = [put("children", 12, parent=2), put("children", 13, parent="x"), put("parents", 2, name="p")]
    assert target.rejected(*items) == {1: "22P02"}
    assert target.rows("SELECT parent FROM children WHERE id = 12") == [(2,)]


@pytest.mark.parametrize("clause", ["", "DEFERRABLE INITIALLY DEFERRED"])
def test_a_foreign_key_violated_by_one_row_costs_only_that_row(target: Target, clause: str) -> None:
    family(target, clause)
    items = [put("children", 20 + i, parent=99 if i == 37 else 1) for i in range(100)]
    assert target.rejected(*items) == {37: "23503"}
    assert target.rows("SELECT count(*) FROM children WHERE id >= 20") == [(99,)]


def test_rows_that_reference_each_other_are_written_together(target: Target) -> None:
    target.run(
        "CREATE TABLE a (id int PRIMARY KEY, b int NOT NULL)",
        "CREATE TABLE b (id int PRIMARY KEY, a int NOT NULL REFERENCES a DEFERRABLE INITIALLY DEFERRED)",
        "ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b DEFERRABLE INITIALLY DEFERRED",
    )
    assert target.rejected(put("a", 1, b=1), put("b", 1, a=1), put("b", 2, a=2), put("a", 2, b=2)) == {}
    assert target.rejected(put("a", 3, b=3)) == {0: "23503"}
    assert target.rows("SELECT count(*) FROM a") == [(2,)]


@pytest.mark.parametrize("clause", ["", "ON DELETE CASCADE", "DEFERRABLE INITIALLY DEFERRED"])
@pytest.mark.parametrize("leaves_first", [False, True])
def test_a_tree_in_one_table_is_written_in_any_order(target: Target, clause: str, leaves_first: bool) -> None:
    target.run(f"CREATE TABLE tree (id int PRIMARY KEY, up int REFERENCES tree {clause})")
    nodes = [put("tree", i, up=i // 2 or None) for i in range(1, 64)]
    assert target.rejected(*(reversed(nodes) if leaves_first else nodes)) == {}
    assert target.rejected(*(delete("tree", i) for i in range(1, 64))) == {}
    assert target.rows("SELECT count(*) FROM tree") == [(0,)]


def test_a_bad_node_costs_only_what_hangs_below_it(target: Target) -> None:
    target.run("CREATE TABLE tree (id int PRIMARY KEY, up int REFERENCES tree, n int CHECK (n > 0))")
    nodes = [put("tree", i, up=i // 2 or None, n=-1 if i == 3 else 1) for i in range(1, 16)]
    assert target.rejected(*nodes) == {2: "23514"} | {i - 1: "23503" for i in (6, 7, 12, 13, 14, 15)}
    assert target.rows("SELECT count(*) FROM tree") == [(8,)]


# Unique values and deferrable keys.


@pytest.mark.parametrize("first", [1, 2])
def test_a_unique_value_may_pass_from_one_row_to_another(users: Target, first: int) -> None:
    second = 3 - first
    users.flush(put("users", first, email="x"), put("users", second, email="y"))
    assert users.rejected(put("users", first, email=None), put("users", second, email="x")) == {}
    assert users.rejected(delete("users", second), put("users", first, email="x")) == {}
    assert users.rows("SELECT id, email FROM users") == [(first, "x")]


def test_a_unique_value_taken_by_another_row_costs_only_the_taker(users: Target) -> None:
    assert users.rejected(
        put("users", 1, email="x"), put("users", 2, email="x"), put("users", 3, email="z")
    ) == {1: "23505"}
    assert users.rows("SELECT id FROM users ORDER BY id") == [(1,), (3,)]


def test_a_bad_write_does_not_delay_the_next_one_until_its_unique_value_is_taken(users: Target) -> None:
    items = [
        put("users", 1, age="bad"),
        put("users", 1, email="m", name="kept"),
        increment("users", 1, age=1),
        put("users", 1, email=None),
        put("users", 2, email="m"),
    ]
    assert users.rejected(*items) == {0: "22P02"}
    expected = [(1, "kept", 1, None), (2, None, None, "m")]
    assert users.rows("SELECT id, name, age, email FROM users ORDER BY id") == expected


def test_two_rows_swap_values_of_a_deferrable_unique_column(target: Target) -> None:
    target.run("CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY IMMEDIATE)")
    target.flush(put("t", 1, u=1), put("t", 2, u=2))
    assert target.rejected(put("t", 1, u=2), put("t", 2, u=1)) == {}
    assert target.rows("SELECT * FROM t ORDER BY id") == [(1, 2), (2, 1)]


@pytest.mark.parametrize("when", ["IMMEDIATE", "DEFERRED"])
def test_a_deferrable_primary_key_takes_all_operations(target: Target, when: str) -> None:
    target.run(f"CREATE TABLE t (id int PRIMARY KEY DEFERRABLE INITIALLY {when}, n int, s text)")
    items = [
        put("t", 1, n=1),
        put("t", 1, s="a"),
        increment("t", 1, n=5),
        increment("t", 2, n=7),
        put("t", 3),
    ]
    assert target.rejected(*items, patch("t", 2, s="b"), delete("t", 3), patch("t", 9, s="c")) == {7: "P0002"}
    assert target.rejected(put("t", 1, n=8), put("t", 4, n=4)) == {}
    assert target.rows("SELECT * FROM t ORDER BY id") == [(1, 8, "a"), (2, 7, "b"), (4, 4, None)]


# Triggers and row-level security.


def add_trigger(target: Target, when: str, body: str) -> None:
    target.run(
        f"CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$",
        f"CREATE TRIGGER g {when} ON users FOR EACH ROW EXECUTE FUNCTION f()",
    )


@pytest.mark.parametrize("when", ["BEFORE INSERT", "BEFORE INSERT OR UPDATE"])
def test_a_row_that_a_trigger_skips_is_rejected_and_not_taken_for_written(users: Target, when: str) -> None:
    add_trigger(users, when, "IF NEW.name = 'skip' THEN RETURN NULL; END IF; RETURN NEW;")
    items = [put("users", i, name="skip" if i == 2 else "ok") for i in range(4)]
    assert users.rejected(*items) == {2: "P0002"}
    assert "trigger" in users.dead_letters()[0].reason
    assert users.rows("SELECT id FROM users ORDER BY id") == [(0,), (1,), (3,)]


def test_an_update_that_a_trigger_skips_is_rejected(users: Target) -> None:
    users.run("INSERT INTO users VALUES (1, 'old'), (2, 'old')")
    add_trigger(users, "BEFORE UPDATE", "IF NEW.name = 'skip' THEN RETURN NULL; END IF; RETURN NEW;")
    items = [put("users", 1, name="skip"), patch("users", 2, name="skip"), put("users", 3, name="skip")]
    assert users.rejected(*items) == {0: "P0002", 1: "P0002"}
    assert users.rows("SELECT name FROM users ORDER BY id") == [("old",), ("old",), ("skip",)]


def test_a_trigger_before_insert_sees_an_existing_row_only_as_an_update(users: Target) -> None:
    users.run("INSERT INTO users VALUES (1, 'old', 5)")
    add_trigger(users, "BEFORE INSERT", "NEW.age := coalesce(NEW.age, 0) + 100; RETURN NEW;")
    assert users.rejected(put("users", 1, age=6), put("users", 2, age=6), increment("users", 1, age=1)) == {}
    assert users.rows("SELECT id, age FROM users ORDER BY id") == [(1, 7), (2, 106)]


def test_what_a_trigger_raises_is_the_reason(users: Target) -> None:
    add_trigger(users, "BEFORE INSERT", "IF NEW.age > 90 THEN RAISE EXCEPTION 'too old'; END IF; RETURN NEW;")
    assert users.rejected(put("users", 1, age=91), put("users", 2, age=1)) == {0: "P0001"}
    assert users.dead_letters()[0].reason == "too old"


@pytest.fixture
def role(target: Target) -> Iterator[str]:
    """A role without rights but to the ledger."""
    name = f"wb_role_{uuid.uuid4().hex[:12]}"
    target.run(
        f"CREATE ROLE {name}",
        f"GRANT USAGE ON SCHEMA writebehind, public TO {name}",
        f"GRANT ALL ON ALL TABLES IN SCHEMA writebehind TO {name}",
    )
    try:
        yield name
    finally:
        target.run("RESET ROLE", f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def test_rows_that_row_level_security_hides_or_refuses_are_rejected(target: Target, role: str) -> None:
    target.run(
        "CREATE TABLE notes (id int PRIMARY KEY, owner text DEFAULT 'us', n int)",
        "INSERT INTO notes VALUES (1, 'us', 1), (2, 'them', 1), (3, 'them', 1)",
        "ALTER TABLE notes ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY ours ON notes USING (owner = 'us')",
        f"GRANT ALL ON notes TO {role}",
        f"SET ROLE {role}",
    )
    items = [
        put("notes", 1, n=5),
        put("notes", 2, n=5),
        patch("notes", 3, n=5),
        put("notes", 4, owner="them", n=5),
    ]
    assert target.rejected(*items, put("notes", 5, n=5)) == {1: "23505", 2: "P0002", 3: "42501"}
    target.run("RESET ROLE")
    assert target.rows("SELECT id, n FROM notes ORDER BY id") == [(1, 5), (2, 1), (3, 1), (5, 5)]


@pytest.mark.parametrize(
    ("right", "rejected"),
    [
        ("ALTER TABLE notes OWNER TO {}", {}),
        ("ALTER TABLE notes OWNER TO {}; ALTER TABLE notes FORCE ROW LEVEL SECURITY", {300: "42501"}),
        ("GRANT ALL ON notes TO {}; ALTER ROLE {} BYPASSRLS", {}),
        ("GRANT ALL ON notes TO {}", {300: "42501"}),
    ],
    ids=["owner", "owner, forced", "bypassing", "any other"],
)
def test_row_level_security_refuses_one_row_of_many_to_whom_it_is_for(
    target: Target, role: str, right: str, rejected: dict[int, str]
) -> None:
    target.run(
        "CREATE TABLE notes (id int PRIMARY KEY, owner text)",
        "ALTER TABLE notes ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY ours ON notes USING (owner = 'us')",
        right.replace("{}", role),
        f"SET ROLE {role}",
    )
    items = [put("notes", id, owner="them" if id == 300 else "us") for id in range(600)]
    assert target.rejected(*items) == rejected
    target.run("RESET ROLE")
    assert target.rows("SELECT count(*) FROM notes") == [(600 - len(rejected),)]


def test_a_table_that_the_role_may_not_write_is_named(users: Target, role: str) -> None:
    users.run("CREATE TABLE open (id int PRIMARY KEY)", f"GRANT ALL ON open TO {role}", f"SET ROLE {role}")
    assert users.rejected(put("users", 1, name="x"), put("open", 1)) == {0: "42501"}
    assert users.dead_letters()[0].reason == "permission denied for table users"


# The breaker.


def test_a_thousand_writes_to_a_column_that_is_gone_pause_the_queue(users: Target) -> None:
    items = [put("users", i, nick="x") for i in range(LIMIT)]
    users.run("ALTER TABLE users ADD COLUMN nick text")
    assert users.rejected(put("users", -1, nick="x")) == {}
    users.run("ALTER TABLE users DROP COLUMN nick")
    with pytest.raises(BreakerTripped, match=r"public\.users .*42703 \(undefined_column\)"):
        users.flush(*items)
    assert users.dead_letters() == []
    users.run("ALTER TABLE users ADD COLUMN nick text")
    assert users.rejected(*items) == {}
    assert users.rows("SELECT count(*) FROM users WHERE nick = 'x'") == [(LIMIT,)]


def test_a_thousand_writes_to_a_column_that_never_was_pause_nothing(users: Target) -> None:
    """One producer that misspells a column, or gives a generated one, is no reason to stop the others."""
    items = [put("users", i, nmae="x") for i in range(LIMIT + 1)]
    assert len(users.rejected(*items)) == LIMIT + 1


def test_bad_writes_with_good_ones_between_them_do_not_pause_the_queue(users: Target) -> None:
    """One producer that misspells a column is no reason to stop the others."""
    items: list[Item] = []
    for i in range(LIMIT + 1):
        items += [put("users", i, name="good"), put("users", i, nmae="bad")]
    assert users.rejected(*items) == dict.fromkeys(range(1, len(items), 2), "42703")
    assert users.rows("SELECT count(*) FROM users WHERE name = 'good'") == [(LIMIT + 1,)]


def test_a_batch_that_is_tried_again_counts_its_refusals_once(users: Target, pg: psycopg.Connection) -> None:
    users.run("INSERT INTO users VALUES (1, 'locked')")
    items = [*(put("users", i, nmae="bad") for i in range(LIMIT // 2 - 1)), put("users", 1, name="good")]
    with pg.transaction():
        pg.execute("SELECT FROM users WHERE id = 1 FOR UPDATE")
        for _ in range(3):
            with pytest.raises(pg_errors.LockNotAvailable):
                users.flush(*items)
    assert len(users.rejected(*items)) == LIMIT // 2 - 1
    assert users.rows("SELECT name FROM users") == [("good",)]


# Tables that change while the worker runs.


def test_a_new_table_and_a_new_column_are_found(users: Target) -> None:
    assert users.rejected(put("users", 1, name="a")) == {}
    users.run("CREATE TABLE pages (id int PRIMARY KEY, n int)", "ALTER TABLE users ADD COLUMN nick text")
    assert users.rejected(put("pages", 1, n=1), put("users", 1, nick="b")) == {}
    assert users.rows("SELECT nick FROM users") == [("b",)]


def test_a_dropped_column_is_noticed(users: Target) -> None:
    users.flush(put("users", 1, name="a", age=1))
    users.run("ALTER TABLE users DROP COLUMN age")
    assert users.rejected(put("users", 2, age=1), put("users", 3, name="c")) == {0: "42703"}
    assert users.dead_letters()[0].reason == 'public.users has no column "age"'


def test_a_dropped_table_is_noticed_and_one_of_the_same_name_is_taken_for_it(users: Target) -> None:
    users.flush(put("users", 1, name="a"))
    users.run("DROP TABLE users")
    assert users.rejected(put("users", 1, name="b")) == {0: "42P01"}
    users.run("CREATE TABLE users (id uuid PRIMARY KEY, name text)")
    id = str(uuid.uuid4())
    assert users.rejected(put("users", id, name="c"), put("users", id.upper(), name="d")) == {}
    assert users.rows("SELECT name FROM users") == [("d",)]


@pytest.mark.parametrize(
    ("before", "alteration", "item"),
    [
        ("id int, v int", "ADD PRIMARY KEY (id)", put("t", 1, v=1)),
        ("id int PRIMARY KEY, w int", "RENAME id TO key", put("t", {"key": 1}, w=1)),
        (
            "id int PRIMARY KEY, v int GENERATED ALWAYS AS (7) STORED",
            "ALTER v DROP EXPRESSION",
            put("t", 1, v=1),
        ),
        ("id int PRIMARY KEY, v text", "ALTER v TYPE int USING NULL", increment("t", 1, v=1)),
    ],
    ids=["a key", "a key's name", "a plain column", "a number"],
)
def test_what_the_worker_refuses_by_itself_it_takes_once_the_table_does(
    target: Target, before: str, alteration: str, item: dict[str, Any]
) -> None:
    target.run(f"CREATE TABLE t ({before})")
    assert len(target.rejected(item)) == 1
    target.run(f"ALTER TABLE t {alteration}")
    assert target.rejected(item) == {}


def test_a_column_that_gets_not_null_is_noticed(users: Target) -> None:
    users.flush(put("users", 1, name="a", age=1))
    users.run("ALTER TABLE users ALTER COLUMN age SET NOT NULL")
    assert users.rejected(put("users", 1, name="b"), put("users", 2, name="c")) == {1: "23502"}
    assert users.rows("SELECT name, age FROM users") == [("b", 1)]


@pytest.mark.parametrize(
    ("old", "new", "value", "text"),
    [
        ("int", "bigint", 2**40, str(2**40)),
        ("int", "text", "abc", "abc"),
        ("varchar(3)", "text", "abcdef", "abcdef"),
        ("int", "numeric", 1.5, "1.5"),
        ("text", "int", 7, "7"),
        ("numeric(10,1)", "numeric(10,4)", 1.2345, "1.2345"),
        ("date", "timestamp", "2024-01-02 03:04:05", "2024-01-02 03:04:05"),
        ("real", "double precision", 0.1234567890123, "0.1234567890123"),
        ("timestamp(0)", "timestamp", "2024-01-02 03:04:05.678", "2024-01-02 03:04:05.678"),
    ],
)
def test_a_column_whose_type_changes_keeps_the_values_written_after_that(
    target: Target, old: str, new: str, value: Any, text: str
) -> None:
    target.run(f"CREATE TABLE t (id int PRIMARY KEY, v {old})")
    target.flush(put("t", 1, v=None))
    target.run(f"ALTER TABLE t ALTER COLUMN v TYPE {new} USING NULL")
    assert target.rejected(put("t", 1, v=value)) == {}
    assert target.rows("SELECT v::text FROM t") == [(text,)]


def test_a_foreign_key_that_begins_to_cascade_is_noticed(target: Target) -> None:
    family(target, "")
    target.flush(put("parents", 1, name="a"))
    target.run(
        "ALTER TABLE children DROP CONSTRAINT children_parent_fkey",
        "ALTER TABLE children ADD FOREIGN KEY (parent) REFERENCES parents ON DELETE CASCADE",
    )
    items = [
        put("children", 10, parent=1),
        delete("parents", 1),
        put("parents", 1),
        put("children", 11, parent=1),
    ]
    assert target.rejected(*items) == {}
    assert target.rows("SELECT id FROM children") == [(11,)]


# Superseded dead letters.


def superseded(target: Target) -> list[bool]:
    return [d.superseded for d in target.dead_letters()]


def test_a_later_write_of_the_row_supersedes_its_dead_letters(users: Target) -> None:
    users.flush(put("users", 1, age=-1), put("users", 2, age=-1))
    assert superseded(users) == [False, False]
    users.flush(put("users", 1, name="x"))
    assert superseded(users) == [True, False]
    users.flush(delete("users", 2))
    assert superseded(users) == [True, True]


def test_a_later_write_of_the_same_batch_supersedes_and_an_earlier_one_does_not(users: Target) -> None:
    users.flush(
        put("users", 1, age=-1),
        put("users", 1, name="later"),
        put("users", 2, name="earlier"),
        put("users", 2, age=-1),
    )
    assert {d.position: d.superseded for d in users.dead_letters()} == {0: True, 3: False}


def test_a_write_that_is_rejected_too_supersedes_nothing(users: Target) -> None:
    users.flush(put("users", 1, age=-1))
    users.flush(put("users", 1, age=-2))
    assert superseded(users) == [False, False]


def test_the_next_owner_supersedes_the_dead_letters_of_the_last(users: Target) -> None:
    users.flush(put("users", 1, age=-1))
    Target(users.conn, users.queue).flush(put("users", "1", name="x"))
    assert superseded(users) == [True]


def test_another_queue_supersedes_nothing_of_ours(users: Target) -> None:
    users.flush(put("users", 1, age=-1))
    Target(users.conn, users.queue + ":other").flush(put("users", 1, name="x"))
    assert superseded(users) == [False]


def test_a_dead_letter_for_an_unknown_column_is_superseded_as_well(users: Target) -> None:
    """Else a retry, once the column exists, would bring back an older name."""
    users.flush(put("users", 1, name="old", nick="x"))
    users.flush(put("users", 1, name="new"))
    assert superseded(users) == [True]


@pytest.mark.parametrize(
    ("type", "first", "again"),
    [
        ("numeric", 1.0, "1.00"),
        ("citext", "Ada", "ADA"),
        ("date", "2024-01-02", "20240102"),
        ("char(4)", "a", "a  "),
    ],
)
def test_a_dead_letter_is_superseded_however_its_key_is_spelt(
    target: Target, type: str, first: Any, again: Any
) -> None:
    if type == "citext":
        with_extension(target, "citext")
    target.run(f"CREATE TABLE t (id {type} PRIMARY KEY, n int CHECK (n > 0))")
    assert target.rejected(put("t", first, n=-1)) == {0: "23514"}
    assert target.rejected(put("t", again, n=1)) == {}
    assert superseded(target) == [True]


def with_extension(target: Target, name: str) -> None:
    try:
        target.run(f"CREATE EXTENSION {name}")
    except pg_errors.FeatureNotSupported:
        pytest.skip(f"this Postgres has no extension {name}")


# Through the whole pipeline.


def test_garbage_in_the_list_does_not_stop_a_running_worker(
    redis_url: str, redis_client: redis.Redis, postgres_url: str, pg: psycopg.Connection, queue: str
) -> None:
    pg.execute(USERS.encode())
    with RunningWorker(redis_url=redis_url, postgres_url=postgres_url, queue=queue):
        for i, garbage in enumerate(GARBAGE):
            redis_client.lpush(queue, garbage, as_bytes(put("users", 100 + i, name="good")))
        count = "SELECT count(*) FROM users WHERE name = 'good'"
        wait_until(lambda: pg.execute(count).fetchone() == (len(GARBAGE),), timeout=5)
        letters = "SELECT count(*) FROM writebehind.dead_letters"
        assert pg.execute(letters.encode()).fetchone() == (len(GARBAGE),)


def test_a_time_to_live_that_redis_cannot_hold_does_not_stop_the_queue(
    redis_url: str, redis_client: redis.Redis, postgres_url: str, pg: psycopg.Connection, queue: str
) -> None:
    pg.execute(USERS.encode())
    with RunningWorker(redis_url=redis_url, postgres_url=postgres_url, queue=queue):
        with contextlib.suppress(ValueError):  # refused at once: as good
            WriteBehind(redis_client, queue=queue, ttl=2**62).put("users", 1, {"name": "x"})
        WriteBehind(redis_client, queue=queue).put("users", 2, {"name": "x"}).wait(timeout=5)
