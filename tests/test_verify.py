"""`writebehind verify`: what differs is found, what is under way is not, and repair removes just that."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import random
import threading
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import psycopg
import pytest
import redis
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.reader import begin_fill
from tests.support.replica import PostgresPair
from tests.support.rows import DOWN_POSTGRES, DOWN_REDIS, Rows
from tests.support.workers import RunningWorker
from tests.test_types import EXACT, UNICODE

from writebehind import WriteBehind
from writebehind.identity import TableKey
from writebehind.keys import QueueKeys
from writebehind_worker.cache_names import CacheNames
from writebehind_worker.cached_entry import read_entries
from writebehind_worker.catalog import load_catalog
from writebehind_worker.cli import cli
from writebehind_worker.known_tables import KnownTables, read_published
from writebehind_worker.other_queues import is_of_a_queue
from writebehind_worker.postgres import connect as connect_postgres
from writebehind_worker.resharding import divide
from writebehind_worker.row_comparison import CachedRow, RowComparison
from writebehind_worker.testing.wait import wait_until
from writebehind_worker.verify import Verification


@pytest.fixture(autouse=True)
def users(pg: psycopg.Connection[Any]) -> None:
    pg.execute("CREATE TABLE users (id bigint PRIMARY KEY, name text, email text, logins int)")
    pg.execute('CREATE TABLE lines ("order" int, line text, n int, PRIMARY KEY (line, "order"))')


def faults(found: dict[str, Any]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Cache key without the prefix → what is wrong."""
    return {d["key"].partition(":queue:")[2]: (d["fault"], tuple(d["columns"])) for d in found["differences"]}


def counts(found: dict[str, Any]) -> dict[str, int]:
    return {name: count for name, count in found.items() if type(count) is int and count}


# What differs is found.


def test_everything_agrees_after_every_operation(rows: Rows) -> None:
    for i in range(20):
        rows.wb.put("users", i, {"name": f"name {i}", "logins": 1})
        rows.wb.put("lines", {"order": i, "line": f"a:{i}%3A"}, {"n": i})
    rows.wb.patch("users", 1, {"email": UNICODE})
    rows.wb.increment("users", 2, {"logins": 5})
    rows.wb.delete("users", 3)
    rows.wb.get("users", 99, lambda _: None)
    rows.flush()
    rows.pg.execute("INSERT INTO users VALUES (50, 'loaded')")
    rows.wb.get("users", 50, lambda _: {"id": 50, "name": "loaded", "email": None})
    found = rows.verify()
    assert counts(found) == {"entries": 42, "agree": 42}
    assert found["exit_code"] == 0


def test_a_row_that_is_being_refreshed_is_a_row(rows: Rows, connect: Callable[..., WriteBehind]) -> None:
    wb = connect(refresh_ahead=30, ttl=60)
    rows.pg.execute("INSERT INTO users VALUES (1, 'Ada')")
    wb.get("users", 1, lambda _: {"id": 1, "name": "Ada"})
    rows.client.expire(rows.name("users:1"), 20)

    def load(_: Any) -> dict[str, Any]:
        assert rows.client.hexists(rows.name("users:1"), "@refresh")
        assert counts(rows.verify()) == {"entries": 1, "agree": 1}
        explained = rows.explain("users", "1")
        assert (explained["cache"]["kind"], explained["exit_code"]) == ("row", 0)
        wb.patch("users", 1, {"email": "a@example.com"})
        rows.flush()  # settled beside the token
        assert counts(rows.verify()) == {"entries": 1, "agree": 1}
        return {"id": 1, "name": "Ada"}

    rows.flush()
    wb.get("users", 1, load)
    assert counts(rows.verify()) == {"entries": 1, "agree": 1}


