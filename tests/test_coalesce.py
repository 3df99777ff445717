"""Coalescing changes how many statements there are, never what they come to."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from decimal import Context, Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.support.part import drawn, sampled

from writebehind.message import Op
from writebehind_worker.apply import Patience
from writebehind_worker.breaker import Breaker
from writebehind_worker.catalog import Catalog
from writebehind_worker.coalesce import add, coalesce, fits_scale, needs_wide_delta
from writebehind_worker.flush import Flushed, Flusher
from writebehind_worker.frozen import FrozenBatch
from writebehind_worker.ledger import Ledger
from writebehind_worker.postgres import connect
from writebehind_worker.received import receive
from writebehind_worker.resolve import Write, resolve
from writebehind_worker.table import Column, KeyColumn, Table

CLOCK = 10**15
BATCHES = itertools.count(1)
Item = dict[str, Any]


def numeric(scale: int | None) -> Column:
    return Column("u", "numeric", False, False, "numeric", scale=scale)


INT = Column("n", "integer", False, False, "int", 32)
FLOAT = Column("f", "double precision", False, False, "float")
TABLE = Table(
    oid=1,
    schema="public",
    relation="t",
    name="t",
    columns={"id": INT, "n": INT, "k": INT, "u": numeric(None), "m": numeric(2), "f": FLOAT}
    | {"s": Column("s", "text", False, False, None)},
    key=(KeyColumn("id", "integer", "int4", "int", None),),
    row_security=False,
    upsert=True,
    upsert_needs=frozenset(),
    checked=frozenset(),
    rank=1,
    cascades=frozenset(),
)


def body(item: Item) -> bytes:
    """JSON with Decimal as its own text: ``1.10`` keeps its zero."""
    return _json(item).encode()


def _json(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{_json(v)}" for k, v in value.items()) + "}"
    return str(value) if isinstance(value, Decimal) else json.dumps(value)


def writes(*items: Item) -> list[Write]:
    messages = [receive(i, body({"table": "t", "id": 1} | item), CLOCK) for i, item in enumerate(items)]
    found, refused = resolve(messages, Catalog({"t": TABLE}), lambda _, keys: [None] * len(keys))
    assert not refused
    return found


def net(*items: Item) -> list[Write]:
    return next(iter(coalesce(writes(*items)).values()))


def shown(ops: Sequence[Write]) -> list[tuple[str, dict[str, Any]]]:
    return [(op.op, {n: json.loads(bytes(v)) for n, v in op.columns.items()}) for op in ops]


PUT: Item = {"op": "put", "data": {"n": 1, "s": "a"}}
PATCH: Item = {"op": "patch", "data": {"s": "b"}}
INCREMENT: Item = {"op": "increment", "data": {"n": 10}}
DELETE: Item = {"op": "delete"}
OPS = {"put": PUT, "patch": PATCH, "increment": INCREMENT, "delete": DELETE}

# (last, next) → the operations that both come to
PAIRS = {
    ("put", "put"): [("put", {"n": 1, "s": "a"})],
    ("put", "patch"): [("put", {"n": 1, "s": "b"})],
    ("put", "increment"): [("put", {"n": 1, "s": "a"}), ("increment", {"n": 10})],
    ("put", "delete"): [("delete", {})],
    ("patch", "put"): [("patch", {"s": "b"}), ("put", {"n": 1, "s": "a"})],
    ("patch", "patch"): [("patch", {"s": "b"})],
    ("patch", "increment"): [("patch", {"s": "b"}), ("increment", {"n": 10})],
    ("patch", "delete"): [("delete", {})],
    ("increment", "put"): [("increment", {"n": 10}), ("put", {"n": 1, "s": "a"})],
    ("increment", "patch"): [("increment", {"n": 10}), ("patch", {"s": "b"})],
    ("increment", "increment"): [("increment", {"n": 20})],
    ("increment", "delete"): [("delete", {})],
    ("delete", "put"): [("delete", {}), ("put", {"n": 1, "s": "a"})],
    ("delete", "patch"): [("delete", {}), ("patch", {"s": "b"})],
    ("delete", "increment"): [("delete", {}), ("increment", {"n": 10})],
    ("delete", "delete"): [("delete", {})],
}


# Without a database.


@pytest.mark.parametrize(("last", "then"), PAIRS)
def test_a_pair_of_operations_comes_to(last: str, then: str) -> None:
    assert shown(net(OPS[last], OPS[then])) == PAIRS[last, then]


def test_the_later_of_two_values_counts_and_other_columns_stay() -> None:
    first, second = {"op": "put", "data": {"n": 1, "s": "a"}}, {"op": "put", "data": {"s": None, "k": 3}}
    assert shown(net(first, second)) == [("put", {"n": 1, "s": None, "k": 3})]


def test_increments_of_other_columns_are_not_merged() -> None:
    other = {"op": "increment", "data": {"n": 1, "k": 1}}
    assert shown(net(INCREMENT, other)) == [("increment", {"n": 10}), ("increment", {"n": 1, "k": 1})]


def test_a_delete_swallows_everything_before_it() -> None:
    assert shown(net(PUT, INCREMENT, PATCH, INCREMENT, DELETE)) == [("delete", {})]


def test_rows_come_as_they_first_occur() -> None:
    found = coalesce(writes(*(PUT | {"id": i} for i in (3, 1, 3, 2, 1))))
    assert [row[1] for row in found] == [("3",), ("1",), ("2",)]


def test_the_key_keeps_its_first_spelling() -> None:
    (op,) = net(PUT | {"id": "01"}, PUT | {"id": 1})
    assert op.key_texts == (b'"01"',)


def test_after_a_delete_the_key_is_spelt_as_the_new_row_has_it() -> None:
    gone, made = net(PUT | {"id": 1}, DELETE | {"id": "1"}, PUT | {"id": "01"})
    assert (gone.op, made.key_texts) == ("delete", (b'"01"',))


digits = st.text("0123456789", min_size=1, max_size=40)
numerics = st.builds(
    lambda sign, whole, part: Decimal(f"{sign}{int(whole)}" + (f".{part}" if part else "")),
    st.sampled_from(["", "-"]),
    digits,
    st.just("") | digits,
)


@given(numerics, numerics, numerics)
def test_sums_of_numerics_are_exact_and_associative(x: Decimal, y: Decimal, z: Decimal) -> None:
    column = numeric(None)
    a, b, c = (format(v, "f").encode() for v in (x, y, z))
    left, right = add(column, a, b), add(column, b, c)
    assert left is not None
    assert right is not None
    assert add(column, left, c) == add(column, a, right)
    with_all_digits = Context(prec=200)
    assert Decimal(left.decode()) == with_all_digits.add(x, y)
    assert left == add(column, b, a)


def test_a_sum_of_forty_digits_loses_none() -> None:
    a, b = (
        b"1234567890123456789012345678901234567890.0000000001",
        b"0.00000000000000000000000000000000000000010",
    )
    assert add(numeric(None), a, b) == (
        b"1234567890123456789012345678901234567890.00000000010000000000000000000000000000010"
    )


@pytest.mark.parametrize(
    ("scale", "a", "b", "total"),
    [
        (2, b"0.25", b"0.50", b"0.75"),
        (2, b"0.125", b"0.125", None),  # each is rounded by itself
        (2, b"0.5", b"0.125", None),
        (2, b"1e2", b"1", b"101"),
        (2, b"1e-2", b"1E-2", b"0.02"),
        (2, b"1e-3", b"1", None),
        (0, b"1", b"2", b"3"),
        (0, b"1.0", b"2", None),
        (-2, b"100", b"200", None),  # digits that the column would round away
        (-2, b"1e2", b"2e2", b"300"),
        (None, b"0.1", b"0.2", b"0.3"),
        (None, b"1e2000", b"1", None),
        (None, b"1e-2000", b"1", None),
        (None, b"1e99999999999999999999", b"1", None),
        (None, b"1", b"-1e-99999999999999999999", None),
    ],
)
def test_numerics_are_added_only_where_the_column_rounds_nothing(
    scale: int | None, a: bytes, b: bytes, total: bytes | None
) -> None:
    assert add(numeric(scale), a, b) == total


@given(st.integers(), st.integers(), st.integers())
def test_sums_of_integers_are_exact_and_associative(x: int, y: int, z: int) -> None:
    a, b, c = (b"%d" % v for v in (x, y, z))
    left, right = add(INT, a, b), add(INT, b, c)
    assert left == b"%d" % (x + y)
    assert right is not None
    assert add(INT, left, c) == add(INT, a, right) == b"%d" % (x + y + z)


@pytest.mark.parametrize("delta", [b"1.0", b"1e2", b"1E0", b"1.5", b"9" * 1001])
def test_what_is_no_plain_integer_is_left_to_postgres(delta: bytes) -> None:
    assert add(INT, delta, b"1") is None
    assert add(INT, b"1", delta) is None
    assert not needs_wide_delta(INT, delta)


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_sums_of_floats_are_sums_of_floats(x: float, y: float) -> None:
    total = add(FLOAT, repr(x).encode(), repr(y).encode())
    if abs(x + y) == float("inf"):
        assert total is None
    else:
        assert total == repr(x + y).encode()


@pytest.mark.parametrize("delta", [b"1e999", b"-1e999"])
def test_an_infinite_float_is_left_to_postgres(delta: bytes) -> None:
    assert add(FLOAT, delta, b"1") is None


@given(numerics, st.integers(0, 50))
def test_a_value_fits_a_scale_if_rounding_to_it_changes_nothing(value: Decimal, scale: int) -> None:
    fits = fits_scale(numeric(scale), value)
    assert fits == (len(format(value, "f").partition(".")[2]) <= scale)
    assert needs_wide_delta(numeric(scale), format(value, "f").encode()) == (not fits)


Row = dict[str, Any] | None


def step(row: Row, op: Op, columns: dict[str, Any]) -> Row:
    """What one operation does to a row: the meaning of the wire format, in small."""
    if op == "delete":
        return None
    if op == "patch" and row is None:
        return None
    old = row or {}
    if op == "increment":
        return old | {n: (old.get(n) or 0) + delta for n, delta in columns.items()}
    return old | columns


pure_items = st.one_of(
    st.fixed_dictionaries(
        {
            "op": st.sampled_from(["put", "patch"]),
            "data": st.dictionaries(st.sampled_from("nks"), st.integers(0, 9), min_size=1),
        }
    ),
    st.fixed_dictionaries(
        {
            "op": st.just("increment"),
            "data": st.dictionaries(st.sampled_from("nk"), st.integers(-9, 9), min_size=1),
        }
    ),
    st.just(DELETE),
)


@given(st.lists(pure_items, min_size=1, max_size=10), st.sampled_from([None, {"n": 5, "k": None}]))
def test_net_operations_mean_what_the_messages_mean(items: list[Item], start: Row) -> None:
    single: Row = start
    for item in items:
        single = step(single, item["op"], item.get("data", {}))
    merged: Row = start
    for op, columns in shown(net(*items)):
        merged = step(merged, op, columns)  # type: ignore[arg-type]
    assert merged == single


@settings(suppress_health_check=[HealthCheck.filter_too_much])  # most three operations do not merge
@given(st.lists(pure_items, min_size=3, max_size=3))
def test_merging_is_associative_where_it_merges(items: list[Item]) -> None:
    first, second, third = items
    pair = net(second, third)
    assume(len(pair) == 1 and len(net(first, second, third)) == 1)
    op, columns = shown(pair)[0]
    together = {"op": op} | ({"data": columns} if op != "delete" else {})
    assert shown(net(first, second, third)) == shown(net(first, together))


# With Postgres: one batch against a batch for each message.

TABLES = """
CREATE SCHEMA batched; CREATE SCHEMA singly;
CREATE TABLE batched.items (
    id int PRIMARY KEY, n int DEFAULT 7, m numeric(10,2), u numeric, f float8, t text DEFAULT 'x',
    r text NOT NULL DEFAULT 'r'
);
CREATE TABLE batched.pairs (
    tenant int, name text, n bigint NOT NULL DEFAULT 3, t text, PRIMARY KEY (tenant, name)
);
CREATE TABLE batched.parents (id int PRIMARY KEY, u int UNIQUE, n int NOT NULL CHECK (n >= 0));
CREATE TABLE batched.children (
    id int PRIMARY KEY, parent int REFERENCES batched.parents ON DELETE {on_delete},
    u int UNIQUE DEFAULT 50, n smallint
);
"""
NAMES = ("items", "pairs", "parents", "children")


@pytest.fixture
def flusher(postgres_url: str, queue: str) -> Iterator[Flusher]:
    with connect(postgres_url) as conn:
        ledger = Ledger(conn, queue)
        row = ledger.take("test", 0)
        yield Flusher(
            conn,
            ledger,
            row,
            tables=(),
            lock_timeout_s=5,
            statement_timeout_s=30,
            breaker=Breaker(),
            publish=lambda _: None,
        )


def make_tables(pg: psycopg.Connection, on_delete: str = "CASCADE") -> None:
    both = TABLES.format(on_delete=on_delete)
    pg.execute(both.encode())
    pg.execute(both.partition("singly;")[2].replace("batched", "singly").encode())


def flush(flusher: Flusher, items: Sequence[Item], schema: str) -> Flushed:
    bodies = [body(item | {"table": f"{schema}.{item['table']}"}) for item in items]
    return flusher.flush(FrozenBatch(next(BATCHES), bodies, CLOCK), Patience())


def contents(pg: psycopg.Connection, schema: str) -> list[list[str]]:
    """Each row as text: 1.0 is not 1.00 here."""
    return [
        sorted(row[0] for row in pg.execute(f"SELECT whole::text FROM {schema}.{name} whole".encode()))
        for name in NAMES
    ]


def both_ways(flusher: Flusher, pg: psycopg.Connection, items: Sequence[Item]) -> tuple[set[int], set[int]]:
    """Flushes into empty tables, as one batch and one by one; the positions rejected in each."""
    for schema in ("batched", "singly"):
        for name in reversed(NAMES):
            pg.execute(f"DELETE FROM {schema}.{name}".encode())
    together = {b.position for b in flush(flusher, items, "batched").buried}
    apart = {i for i, item in enumerate(items) if flush(flusher, [item], "singly").buried}
    return together, apart


texts = st.sampled_from([None, "", "a", "b'\"\\"])
small = st.integers(-9, 9)
scaled = st.sampled_from(
    [Decimal(v) for v in ("0.5", "-0.25", "1.10", "0.005", "-0.015", "3", "1E+2", "1e-3")]
)
binary = st.integers(-8, 8).map(lambda n: n / 4) | st.just(-0.0)  # their sums are exact
item_values = {
    "n": small | st.none(),
    "m": scaled | st.none(),
    "u": scaled | st.none(),
    "f": binary | st.none(),
    "t": texts,
    "r": texts.filter(lambda t: t is not None),
}
pair_values = {"n": small, "t": texts}


def some_of(values: dict[str, st.SearchStrategy[Any]], most: int) -> st.SearchStrategy[dict[str, Any]]:
    chosen = st.lists(st.sampled_from(sorted(values)), min_size=1, max_size=most, unique=True)
    return chosen.flatmap(lambda names: st.fixed_dictionaries({n: values[n] for n in names}))


def operations(table: str, ids: st.SearchStrategy[Any], values: dict[str, Any]) -> st.SearchStrategy[Item]:
    deltas = {n: {"n": small, "m": scaled, "u": scaled, "f": binary}[n] for n in values if n in "nmuf"}
    data: dict[str, st.SearchStrategy[dict[str, Any]]] = {
        "put": some_of(values, 4) | st.just({}),
        "patch": some_of(values, 3),
        "increment": some_of(deltas, 2),
    }
    made: list[st.SearchStrategy[Item]] = [
        st.fixed_dictionaries({"op": st.just(op), "table": st.just(table), "id": ids, "data": columns})
        for op, columns in data.items()
    ]
    made.append(st.fixed_dictionaries({"op": st.just("delete"), "table": st.just(table), "id": ids}))
    return st.one_of(made)


unconstrained = st.lists(
    operations("items", st.sampled_from([1, 2, "2"]), item_values)
    | operations(
        "pairs", st.sampled_from([{"tenant": 1, "name": "a"}, {"name": "b", "tenant": "1"}]), pair_values
    ),
    min_size=2,
    max_size=12,
)


@sampled
def test_a_batch_comes_to_what_its_messages_come_to_one_by_one(
    flusher: Flusher, pg: psycopg.Connection
) -> None:
    make_tables(pg)

    @settings(drawn(80), deadline=None)
    @given(unconstrained)
    def check(items: list[Item]) -> None:
        together, apart = both_ways(flusher, pg, items)
        assert contents(pg, "batched") == contents(pg, "singly")
        # A patch of a missing row is rejected, unless a delete of the row has swallowed it in the batch.
        assert together <= apart
        for position in apart - together:
            assert items[position]["op"] == "patch"
            row = (items[position]["table"], _row(items[position]))
            later = [(i["op"], i["table"], _row(i)) for i in items[position + 1 :]]
            assert ("delete", *row) in later

    check()


def _row(item: Item) -> str:
    found = item["id"]
    return str(sorted(map(str, found.values())) if isinstance(found, dict) else found)


ids = st.integers(1, 3)
constrained = st.lists(
    st.one_of(
        st.builds(
            lambda id, u, n: {"table": "parents", "id": id, "data": {"u": u, "n": n}},
            ids,
            st.integers(1, 3) | st.none(),
            st.integers(0, 2),
        ),
        st.builds(
            lambda op, id, n: {"op": op, "table": "parents", "id": id, "data": {"n": n}},
            st.sampled_from(["patch", "increment", "put"]),
            ids,
            st.integers(-2, 2),
        ),
        st.builds(
            lambda id, parent, u: {"table": "children", "id": id, "data": {"parent": parent, "u": u}},
            ids,
            ids | st.none(),
            st.integers(1, 3) | st.none(),
        ),
        st.builds(
            lambda op, id, n: {"op": op, "table": "children", "id": id, "data": {"n": n}},
            st.sampled_from(["patch", "increment"]),
            ids,
            st.sampled_from([1, -1, 30_000, -30_000, -60_000]),
        ),
        st.builds(
            lambda table, id: {"op": "delete", "table": table, "id": id},
            st.sampled_from(["parents", "children"]),
            ids,
        ),
    ),
    min_size=2,
    max_size=10,
)


@sampled
@pytest.mark.parametrize("on_delete", ["CASCADE", "SET NULL"])
def test_where_no_message_is_rejected_alone_none_is_in_a_batch(
    flusher: Flusher, pg: psycopg.Connection, on_delete: str
) -> None:
    """Unique values handed on, cascades, checks, narrow columns: the batch sees only the net effect."""
    make_tables(pg, on_delete)

    @settings(drawn(30), deadline=None)
    @given(constrained)
    def check(items: list[Item]) -> None:
        apart = set(range(len(items)))
        while apart:  # without one message, another may be rejected
            together, apart = both_ways(flusher, pg, items)
            items = [item for i, item in enumerate(items) if i not in apart]
        assert not together
        assert contents(pg, "batched") == contents(pg, "singly")

    check()


bad_ones = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.builds(
            lambda op, table, id, data: {"op": op, "table": table, "id": id, "data": data},
            st.sampled_from(["put", "patch"]),
            st.sampled_from(["parents", "children"]),
            ids,
            st.sampled_from([{"n": "x"}, {"n": 10**30}, {"nmae": 1}]),
        ),
    ),
    min_size=1,
    max_size=3,
)


@sampled
@pytest.mark.parametrize("on_delete", ["CASCADE", "SET NULL", "NO ACTION"])
def test_bad_messages_anywhere_in_a_batch_change_nothing_for_the_others(
    flusher: Flusher, pg: psycopg.Connection, on_delete: str
) -> None:
    make_tables(pg, on_delete)

    @settings(drawn(30), deadline=None)
    @given(constrained, bad_ones)
    def check(items: list[Item], bad: list[tuple[int, Item]]) -> None:
        apart = set(range(len(items)))
        while apart:
            together, apart = both_ways(flusher, pg, items)
            items = [item for i, item in enumerate(items) if i not in apart]
        expected = contents(pg, "singly")
        mixed = list(items)
        for at, item in bad:
            mixed.insert(at, item)
        together, apart = both_ways(flusher, pg, mixed)
        # A bad value that a later write of its row replaces, or a delete, is no dead letter in a batch.
        assert together <= apart == {i for i, item in enumerate(mixed) if any(item is b for _, b in bad)}
        assert contents(pg, "singly") == expected
        assert contents(pg, "batched") == expected

    check()


@pytest.mark.parametrize("exists", [False, True], ids=["missing", "existing"])
def test_each_pair_of_operations_in_one_batch_does_what_both_do(
    flusher: Flusher, pg: psycopg.Connection, exists: bool
) -> None:
    make_tables(pg)
    for id, pair in enumerate(PAIRS):
        items: list[Item] = [{"table": "items", "id": id} | OPS[op] for op in pair]
        for item in items:
            if "data" in item:
                item["data"] = {{"s": "t"}.get(name, name): value for name, value in item["data"].items()}
        for schema in ("batched", "singly"):
            if exists:
                flush(flusher, [{"table": "items", "id": id, "data": {"n": 100, "t": "old"}}], schema)
        flush(flusher, items, "batched")
        for item in items:
            flush(flusher, [item], "singly")
        assert contents(pg, "batched") == contents(pg, "singly"), pair


@pytest.mark.parametrize(
    ("start", "deltas", "end"),
    [
        ({"m": Decimal("0.00")}, ["0.005", "0.005"], {"m": Decimal("0.02")}),  # each rounded by itself
        ({"m": None}, ["0.25", "0.5"], {"m": Decimal("0.75")}),
        ({"u": Decimal("1.5")}, ["1e-40", "1e39"], {"u": Decimal(f"1{'0' * 38}1.5{'0' * 38}1")}),
        ({"n": None}, [5, -3], {"n": 2}),
        ({"n": 2**31 - 1}, [-(2**32), 2**32], {"n": None}),  # a first step out of range, a net effect of none
        ({"n": -(2**31)}, [2**31 - 1, 2**31 - 1, 1], {"n": 2**31 - 1}),  # their sum is no integer of 32 bits
        ({"f": 0.1}, [0.2, 0.3], {"f": pytest.approx(0.6)}),
    ],
)
def test_increments_of_one_batch_add_up(
    flusher: Flusher, pg: psycopg.Connection, start: Item, deltas: list[Any], end: dict[str, Any]
) -> None:
    make_tables(pg)
    (column,) = start
    items: list[Item] = [{"table": "items", "id": 1, "data": start}]
    flush(flusher, items, "batched")
    increments = [
        {"op": "increment", "table": "items", "id": 1}
        | {"data": {column: Decimal(d) if isinstance(d, str) else d}}
        for d in deltas
    ]
    flushed = flush(flusher, increments, "batched")
    assert not flushed.buried
    row = pg.execute(f"SELECT {column} FROM batched.items".encode()).fetchone()
    assert row is not None
    assert row[0] == (end[column] if end[column] is not None else start[column])


def test_a_first_batch_of_increments_inserts_their_sum(flusher: Flusher, pg: psycopg.Connection) -> None:
    make_tables(pg)
    hits = [{"op": "increment", "table": "items", "id": i % 3, "data": {"n": 1}} for i in range(300)]
    flushed = flush(flusher, hits, "batched")
    assert pg.execute("SELECT id, n, t FROM batched.items ORDER BY id").fetchall() == [
        (i, 100, "x") for i in range(3)
    ]
    assert flushed.rows == {"batched.items": 3}
    assert flushed.writes == {("batched.items", "applied"): 300}


def test_a_sum_that_no_column_holds_is_found_by_halving(flusher: Flusher, pg: psycopg.Connection) -> None:
    """Each delta fits, the running value fits: only the merged delta is out of bigint's range."""
    make_tables(pg)
    pair = {"table": "pairs", "id": {"tenant": 1, "name": "a"}}
    flush(flusher, [pair | {"data": {"n": -(2**63)}}], "batched")
    increments = [pair | {"op": "increment", "data": {"n": 2**63 - 1}} for _ in range(2)]
    assert not flush(flusher, increments, "batched").buried
    assert pg.execute("SELECT n FROM batched.pairs").fetchall() == [(2**63 - 2,)]
