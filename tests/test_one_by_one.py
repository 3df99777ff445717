"""A batch against its messages one by one, each in a transaction of its own, by plain SQL.

What the worker rejects, plain SQL rejects too: no good write is lost because of another one in its batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from psycopg import sql
from tests.support.part import drawn, sampled
from tests.test_bad_writes import Target

from writebehind_worker.postgres import connect

Item = dict[str, Any]
Pg = psycopg.Connection[Any]

ROWS = """
CREATE TABLE {}.rows (
    id int PRIMARY KEY, u int UNIQUE, a int, b int, n int DEFAULT 0 CHECK (n >= 0), UNIQUE (a, b)
)
"""


@pytest.fixture
def target(postgres_url: str, queue: str, pg: Pg) -> Iterator[Target]:
    with connect(postgres_url) as conn:
        yield Target(conn, queue)


def apply_one(pg: Pg, table: sql.Identifier, item: Item) -> bool:
    """What a message says, in SQL that knows nothing of batches; False if Postgres refuses it."""
    op, row, data = item.get("op", "put"), item["id"], item.get("data", {})
    names = [sql.Identifier(name) for name in data]
    delta = sql.SQL("coalesce({0}, 0) + %s" if op == "increment" else "%s")
    sets = sql.SQL(", ").join(sql.SQL("{} = {}").format(n, delta.format(n)) for n in names)
    update = sql.SQL("UPDATE {} SET {} WHERE id = %s").format(table, sets)
    columns = sql.SQL(", ").join([sql.Identifier("id"), *names])
    values = sql.SQL(", ").join([sql.Placeholder()] * (len(names) + 1))
    insert = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(table, columns, values)
    try:
        with pg.transaction():
            if op == "delete":
                pg.execute(sql.SQL("DELETE FROM {} WHERE id = %s").format(table), [row])
                return True
            found = pg.execute(update, [*data.values(), row]).rowcount
            if not found and op != "patch":
                found = pg.execute(insert, [row, *data.values()]).rowcount
            return bool(found)
    except psycopg.Error:
        return False


def one_by_one(pg: Pg, table: str, items: Sequence[Item]) -> set[int]:
    """Positions that are refused."""
    return {i for i, item in enumerate(items) if not apply_one(pg, sql.Identifier("singly", table), item)}


def rows(pg: Pg, schema: str, table: str) -> list[Any]:
    return pg.execute(f"SELECT * FROM {schema}.{table} ORDER BY id".encode()).fetchall()


small = st.integers(1, 3) | st.none()
row_values = {"u": small, "a": small, "b": small, "n": st.integers(-2, 2)}
row_items = st.one_of(
    st.builds(
        lambda op, id, data: {"op": op, "table": "batched.rows", "id": id, "data": data},
        st.sampled_from(["put", "put", "patch"]),
        st.integers(1, 4),
        st.fixed_dictionaries({}, optional=row_values).filter(bool),
    ),
    st.builds(
        lambda id, n: {"op": "increment", "table": "batched.rows", "id": id, "data": {"n": n}},
        st.integers(1, 4),
        st.integers(-2, 2),
    ),
    st.builds(lambda id: {"op": "delete", "table": "batched.rows", "id": id}, st.integers(1, 4)),
)


@sampled
def test_unique_values_and_sums_pass_from_write_to_write_and_no_good_one_is_refused(
    target: Target, pg: Pg
) -> None:
    for schema in ("batched", "singly"):
        pg.execute(f"CREATE SCHEMA {schema}".encode())
        pg.execute(ROWS.format(schema).encode())

    @settings(drawn(150), phases=[Phase.explicit, Phase.reuse, Phase.generate])
    @given(st.lists(row_items, max_size=5), st.lists(row_items, min_size=2, max_size=12))
    def check(before: list[Item], items: list[Item]) -> None:
        pg.execute("TRUNCATE batched.rows, singly.rows")
        for item in before:
            target.flush(item)
        one_by_one(pg, "rows", before)
        assert rows(pg, "batched", "rows") == rows(pg, "singly", "rows")
        apart = one_by_one(pg, "rows", items)
        together = target.rejected(*items).keys()
        assert together <= apart, json.dumps(items)
        if together == apart:
            assert rows(pg, "batched", "rows") == rows(pg, "singly", "rows")

    check()


GRAPH = """
CREATE TABLE {0}.nodes (
    id int PRIMARY KEY, up int REFERENCES {0}.nodes, friend int REFERENCES {0}.nodes DEFERRABLE
);
CREATE TABLE {0}.edges (
    id int PRIMARY KEY, start int NOT NULL REFERENCES {0}.nodes, best int NOT NULL
);
CREATE TABLE {0}.marks (id int PRIMARY KEY, edge int NOT NULL REFERENCES {0}.edges INITIALLY DEFERRED);
ALTER TABLE {0}.edges ADD FOREIGN KEY (best) REFERENCES {0}.marks INITIALLY DEFERRED;
"""


@st.composite
def graphs(draw: st.DrawFn) -> list[Item]:
    """Rows that reference each other, all of them there, in any order."""
    nodes, edges = draw(st.integers(1, 6)), draw(st.integers(0, 4))
    node = st.integers(1, nodes)
    found: list[Item] = [
        {
            "table": "batched.nodes",
            "id": i,
            "data": {"up": draw(st.integers(1, i) | st.none()), "friend": draw(node | st.none())},
        }
        for i in range(1, nodes + 1)
    ]
    for i in range(1, edges + 1):
        best, start = draw(st.integers(1, edges)), draw(node)
        found.append({"table": "batched.edges", "id": i, "data": {"start": start, "best": best}})
        found.append({"table": "batched.marks", "id": i, "data": {"edge": draw(st.integers(1, edges))}})
    return draw(st.permutations(found))


never_right: st.SearchStrategy[Item] = st.sampled_from(
    [
        {"table": "batched.nodes", "id": 50, "data": {"up": "x"}},
        {"table": "batched.nodes", "id": 51, "data": {"up": 99}},
        {"table": "batched.marks", "id": 53, "data": {"edge": 99}},
        {"table": "batched.edges", "id": 52, "data": {"start": None, "best": 1}},
        {"table": "batched.nodes", "id": "y", "data": {"up": 1}},
        {"table": "batched.elsewhere", "id": 1, "data": {}},
    ]
)


@sampled
def test_rows_that_reference_each_other_land_in_any_order_and_bad_ones_cost_only_themselves(
    target: Target, pg: Pg
) -> None:
    pg.execute("CREATE SCHEMA batched")
    pg.execute(GRAPH.format("batched").encode())

    @settings(drawn(150), phases=[Phase.explicit, Phase.reuse, Phase.generate])
    @given(graphs(), st.lists(st.tuples(st.integers(0, 20), never_right), max_size=4))
    def check(items: list[Item], bad: list[tuple[int, Item]]) -> None:
        pg.execute("TRUNCATE batched.nodes, batched.edges, batched.marks")
        mixed = list(items)
        for at, item in bad:
            mixed.insert(at, item)
        refused = {i for i, item in enumerate(mixed) if any(item is b for _, b in bad)}
        assert target.rejected(*mixed).keys() == refused, json.dumps(mixed)
        for table in ("nodes", "edges", "marks"):
            expected = [(i["id"], *i["data"].values()) for i in items if i["table"] == f"batched.{table}"]
            assert rows(pg, "batched", table) == sorted(expected)

    check()
