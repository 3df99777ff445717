"""The order in which writes go to Postgres: segments at barriers, waves, groups, tables, rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from writebehind.identity import KeyKind
from writebehind.message import Op
from writebehind_worker.catalog import Catalog, load_catalog
from writebehind_worker.coalesce import coalesce
from writebehind_worker.plan import RowGroup, groups, segments
from writebehind_worker.postgres import connect
from writebehind_worker.received import receive
from writebehind_worker.resolve import Write, resolve
from writebehind_worker.table import Column, KeyColumn, Table

CLOCK = 10**15


def table(
    name: str,
    oid: int,
    *,
    rank: int = 1,
    cascades: Iterable[int] = (),
    key: Mapping[str, KeyKind] | None = None,
) -> Table:
    key = key or {"id": "int"}
    columns = {n: Column(n, "bigint", False, False, "int", 64) for n in [*key, "a", "b"]}
    columns["small"] = Column("small", "smallint", False, False, "int", 16)
    columns["money"] = Column("money", "numeric(10,2)", False, False, "numeric", scale=2)
    return Table(
        oid=oid,
        schema="public",
        relation=name,
        name=name,
        columns=columns,
        key=tuple(KeyColumn(n, "bigint", "int8", kind, None) for n, kind in key.items()),
        row_security=False,
        upsert=True,
        upsert_needs=frozenset(),
        checked=frozenset(),
        rank=rank,
        cascades=frozenset(cascades),
    )


PLAIN = table("plain", 1)
PARENT = table("parent", 2, rank=1, cascades=[3, 4])
CHILD = table("child", 3, rank=2, cascades=[4])
GRANDCHILD = table("grandchild", 4, rank=3)
TREE = table("tree", 5, cascades=[5])
PAIR = table("pair", 6, key={"tenant": "int", "name": "text"})
CATALOG = Catalog({t.name: t for t in (PLAIN, PARENT, CHILD, GRANDCHILD, TREE, PAIR)})


def writes(*items: tuple[Op, str, Any] | tuple[Op, str, Any, dict[str, Any]]) -> list[Write]:
    """(op, table, id, data)"""
    bodies = []
    for op, name, id, *data in items:
        item = {"op": op, "table": name, "id": id} | ({"data": data[0]} if data else {})
        bodies.append(json.dumps(item if data or op == "delete" else item | {"data": {"a": 1}}).encode())
    found, refusals = resolve(
        [receive(i, body, CLOCK) for i, body in enumerate(bodies)],
        CATALOG,
        lambda _, keys: [None] * len(keys),
    )
    assert not refusals
    return found


def shown(found: Iterable[RowGroup]) -> list[tuple[str, str, list[str]]]:
    return [(g.op, g.table.name, ["/".join(op.row[1]) for op in g.rows]) for g in found]


def positions(found: Iterable[Iterable[Write]]) -> list[list[int]]:
    return [[w.message.position for w in segment] for segment in found]


# Groups and rows.


def test_no_writes_need_no_statement() -> None:
    assert list(groups([])) == []


def test_rows_of_one_table_operation_and_columns_share_a_statement() -> None:
    found = list(groups(writes(("put", "plain", 2), ("put", "plain", 1), ("put", "plain", 3))))
    assert shown(found) == [("put", "plain", ["1", "2", "3"])]
    assert found[0].columns == ("a",)


def test_integer_keys_are_sorted_as_numbers() -> None:
    assert shown(groups(writes(*(("put", "plain", i) for i in (10, 9, -1, 100)))))[0][2] == [
        "-1",
        "9",
        "10",
        "100",
    ]


def test_composite_keys_are_sorted_part_by_part() -> None:
    ids = [(10, "a"), (9, "b"), (9, "a"), (9, "B")]
    found = shown(groups(writes(*(("put", "pair", {"name": n, "tenant": t}) for t, n in ids))))
    assert found[0][2] == ["9/B", "9/a", "9/b", "10/a"]


@pytest.mark.parametrize("id", ["abc", 1.5, "1e2", True])
def test_a_key_that_is_no_integer_does_not_break_the_order(id: Any) -> None:
    """Only Postgres can refuse it, so it must get there."""
    found = shown(groups(writes(("put", "plain", id), ("put", "plain", 7))))
    assert len(found[0][2]) == 2


def test_other_columns_are_another_statement() -> None:
    found = list(groups(writes(("put", "plain", 1, {"a": 1}), ("put", "plain", 2, {"a": 1, "b": 2}))))
    assert [g.columns for g in found] == [("a",), ("a", "b")]


def test_the_order_of_columns_in_a_message_does_not_matter() -> None:
    found = list(groups(writes(("put", "plain", 1, {"b": 1, "a": 1}), ("put", "plain", 2, {"a": 1, "b": 2}))))
    assert [g.columns for g in found] == [("a", "b")]


@pytest.mark.parametrize(
    ("data", "wide"),
    [
        ({"small": 32767}, False),
        ({"small": -32768}, False),
        ({"small": 32768}, True),
        ({"a": 2**63 - 1}, False),
        ({"a": 2**63}, True),
        ({"money": 0.25}, False),
        ({"money": 0.125}, True),
    ],
)
def test_deltas_that_the_column_cannot_hold_are_apart_from_the_others(
    data: dict[str, Any], wide: bool
) -> None:
    (group,) = groups(writes(("increment", "plain", 1, data)))
    assert group.wide is wide


@pytest.mark.parametrize(
    "delta", ["1e99999999999999999999", "-1e-99999999999999999999", "1e1000000", "0.1e5000"]
)
def test_a_delta_with_an_absurd_exponent_is_left_to_postgres(delta: str) -> None:
    body = '{"table":"plain","id":1,"op":"increment","data":{"money":' + delta + "}}"
    found, _ = resolve([receive(i, body.encode(), CLOCK) for i in range(2)], CATALOG, lambda _, keys: [])
    assert sum(len(g.rows) for g in groups(found)) == 2


# Waves.


def test_the_second_operation_of_a_row_comes_in_a_second_wave() -> None:
    found = groups(
        writes(
            ("put", "plain", 1),
            ("increment", "plain", 1),
            ("put", "plain", 2),
            ("delete", "plain", 3),
            ("put", "plain", 3),
            ("put", "plain", 1),
        )
    )
    assert shown(found) == [
        ("delete", "plain", ["3"]),
        ("put", "plain", ["1", "2"]),
        ("put", "plain", ["3"]),
        ("increment", "plain", ["1"]),
        ("put", "plain", ["1"]),
    ]


op_lists = st.lists(
    st.tuples(
        st.sampled_from(["put", "patch", "increment", "delete"]),
        st.sampled_from(["plain", "parent", "child", "grandchild", "tree"]),
        st.integers(0, 3),
    ),
    max_size=20,
)


@given(op_lists)
def test_no_statement_takes_a_row_twice_and_each_row_keeps_its_order(
    items: list[tuple[Op, str, int]],
) -> None:
    batch = writes(*items)
    done: dict[Any, list[str]] = {}
    for group in groups(batch):
        keys = [op.row for op in group.rows]
        assert len(set(keys)) == len(keys)
        for op in group.rows:
            done.setdefault(op.row, []).append(op.op)
    expected: dict[Any, list[str]] = {}
    for segment in segments(batch):
        for row, ops in coalesce(segment).items():
            expected.setdefault(row, []).extend(op.op for op in ops)
    assert done == expected


# Tables.


def test_parents_come_first_for_puts() -> None:
    found = groups(writes(("put", "grandchild", 3), ("put", "child", 2), ("put", "parent", 1)))
    assert [name for _, name, _ in shown(found)] == ["parent", "child", "grandchild"]


def test_deletes_go_children_first_and_before_puts() -> None:
    mother, daughter = table("mother", 11, rank=1), table("daughter", 12, rank=2)
    found = Catalog({"mother": mother, "daughter": daughter})
    batch, _ = resolve(
        [
            receive(i, json.dumps(item).encode(), CLOCK)
            for i, item in enumerate(
                [
                    {"table": "mother", "id": 1, "data": {"a": 1}},
                    {"table": "mother", "id": 2, "op": "delete"},
                    {"table": "daughter", "id": 3, "data": {"a": 1}},
                    {"table": "daughter", "id": 4, "op": "delete"},
                ]
            )
        ],
        found,
        lambda _, keys: [],
    )
    assert shown(groups(batch)) == [
        ("delete", "daughter", ["4"]),
        ("delete", "mother", ["2"]),
        ("put", "mother", ["1"]),
        ("put", "daughter", ["3"]),
    ]


# Segments.


def test_a_list_without_cascading_deletes_is_one_segment() -> None:
    batch = writes(
        ("put", "plain", 1), ("delete", "plain", 2), ("delete", "grandchild", 1), ("put", "child", 2)
    )
    assert positions(segments(batch)) == [[0, 1, 2, 3]]


def test_a_delete_that_reaches_another_table_of_the_list_is_a_barrier() -> None:
    batch = writes(("put", "child", 1), ("delete", "parent", 1), ("put", "parent", 1), ("put", "child", 1))
    assert positions(segments(batch)) == [[0], [1], [2, 3]]


def test_a_delete_that_reaches_only_tables_that_are_not_in_the_list_is_none() -> None:
    batch = writes(("put", "plain", 1), ("delete", "parent", 1), ("put", "parent", 1))
    assert positions(segments(batch)) == [[0, 1, 2]]


def test_a_delete_reaches_through_a_table_that_is_not_in_the_list() -> None:
    batch = writes(("put", "grandchild", 1), ("delete", "parent", 1), ("put", "parent", 1))
    assert positions(segments(batch)) == [[0], [1], [2]]


def test_barriers_side_by_side_are_one_segment() -> None:
    batch = writes(("put", "child", 1), ("delete", "parent", 1), ("delete", "parent", 2), ("put", "child", 2))
    assert positions(segments(batch)) == [[0], [1, 2], [3]]


def test_a_delete_in_a_tree_is_always_a_barrier() -> None:
    assert positions(segments(writes(("put", "tree", 1), ("delete", "tree", 2)))) == [[0], [1]]


@given(op_lists)
def test_segments_are_the_list_in_its_order(items: list[tuple[Op, str, int]]) -> None:
    batch = writes(*items)
    found = list(segments(batch))
    assert [w for segment in found for w in segment] == batch
    assert all(found)


# The catalog's part of it: read from a real Postgres.


def load(url: str, *statements: str) -> dict[str, Table]:
    with connect(url) as conn:
        for statement in statements:
            conn.execute(statement)
        return load_catalog(conn).tables


def test_the_rank_of_a_table_is_greater_than_that_of_all_it_references(postgres_url: str) -> None:
    found = load(
        postgres_url,
        "CREATE TABLE a_leaf (id int PRIMARY KEY)",
        "CREATE TABLE m_middle (id int PRIMARY KEY, a int REFERENCES a_leaf)",
        "CREATE TABLE b_top (id int PRIMARY KEY, m int REFERENCES m_middle, a int REFERENCES a_leaf)",
    )
    assert found["a_leaf"].rank < found["m_middle"].rank < found["b_top"].rank


def test_cycles_of_foreign_keys_end_and_the_rest_is_still_in_order(postgres_url: str) -> None:
    found = load(
        postgres_url,
        "CREATE TABLE hen (id int PRIMARY KEY, egg int)",
        "CREATE TABLE egg (id int PRIMARY KEY, hen int REFERENCES hen)",
        "ALTER TABLE hen ADD FOREIGN KEY (egg) REFERENCES egg ON DELETE CASCADE",
        "CREATE TABLE self (id int PRIMARY KEY, up int REFERENCES self ON DELETE CASCADE)",
        "CREATE TABLE omelette (id int PRIMARY KEY, egg int REFERENCES egg)",
    )
    assert found["egg"].rank != found["hen"].rank
    assert found["omelette"].rank > found["egg"].rank
    assert found["self"].cascades == {found["self"].oid}
    assert found["egg"].cascades == {found["hen"].oid}


def test_a_delete_reaches_as_far_as_the_foreign_keys_carry_it(postgres_url: str) -> None:
    found = load(
        postgres_url,
        "CREATE TABLE a (id int PRIMARY KEY)",
        "CREATE TABLE b (id int PRIMARY KEY REFERENCES a ON DELETE CASCADE)",
        "CREATE TABLE c (id int PRIMARY KEY, b int REFERENCES b ON DELETE SET NULL)",
        "CREATE TABLE d (id int PRIMARY KEY, a int DEFAULT 1 REFERENCES a ON DELETE SET DEFAULT)",
        "CREATE TABLE e (id int PRIMARY KEY REFERENCES a ON DELETE NO ACTION)",
        "CREATE TABLE f (id int PRIMARY KEY REFERENCES a ON DELETE RESTRICT)",
    )
    assert found["a"].cascades == {found[name].oid for name in "bcd"}
    assert found["b"].cascades == {found["c"].oid}
    assert not found["e"].cascades


def test_a_long_chain_of_foreign_keys_is_no_problem(pg: psycopg.Connection, postgres_url: str) -> None:
    pg.execute("CREATE TABLE t0 (id int PRIMARY KEY)")
    chain = (
        f"CREATE TABLE t{i} (id int PRIMARY KEY REFERENCES t{i - 1} ON DELETE CASCADE)" for i in range(1, 120)
    )
    found = load(postgres_url, *chain)
    ranks = [found[f"t{i}"].rank for i in range(120)]
    assert ranks == sorted(set(ranks))
    assert len(found["t0"].cascades) == 119