def test_each_kind_of_difference(rows: Rows) -> None:
    for i in range(1, 9):
        rows.wb.put("users", i, {"name": "secret", "logins": 1})
    rows.wb.delete("users", 5)
    rows.wb.put("lines", {"order": 1, "line": "x"}, {"n": 1})
    rows.flush()
    rows.wb.get("users", 9, lambda _: None)
    rows.pg.execute("UPDATE users SET name = 'Eve', email = 'e', logins = 2 WHERE id = 1")
    rows.pg.execute("UPDATE users SET logins = NULL WHERE id = 2")
    rows.pg.execute("DELETE FROM users WHERE id = 3")
    rows.pg.execute("INSERT INTO users VALUES (5), (9)")
    rows.pg.execute("UPDATE lines SET n = 2")
    rows.client.hset(rows.name("users:4"), "logins", "many")
    rows.client.hset(rows.name("users:6"), "name", '"x"},{"k0":"1"')
    rows.client.hset(rows.name("users:7"), "logins", '"many"')
    rows.client.persist(rows.name("users:8"))
    found = rows.verify()
    assert faults(found) == {
        "users:1": ("columns", ("name", "logins")),
        "users:2": ("columns", ("logins",)),
        "users:3": ("missing", ()),
        "users:4": ("columns", ("logins",)),
        "users:5": ("exists", ()),
        "users:6": ("columns", ("name",)),
        "users:7": ("columns", ("logins",)),
        "users:8": ("stuck", ()),
        "users:9": ("exists", ()),
        "lines:x:1": ("columns", ("n",)),
    }
    assert counts(found) == {"entries": 10, "differ": 10, "exit_code": 1}
    text = rows.run("verify", "--all", "--prefix", rows.prefix)
    assert text.exit_code == 1
    assert "users:2: column logins differs in public.users; it expires in" in text.output
    assert "users:8: it has no time to live, though its write is settled; it never expires" in text.output
    assert "`writebehind verify --all --repair`" in text.output
    assert "secret" not in text.output


def test_repair_removes_what_differs_and_nothing_else_and_readers_load_it(rows: Rows) -> None:
    for i in range(1, 6):
        rows.wb.put("users", i, {"name": "x"})
    rows.flush()
    rows.pg.execute("UPDATE users SET name = 'Eve' WHERE id = 2")
    rows.client.persist(rows.name("users:3"))
    before = rows.pg.execute("SELECT *, xmin FROM users ORDER BY id").fetchall()
    found = rows.verify("--repair")
    assert (found["exit_code"], found["differ"], found["repaired"]) == (0, 2, 2)
    assert sorted(rows.client.keys(rows.name("*"))) == [rows.name(f"users:{i}").encode() for i in (1, 4, 5)]
    assert rows.pg.execute("SELECT *, xmin FROM users ORDER BY id").fetchall() == before
    assert rows.wb.get("users", 2, lambda _: {"name": "Eve"}) == {"name": "Eve"}
    assert counts(rows.verify()) == {"entries": 4, "agree": 4}
    rows.pg.execute("UPDATE users SET name = 'Eve' WHERE id = 1")
    text = rows.run("verify", "--all", "--repair", "--prefix", rows.prefix)
    assert (text.exit_code, "1 removed from the cache" in text.output) == (0, True)


def test_what_was_touched_since_it_was_compared_is_not_removed(rows: Rows) -> None:
    for i in range(1, 5):
        rows.wb.put("users", i, {"name": "x"})
    rows.flush()
    rows.pg.execute("UPDATE users SET name = 'Eve'")
    with connect_postgres(rows.options["postgres_url"]) as conn:
        known = KnownTables(load_catalog(conn), read_published(rows.client, rows.keys))
        verification = Verification(
            rows.client, rows.keys, CacheNames(rows.prefix), known, RowComparison(conn)
        )
        (names,) = verification.all_names()
        found = {d.entry.name.decode().rpartition(":")[2]: d for d in verification.check(names)}
        assert len(found) == 4
        rows.wb.put("users", 1, {"name": "x"})  # the same row once more: it is pending again
        rows.client.pexpire(rows.name("users:2"), 3_599_000)
        rows.client.hset(rows.name("users:3"), "logins", "1")
        assert [verification.repair(found[id]) for id in "1234"] == [False, False, False, True]
        assert len(rows.client.keys(rows.name("*"))) == 3
        assert not verification.repair(found["4"])


# What is under way is no difference.


