"""Batches that are read and written at once come to what they come to message by message."""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.part import drawn, sampled
from tests.support.two_ways import CLOCK, SCHEMA, Copy, copies

from writebehind_worker import plain_shape, row_lines
from writebehind_worker.digest import digest
from writebehind_worker.row_lines import COPIED_FROM

TABLES = """
CREATE TABLE alone.items (
    id int PRIMARY KEY, n int, b bigint DEFAULT 5, s smallint, m numeric(10,2), u numeric, t text, j jsonb,
    o boolean, z timestamptz, a text[], f float8, twice int GENERATED ALWAYS AS (s * 2) STORED
);
CREATE TABLE alone.names (name text PRIMARY KEY, n int DEFAULT 7, t text NOT NULL DEFAULT 'd', f float8);
CREATE TABLE alone.things (id uuid PRIMARY KEY, n bigint NOT NULL CHECK (n >= 0), t text);
CREATE TABLE alone.pairs (tenant int, name text, n int, t text, PRIMARY KEY (tenant, name));
CREATE TABLE alone.parents (id bigint PRIMARY KEY, t text);
CREATE TABLE alone.children (
    id int PRIMARY KEY, parent bigint REFERENCES alone.parents ON DELETE CASCADE, n int
);
CREATE TABLE alone.heap (id int, t text);
"""
NAMES = ("items", "names", "things", "pairs", "children", "parents")  # in an order to be emptied in
U = [f"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1{i}" for i in range(5)]
CLEAN = f"""
DELETE FROM alone.items; DELETE FROM alone.names; DELETE FROM alone.things; DELETE FROM alone.pairs;
DELETE FROM alone.children; DELETE FROM alone.parents;
INSERT INTO alone.items (id, n, s, t) VALUES (1, 1, 1, 'one'), (2, NULL, NULL, NULL), (3, 2147483000, 0, '');
INSERT INTO alone.names (name, n) VALUES ('a', 1), ('b', NULL);
INSERT INTO alone.things VALUES ('{U[0]}', 1, 'x'), ('{U[1]}', 9223372036854775000, NULL);
INSERT INTO alone.pairs VALUES (1, 'a', 1, 'x');
INSERT INTO alone.parents VALUES (1, 'p'), (2, NULL);
INSERT INTO alone.children VALUES (1, 1, 1), (2, 2, 2), (3, NULL, 3);
"""

# Messages. Values are JSON texts: they have to come through as they are.

Data = dict[str, str]
Draw = Callable[[st.SearchStrategy[Any]], Any]


def message(table: str, id: str, data: Data | None, op: str = "put", /, **others: Any) -> bytes:
    """A queue item. ``id`` and ``data`` hold JSON texts, ``others`` what is encoded."""
    members = {"table": json.dumps(f"{SCHEMA}.{table}"), "id": id}
    if data is not None:
        members["data"] = "{" + ",".join(f"{json.dumps(n)}:{v}" for n, v in data.items()) + "}"
    if op != "put":
        members["op"] = json.dumps(op)
    members |= {name: json.dumps(value) for name, value in others.items()}
    return ("{" + ",".join(f'"{name}":{value}' for name, value in members.items()) + "}").encode()


def packed(table: str, id: str, data: Data, op: str, columns: Sequence[str]) -> bytes:
    """As `message`, with these columns packed."""
    body = message(table, id, {n: v for n, v in data.items() if n not in columns}, op, v=2)
    frames = {n: b64encode(zlib.compress(data[n].encode())).decode() for n in columns}
    size = sum(len(data[n].encode()) for n in columns)
    return b'%b,"packed":%b,"unpacked":%d}' % (
        body[:-1],
        json.dumps(frames, separators=(",", ":")).encode(),
        size,
    )


