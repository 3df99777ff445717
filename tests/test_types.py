"""Every type, name and key comes through library, worker and Postgres exactly as it was meant."""

from __future__ import annotations

import datetime as dt
import enum
import itertools
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql
from tests.support.workers import RunningWorker

from writebehind import WriteBehind, WriteRejected
from writebehind_worker.testing.servers import Servers

U = uuid.UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")


class Mood(enum.Enum):
    SAD = "sad"


@dataclass(frozen=True)
class Address:
    street: str
    number: int


class Pipeline:
    """One database and one worker for all tests here; each makes tables of its own."""

    def __init__(self, pg: psycopg.Connection, wb: WriteBehind) -> None:
        self.pg, self.wb = pg, wb
        self._numbers = itertools.count(1)

    def table(self, columns: str, after: str = "") -> str:
        name = f"t{next(self._numbers)}"
        self.run(f"CREATE TABLE {name} ({columns}) {after}")
        return name

    def run(self, *statements: str) -> None:
        for statement in statements:
            self.pg.execute(statement.encode())

    def put(self, table: str, id: Any, data: dict[str, Any]) -> None:
        self.wb.put(table, id, data).wait(timeout=10)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.pg.execute(query.encode()).fetchall()


@pytest.fixture(scope="module")
def pipeline(servers: Servers, template_database: str) -> Iterator[Pipeline]:
    name = f"wb_types_{uuid.uuid4().hex[:12]}"
    url = urlsplit(servers.postgres_url)._replace(path=f"/{name}").geturl()
    with psycopg.connect(servers.postgres_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template_database}".encode())
        try:
            with (
                psycopg.connect(url, autocommit=True) as pg,
                WriteBehind.from_url(servers.redis_url, queue=f"test:{name}", prefix=f"{name}:") as wb,
                RunningWorker(redis_url=servers.redis_url, postgres_url=url, queue=f"test:{name}"),
            ):
                pg.execute("SET TimeZone = 'UTC'")
                yield Pipeline(pg, wb)
                if not servers.ours:
                    wb.redis.delete(*wb.redis.keys(f"*{name}*"))
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(scope="module")
def types(pipeline: Pipeline) -> Pipeline:
    pipeline.run(
        "CREATE TYPE mood AS ENUM ('sad', 'ok')",
        "CREATE DOMAIN percent AS numeric(5,2) CHECK (VALUE BETWEEN 0 AND 100)",
        "CREATE DOMAIN name_of AS text NOT NULL",
        "CREATE TYPE address AS (street text, number int)",
    )
    return pipeline


# Values.

UNICODE = (
    "Ada \"double\" 'single' \\ back\\\\slash $1 %s %% {x} \t\r\n\x01\x7f é e\u0301 "
    "😀👩\u200d🚀 \u202e\ufeff\u2028 ﷺ 漢字"
)
DIGITS = "1234567890123456789012345678901234567890"
NESTED = {
    "b": [],
    "a": {},
    "list": [[], {}, [[1]], None, True],
    "big": 2**63,
    "n": Decimal(DIGITS),
    "t": UNICODE,
}