def test_pending_entries_are_skipped_and_counted(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "x"})
    rows.flush()
    for i in range(2, 5):
        rows.wb.put("users", i, {"name": "x"})
    rows.wb.increment("users", 5, {"logins": 1})
    rows.wb.delete("users", 6)
    begin_fill(rows.wb, rows.name("users:7"), "token")
    found = rows.verify("--repair")
    assert counts(found) == {"entries": 7, "agree": 1, "pending": 5, "filling": 1}
    rows.flush()
    assert counts(rows.verify()) == {"entries": 6, "agree": 5, "filling": 1}


@pytest.mark.parametrize("point", ["settle:before:1", "acknowledge:before:1"])
def test_between_commit_and_acknowledgement_nothing_differs(rows: Rows, point: str) -> None:
    for i in range(3):
        rows.wb.put("users", i, {"name": "x"})
    with rows.process(point) as worker:
        worker.wait_for_end()
    found = rows.verify("--repair")
    assert found["agree"] + found["pending"] == found["entries"] == 3


def test_after_redis_went_back_what_waits_is_pending(rows: Rows) -> None:
    """A new generation raises `applied` beyond writes that still wait."""
    rows.wb.put("users", 1, {"name": "x"})
    rows.flush()
    rows.wb.put("users", 2, {"name": "x"})
    seq = int(rows.client.hget(rows.keys.clock, "seq") or 0)
    rows.client.set(rows.keys.applied, seq)
    rows.client.hset(rows.keys.clock, "generation", seq + 1)
    found = rows.verify("--repair")
    assert counts(found) == {"entries": 2, "agree": 1, "pending": 1}