TEXTS = (
    "null", '""', '"null"', '"a"', r'"a\\b"', r'"\""', '"it\'s"', r'"a\nb"', '"a,b"', '"{x}"', '"[1]"', '"]"',
    '"é漢😀"', r'"\ud83d\ude00"', r'"\u00e9"', r'"\\."', '"\\\\N"', "1e3", "-0", "1.50", "true", "12",
    '{"a": [1 , 2]}', "[ 1,2 ]", '"\u2028\x7f"',
)  # fmt: skip
GOOD: dict[str, Sequence[str]] = {
    "n": ("0", "1", "-1", "-0", "null", '"5"', '" 6 "', "2147483647"),
    "b": ("9007199254740993", "-9223372036854775808", "null", "0"),
    "s": ("-32768", "7", "null", '"1"'),
    "m": ("1.10", "0.005", "1e3", "-0", "null", '"12.345"', "99999999.99"),
    "u": ("1.10", "1e3", "1E-5", "123456789012345678901234567890.5", "-0.0", "null", '"NaN"', "1e400"),
    "t": TEXTS,
    "j": ("null", "{}", '{"b":1,"a":[ ]}', '"x"', "1.0", "[1, null]", "true", '{"a":1,"a":2}', r'"\"\\"'),
    "o": ("true", "false", "null", '"yes"', "1", "0", '"f"'),
    "z": ('"2024-01-02T03:04:05Z"', '"2024-01-02 03:04:05.5+02"', "null", '"infinity"', '"epoch"'),
    "a": ("[]", '["a","b c"]', '[null,"null"]', '["\\"{,}\\\\"]', "null", '"{a,b}"', "[1,true]", '["é"]'),
    "f": ("-0.0", "0.1", "1e300", "5", "null", '"NaN"', '"-Infinity"', "-0"),
    "parent": ("1", "2", "null"),
}
BAD: dict[str, Sequence[str]] = {
    "n": ("2147483648", "1.5", "1e3", '"x"', "true", "[1]", "{}", "1e400", "9" * 40, '""'),
    "b": ("9223372036854775808", "1.0", "1" * 1500),
    "s": ("32768", "false"),
    "m": ("100000000", '"x"', "[]"),
    "u": ('"1,5"', "true", "1e999999"),
    "t": (r'"\u0000"', r'"a\u0000b"'),
    "j": (r'"\u0000"', r'{"a":"\u0000"}'),
    "o": ("2", '"maybe"', "[]"),
    "z": ('"2024-13-01"', "5", '""'),
    "a": ('"a"', "true", '[["a"],"b"]', "7"),
    "f": ("1e400", '"x"', "{}"),
    "parent": ("9", '"x"'),
}
DELTAS = ("1", "-1", "0", "-0", "5", "700", "-2147483648", "2147483647")
BAD_DELTAS = (
    "1.5",
    "1e0",
    "null",
    '"1"',
    "9" * 20,
    "-" + "9" * 30,
    "true",
    "1e400",
    "3000000000",
    "1" * 1500,
)
COLUMNS = {
    "items": tuple("nbsmutjozaf"),
    "names": ("n", "t", "f"),
    "things": ("n", "t"),
    "pairs": ("n", "t"),
    "parents": ("t",),
    "children": ("parent", "n"),
}
IDS: dict[str, Sequence[str]] = {
    "items": ("1", "2", "3", "4", "5"),
    "names": ('"a"', '"b"', r'"\u0061"', '"c"', '"x y"', r'"q\"\\"', '"é"', '""', '"null"'),
    "things": [f'"{u}"' for u in U],
    "pairs": ('{"tenant":1,"name":"a"}', '{"name":"b","tenant":1}', '{"tenant":2,"name":""}'),
    "parents": ("1", "2", "3"),
    "children": ("1", "2", "3", "4"),
}
ODD_IDS: dict[str, Sequence[str]] = {
    "items": ('"1"', '" 2"', "-0", "1.0", "1e0", "null", "true", "[1]", '{"id":1}', "2147483648", "1" * 30),
    "names": ("1", r'"\u0000"', '{"name":"a"}', "1.50", r'"\ud800"'),
    "things": (f'"{U[0].upper()}"', f'"{{{U[1]}}}"', '"x"', "1"),
    "pairs": ("1", '{"tenant":"1","name":"a"}', '{"tenant":1}', "{}"),
    "parents": ('"1"', "9223372036854775808"),
    "children": ('"1"', "-1"),
}
OPS = ("put", "put", "put", "patch", "increment", "increment", "delete")
ODD_OTHERS: Sequence[dict[str, Any]] = (
    {"retry": 1}, {"v": 2}, {"v": 2, "trace": "x"}, {"trace": [1]}, {"v": 3},
    {"extra": 1}, {"op": "upsert"}, {"ttl": 0}, {"ttl": 10**12}, {"seq": 0, "key": "k"},
    {"seq": CLOCK + 1, "key": "k"}, {"seq": 5}, {"key": 1}, {"seq": None}, {"op": "put"}, {"data": None},
    {"data": []}, {"seq": 7, "key": "k"}, {"table": "alone.nowhere"}, {"table": "alone.heap"}, {"table": ""},
)  # fmt: skip


def delete_of(row: tuple[str, str]) -> bytes:
    return message(*row, None, "delete")


