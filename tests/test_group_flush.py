"""A group goes to Postgres whole or not at all, whatever stands around it in its batch."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.support.part import drawn, sampled
from tests.test_bad_writes import Item, Target, delete, increment, patch, put

from writebehind_worker.apply import Patience
from writebehind_worker.errors import HeldByLock
from writebehind_worker.frozen import FrozenBatch
from writebehind_worker.postgres import connect
from writebehind_worker.received import receive
from writebehind_worker.settle import settlements

Op = dict[str, Any]
State = dict[tuple[str, int], dict[str, Any]]

TABLES = """
CREATE TABLE a (id int PRIMARY KEY, name text CHECK (name <> 'bad'), n int CHECK (n >= 0));
CREATE TABLE b (id int PRIMARY KEY, name text CHECK (name <> 'bad'), n int CHECK (n >= 0));
CREATE TABLE orders (id int PRIMARY KEY, name text CHECK (name <> 'bad'));
CREATE TABLE lines (id int PRIMARY KEY, order_id int NOT NULL REFERENCES orders ON DELETE CASCADE, n int);
"""


def group(*members: Any, **more: Any) -> Item:
    return {"group": list(members), **more}


@pytest.fixture
def target(postgres_url: str, queue: str) -> Iterator[Target]:
    with connect(postgres_url) as conn:
        made = Target(conn, queue)
        made.run(*filter(str.strip, TABLES.split(";")))
        yield made


# One at a time.


def test_a_group_lands_whole(target: Target) -> None:
    items = group(put("orders", 1, name="x"), put("lines", 10, order_id=1, n=2), increment("a", 5, n=3))
    flushed = target.flush(items)
    assert not flushed.buried
    assert target.rows("SELECT o.name, l.n FROM orders o JOIN lines l ON order_id = o.id") == [("x", 2)]
    assert target.rows("SELECT id, n FROM a") == [(5, 3)]
    assert flushed.writes == {
        ("public.orders", "applied"): 1, ("public.lines", "applied"): 1, ("public.a", "applied"): 1,
    }  # fmt: skip


BAD_MEMBERS = [
    (put("a", 2, name="bad"), "23514"),
    (put("a", 2, elsewhere=1), "42703"),
    (put("nowhere", 2, n=1), "42P01"),
    (put("a", 2, n="x"), "22P02"),
    (put("a", "x", n=1), "22P02"),
    (patch("a", 2, n=1), "P0002"),
    (put("lines", 2, order_id=99), "23503"),
]


@pytest.mark.parametrize(("bad", "state"), BAD_MEMBERS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_bad_member_takes_its_group_along_and_nothing_else(
    target: Target, bad: Any, state: str, place: int
) -> None:
    members = [put("a", 1, n=1), put("b", 1, n=1)]
    members.insert(place, bad)
    assert target.rejected(put("a", 7, n=7), group(*members), put("b", 7, n=7)) == {1: state}
    assert target.rows("SELECT id FROM a UNION ALL SELECT id FROM b") == [(7,), (7,)]
    (letter,) = target.dead_letters()
    assert json.loads(letter.body) == group(*members)
    assert f"write {place + 1} of the group" in letter.reason


@pytest.mark.parametrize(
    "body",
    [
        b'{"group":[]}',
        b'{"group":5}',
        b'{"group":[5]}',
        b'{"group":[{"table":"a","id":1,"op":"patch"}]}',
        b'{"group":[{"table":"a","id":1,"data":{"n":1},"seq":1}]}',
        b'{"group":[{"table":"a","id":1,"data":{"n":1}}],"data":{}}',
        b'{"group":[{"table":"a","id":1,"data":{"n":1}}],"v":2}',
        b'{"group":[{"table":"a","id":1,"data":{"n":1},"packed":{}}]}',
        b'{"group":[' + b",".join([b'{"table":"a","id":1,"data":{"n":1}}'] * 1001) + b"]}",
    ],
)
def test_what_is_no_group_is_one_dead_letter(target: Target, body: bytes) -> None:
    assert target.rejected(body, put("a", 1, n=5)) == {0: "22P02"}
    assert target.rows("SELECT n FROM a") == [(5,)]


def test_a_row_that_a_group_names_twice_is_written_in_order(target: Target) -> None:
    target.flush(group(put("a", 1, n=1), increment("a", 1, n=2), patch("a", 1, name="x")))
    assert target.rows("SELECT n, name FROM a") == [(3, "x")]
    target.flush(group(delete("a", 1), put("a", 1, n=9)))
    assert target.rows("SELECT n, name FROM a") == [(9, None)]


def test_writes_before_and_after_a_refused_group_keep_their_order(target: Target) -> None:
    rejected = target.rejected(
        put("a", 1, n=1),
        group(increment("a", 1, n=10), put("b", 1, name="bad")),
        increment("a", 1, n=100),
    )
    assert rejected == {1: "23514"}
    assert target.rows("SELECT n FROM a") == [(101,)]


def test_a_parent_that_comes_after_its_group_is_waited_for(target: Target) -> None:
    child = group(put("lines", 1, order_id=5, n=1), put("a", 1, n=1))
    assert target.rejected(child, increment("a", 1, n=1), put("orders", 5, name="x")) == {}
    assert target.rows("SELECT n FROM a") == [(2,)]


def test_what_waits_behind_one_row_of_a_group_waits_behind_all(target: Target) -> None:
    rejected = target.rejected(
        group(put("lines", 1, order_id=99, n=1), put("a", 1, n=1)),
        group(patch("a", 1, name="x"), put("b", 1, n=1)),
        put("b", 1, n=2),
    )
    assert rejected == {0: "23503", 1: "P0002"}
    assert target.rows("SELECT n FROM b") == [(2,)]


def test_what_waits_behind_a_group_that_waits_keeps_its_order(target: Target) -> None:
    rejected = target.rejected(
        put("lines", 1, order_id=5, n=1),
        group(patch("lines", 1, n=3), put("b", 1, n=1)),
        put("b", 1, n=2),
        put("orders", 5, name="x"),
        put("a", 9, name="bad"),
    )
    assert rejected == {4: "23514"}
    assert target.rows("SELECT lines.n, b.n FROM lines, b") == [(3, 2)]


def test_a_delete_that_cascades_keeps_its_place_in_a_group(target: Target) -> None:
    target.flush(put("orders", 1, name="old"), put("lines", 1, order_id=1, n=1))
    again = group(delete("orders", 1), put("orders", 1, name="new"), put("lines", 2, order_id=1, n=2))
    assert target.rejected(put("lines", 3, order_id=1, n=3), again, put("lines", 4, order_id=1, n=4)) == {}
    assert target.rows("SELECT id FROM lines ORDER BY id") == [(2,), (4,)]


def test_a_group_with_a_cascade_is_refused_whole(target: Target) -> None:
    target.flush(put("orders", 1, name="old"), put("lines", 1, order_id=1, n=1))
    again = group(delete("orders", 1), put("orders", 1, name="bad"), put("lines", 2, order_id=1, n=2))
    assert target.rejected(again, increment("lines", 1, n=4)) == {0: "23514"}
    assert target.rows("SELECT id, n FROM lines") == [(1, 5)]
    assert target.rows("SELECT name FROM orders") == [("old",)]


def test_a_locked_row_is_named_and_holds_its_group(target: Target, pg: psycopg.Connection[Any]) -> None:
    target.flush(put("a", 1, n=1), put("b", 1, n=1))
    items = [json.dumps(group(increment("a", 1, n=1), increment("b", 1, n=1))).encode()]
    items.append(json.dumps(put("a", 2, n=1)).encode())
    batch = FrozenBatch(1 << 40, items, 1)
    with pg.transaction():
        pg.execute("UPDATE b SET n = 5 WHERE id = 1")
        with pytest.raises(HeldByLock, match=r"public\.b") as caught:
            target._flusher.flush(batch, Patience(halve=True))
        bury = Patience(halve=True, bury=caught.value.rows)
        assert [b.position for b in target._flusher.flush(batch, bury).buried] == [0]
    assert target.rows("SELECT id, n FROM a ORDER BY id") == [(1, 1), (2, 1)]


# Superseded.


@pytest.mark.parametrize("later", [put("a", 1, n=2), put("b", 1, n=2)])
def test_a_later_write_to_any_row_of_it_supersedes_its_dead_letter(target: Target, later: Any) -> None:
    target.flush(group(put("a", 1, n=1), put("b", 1, n=1), put("orders", 1, name="bad")))
    target.flush(put("a", 2, n=1))
    assert [letter.superseded for letter in target.dead_letters()] == [False]
    target.flush(later)
    assert [letter.superseded for letter in target.dead_letters()] == [True]


def test_in_one_batch_only_what_comes_after_it_supersedes_it(target: Target) -> None:
    bad = group(put("a", 1, n=1), put("orders", 1, name="bad"))
    target.flush(put("a", 1, n=7), bad)
    assert [letter.superseded for letter in target.dead_letters()] == [False]
    target.flush(bad, put("a", 1, n=8))
    assert [letter.superseded for letter in target.dead_letters()] == [True, True]


def test_of_a_row_that_could_not_be_told_the_letter_says_so(target: Target) -> None:
    target.flush(group(put("a", 1, n=1), put("nowhere", 1, n=1)))
    (letter,) = target.dead_letters()
    assert letter.key is None


# The cache.


def test_all_entries_of_a_refused_group_are_dirty() -> None:
    members = [{"table": "a", "id": n, "data": {"n": 1}, "key": f"a:{n}", "ttl": 9} for n in range(3)]
    item = json.dumps(group(*members, seq=5)).encode()
    for items, buried in ((item, {0}), (item, set[int]()), (item.replace(b'"a"', b"7"), {0})):
        messages = FrozenBatch(1, [items], 10).messages
        found = {s.cache_key: (s.applied_seq, s.rejected_seq) for s in settlements(messages, buried)}
        assert found == dict.fromkeys(["a:0", "a:1", "a:2"], (0, 5) if buried else (5, 0))


def test_a_row_may_be_called_group_and_so_may_a_column(target: Target) -> None:
    target.run('CREATE TABLE "group" (id text PRIMARY KEY, "group" text)')
    assert target.rejected({"table": "group", "id": "group", "data": {"group": '"group"'}}) == {}
    assert target.rows('SELECT "group" FROM "group"') == [('"group"',)]
    assert receive(0, b'{"table":"group","id":1,"data":{}}', 1).member == 0


# Any sequence.

ids = st.integers(1, 3)
tables = st.sampled_from(["a", "b"])
values = st.fixed_dictionaries(
    {}, optional={"name": st.sampled_from(["x", "y", "bad"]), "n": st.integers(-1, 3) | st.just("text")}
).filter(bool)
writes = st.one_of(
    st.builds(lambda t, i, v: put(t, i, **v), tables, ids, values),
    st.builds(lambda t, i, v: patch(t, i, **v), tables, ids, values),
    st.builds(lambda t, i, n: increment(t, i, n=n), tables, ids, st.integers(-2, 3)),
    st.builds(delete, tables, ids),
)
sequences = st.lists(st.lists(writes, min_size=1, max_size=4), min_size=1, max_size=9)


class Refused(Exception):
    pass


def apply(state: State, write: Op, is_checked: bool) -> None:
    """What a write says, to rows in a dictionary."""
    row, op, data = (write["table"], write["id"]), write.get("op", "put"), write.get("data", {})
    if op == "delete":
        state.pop(row, None)
        return
    if row not in state and op == "patch":
        if is_checked:
            raise Refused
        return  # what deletes it again is all that is seen of it
    new = dict(state.get(row, {"name": None, "n": None}))
    if op == "increment" and new["n"] != "text":  # else, unchecked, it is deleted by a later one
        new["n"] = (new["n"] or 0) + data["n"]
    elif op != "increment":
        new |= data
    if is_checked and (new["name"] == "bad" or new["n"] == "text" or (new["n"] or 0) < 0):
        raise Refused
    state[row] = new


def in_order(items: Sequence[list[Op]], is_checked: bool) -> tuple[State, set[int]]:
    """The rows after all, each whole or not at all; the positions of what was refused."""
    state: State = {}
    refused: set[int] = set()
    for position, members in enumerate(items):
        after = copy.deepcopy(state)
        try:
            for member in members:
                apply(after, member, is_checked)
        except Refused:
            refused.add(position)
        else:
            state = after
    return state, refused


def refused_beside(items: Sequence[list[Op]], refused: Collection[int]) -> set[int]:
    """Of the refused ones, those that are wrong after what has landed: a check may not see all of it."""
    found = set()
    for position in refused:
        before = [members for n, members in enumerate(items[:position]) if n not in refused]
        state, _ = in_order(before, is_checked=False)
        try:
            for member in items[position]:
                apply(state, member, is_checked=True)
        except Refused:
            found.add(position)
    return found


@sampled
def test_any_batch_comes_to_what_its_groups_come_to_in_order(target: Target) -> None:
    @settings(drawn(600))
    @given(sequences, st.booleans())
    @example(
        [[put("a", 1, name="x")], [put("a", 1, name="bad"), delete("a", 1)], [patch("a", 1, name="x")]], False
    )
    def check(items: list[list[Op]], all_groups: bool) -> None:
        target.run("TRUNCATE a, b", "TRUNCATE writebehind.dead_letters")
        sent = [group(*members) if all_groups or len(members) > 1 else members[0] for members in items]
        refused = set(target.rejected(*sent))
        wrong = in_order(items, is_checked=True)[1] | refused_beside(items, refused)
        assert refused <= wrong, json.dumps(sent)
        landed = [members for position, members in enumerate(items) if position not in refused]
        state, impossible = in_order(landed, is_checked=False)
        assert not impossible, json.dumps(sent)
        for table in ("a", "b"):
            expected = sorted((i, r["name"], r["n"]) for (t, i), r in state.items() if t == table)
            assert target.rows(f"SELECT id, name, n FROM {table} ORDER BY id") == expected, json.dumps(sent)

    check()


@sampled
def test_families_land_in_any_order_and_bad_groups_cost_only_themselves(target: Target) -> None:
    target.run(
        "CREATE TABLE nodes (id int PRIMARY KEY, up int REFERENCES nodes, "
        "friend int REFERENCES nodes DEFERRABLE INITIALLY DEFERRED)"
    )

    @st.composite
    def families(draw: st.DrawFn) -> tuple[list[list[Op]], set[int]]:
        count = draw(st.integers(1, 8))
        node = st.integers(1, count)
        nodes: list[Any] = [
            put("nodes", i, up=draw(st.integers(1, i) | st.none()), friend=draw(node | st.none()))
            for i in range(1, count + 1)
        ]
        found: list[list[Any]] = [[]]
        for one in nodes:  # no group needs another one that needs it, but by what is checked at the end
            if draw(st.booleans()) and found[-1]:
                found.append([])
            found[-1].append(one)
        shuffled: list[list[Any]] = [list(draw(st.permutations(members))) for members in found]
        found = list(draw(st.permutations(shuffled)))
        bad: set[int] = set()
        for number in range(draw(st.integers(0, 3))):
            at = draw(st.integers(0, len(found)))
            nevers: list[dict[str, Any]] = [{"up": 99}, {"friend": 99}, {"up": "x"}]
            never = draw(st.sampled_from(nevers))
            found.insert(at, [put("a", 50 + number, n=1), put("nodes", 50 + number, **never)])
            bad = {b + (b >= at) for b in bad} | {at}
        return found, bad

    @settings(drawn(300))
    @given(families())
    def check(family: tuple[list[list[Op]], set[int]]) -> None:
        items, bad = family
        target.run("TRUNCATE nodes, a", "TRUNCATE writebehind.dead_letters")
        assert set(target.rejected(*(group(*members) for members in items))) == bad, json.dumps(items)
        landed = [m for p, members in enumerate(items) if p not in bad for m in members]
        expected = sorted((m["id"], m["data"]["up"], m["data"]["friend"]) for m in landed)
        assert target.rows("SELECT * FROM nodes ORDER BY id") == expected
        assert target.rows("SELECT * FROM a") == []

    check()


def test_a_group_that_waits_holds_up_nothing_that_stands_before_it(target: Target) -> None:
    more = [put("b", n, n=n) for n in range(3)]
    rejected = target.rejected(
        group(put("lines", 1, order_id=99, n=1), *more),
        put("a", 1, n=1),
        group(put("a", 1, n=2), patch("lines", 1, n=3)),
        put("lines", 5, order_id=98, n=1),
    )
    assert rejected == {0: "23503", 2: "P0002", 3: "23503"}
    assert target.rows("SELECT id, n FROM a") == [(1, 1)]


@pytest.mark.parametrize("size", [3, 25])
def test_of_a_group_that_waits_for_locks_the_other_rows_are_free(
    target: Target, pg: psycopg.Connection[Any], size: int
) -> None:
    target.flush(*(put("a", n, n=0) for n in range(1, size + 1)))
    together = group(*(increment("a", n, n=1) for n in range(1, size + 1)))
    items = [json.dumps(item).encode() for item in (together, increment("a", size, n=5))]
    batch = FrozenBatch(1 << 40, items, 1)
    with pg.transaction():
        pg.execute("UPDATE a SET n = 7 WHERE id IN (1, 2)")
        with pytest.raises(HeldByLock) as caught:
            target._flusher.flush(batch, Patience(halve=True))
        bury = Patience(halve=True, bury=caught.value.rows)
        assert [b.position for b in target._flusher.flush(batch, bury).buried] == [0]
    assert target.rows(f"SELECT n FROM a WHERE id = {size}") == [(5,)]


@pytest.mark.parametrize("members", [b'[{"t":"a"}]', b"[[1]]", b'[{"table":"a"}]', b'{"a":1}'])
def test_groups_of_a_later_version_are_known_as_such_whatever_is_in_them(members: bytes) -> None:
    (message,) = FrozenBatch(1, [b'{"table":"a","id":1,"v":4,"group":%b}' % members], 1).messages
    assert message.newer_version == 4


@sampled
def test_what_waits_for_its_parents_keeps_its_order_by_all_of_its_rows(target: Target) -> None:
    target.run(
        "CREATE TABLE nodes (id int PRIMARY KEY, up int REFERENCES nodes, "
        "friend int REFERENCES nodes DEFERRABLE INITIALLY DEFERRED)"
    )
    parents = st.none() | st.sampled_from([1, 2, 3, 4, 99])
    nodes = st.builds(lambda i, u, f: put("nodes", i, up=u, friend=f), st.integers(1, 5), parents, parents)
    others = st.builds(lambda i, n: put("a", i, n=n), st.integers(1, 2), st.integers(0, 99))
    members = st.lists(nodes | others, min_size=1, max_size=3)

    @settings(drawn(200))
    @given(st.lists(members, min_size=2, max_size=6))
    def check(items: list[list[Any]]) -> None:
        target.run("TRUNCATE nodes, a", "TRUNCATE writebehind.dead_letters")
        refused = set(target.rejected(*(group(*members) for members in items)))
        landed = [m for position, members in enumerate(items) if position not in refused for m in members]
        last = {(m["table"], m["id"]): m["data"] for m in landed}
        expected = sorted((i, d["up"], d["friend"]) for (table, i), d in last.items() if table == "nodes")
        assert target.rows("SELECT * FROM nodes ORDER BY id") == expected, json.dumps(items)
        numbers = sorted((i, d["n"]) for (table, i), d in last.items() if table == "a")
        assert target.rows("SELECT id, n FROM a ORDER BY id") == numbers, json.dumps(items)

    check()
