"""Chains and rings of rows land in any order, and an orphan beside them costs only itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import pytest
from tests.test_bad_writes import Item, Target, delete, patch, put

from writebehind_worker.postgres import connect

BOTH = """
CREATE TABLE nodes (id int PRIMARY KEY, up int REFERENCES nodes, friend int REFERENCES nodes DEFERRABLE);
CREATE TABLE edges (id int PRIMARY KEY, mark int NOT NULL);
CREATE TABLE marks (
    id int PRIMARY KEY, edge int NOT NULL REFERENCES edges INITIALLY DEFERRED, name text,
    node int REFERENCES nodes
);
ALTER TABLE edges ADD FOREIGN KEY (mark) REFERENCES marks DEFERRABLE;
CREATE TABLE notes (id int PRIMARY KEY, edge int REFERENCES edges);
"""
BAD = [put("nodes", 90, up=99), put("marks", 91, edge=99), put("edges", 92, mark=None)]


@pytest.fixture
def target(postgres_url: str, queue: str) -> Iterator[Target]:
    with connect(postgres_url) as conn:
        made = Target(conn, queue)
        made.run(BOTH)
        yield made


@pytest.fixture(params=range(len(BAD)), ids=["orphan", "late orphan", "null"])
def bad(request: pytest.FixtureRequest) -> Item:
    index: int = request.param
    return BAD[index]


def check_beside(target: Target, bad: Item, items: list[Item], refused: Collection[int] = ()) -> None:
    """Of the items only these are refused, wherever the bad one stands."""
    for at in (0, len(items) // 2, len(items)):
        target.run("TRUNCATE nodes, edges, marks, notes")
        moved = {i + (i >= at) for i in refused}
        found = target.rejected(*items[:at], bad, *items[at:])
        assert found.keys() == moved | {at}


@pytest.mark.parametrize("column", ["up", "friend"])
def test_a_chain_that_begins_at_its_end(target: Target, bad: Item, column: str) -> None:
    chain = [put("nodes", i, **{column: i - 1 or None}) for i in range(12, 0, -1)]
    check_beside(target, bad, chain)
    assert target.rows("SELECT count(*) FROM nodes") == [(12,)]


def test_a_chain_with_an_orphan_after_each_link(target: Target) -> None:
    items: list[Item] = []
    for i in range(10, 0, -1):
        items += [put("nodes", i, up=i - 1 or None), put("nodes", 100 + i, up=99)]
    assert target.rejected(*items) == dict.fromkeys(range(1, 20, 2), "23503")


def test_a_ring(target: Target, bad: Item) -> None:
    check_beside(target, bad, [put("marks", 1, edge=1), put("edges", 1, mark=1)])
    assert target.rows("SELECT edges.id FROM edges JOIN marks ON edge = edges.id AND mark = marks.id") == [
        (1,)
    ]


def test_a_ring_with_what_hangs_on_it(target: Target, bad: Item) -> None:
    hangers = [put("notes", 1, edge=1), put("marks", 2, edge=1), put("edges", 2, mark=2)]
    check_beside(target, bad, [*hangers, put("marks", 1, edge=1), put("edges", 1, mark=1)])
    check_beside(target, bad, [put("marks", 1, edge=1), put("edges", 1, mark=1), *hangers])


def test_two_rings_of_which_one_is_broken(target: Target, bad: Item) -> None:
    whole = [put("marks", i, edge=i % 4 + 1) for i in range(1, 5)] + [
        put("edges", i, mark=i) for i in range(1, 5)
    ]
    broken = [put("marks", i, edge=i + 1) for i in range(10, 14)] + [
        put("edges", i, mark=i) for i in range(10, 14)
    ]
    mixed = [item for pair in zip(whole, broken, strict=True) for item in pair]
    check_beside(target, bad, mixed, set(range(1, 16, 2)))
    assert target.rows("SELECT count(*), max(id) FROM edges") == [(4, 4)]


def test_a_ring_with_a_link_that_is_checked_at_once(target: Target, bad: Item) -> None:
    target.run("ALTER TABLE notes ADD mark int REFERENCES marks", "ALTER TABLE marks ADD note int")
    target.run("ALTER TABLE edges ADD note int REFERENCES notes DEFERRABLE")
    ring = [put("notes", 1, mark=1), put("marks", 1, edge=1), put("edges", 1, mark=1, note=1)]
    check_beside(target, bad, ring)


def test_a_ring_whose_row_has_a_bad_write_too(target: Target) -> None:
    ring = [put("marks", 1, edge=1), put("edges", 1, mark=1)]
    for late in ({"edge": 99}, {"node": 99}, {"edge": None}):
        target.run("TRUNCATE nodes, edges, marks, notes")
        assert target.rejected(*ring, patch("marks", 1, name="x", **late)).keys() == {2}
        assert target.rows("SELECT edge, name FROM marks") == [(1, None)]
        target.run("TRUNCATE nodes, edges, marks, notes")
        assert target.rejected(put("marks", 1, name="x", **late), *ring).keys() <= {0}
        assert target.rows("SELECT edge FROM marks") == [(1,)]


def test_an_orphan_is_refused_and_the_next_write_of_its_row_is_a_parent(target: Target) -> None:
    items = [put("nodes", 2, up=1), put("nodes", 1, up=99), patch("nodes", 7, up=1), put("nodes", 1, up=None)]
    assert target.rejected(*items).keys() == {1, 2}
    assert target.rejected(put("nodes", 4, up=3), put("nodes", 3, up=99), put("nodes", 3, id=3)).keys() == {1}
    assert target.rows("SELECT id, up FROM nodes ORDER BY id") == [(1, None), (2, 1), (3, None), (4, 3)]


def test_a_row_that_exists_is_a_parent_even_if_its_write_is_refused(target: Target, bad: Item) -> None:
    target.run("TRUNCATE nodes, edges, marks, notes", "INSERT INTO nodes VALUES (1)")
    ring = [put("nodes", 1, friend=99), put("nodes", 2, up=1, friend=3), put("nodes", 3, up=1, friend=2)]
    assert target.rejected(*ring, bad).keys() == {0, 3}
    assert target.rows("SELECT id, friend FROM nodes ORDER BY id") == [(1, None), (2, 3), (3, 2)]


def test_rows_that_reference_each_other_are_deleted_but_for_one_still_referenced(target: Target) -> None:
    for i in (1, 2):
        assert target.rejected(put("marks", i, edge=i), put("edges", i, mark=i)) == {}
    target.run("INSERT INTO marks VALUES (3, 2)")
    gone = [delete("marks", 1), delete("marks", 2), delete("edges", 2), delete("edges", 1)]
    assert target.rejected(*gone, BAD[0]).keys() == {2, 1, 4}
    assert target.rows("SELECT id FROM edges") == [(2,)]


STRANGE = """
CREATE SCHEMA "Od""d";
CREATE TABLE "Od""d"."a b" ("the id" bigint, place text, "to ""x" int, "to y" text, also int, more int,
    PRIMARY KEY ("the id", place), UNIQUE (more));