EXACT: list[tuple[str, Any, str]] = [
    ("bigint", 2**53 + 1, str(2**53 + 1)),
    ("bigint", 2**63 - 1, str(2**63 - 1)),
    ("bigint", -(2**63), str(-(2**63))),
    ("smallint", -32768, "-32768"),
    ("int", "42", "42"),
    ("numeric", Decimal(DIGITS), DIGITS),
    ("numeric", Decimal(f"-0.{DIGITS}"), f"-0.{DIGITS}"),
    ("numeric", Decimal("1.10"), "1.10"),
    ("numeric", Decimal("1E+5"), "100000"),
    ("numeric", "NaN", "NaN"),
    ("numeric(42,2)", Decimal(f"{DIGITS}.25"), f"{DIGITS}.25"),
    ("numeric(5,-2)", 12345, "12300"),
    ("double precision", 0.1, "0.1"),
    ("double precision", -0.0, "-0"),
    ("double precision", 5e-324, "5e-324"),
    ("double precision", 1.7976931348623157e308, "1.7976931348623157e+308"),
    ("double precision", "-Infinity", "-Infinity"),
    ("real", 0.1, "0.1"),
    ("real", -0.0, "-0"),
    ("boolean", True, "true"),
    ("boolean", False, "false"),
    ("text", UNICODE, UNICODE),
    ("text", "", ""),
    ("text", "null", "null"),
    ("text", 17, "17"),
    ("text", True, "true"),
    ("text", "x" * 500_000, "x" * 500_000),
    ("varchar(3)", "éé😀", "éé😀"),
    ("char(4)", "ab", "ab"),
    ("name", "n", "n"),
    ("bytea", bytes(range(256)), "\\x" + bytes(range(256)).hex()),
    ("bytea", b"", "\\x"),
    ("uuid", U, str(U)),
    ("uuid", str(U).upper(), str(U)),
    ("date", dt.date(1, 1, 1), "0001-01-01"),
    ("date", "infinity", "infinity"),
    ("date", "0044-03-15 BC", "0044-03-15 BC"),
    ("time", dt.time(23, 59, 59, 999_999), "23:59:59.999999"),
    ("timetz", dt.time(1, 2, 3, tzinfo=dt.UTC), "01:02:03+00"),
    ("timestamp", dt.datetime(9999, 12, 31, 23, 59, 59, 999_999), "9999-12-31 23:59:59.999999"),
    (
        "timestamptz",
        dt.datetime(2024, 3, 31, 1, 30, 0, 1, tzinfo=dt.timezone(dt.timedelta(hours=-3, minutes=-30))),
        "2024-03-31 05:00:00.000001+00",
    ),
    ("timestamptz", "2024-01-01T00:00:00Z", "2024-01-01 00:00:00+00"),
    ("interval", dt.timedelta(days=400, seconds=1, microseconds=5), "400 days 00:00:01.000005"),
    ("interval", "1 mon -2 days 00:00:03", "1 mon -2 days +00:00:03"),
    ("inet", "10.1.2.3/8", "10.1.2.3/8"),
    ("inet", "::1", "::1/128"),
    ("cidr", "10.0.0.0/8", "10.0.0.0/8"),
    ("macaddr", "08:00:2B:01:02:03", "08:00:2b:01:02:03"),
    ("bit(3)", "101", "101"),
    ("point", "(1.5,-2)", "(1.5,-2)"),
    ("int4range", "[1,5]", "[1,6)"),
    ("tsvector", "'a':1 'b':2", "'a':1 'b':2"),
    ("mood", "sad", "sad"),
    ("mood", Mood.SAD, "sad"),
    ("percent", Decimal("99.95"), "99.95"),
    ("name_of", "Ada", "Ada"),
    ("address", {"street": 'a,b"(', "number": 5}, '("a,b""(",5)'),
    ("address", Address("a", 5), "(a,5)"),
    ("address", {"street": None, "number": None}, "(,)"),
    ("address", "(a,5)", "(a,5)"),
    ("int[]", [1, None, -3], "{1,NULL,-3}"),
    ("int[]", [[1, 2], [3, 4]], "{{1,2},{3,4}}"),
    ("int[]", [], "{}"),
    ("int[]", "[0:1]={7,8}", "[0:1]={7,8}"),
    ("bigint[]", (2**60,), f"{{{2**60}}}"),
    ("text[]", ["a,b", '{"}', None, "NULL", "", "\\", "é"], '{"a,b","{\\"}",NULL,"NULL","","\\\\",é}'),
    ("text[]", [["a", None], ["c", "d"]], "{{a,NULL},{c,d}}"),
    ("numeric[]", [Decimal(DIGITS), Decimal("1.10")], f"{{{DIGITS},1.10}}"),
    ("mood[]", ["sad", "ok"], "{sad,ok}"),
    ("address[]", [{"street": "a", "number": 1}, None], '{"(a,1)",NULL}'),
    ("jsonb[]", [{"a": []}, None], '{"{\\"a\\": []}",NULL}'),
    ("json", {"b": 1, "a": [], "z": -0.0, "n": Decimal("1.10")}, '{"b":1,"a":[],"z":-0.0,"n":1.10}'),
    ("json", [], "[]"),
    ("json", "text", '"text"'),
    ("json", 5, "5"),
    ("json", False, "false"),
    ("jsonb", {"b": [], "a": {}, "n": Decimal(f"1.{DIGITS}")}, f'{{"a": {{}}, "b": [], "n": 1.{DIGITS}}}'),
    ("jsonb", 2**70, str(2**70)),
    ("jsonb", [[[]]], "[[[]]]"),
]  # fmt: skip