@st.composite
def plain_messages(draw: Draw) -> bytes:
    """What Postgres takes: rows for patches and foreign keys exist, sums stay in range."""
    table = draw(st.sampled_from([n for n in NAMES if n != "pairs"]))
    op = draw(st.sampled_from(["put", "patch", "increment", "delete"]))
    numbers = [c for c in COLUMNS[table] if c in ("n", "b", "s")]
    if op == "delete" and table != "parents":
        return delete_of((table, draw(st.sampled_from(IDS[table][3:]))))
    if op == "increment" and numbers:
        names = draw(st.lists(st.sampled_from(numbers), min_size=1, unique=True))
        rows = IDS[table][:1] if table != "things" else IDS[table][:2]
        return message(table, draw(st.sampled_from(rows)), {n: draw(SMALL) for n in names}, "increment")
    # No value too great to be added to, no row that another message deletes.
    values = {n: [v for v in GOOD[n] if n != "n" or v in ("0", "1", "-0")] for n in COLUMNS[table]}
    values["b"] = ["0", "null"]
    values["s"] = ["7", "null"]
    if table == "names":
        values["t"] = [v for v in TEXTS if v != "null"]
    names = draw(st.lists(st.sampled_from(COLUMNS[table]), min_size=1, unique=True))
    if table == "things" and op != "patch":
        names = ["n", *(n for n in names if n != "n")]
    id = draw(st.sampled_from(IDS[table][:2] if op == "patch" else IDS[table]))
    if op in ("increment", "delete"):
        op = "put"
    data = {n: draw(st.sampled_from(values[n])) for n in names}
    if draw(st.integers(0, 7)) == 0:
        return packed(table, id, data, op, draw(st.lists(st.sampled_from(names), min_size=1, unique=True)))
    return message(table, id, data, op)


SMALL = st.sampled_from(["1", "2", "-0", "5"])


@st.composite
def any_messages(draw: Draw) -> bytes:
    """All that anybody may push: each part is odd now and then."""

    def is_odd() -> bool:
        return bool(draw(st.integers(0, 11)) == 0)

    table, op = draw(st.sampled_from(NAMES)), draw(st.sampled_from(OPS))
    id = draw(st.sampled_from(ODD_IDS[table] if is_odd() else IDS[table]))
    names = draw(st.lists(st.sampled_from(COLUMNS[table]), min_size=1, max_size=3, unique=True))
    data: Data = {}
    for name in names:
        if op == "increment":
            data[name] = draw(st.sampled_from(BAD_DELTAS if is_odd() else DELTAS))
        elif name == "t" and draw(st.booleans()):
            data[name] = json.dumps(draw(st.text(max_size=8)), ensure_ascii=draw(st.booleans()))
        else:
            data[name] = draw(st.sampled_from(BAD[name] if is_odd() else GOOD[name]))
    if op == "increment" and not is_odd():
        data = {n: d for n, d in data.items() if n in "nbs"} or {"n": data[names[0]]}
    if is_odd():
        data |= draw(st.sampled_from([{"nmae": "1"}, {"twice": "1"}, {"id": id}, {"": "1"}]))
    others = draw(st.sampled_from(ODD_OTHERS)) if is_odd() else {}
    if op == "delete" or not is_odd():
        body = message(table, id, None if op == "delete" else {} if is_odd() else data, op, **others)
    else:  # an increment that is packed is odd as well
        body = packed(
            table, id, data, op, draw(st.lists(st.sampled_from(sorted(data)), min_size=1, unique=True))
        )
    if is_odd():
        body = draw(
            st.sampled_from(
                [
                    body[:-1],
                    body.replace(b'"n":', b'"\\u006e" :'),
                    body.replace(b":", b" :\n "),
                    body.replace(b'"data":{', b'"data":{"n":3,'),
                    body.replace(b"a", b"\xff", 1),
                    body.replace(b"e", b"\x00", 1),
                    body.replace(b"{", b'{"id":7,', 1),
                    body.replace(b"{", b'{"op":"patch",', 1),
                ]
            )
        )
    return body


def stamped(draw: Draw, bodies: list[bytes]) -> list[bytes]:
    """Most as our producer sends them, with a seq that grows, a cache key for each row, some with a ttl."""
    found = []
    for seq, body in enumerate(bodies, start=100):
        how = draw(st.integers(0, 4))
        if how and body.startswith(b'{"table"'):
            key = json.dumps(f"k{draw(st.integers(0, 5))}").encode()
            ttl = b',"ttl":%d' % (how * 60) if how > 2 else b""
            body = b'{"seq":%d,"key":%b%b,' % (seq, key, ttl) + body[1:]
        found.append(body)
    return found


@st.composite
def batches_of(draw: Draw, messages: st.SearchStrategy[bytes]) -> list[list[bytes]]:
    items = stamped(draw, draw(st.lists(messages, min_size=1, max_size=16)))
    cuts = sorted(draw(st.sets(st.integers(1, len(items)), max_size=3)) - {len(items)})
    return [items[a:b] for a, b in zip([0, *cuts], [*cuts, len(items)], strict=True)]