ALTER TABLE "Od""d"."a b" ADD FOREIGN KEY ("to y", "to ""x") REFERENCES "Od""d"."a b" (place, "the id")
    {match} DEFERRABLE, ADD FOREIGN KEY (also) REFERENCES "Od""d"."a b" (more) INITIALLY DEFERRED;
"""


@pytest.mark.parametrize("match", ["MATCH SIMPLE", "MATCH FULL"])
def test_composite_keys_and_names_that_need_quotes(target: Target, match: str) -> None:
    target.run(STRANGE.format(match=match))

    def row(id: int, to: int | None, **data: Any) -> Item:
        place = None if to is None else str(to)
        key = {"the id": id, "place": str(id)}
        return put('Od"d.a b', key, **({'to "x': to, "to y": place, "more": id} | data))

    ring = [row(1, 2, also=3), row(2, 3, also=1), row(3, 1), row(4, None, also=5), row(5, None, also=4)]
    half = row(6, 1, **{"to y": None}, also=7), row(7, 1, also=6)
    orphans = [row(10, 11), row(11, 12), row(12, 99), row(13, 1, also=99)]
    refused = target.rejected(*ring, *orphans, *half).keys()
    assert refused == {5, 6, 7, 8} | ({9, 10} if match == "MATCH FULL" else set())


def test_a_parent_that_the_role_may_not_read_does_not_stop_the_queue(target: Target, queue: str) -> None:
    role = f"r{queue.split(':')[1]}"
    target.run(
        f"CREATE ROLE {role}",
        f"GRANT USAGE ON SCHEMA public, writebehind TO {role}",
        f"GRANT ALL ON ALL TABLES IN SCHEMA public, writebehind TO {role}",
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA writebehind TO {role}",
        "CREATE TABLE hidden (id int PRIMARY KEY)",
        "ALTER TABLE marks ADD hidden int REFERENCES hidden DEFERRABLE",
        "INSERT INTO hidden VALUES (1)",
        f"SET ROLE {role}",
    )
    try:
        ring = [put("marks", 1, edge=1, hidden=1), put("edges", 1, mark=1)]
        assert target.rejected(*ring, BAD[2]).keys() == {2}
        assert target.rejected(put("marks", 2, edge=1, hidden=7), put("edges", 3, mark=1)).keys() == {0}
    finally:
        target.run("RESET ROLE", f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_a_long_line_of_orphans_is_refused(target: Target) -> None:
    line = [put("nodes", i, friend=i - 1) for i in range(2, 302)]
    assert target.rejected(*line, put("nodes", 5000, up=5001)).keys() == set(range(301))
    assert {d.sqlstate for d in target.dead_letters()} == {"23503"}