@pytest.mark.parametrize(("type", "value", "text"), EXACT, ids=lambda v: repr(v)[:40])
def test_a_value_arrives_exactly(types: Pipeline, type: str, value: Any, text: str) -> None:
    table = types.table(f"id int PRIMARY KEY, v {type}, w {type}")
    for _ in ("inserted", "updated"):
        types.put(table, 1, {"v": value, "w": value})
    types.wb.patch(table, 1, {"w": value}).wait(timeout=10)
    assert types.rows(f"SELECT v::text, w::text FROM {table}") == [(text, text)]


@pytest.mark.parametrize("type", sorted({type for type, _, _ in EXACT} - {"name_of"}))
def test_null_is_null_in_every_type(types: Pipeline, type: str) -> None:
    table = types.table(f"id int PRIMARY KEY, v {type}")
    types.put(table, 1, {"v": None})
    assert types.rows(f"SELECT v IS NULL FROM {table}") == [(True,)]


def test_nested_documents_come_back_as_they_were(types: Pipeline) -> None:
    table = types.table("id int PRIMARY KEY, j json, b jsonb")
    types.put(table, 1, {"j": NESTED, "b": NESTED})
    expected = NESTED | {"n": int(DIGITS)}
    assert types.rows(f"SELECT j, b FROM {table}") == [(expected, expected)]


@pytest.mark.parametrize(
    "value",
    [
        dt.timedelta(seconds=-1),
        dt.timedelta(days=-3, microseconds=7),
        dt.timedelta(0),
        dt.timedelta(days=999_999, seconds=86399, microseconds=999_999),
        -dt.timedelta(days=999_999, microseconds=1),
    ],
)
def test_a_timedelta_of_any_sign_is_the_same_interval(types: Pipeline, value: dt.timedelta) -> None:
    table = types.table("id int PRIMARY KEY, v interval")
    types.put(table, 1, {"v": value})
    assert types.rows(f"SELECT v FROM {table}") == [(value,)]


def test_money_is_exact_in_the_locale_of_the_server(types: Pipeline) -> None:
    table = types.table("id int PRIMARY KEY, v money")
    types.put(table, 1, {"v": Decimal("-1234567.89")})
    assert types.rows(f"SELECT v::numeric FROM {table}") == [(Decimal("-1234567.89"),)]


def test_a_fixed_width_text_is_padded_by_postgres(types: Pipeline) -> None:
    table = types.table("id int PRIMARY KEY, v char(4)")
    types.put(table, 1, {"v": "ab"})
    assert types.rows(f"SELECT octet_length(v) FROM {table}") == [(4,)]


def test_every_plane_of_unicode_is_kept(types: Pipeline) -> None:
    table = types.table("id int PRIMARY KEY, v text")
    points = [*range(1, 0x500), *range(0xD7F0, 0xD800), *range(0xE000, 0xE010), 0xFFFF, 0x10000, 0x10FFFF]
    text = "".join(map(chr, points))
    types.put(table, 1, {"v": text})
    assert types.rows(f"SELECT v FROM {table}") == [(text,)]


def test_a_nul_is_refused_since_postgres_has_none(types: Pipeline) -> None:
    table = types.table("id int PRIMARY KEY, v text")
    with pytest.raises(WriteRejected) as found:
        types.put(table, 1, {"v": "a\0b"})
    assert found.value.sqlstate == "22P05"