def test_under_load_with_a_running_worker_there_is_no_false_alarm(rows: Rows) -> None:
    """Writes of all kinds, readers that fill, invalidations; every look must come to no difference."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def use(seed: int) -> None:
        chance = random.Random(seed)
        with (
            psycopg.connect(rows.options["postgres_url"], autocommit=True) as conn,
            WriteBehind.from_url(
                rows.options["redis_url"], queue=rows.queue, prefix=rows.prefix, ttl=2
            ) as wb,
        ):

            def load(id: int) -> dict[str, Any] | None:
                row = conn.execute("SELECT name, logins FROM users WHERE id = %s", [id]).fetchone()
                return {"name": row[0], "logins": row[1]} if row else None

            while not stop.is_set():
                id = chance.randrange(40)
                what = chance.randrange(10)
                if what < 3:
                    wb.put("users", id, {"name": f"{chance.random()}", "logins": chance.randrange(9)})
                elif what < 5:
                    wb.increment("users", id, {"logins": 1})
                elif what == 5:
                    wb.delete("users", id)
                elif what == 6:
                    wb.invalidate("users", id)
                else:
                    wb.get("users", id, load, timeout=10)

    def guarded(seed: int) -> None:
        try:
            use(seed)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(seed,)) for seed in range(3)]
    agree = pending = looks = 0
    with rows.process(batch_size=20):
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: rows.verify()["agree"])
            for looks in itertools.count(1):
                found = rows.verify()
                assert found["differ"] == 0, found
                agree, pending = agree + found["agree"], pending + found["pending"]
                if looks >= 30 and agree > 100 and pending:
                    break
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert not errors
    rows.flush()
    assert rows.verify()["differ"] == 0
    rows.pg.execute("UPDATE users SET name = 'Eve'")
    rows.pg.execute("INSERT INTO users SELECT n, 'Eve' FROM generate_series(0, 39) n ON CONFLICT DO NOTHING")
    assert rows.verify()["agree"] == 0, "this test could not fail"


# By Postgres' own notion of equality.


def test_every_type_of_the_tests_agrees_as_it_was_put_and_as_a_loader_gives_it(rows: Rows) -> None:
    for statement in (
        "CREATE TYPE mood AS ENUM ('sad', 'ok')",
        "CREATE DOMAIN percent AS numeric(5,2) CHECK (VALUE BETWEEN 0 AND 100)",
        "CREATE DOMAIN name_of AS text NOT NULL",
        "CREATE TYPE address AS (street text, number int)",
    ):
        rows.pg.execute(statement.encode())
    for i, (type, value, _) in enumerate(EXACT):
        rows.pg.execute(f"CREATE TABLE t{i} (id int PRIMARY KEY, v {type}, w {type})".encode())
        rows.wb.put(f"t{i}", 1, {"v": value, "w": value})
        rows.wb.put(f"t{i}", 2, {"v": value, "w": value})
    rows.flush()
    for i in range(len(EXACT)):
        answer = rows.pg.execute(f"SELECT to_json(t)::text FROM t{i} t WHERE id = 2".encode()).fetchone()
        assert answer is not None
        row = json.loads(answer[0], parse_float=Decimal)
        rows.wb.invalidate(f"t{i}", 2)
        rows.wb.get(f"t{i}", 2, lambda _, row=row: row)  # type: ignore[misc]
    found = rows.verify()
    assert faults(found) == {}
    assert counts(found) == {"entries": 2 * len(EXACT), "agree": 2 * len(EXACT)}


LOOSE: list[tuple[str, Any, str, bool]] = [
    ("numeric", "1.0", "1.00", True),
    ("numeric", "1.0", "1.001", False),
    ("numeric(5,2)", "1.234", "1.23", True),
    ("real", "0.1", "0.1", True),
    ("double precision", "-0.0", "0", True),
    ("double precision", '"NaN"', "NaN", True),
    ("double precision", "0.1", "0.10000000000000002", False),
    ("timestamptz", '"2024-01-01T03:00:00+03:00"', "2024-01-01 00:00:00Z", True),
    ("timestamptz", '"2024-01-01T03:00:00+03:00"', "2024-01-01 00:00:00.000001Z", False),
    ("interval", '"30 days"', "1 mon", True),
    ("interval", '"31 days"', "1 mon", False),
    ("char(4)", '"ab"', "ab", True),
    ("char(4)", '"ab"', "a", False),
    ("text", '"ab"', "ab ", False),
    ("text", '"null"', "null", True),
    ("jsonb", '{"b":1.0,"a":[]}', '{"a": [], "b": 1.00}', True),
    ("jsonb", "null", "null", True),
    ("jsonb", '{"a":1}', '{"a":2}', False),
    ("json", '{"a":1}', ' { "a" : 1.0 }', True),
    ("json", '"\\u0000"', '"\\u0001"', False),
    ("json", "1", '"\\u0000"', False),
    ("bytea", '"\\\\x6869"', "hi", True),
    ("box", '"(1,1),(0,0)"', "(3,3),(2,2)", False),  # to the operator = these are one: the same area
    ("point", '"(1,2)"', "(1,2)", True),
    ("point", '"(1,2)"', "(1,3)", False),
    ("json[]", '[{"a":1}]', '{"{\\"a\\": 1}"}', True),
    ("json[]", '[{"a":1}]', '{"{\\"a\\": 2}"}', False),
    ("int[]", "[1,null]", "{1,NULL}", True),
    ("int[]", "[1,2]", "{2,1}", False),
    ("int", '"x"', "1", False),
    ("int", "null", "1", False),
    ("bigint", "9007199254740993", "9007199254740992", False),
    ("text", '"\\ud800"', "x", False),
]  # fmt: skip


def test_values_are_equal_as_postgres_says_and_as_readers_see_it(rows: Rows) -> None:
    with connect_postgres(rows.options["postgres_url"]) as conn:
        for i, (type, cached, stored, same) in enumerate(LOOSE):
            rows.pg.execute(f"CREATE TABLE t{i} (id int PRIMARY KEY, v {type}, other int)".encode())
            rows.pg.execute(f"INSERT INTO t{i} VALUES (1, %s::{type}, 5)".encode(), [stored])
            table = load_catalog(conn, (f"t{i}",)).tables[f"t{i}"]
            row = CachedRow({"id": "1"}, {"other": b"5", "v": cached.encode()})
            (compared,) = RowComparison(conn)(table, [row])
            assert compared.exists
            assert compared.differ == (() if same else ("v",)), (type, cached, stored)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
WHOLE = st.fixed_dictionaries(
    {},
    optional={
        "j": JSON,
        "b": JSON,
        "t": st.none() | TEXT,
        "c": st.none() | st.text("ab é", max_size=4),
        "i": st.none() | st.integers(-(2**63), 2**63 - 1),
        "n": st.none() | st.decimals(allow_nan=False, allow_infinity=False, places=5),
        "m": st.none() | st.decimals(-999, 999, allow_nan=False, places=4),
        "f": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "r": st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False),
        "o": st.none() | st.booleans(),
        "d": st.none() | st.dates(),
        "z": st.none() | st.datetimes(timezones=st.just(dt.UTC), min_value=dt.datetime(1900, 1, 1)),
        "v": st.none() | st.timedeltas(dt.timedelta(-9999), dt.timedelta(9999)),
        "u": st.none() | st.uuids(),
        "y": st.none() | st.binary(max_size=20),
        "a": st.none() | st.lists(st.none() | TEXT, max_size=3),
    },
)
COLUMNS = (
    "j json, b jsonb, t text, c char(4), i bigint, n numeric, m numeric(8,2), f float8, r real, o boolean, "
    "d date, z timestamptz, v interval, u uuid, y bytea, a text[]"
)


def test_whatever_is_put_and_flushed_agrees(rows: Rows) -> None:
    rows.pg.execute(f"CREATE TABLE wide (id text PRIMARY KEY, {COLUMNS})".encode())

    @settings(max_examples=20)
    @given(st.lists(st.tuples(TEXT.filter(bool), WHOLE), min_size=1, max_size=60))
    def agrees(puts: list[tuple[str, dict[str, Any]]]) -> None:
        rows.pg.execute("TRUNCATE wide")
        for name in rows.client.scan_iter(rows.name("*")):
            rows.client.delete(name)
        with rows.wb.batch() as batch:
            for id, data in puts:
                batch.put("wide", id, data)
        batch.wait(10)
        found = rows.verify()
        assert counts(found) == {"entries": len(dict(puts)), "agree": len(dict(puts))}, found

    with rows.process():
        agrees()


def test_columns_that_the_entry_lacks_or_the_table_does(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "x"})
    rows.flush()
    rows.pg.execute("UPDATE users SET logins = 7")  # not in the entry: no difference
    rows.wb.get("users", 2, lambda _: {"name": "x", "computed": 1})
    rows.pg.execute("INSERT INTO users VALUES (2, 'x')")
    found = rows.verify()
    assert counts(found) == {"entries": 2, "agree": 2}
    assert found["unknown_columns"] == {"public.users.computed": 1}
    assert "no such columns: public.users.computed" in rows.run("verify", "--prefix", rows.prefix).output


def test_on_a_terminal_there_is_a_bar_and_what_is_printed_is_apart_from_it(rows: Rows) -> None:
    for i in range(3):
        rows.wb.put("users", i, {"name": "x"})
    rows.flush()
    rows.pg.execute("UPDATE users SET name = 'y' WHERE id = 1")
    code, printed, shown = rows.on_terminal("verify", "--all", "--prefix", rows.prefix)
    assert (code, "3 cache entries: 2 agree with Postgres, 1 differ" in printed) == (1, True)
    assert "━" in shown
    assert "3 entries looked at, 1 differ" in shown
    assert "differ" not in shown.rpartition("3 entries looked at, 1 differ")[2], "the bar is gone at the end"


# Which keys are looked at.


def test_other_keys_are_left_alone(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "x"})
    rows.flush()
    rows.client.set(rows.name("users:2"), "a string")
    rows.client.rpush(rows.name("users:3"), "a list")
    rows.client.hset(rows.name("users:4"), "name", "a hash of somebody else's")
    rows.client.hset(rows.name("users:5"), mapping={b"\xff": "x", "@seq": "1"})
    rows.client.set(rows.name("sessions:1"), "x")
    rows.client.set(rows.name("nothing"), "x")
    rows.client.set(rows.name("users:").encode() + b"\xff", "x")
    rows.client.hset(rows.name("lines:1:2:3"), "@seq", "0")
    found = rows.verify("--repair")
    assert counts(found) == {"entries": 5, "agree": 1, "foreign": 4, "unknown_keys": 2}
    assert found["unknown_tables"] == {"sessions": 1, "lines": 1}
    assert len(rows.client.keys(rows.name("*"))) == 9


@pytest.mark.parametrize("own", ["q", "{a}q"])
@pytest.mark.parametrize("shard", ["", ":1of4"])
def test_keys_of_queues_are_no_cache_keys(own: str, shard: str) -> None:
    for queue in (own, "other", "db:write:{other}:queue"):
        keys = QueueKeys(queue + shard)
        for key in (
            keys.clock,
            keys.inflight,
            keys.layout,
            keys.processing(7),
            keys.lock("a:b"),
            keys.session_seqs,
        ):
            assert is_of_a_queue(key, own), key
    assert is_of_a_queue(own + shard, own)
    for key in (
        "other",
        f"{own}s",
        f"{own}:1of4x",
        "{q}:users:1",
        "{q}:clock:1",
        "users:1",
        "clock",
        "x:{q}:clock",
    ):
        assert not is_of_a_queue(key, own), key


def test_keys_of_shards_are_not_taken_for_those_of_another_prefix(rows: Rows) -> None:
    divide(rows.client, rows.keys, 4)
    with WriteBehind(rows.client, queue=rows.queue, shards=None) as wb:
        for i in range(20):
            wb.put("users", i, {"name": "x"})
    rows.client.hset(f"{{{rows.queue}}}s:1", "name", "x")
    found = rows.run("verify", "--json", "--all", "--prefix", f"{{{rows.queue[:-1]}")
    assert json.loads(found.stdout)["unknown_tables"] == {f"{rows.queue[-1]}}}s": 1}


@pytest.mark.parametrize("shards", [None, 2])
def test_the_list_of_another_queue_is_not_taken_for_an_entry_of_another_prefix(
    shards: int | None, rows: Rows
) -> None:
    other = f"{rows.queue}:orders:queue"
    if shards is not None:
        divide(rows.client, QueueKeys(other), shards)
    with WriteBehind(rows.client, queue=other, shards=None) as wb:
        for i in range(20):
            wb.put("users", i, {"name": "x"})
    rows.client.lpush(other, "raw")
    rows.client.hset(f"{rows.queue}:elsewhere:1", "name", "x")
    found = json.loads(rows.run("verify", "--json", "--all", "--prefix", f"{rows.queue}:").stdout)
    assert found["unknown_tables"] == {"elsewhere": 1}


def test_without_the_right_prefix_nothing_is_compared_and_it_says_so(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "x"})
    rows.flush()
    result = rows.run("verify", "--prefix", "elsewhere:")
    assert "Nothing was compared: no key that begins with 'elsewhere:'" in result.output
    result = rows.run("verify", "--prefix", rows.prefix.removesuffix("queue:"))
    assert "name no known table: 'queue'" in result.output


def test_a_version_and_a_prefix_with_signs_of_patterns(rows: Rows, connect: Any) -> None:
    prefix = f"{rows.prefix}[a]*?\\:"
    connect(prefix=prefix, version=2).put("users", 1, {"name": "x"})
    connect(prefix=f"{rows.prefix}ab:", version=2).put("users", 2, {"name": "x"})
    rows.flush()
    for result in (
        rows.run("verify", "--json", "--prefix", prefix, "--version", "2"),
        rows.run("verify", "--json", "--prefix", f"{prefix}v2:"),
    ):
        assert counts(json.loads(result.stdout)) == {"entries": 1, "agree": 1}


def test_a_sample_is_drawn_at_random_from_all(rows: Rows) -> None:
    with rows.wb.batch() as batch:
        for i in range(1500):
            batch.put("users", i, {"name": "x"})
    rows.flush()
    rows.pg.execute("UPDATE users SET name = 'Eve'")
    seen = [frozenset(faults(rows.verify("--sample", "20", all=False))) for _ in range(2)]
    assert [len(keys) for keys in seen] == [20, 20]
    assert seen[0] != seen[1]
    assert rows.verify(all=False)["entries"] == 1000
    found = rows.verify("--repair")
    assert (found["differ"], found["repaired"], len(found["differences"])) == (1500, 1500, 1000)


def test_only_the_tables_that_are_named(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "x"})
    rows.wb.put("lines", {"order": 1, "line": "x"}, {"n": 1})
    rows.flush()
    assert rows.verify("--table", "public.users")["entries"] == 1
    assert rows.verify("--table", "users", "--table", "lines")["entries"] == 2
    result = rows.run("verify", "--table", "usres")
    assert (result.exit_code, "there is no such table" in result.output) == (2, True)


def test_names_are_those_of_the_worker_whose_search_path_may_be_another(rows: Rows) -> None:
    rows.pg.execute("CREATE SCHEMA app")
    rows.pg.execute("CREATE TABLE app.users (id bigint PRIMARY KEY, name text)")
    rows.pg.execute("INSERT INTO users VALUES (1, 'another table')")
    where = rows.options["postgres_url"]
    with_path = f"{where}{'&' if '?' in where else '?'}options=-csearch_path%3Dapp"
    rows.wb.put("users", 1, {"name": "x"})
    with rows.process(postgres_url=with_path):
        wait_until(lambda: rows.pg.execute("SELECT FROM app.users").fetchone() is not None)
        wait_until(lambda: not rows.client.llen(rows.keys.inflight))
    assert counts(rows.verify()) == {"entries": 1, "agree": 1}
    assert rows.explain("users", "1")["table"] == "app.users"


@pytest.mark.parametrize("key", ["queue", "inflight", "tables", "applied", "clock"])
def test_keys_of_a_wrong_type_are_an_error_and_no_traceback(rows: Rows, key: str) -> None:
    rows.wb.put("users", 1, {"name": "x"})
    name = getattr(rows.keys, key)
    rows.client.delete(name)
    rows.client.geoadd(name, (1, 1, "x"))
    result = rows.run("verify", "--prefix", rows.prefix)
    assert (result.exit_code, "WRONGTYPE" in result.output) == (2, True)


def test_a_server_that_is_down(rows: Rows) -> None:
    for options in ({"redis_url": DOWN_REDIS}, {"postgres_url": DOWN_POSTGRES}):
        result = rows.run("verify", **options)
        assert (result.exit_code, "127.0.0.1:1" in result.output) == (2, True)
        assert "hunter2" not in result.output


def test_rows_that_the_role_cannot_see_are_no_differences(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "x"})
    rows.flush()
    role = f"r{rows.options['postgres_url'].rpartition('_')[2]}"
    rows.pg.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'".encode())
    try:
        url = f"{rows.options['postgres_url']}?user={role}&password=x"
        result = rows.run("verify", "--prefix", rows.prefix, postgres_url=url)
        assert (result.exit_code, "GRANT SELECT ON" in result.output) == (2, True)
        rows.pg.execute(f"GRANT SELECT ON users TO {role}".encode())
        assert rows.verify(postgres_url=url)["agree"] == 1
        rows.pg.execute("ALTER TABLE users ENABLE ROW LEVEL SECURITY")
        result = rows.run("verify", "--prefix", rows.prefix, postgres_url=url)
        assert (result.exit_code, "row-level security hides rows" in result.output) == (2, True)
    finally:
        rows.pg.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_a_standby_may_be_behind_and_is_refused(redis_url: str, queue: str) -> None:
    with PostgresPair() as pair:
        result = CliRunner().invoke(
            cli, ["verify", "--redis-url", redis_url, "--queue", queue, "--postgres-url", pair.standby.url]
        )
    assert (result.exit_code, "Postgres is a standby here" in result.output) == (2, True), result.output


def test_sample_and_all_contradict_each_other(rows: Rows) -> None:
    assert rows.run("verify", "--all", "--sample", "5").exit_code == 2


# Two queues in one Redis.


@pytest.mark.parametrize("other", ["other", "{other}"])
def test_a_write_that_another_queue_has_is_pending(rows: Rows, redis_url: str, other: str) -> None:
    """Its seq may be smaller than those that this queue has settled."""
    other = f"{rows.queue}:{other}"
    with WriteBehind.from_url(redis_url, queue=other, prefix=rows.prefix) as wb:
        wb.put("users", 1, {"name": "x"})
        rows.wb.put("users", 2, {"name": "x"})
        rows.wb.put("users", 3, {"name": "x"})
        rows.flush()
        rows.client.persist(rows.name("users:3"))  # the other queue has given no such seq
        for arguments in ((), ("--repair",)):
            found = rows.verify(*arguments)
            assert faults(found) == {"users:3": ("stuck", ())}
            assert (found["agree"], found["pending"], found["entries"]) == (1, 1, 3)
        assert rows.client.exists(rows.name("users:1"))
        with RunningWorker(**{**rows.options, "queue": other}):
            wait_until(lambda: rows.client.ttl(rows.name("users:1")) > 0)
        found = rows.verify()
        assert (found["agree"], found["entries"]) == (2, 2)
        rows.client.persist(rows.name("users:1"))
        assert faults(rows.verify("--repair")) == {"users:1": ("stuck", ())}
        assert not rows.client.exists(rows.name("users:1"))


@pytest.mark.parametrize("change", ["type", "seq"])
def test_another_queue_that_cannot_be_read_may_have_any_write(rows: Rows, change: str) -> None:
    rows.wb.put("users", 1, {"name": "x"})
    rows.flush()
    rows.client.persist(rows.name("users:1"))
    other = QueueKeys(f"{rows.queue}:other")
    rows.client.hset(other.clock, "seq", "1" if change == "type" else "many")
    if change == "type":
        rows.client.hset(other.applied, "a", "b")
    assert counts(rows.verify("--repair")) == {"entries": 1, "pending": 1}
    rows.client.delete(other.clock)
    assert counts(rows.verify("--repair")) == {"entries": 1, "differ": 1, "repaired": 1}


def test_keys_that_only_look_like_a_queues_clock_do_not_matter(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "x"})
    rows.flush()
    rows.client.persist(rows.name("users:1"))
    rows.client.set(QueueKeys(f"{rows.queue}:other").clock, "a string")
    rows.client.hset(rows.name("alarm:clock"), "seq", "many")
    assert rows.verify()["differ"] == 1


# Tables that inherit.


def test_a_table_and_those_that_inherit_from_it_may_have_the_same_key(rows: Rows) -> None:
    rows.pg.execute("CREATE TABLE guests (room int) INHERITS (users)")
    rows.wb.put("users", 1, {"name": "x", "logins": 1})
    rows.wb.put("users", 2, {"name": "x"})
    rows.flush()
    rows.pg.execute("INSERT INTO guests VALUES (1, 'other'), (1, 'another'), (3, 'x')")
    rows.pg.execute("UPDATE ONLY users SET name = 'Eve' WHERE id = 2")
    rows.wb.patch("users", 3, {"email": "e"})  # a child's row is updated as well
    rows.wb.put("lines", {"order": 1, "line": "x"}, {"n": 1})
    rows.flush()
    rows.wb.get("users", 3, lambda _: {"name": "x", "email": "e"})
    found = rows.verify()
    assert faults(found) == {"users:2": ("columns", ("name",))}
    assert counts(found) == {"entries": 4, "agree": 3, "differ": 1, "exit_code": 1}
    shown = rows.explain("users", "1", "--values")
    assert (shown["difference"], shown["row"]["name"]) == (None, '"x"')
    rows.wb.patch("users", 1, {"name": "y"})
    rows.flush()
    assert rows.verify("--repair")["agree"] == 3
    rows.wb.delete("users", 1)
    rows.flush()
    assert rows.explain("users", "1")["difference"] is None


# Pure parts.


@given(
    TEXT,
    st.none() | st.text("abc", max_size=3),
    TEXT.filter(bool),
    st.lists(TEXT.filter(bool), min_size=1),
)
def test_a_cache_key_is_taken_apart_as_it_was_made(
    prefix: str, version: str | None, table: str, values: list[str]
) -> None:
    names = CacheNames(prefix, version)
    key = {f"c{i}": value for i, value in enumerate(values)}
    made = names.name(TableKey(table), key)
    parts = names.parts(made.encode())
    assert parts is not None
    assert parts[0] == table
    if len(values) == 1:
        assert parts[1] == values[0]


def test_an_entry_is_read_with_what_the_queue_is_at_that_instant(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "x"})
    entry, nothing = read_entries(rows.client, rows.keys, [rows.name("users:1").encode(), b"nothing"])
    (moment,) = entry.moment.shards
    assert (entry.standing, nothing.standing, moment.is_idle) == ("pending", "absent", False)
    assert isinstance(rows.client, redis.Redis)
    assert Decimal(entry.entry.seq) > moment.applied