# The tables three times: by the fast way; by the careful one, what went in together as one batch; and each
# batch by itself.


@pytest.fixture
def three(postgres_url: str, pg: psycopg.Connection[Any], queue: str) -> Iterator[tuple[Copy, Copy, Copy]]:
    with copies(postgres_url, pg, queue, "quick", "whole", SCHEMA) as (quick, whole, alone):
        for copy in (quick, whole, alone):
            copy.run(TABLES)
        yield quick, whole, alone


@pytest.fixture(params=[1, COPIED_FROM], ids=["COPY", "JSON"])
def copied_from(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows go by COPY that can, or none."""
    monkeypatch.setattr(row_lines, "COPIED_FROM", request.param)


def both_ways(three: tuple[Copy, Copy, Copy], batches: list[list[bytes]]) -> list[int]:
    """Flushes them in all ways, and compares; of each part that went in how many batches it was."""
    quick, whole, alone = three
    for copy in three:
        copy.run(CLEAN)
        copy.begin()
    together = quick.flush_at_once(*batches)
    whole.flush(*together)
    alone.flush(*batches)
    assert quick.contents(*NAMES) == whole.contents(*NAMES)
    assert quick.letters() == whole.letters()
    assert quick.heard == whole.heard
    if quick.letters() == alone.letters():
        assert quick.contents(*NAMES) == alone.contents(*NAMES)
        assert quick.heard.entries == alone.heard.entries
        assert quick.heard.writes == alone.heard.writes
    else:
        # What a later batch undoes is not seen if both go in at once, as within a batch.
        assert len(quick.letters()) < len(alone.letters())
        assert max(quick.at_once) > 1
    return quick.at_once


@sampled
@pytest.mark.usefixtures("copied_from")
def test_good_writes_of_any_kind_go_in_at_once(three: tuple[Copy, Copy, Copy]) -> None:
    found: Counter[int] = Counter()

    @settings(drawn(60))
    @given(batches_of(plain_messages()))
    def check(batches: list[list[bytes]]) -> None:
        at_once = both_ways(three, batches)
        assert all(at_once)
        assert not three[0].letters()
        found.update(at_once)

    check()
    assert max(found) > 1


@sampled
@pytest.mark.usefixtures("copied_from")
def test_whatever_is_pushed_comes_to_the_same(three: tuple[Copy, Copy, Copy]) -> None:
    found: Counter[int] = Counter()

    @settings(drawn(100))
    @given(batches_of(any_messages()))
    def check(batches: list[list[bytes]]) -> None:
        found.update(both_ways(three, batches))

    check()
    assert found[0]
    assert found[1]


def test_a_kind_of_write_that_was_forgotten_within_a_batch_goes_in_once(
    three: tuple[Copy, Copy, Copy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_lines, "COPIED_FROM", 1)
    monkeypatch.setattr(plain_shape, "_MOST_SHAPES", 1)
    adds = [message("items", str(id), {"n": "1"}, "increment") for id in (1, 2, 4, 5)]
    patches = [message("items", str(id), {"o": "true"}, "patch") for id in (1, 2)]
    other = message("items", "3", {"t": '"x"'})
    assert max(both_ways(three, [[adds[0], other], adds[1:]])) == 2
    assert max(both_ways(three, [[patches[0], other], patches[1:]])) == 2


def test_a_seq_that_comes_twice_is_read_message_by_message(three: tuple[Copy, Copy, Copy]) -> None:
    """It is forged: the entry may show the other one, whatever its operation."""
    own, forged = (message("items", id, {"n": "1"}, op) for id, op in (("1", "patch"), ("2", "put")))
    bodies = [b'{"seq":%d,"key":"k",' % seq + body[1:] for body, seq in ((own, 7), (forged, 7), (forged, 8))]
    quick = three[0]
    quick.run(CLEAN)
    quick.begin()
    assert digest(quick.freeze([bodies[0], bodies[2]]), quick.flusher.catalog) is not None
    assert digest(quick.freeze(bodies[:2]), quick.flusher.catalog) is None


def test_a_temporary_table_that_somebody_takes_away_is_made_again_once(
    three: tuple[Copy, Copy, Copy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_lines, "COPIED_FROM", 1)
    quick = three[0]
    quick.begin()
    item = message("items", "1", {"n": "1"}, "increment")

    def flush() -> int:
        quick.flush_at_once([item])
        return quick.at_once[-1]

    assert flush() == 1
    for may_copy in (True, False):
        quick.run("DISCARD TEMP")
        assert flush() == 0  # it went in, message by message
        assert quick.flusher.may_copy is may_copy
        assert flush() == 1
    assert quick.rows("SELECT n FROM quick.items WHERE id = 1") == [(5,)]