def test_increments_of_every_number_are_exact(types: Pipeline) -> None:
    table = types.table(
        "id int PRIMARY KEY, b bigint, n numeric, m numeric(10,2), f float8, r real, s smallint"
    )
    start = {"b": 2**53, "n": Decimal(DIGITS), "m": Decimal("0.10"), "f": 0.5, "r": 0.5, "s": -5}
    types.wb.put(table, 1, start)
    deltas = {"b": 1, "n": Decimal("0.1"), "m": Decimal("0.20"), "f": 0.25, "r": 0.25, "s": 7}
    types.wb.increment(table, 1, deltas).wait(timeout=10)
    types.wb.increment(table, 2, deltas).wait(timeout=10)
    assert types.rows(f"SELECT b, n::text, m::text, f, r, s FROM {table} ORDER BY id") == [
        (2**53 + 1, f"{DIGITS}.1", "0.30", 0.75, 0.75, 2),
        (1, "0.1", "0.20", 0.25, 0.25, 7),
    ]


# Columns that Postgres fills.


@pytest.mark.parametrize("kind", ["ALWAYS", "BY DEFAULT"])
def test_identity_columns_may_be_the_key_or_left_alone(pipeline: Pipeline, kind: str) -> None:
    table = pipeline.table(f"id bigint GENERATED {kind} AS IDENTITY PRIMARY KEY, v text")
    pipeline.put(table, 2**40, {"v": "a"})
    pipeline.put(table, 2**40, {"v": "b"})
    pipeline.wb.increment(
        pipeline.table(f"id int GENERATED {kind} AS IDENTITY PRIMARY KEY, n int"), 7, {"n": 1}
    )
    other = pipeline.table(f"id int PRIMARY KEY, number int GENERATED {kind} AS IDENTITY, v text")
    pipeline.put(other, 5, {"v": "a"})
    pipeline.put(other, 5, {"v": "b"})
    assert pipeline.rows(f"SELECT * FROM {table}") == [(2**40, "b")]
    # Any number: an attempt that is made again takes another one from the sequence.
    assert pipeline.rows(f"SELECT id, number > 0, v FROM {other}") == [(5, True, "b")]


def test_generated_and_defaulted_columns_are_left_alone(pipeline: Pipeline) -> None:
    table = pipeline.table(
        "id int PRIMARY KEY, a int DEFAULT 5, b int NOT NULL DEFAULT 7, s serial, "
        "made timestamptz NOT NULL DEFAULT now(), twice int GENERATED ALWAYS AS (a * 2) STORED, v text"
    )
    pipeline.put(table, 1, {"v": "x"})
    pipeline.put(table, 1, {"a": 6})
    assert pipeline.rows(f"SELECT a, b, s > 0, made IS NOT NULL, twice, v FROM {table}") == [
        (6, 7, True, True, 12, "x")
    ]


def test_a_generated_column_cannot_be_given(pipeline: Pipeline) -> None:
    table = pipeline.table("id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED")
    with pytest.raises(WriteRejected, match="generated by Postgres") as found:
        pipeline.put(table, 1, {"a": 1, "twice": 2})
    assert found.value.sqlstate == "428C9"


# Names.

NAMES = [
    "has space",
    "UPPER",
    'quo"te',
    '"',
    "apo'strophe",
    "do.t",
    "a.b.c",
    "per%cent",
    "%s",
    "%(x)s",
    "$1",
    "{0}",
    ":name",
    "semi;colon",
    "back\\slash",
    "select",
    "-- comment",
    "/* comment",
    "line\nbreak",
    "tab\t",
    "ünïcödé 漢字 😀",
    "@at",
    "@seq",
    " padded ",
    "x" * 63,
    "x'); DROP TABLE victim; --",
    'x"; DROP TABLE victim; --',
]


@pytest.fixture(scope="module")
def victim(pipeline: Pipeline) -> Pipeline:
    pipeline.run("CREATE TABLE victim (id int PRIMARY KEY)")
    return pipeline


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_table_and_its_columns_works_and_is_only_a_name(victim: Pipeline, name: str) -> None:
    key, column, table = (sql.Identifier(n) for n in (name, f"{name[:62]}2", name))
    statement = "CREATE TABLE {} ({} text PRIMARY KEY, {} int CHECK ({} < 100))"
    victim.pg.execute(sql.SQL(statement).format(table, key, column, column))
    wb, data = victim.wb, {f"{name[:62]}2": 1}
    wb.put(name, {name: name}, data)
    wb.put(name, "gone", data)
    wb.delete(name, "gone")
    wb.patch(name, name, data)
    wb.increment(name, name, data)
    with pytest.raises(WriteRejected):
        wb.increment(name, name, {f"{name[:62]}2": 100}).wait(timeout=10)
    assert victim.pg.execute(sql.SQL("SELECT * FROM {}").format(table)).fetchall() == [(name, 2)]
    assert victim.rows("SELECT * FROM victim") == []


@pytest.mark.parametrize(
    "name", ["y'); DROP TABLE victim; --", 'victim"; DROP TABLE victim; --', "victim --"]
)
def test_names_that_are_none_never_reach_postgres(victim: Pipeline, name: str) -> None:
    with pytest.raises(WriteRejected) as unknown_table:
        victim.put(name, 1, {"a": 1})
    with pytest.raises(WriteRejected) as unknown_column:
        victim.put("victim", 1, {name: 1})
    with pytest.raises(WriteRejected) as unknown_key:
        victim.put("victim", {name: 1}, {})
    errors = (unknown_table, unknown_column, unknown_key)
    assert [e.value.sqlstate for e in errors] == ["42P01", "42703", "42P10"]
    assert victim.rows("SELECT * FROM victim") == []


def test_tables_of_other_schemas_are_named_with_their_schema(pipeline: Pipeline) -> None:
    pipeline.run(
        'CREATE SCHEMA app; CREATE SCHEMA "My App"',
        "CREATE TABLE people (id int PRIMARY KEY, v text)",
        "CREATE TABLE app.people (id int PRIMARY KEY, v text)",
        'CREATE TABLE "My App"."The.People" (id int PRIMARY KEY, v text)',
        "CREATE TABLE app.hidden (id int PRIMARY KEY, v text)",
    )
    for name in ("people", "app.people", "public.people", "My App.The.People"):
        pipeline.put(name, 1 if name != "public.people" else 2, {"v": name})
    with pytest.raises(WriteRejected):
        pipeline.put("hidden", 1, {"v": "not on the search path"})
    assert pipeline.rows("SELECT v FROM people ORDER BY id") == [("people",), ("public.people",)]
    assert pipeline.rows("SELECT v FROM app.people") == [("app.people",)]
    assert pipeline.rows('SELECT v FROM "My App"."The.People"') == [("My App.The.People",)]


def test_names_are_as_in_the_catalog_and_not_folded(pipeline: Pipeline) -> None:
    pipeline.run('CREATE TABLE "Folded" (id int PRIMARY KEY)', "CREATE TABLE folded (id int PRIMARY KEY)")
    pipeline.put("Folded", 1, {})
    pipeline.put("folded", 2, {})
    with pytest.raises(WriteRejected):
        pipeline.put("FOLDED", 3, {})
    assert pipeline.rows('SELECT id FROM "Folded" UNION ALL SELECT id FROM folded') == [(1,), (2,)]


def test_a_partitioned_table_is_written_by_its_own_name(pipeline: Pipeline) -> None:
    table = pipeline.table("day date, id int, v int, PRIMARY KEY (id, day)", "PARTITION BY RANGE (day)")
    pipeline.run(
        f"CREATE TABLE {table}_a PARTITION OF {table} FOR VALUES FROM ('2024-01-01') TO ('2024-02-01')",
        f"CREATE TABLE {table}_b PARTITION OF {table} FOR VALUES FROM ('2024-02-01') TO ('2024-03-01')",
    )
    for day in (dt.date(2024, 1, 31), dt.date(2024, 2, 1)):
        pipeline.wb.put(table, {"day": day, "id": 1}, {"v": 1})
        pipeline.wb.increment(table, {"id": 1, "day": day}, {"v": 1}).wait(timeout=10)
    with pytest.raises(WriteRejected) as found:
        pipeline.put(table, {"id": 1, "day": "2030-01-01"}, {"v": 1})
    assert found.value.sqlstate == "23514"
    pipeline.wb.delete(table, {"id": 1, "day": "2024-01-31"}).wait(timeout=10)
    assert pipeline.rows(f"SELECT tableoid::regclass::text, v FROM {table}") == [(f"{table}_b", 2)]


def test_a_partition_that_was_detached_takes_no_more_and_the_others_go_on(pipeline: Pipeline) -> None:
    table = pipeline.table("day int, id int, v int, PRIMARY KEY (id, day)", "PARTITION BY RANGE (day)")
    pipeline.run(
        f"CREATE TABLE {table}_a PARTITION OF {table} FOR VALUES FROM (0) TO (10)",
        f"CREATE TABLE {table}_b PARTITION OF {table} FOR VALUES FROM (10) TO (20)",
    )
    keys = [{"id": 1, "day": day} for day in (5, 15)]
    for key in keys:
        pipeline.put(table, key, {"v": 1})
    pipeline.run(f"ALTER TABLE {table} DETACH PARTITION {table}_a")
    receipts = [pipeline.wb.put(table, key, {"v": 2}) for key in keys]
    with pytest.raises(WriteRejected) as found:
        receipts[0].wait(timeout=10)
    assert found.value.sqlstate == "23514"
    receipts[1].wait(timeout=10)
    assert pipeline.rows(f"SELECT day, v FROM {table}") == [(15, 2)]
    assert pipeline.rows(f"SELECT day, v FROM {table}_a") == [(5, 1)]


@pytest.mark.parametrize("op", ["put", "increment"])
def test_a_partition_may_ask_for_more_than_its_parent(pipeline: Pipeline, op: str) -> None:
    """What it checks in a new row must not refuse a change of one that is there."""
    table = pipeline.table("id int PRIMARY KEY, v int, w int", "PARTITION BY RANGE (id)")
    pipeline.run(
        f"CREATE TABLE {table}_a PARTITION OF {table} (w NOT NULL) FOR VALUES FROM (0) TO (10)",
        f"CREATE TABLE {table}_b PARTITION OF {table} (CHECK (v > 5)) FOR VALUES FROM (10) TO (20)",
        f"CREATE TABLE {table}_c PARTITION OF {table} FOR VALUES FROM (20) TO (30)",
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql "
        "AS 'BEGIN RAISE ''no new ones''; END'",
        f"INSERT INTO {table} VALUES (1, 6, 6), (11, 6, 6), (21, 6, 6)",
        f"CREATE TRIGGER t BEFORE INSERT ON {table}_c FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    for id in (1, 11, 21):
        write = pipeline.wb.put if op == "put" else pipeline.wb.increment
        write(table, id, {"v": 7} if op == "put" else {"v": 1}).wait(timeout=10)
    assert pipeline.rows(f"SELECT id, v, w FROM {table} ORDER BY id") == [(i, 7, 6) for i in (1, 11, 21)]
    with pytest.raises(WriteRejected):
        pipeline.put(table, 2, {"v": 7})


# Keys: spellings of one value are one row.

KEYS: list[tuple[str, list[Any]]] = [
    ("int", [42, "42", " 42 ", "+42", "042"]),
    ("smallint", [-1, "-1", "-01"]),
    ("bigint", [2**62, str(2**62)]),
    ("text", ["42", 42]),
    ("varchar(9)", ["ab", "ab"]),
    ("boolean", [True, "t", "yes", "1", "on"]),
    ("uuid", [U, str(U).upper(), f"{{{U}}}", U.hex, U.hex.upper()]),
    ("date", [dt.date(2024, 1, 2), "2024-01-02", "20240102", "Jan 2 2024"]),
    (
        "timestamptz",
        ["2024-01-02T00:00:00Z", "2024-01-02 01:00:00+01", dt.datetime(2024, 1, 2, tzinfo=dt.UTC)],
    ),
    ("timestamp", ["2024-01-02 03:04", dt.datetime(2024, 1, 2, 3, 4), "2024-01-02T03:04:00.000"]),
    ("time", ["01:02", dt.time(1, 2)]),
    ("numeric", [Decimal("1.0"), Decimal("1.00"), 1, "1", Decimal("10E-1")]),
    ("numeric(10,2)", [Decimal("1.0"), Decimal("1.001"), "1"]),
    ("double precision", [1.5, "1.50", Decimal("15E-1")]),
    ("char(5)", ["ab", "ab  ", "ab     "]),
    ("inet", ["10.0.0.1", "10.0.0.1/32"]),
    ("interval", ["1 day", "24:00:00", dt.timedelta(days=1)]),
    ("bytea", [b"\x01\xff", "\\001\\377", "\\x01FF"]),
    ("mood", ["sad", Mood.SAD]),
    ("percent", [Decimal("1.0"), 1, Decimal("1.00")]),
    ("macaddr", ["08:00:2b:01:02:03", "08002B-010203"]),
]


@pytest.mark.parametrize("in_one_batch", [True, False], ids=["one batch", "one by one"])
@pytest.mark.parametrize(("type", "spellings"), KEYS, ids=[type for type, _ in KEYS])
def test_spellings_of_one_key_are_one_row(
    types: Pipeline, type: str, spellings: list[Any], in_one_batch: bool
) -> None:
    one_row(types, type, spellings, in_one_batch)


def one_row(pipeline: Pipeline, type: str, spellings: list[Any], in_one_batch: bool) -> None:
    table = pipeline.table(f"id {type} PRIMARY KEY, n int, last int")
    if in_one_batch:
        with pipeline.wb.batch() as batch:
            for i, id in enumerate(spellings):
                batch.increment(table, id, {"n": 1})
                batch.patch(table, id, {"last": i})
    for i, id in enumerate([] if in_one_batch else spellings):
        pipeline.wb.increment(table, id, {"n": 1}).wait(timeout=10)
        pipeline.wb.patch(table, id, {"last": i}).wait(timeout=10)
    pipeline.put(table, spellings[0], {})  # all before it is written
    assert pipeline.rows(f"SELECT n, last FROM {table}") == [(len(spellings), len(spellings) - 1)]
    pipeline.wb.delete(table, spellings[-1]).wait(timeout=10)
    assert pipeline.rows(f"SELECT n FROM {table}") == []


@pytest.mark.parametrize("type", ["varchar(3)", "short", "char(3)"])
def test_blanks_that_postgres_cuts_off_a_key_do_not_disturb_the_order(types: Pipeline, type: str) -> None:
    """Too long for the column by blanks only, a text is cut without an error: both mean one row."""
    if type == "short":
        types.run("CREATE DOMAIN short AS varchar(3)")
    table = types.table(f"id {type} PRIMARY KEY, n int")
    with types.wb.batch() as batch:
        for i in range(10):
            batch.increment(table, "abc", {"n": 1})
            batch.put(table, "abc ", {"n": 100 + i})
    types.put(table, "xyz", {"n": 0})
    assert types.rows(f"SELECT n FROM {table} ORDER BY id") == [(109,), (0,)]


@pytest.mark.parametrize("in_one_batch", [True, False], ids=["one batch", "one by one"])
def test_spellings_of_a_case_insensitive_key_are_one_row(pipeline: Pipeline, in_one_batch: bool) -> None:
    try:
        pipeline.run("CREATE EXTENSION IF NOT EXISTS citext")
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this Postgres has no extension citext")
    one_row(pipeline, "citext", ["Ada", "ADA", "ada"], in_one_batch)


@pytest.mark.parametrize("in_one_batch", [True, False], ids=["one batch", "one by one"])
def test_spellings_that_a_collation_takes_as_equal_are_one_row(
    pipeline: Pipeline, in_one_batch: bool
) -> None:
    try:
        pipeline.run(
            "CREATE COLLATION IF NOT EXISTS ci "
            "(provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
        )
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this Postgres is built without ICU")
    one_row(pipeline, "text COLLATE ci", ["Ada", "ADA", "ada"], in_one_batch)


@pytest.mark.parametrize(
    ("type", "ids"),
    [
        ("text", ["a", "A", "a ", " a", "á", "a\u0301", "1", "1.0"]),
        ("bigint", [2**53, 2**53 + 1]),
        (
            "numeric",
            [Decimal(DIGITS), Decimal(DIGITS) + 1, Decimal("0.1"), Decimal("0.10000000000000000001")],
        ),
        ("double precision", [0.1, 0.10000000000000002]),
        ("timestamptz", ["2024-10-27 02:30+02", "2024-10-27 02:30+01"]),
        ("uuid", [U, uuid.UUID(int=U.int + 1)]),
        ("bytea", [b"\x00", b"\x00\x00"]),
    ],
)
def test_keys_that_differ_are_different_rows(pipeline: Pipeline, type: str, ids: list[Any]) -> None:
    table = pipeline.table(f"id {type} PRIMARY KEY, n int")
    with pipeline.wb.batch() as batch:
        for i, id in enumerate(ids):
            batch.put(table, id, {"n": i})
    pipeline.put(table, ids[0], {"n": 0})
    assert pipeline.rows(f"SELECT n FROM {table} ORDER BY n") == [(i,) for i in range(len(ids))]


def test_a_composite_key_of_any_types_and_order_is_one_row(pipeline: Pipeline) -> None:
    table = pipeline.table("tenant uuid, day date, number int, n int, PRIMARY KEY (number, tenant, day)")
    ids: list[dict[str, Any]] = [
        {"tenant": U, "number": 7, "day": "2024-01-02"},
        {"number": "7", "day": dt.date(2024, 1, 2), "tenant": str(U).upper()},
        {"day": "20240102", "tenant": U.hex, "number": "+7"},
    ]
    with pipeline.wb.batch() as batch:
        for id in ids:
            batch.increment(table, id, {"n": 1})
    for id in ids:
        pipeline.wb.increment(table, id, {"n": 1}).wait(timeout=10)
    pipeline.put(table, ids[0] | {"number": 8}, {"n": 0})
    assert pipeline.rows(f"SELECT number, tenant, n FROM {table} ORDER BY number") == [(7, U, 6), (8, U, 0)]


def test_a_key_that_postgres_cannot_read_costs_no_other_row(pipeline: Pipeline) -> None:
    table = pipeline.table("id date PRIMARY KEY, n int")
    with pipeline.wb.batch() as batch:
        for i, id in enumerate(["2024-01-01", "not a date", "2024-13-01", "20240101", "2024-01-02"]):
            batch.increment(table, id, {"n": i + 1})
    pipeline.put(table, "2024-01-03", {"n": 0})
    assert pipeline.rows(f"SELECT to_char(id, 'DD'), n FROM {table} ORDER BY id") == [
        ("01", 5),
        ("02", 5),
        ("03", 0),
    ]


def test_the_key_may_be_repeated_among_the_columns(pipeline: Pipeline) -> None:
    table = pipeline.table("id int PRIMARY KEY, n int")
    pipeline.put(table, 42, {"id": "42", "n": 1})
    pipeline.put(table, {"id": "42"}, {"id": 42, "n": 2})
    with pytest.raises(WriteRejected, match="part of the primary key"):
        pipeline.put(table, 42, {"id": 43, "n": 3})
    assert pipeline.rows(f"SELECT * FROM {table}") == [(42, 2)]
