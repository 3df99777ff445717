"""Messages as bad producers write them, each with what must become of it; the same for one seed."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

TABLES = """
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TYPE address AS (street text, number int);
CREATE DOMAIN percent AS int CHECK (VALUE BETWEEN 0 AND 100);
CREATE DOMAIN given AS text NOT NULL;
CREATE TABLE things (id int PRIMARY KEY, name text, twice int GENERATED ALWAYS AS (id * 2) STORED);
CREATE TABLE pairs (tenant int, name text, n int, PRIMARY KEY (tenant, name));
CREATE TABLE parents (id int PRIMARY KEY);
CREATE TABLE strict (
    id int PRIMARY KEY, must text NOT NULL, age int CHECK (age >= 0), email text UNIQUE,
    parent int REFERENCES parents, later int REFERENCES parents DEFERRABLE INITIALLY DEFERRED,
    span int4range, EXCLUDE USING gist (span WITH &&)
);
CREATE TABLE heap (id int, name text);
CREATE TABLE secrets (id int PRIMARY KEY, name text);
INSERT INTO parents VALUES (1);
INSERT INTO strict VALUES (0, 'm', 1, 'taken', 1, 1, '[0,10)');
"""

TYPES: dict[str, tuple[tuple[str, str], tuple[str, ...]]] = {
    # type: (a good value as JSON and the text that it becomes, values that the type refuses)
    "smallint": (("-7", "-7"), ("40000", '"x"', "1.5e9", "[1]", '""', "true")),
    "int": (("7", "7"), ("99999999999", '"7 apples"', "1.5", "{}", '"0x"', "1e400")),
    "bigint": (("9007199254740993", "9007199254740993"), ("1" * 30, '"nine"', "[]", '"1_"')),
    "numeric(6,2)": (("1234.50", "1234.50"), ("123456.7", '"1,5"', "[]", "true", "1e500")),
    "real": (("0.5", "0.5"), ("1e99", '"x"', "{}", '"1,0"')),
    "double precision": (("0.1", "0.1"), ("1e999", '"NaNaN"', "[0.1]")),
    "boolean": (("true", "true"), ('"maybe"', "2", "[]", "{}", '""')),
    "text": (('"a\\"b"', 'a"b'), ('"a\\u0000b"', '"\\ud800"', '"\\udc00x"', '"\\ud800\\ud800"')),
    "varchar(4)": (('"four"', "four"), ('"five!"', '"\\u0000"', "123456", '{"a":1}')),
    "char(3)": (('"abc"', "abc"), ('"abcd"', "12345", "[1,2]")),
    "bytea": (('"\\\\x6869"', "\\x6869"), ('"\\\\x6"', '"\\\\xzz"', '"\\\\9"')),
    "date": (('"2024-02-29"', "2024-02-29"), ('"2023-02-29"', "17", '"today-ish"', "{}", '""')),
    "time": (('"23:59:59"', "23:59:59"), ('"25:00"', '"noon-ish"', "[]")),
    "timestamp": (('"2024-01-02 03:04:05"', "2024-01-02 03:04:05"), ('"2024-13-01"', "5", "true")),
    "timestamptz": (
        ('"2024-01-02T03:04:05Z"', "2024-01-02 03:04:05+00"),
        ('"2024-01-02T99:00Z"', '"now-ish"', "{}", '"294277-01-01"'),
    ),
    "interval": (('"1 day"', "1 day"), ('"1 fortnight-ish"', "[]", '"x"')),
    "uuid": (
        ('"A0EEBC999C0B4EF8BB6D6BB9BD380A11"', "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ('"a0ee"', "17", '"zzeebc99-9c0b-4ef8-bb6d-6bb9bd380a11"', "{}"),
    ),
    "json": (('{"b": [], "a":{}}', '{"b": [], "a":{}}'), ("[" * 20_000 + "]" * 20_000,)),
    "jsonb": (('{"a":[1, {}]}', '{"a": [1, {}]}'), ('{"a":"\\u0000"}', '["\\udead"]', '"\\ud800x"')),
    "int[]": (("[1,2]", "{1,2}"), ('["x"]', "7", "[[1],[1,2]]", '{"a":1}', '"{1"', "[1e30]")),
    "text[]": (('["a","b c"]', '{a,"b c"}'), ('"a"', "true", '["\\u0000"]', '[["a"],"b"]')),
    "mood": (('"ok"', "ok"), ('"OK"', "1", '""', "[]")),
    "percent": (("50", "50"), ("101", "-1", '"half"', "[]")),
    "int4range": (('"[1,5)"', "[1,5)"), ('"[5,1)"', "7", '"[a,b]"', "{}")),
    "inet": (('"10.0.0.1"', "10.0.0.1/32"), ('"10.0.0.256"', "7.5", '"localhost"')),
    "cidr": (('"10.0.0.0/8"', "10.0.0.0/8"), ('"10.0.0.1/8"', '"x"', "[]")),
    "macaddr": (('"08:00:2b:01:02:03"', "08:00:2b:01:02:03"), ('"08:00:2b"', "7", '"gg:00:2b:01:02:03"')),
    "money": (('"12.34"', "$12.34"), ('"twelve"', "1e40", "[]")),
    "bit(3)": (('"101"', "101"), ('"10"', '"102"', "5", "[]")),
    "bit varying(3)": (('"10"', "10"), ('"1010"', '"2"')),
    "point": (('"(1,2)"', "(1,2)"), ('"1;2"', "7", "[1,2]", "{}")),
    "xml": (('"<a/>"', "<a/>"), ('"<a>"', '"<a></b>"')),
    "address": (('{"street":"s","number":1}', "(s,1)"), ('{"number":"x"}', "7", '"street"', "[1]")),
    "tsvector": (('"a b"', "'a' 'b'"), ('"a:x"', '"\'open"')),
}
"""Every type that Postgres commonly has."""

INJECTED = (
    'users"; DROP TABLE things; --',
    "things; DELETE FROM things",
    "things WHERE true --",
    "' OR 1=1 --",
    'things" AS t (id) SELECT 1; --',
    "$1",
    "%s",
    "{table}",
    "\\'; SELECT pg_sleep(10); --",
    "writebehind.ledger",
    "pg_catalog.pg_class",
    "information_schema.tables",
    "public.things.id",
    "THINGS",
    " things",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A message. ``row``: what it writes, (table, key, column, text); ``None`` for one to be refused.

    ``says`` is a pattern that the reason of a bad one must match.
    """

    kind: str
    body: bytes
    row: tuple[str, Any, str, str] | None = None
    says: str = ""


Maker = Callable[[random.Random, int], Sample]


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _column(type: str) -> str:
    """The column of table ``typed`` for a type."""
    return "c_" + re.sub(r"\W+", "_", type)


def typed_table(types: list[str]) -> str:
    """The statement that makes a table with a column of each type."""
    columns = ", ".join(f"{_column(t)} {t}" for t in types)
    return f"CREATE TABLE typed (id int PRIMARY KEY, {columns})"


def good(rng: random.Random, n: int, types: list[str]) -> Sample:
    """One that must land: its key is ``n``, which no other has."""
    form = rng.randrange(6)
    if form == 0:
        type = types[n % len(types)]
        value, text = TYPES[type][0]
        body = f'{{"table":"typed","id":{n},"data":{{"{_column(type)}":{value}}}}}'
        return Sample("typed", body.encode(), ("typed", n, _column(type), text))
    if form == 1:
        body = f'{{"data":{{"n":{n}}},"id":{{"name":"x","tenant":"{n}"}},"table":"public.pairs"}}'
        return Sample("composite", body.encode(), ("pairs", n, "n", str(n)))
    if form == 2:  # of two members of one name the last counts
        body = f'{{"table":"x","table":"things","id":-1,"id":{n},"data":{{"name":"a","name":"b{n}"}}}}'
        return Sample("duplicate keys", body.encode(), ("things", n, "name", f"b{n}"))
    if form == 3:
        body = f'{{"table":"strict","id":{n},"data":{{"must":"m{n}","email":"{n}","parent":1,"age":{n}}}}}'
        return Sample("strict", body.encode(), ("strict", n, "must", f"m{n}"))
    if form == 4:
        id = f'{{"tenant":{n},"name":"x"}}'
        body = f' {{ "op" : "increment", "table":"pairs","id":{id},"data":{{"n":{n}}} }}\n'
        return Sample("increment", body.encode(), ("pairs", n, "n", str(n)))
    name = "'; DROP TABLE things; --" + chr(rng.randrange(0x1F300, 0x1F5FF)) + str(n)
    return Sample("hostile text", _text({"table": "things", "id": n, "data": {"name": name}}).encode(),
                  ("things", n, "name", name))  # fmt: skip


# Refused before Postgres is asked.


def _random_bytes(rng: random.Random, n: int) -> Sample:
    return Sample(
        "random bytes", rng.randbytes(rng.randrange(1, 60)), says="not UTF-8|JSON|truncated|Expected"
    )


def _truncated(rng: random.Random, n: int) -> Sample:
    whole = good(rng, n, ["int"]).body.rstrip()
    return Sample(
        "truncated",
        whole[: rng.randrange(1, len(whole))],
        says="truncated|malformed|not UTF-8: unexpected end",
    )


def _damaged(rng: random.Random, n: int) -> Sample:
    whole = _text({"table": "things", "id": n, "data": {"name": "x"}}).encode()
    at = rng.randrange(len(whole) - 1)
    return Sample(
        "damaged",
        whole[:at] + b"\x00" + whole[at:],
        says="malformed|invalid|unknown table|control|no column|unknown field",
    )


def _not_an_object(rng: random.Random, n: int) -> Sample:
    value = rng.choice(["null", "true", f"{n}", f'"{n}"', f"[{n}]", "[{}]", '[["table","things"]]', "1e9"])
    return Sample("not an object", value.encode(), says="Expected `object`")


def _deep(rng: random.Random, n: int) -> Sample:
    depth = rng.randrange(5_000, 20_000)
    opened, closed = rng.choice([("[", "]"), ('{"a":', "}")])
    body = opened * depth + "1" + closed * depth
    if rng.random() < 0.5:
        body = f'{{"table":"things","id":{body},"data":{{}}}}'
    # How deep Python reads depends on its version.
    says = "nested too deep|Expected `object`|unknown field|`id` must be a scalar"
    return Sample("deep", body.encode(), says=says)


def _bad_utf8(rng: random.Random, n: int) -> Sample:
    bad = rng.choice([b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"])
    return Sample(
        "not UTF-8", b'{"table":"things","id":%d,"data":{"name":"%b"}}' % (n, bad), says="not UTF-8"
    )


def _wrong_field(rng: random.Random, n: int) -> Sample:
    whole: dict[str, Any] = {"table": "things", "id": n, "data": {"name": "x"}}
    field, value = rng.choice(
        [
            ("table", n), ("table", None), ("table", ""), ("table", ["things"]), ("table", {"a": 1}),
            ("data", [1]), ("data", "x"), ("data", None), ("data", n),
            ("op", "upsert"), ("op", 1), ("op", None), ("op", "PUT"),
            ("seq", -1), ("seq", 2**70), ("seq", "5"), ("seq", 9e99), ("seq", n), ("seq", [n]),
            ("ttl", 0), ("ttl", -n), ("ttl", 10**30), ("ttl", "60"), ("ttl", 1.5),
            ("key", n), ("key", {}), ("opp", "delete"), ("", 1), ("Table", "x"), ("a" * 3000, n),
        ]
    )  # fmt: skip
    return Sample(
        "wrong field", _text(whole | {field: value}).encode(), says="`|must|Expected|unknown field|JSON"
    )


def _missing_field(rng: random.Random, n: int) -> Sample:
    whole: dict[str, Any] = {"table": "things", "id": n, "data": {"name": "x"}}
    gone = rng.choice(list(whole))
    del whole[gone]
    return Sample("missing field", _text(whole).encode(), says=f"`{gone}`")


def _wrong_operation(rng: random.Random, n: int) -> Sample:
    op, data = rng.choice(
        [
            ("delete", {"name": "x"}), ("patch", {}), ("increment", {}), ("increment", {"name": "x"}),
            ("increment", {"id": None}), ("increment", {"id": [1]}),
        ]
    )  # fmt: skip
    body = _text({"table": "things", "id": n, "op": op, "data": data})
    return Sample("wrong operation", body.encode(), says=op)


def _wrong_id(rng: random.Random, n: int) -> Sample:
    table: str
    id: Any
    table, id = rng.choice(
        [
            ("things", None), ("things", [n]), ("things", {}), ("things", {"id": None}),
            ("things", {"id": [n]}), ("things", {"id": {}}), ("things", {"id": n, "more": 1}),
            ("things", {"ID": n}), ("pairs", n),
            ("pairs", {"tenant": n}), ("pairs", {"tenant": n, "name": None}), ("pairs", "x:1"),
            ("pairs", {"tenant": n, "name": "x", "n": 1}),
        ]
    )  # fmt: skip
    body = _text({"table": table, "id": id, "data": {}})
    return Sample("wrong id", body.encode(), says=r"`id`|primary key of public\.(things|pairs)")


def _unknown_table(rng: random.Random, n: int) -> Sample:
    name = rng.choice([*INJECTED, f"nowhere{n % 50}", "things\0", "th\x01ings", "t" * 5000])
    body = _text({"table": name, "id": n, "data": {"name": "x"}})
    return Sample("unknown table", body.encode(), says="^unknown table")


def _unknown_column(rng: random.Random, n: int) -> Sample:
    name = rng.choice(
        [*INJECTED, f"nmae{n % 50}", "NAME", "name\0", "ctid", "xmin", "", "c" * 5000, "\ud800"]
    )
    body = json.dumps({"table": "things", "id": n, "data": {"name": "x", name: n}})
    return Sample(
        "unknown column", body.encode(), says="public.things has no column|surrogate|malformed|invalid"
    )


def _not_allowed(rng: random.Random, n: int) -> Sample:
    whole, says = rng.choice(
        [
            ({"table": "heap", "id": n, "data": {"name": "x"}}, "public.heap has no primary key"),
            ({"table": "things", "id": n, "data": {"twice": 1}}, "public.things.twice is generated"),
            ({"table": "things", "id": n, "data": {"id": n + 1}}, "part of the primary key"),
            ({"table": "things", "id": n, "data": {"id": None}}, "part of the primary key"),
            ({"table": "things", "id": n, "op": "increment", "data": {"name": 1}}, "things.name is text"),
            ({"table": "things", "id": n, "op": "patch", "data": {"id": n}}, "no column besides"),
        ]
    )  # fmt: skip
    return Sample("not allowed", _text(whole).encode(), says=says)


REFUSED_BY_THE_WORKER: tuple[tuple[Maker, int], ...] = (
    (_random_bytes, 30), (_truncated, 30), (_damaged, 10), (_not_an_object, 10), (_bad_utf8, 10),
    (_wrong_field, 30), (_missing_field, 10), (_wrong_operation, 10), (_wrong_id, 20),
    (_unknown_table, 20), (_unknown_column, 20), (_not_allowed, 20),
)  # fmt: skip


# Refused by Postgres.


def _wrong_value(rng: random.Random, n: int, types: list[str]) -> Sample:
    type = types[n % len(types)]
    value = rng.choice(TYPES[type][1])
    column = _column(type)
    body = f'{{"table":"typed","id":{n},"data":{{"id":{n},"{column}":{value}}}}}'
    return Sample(
        f"wrong {type}", body.encode(), says=rf"public\.typed\.{column}: |nested too deep|surrogate pair"
    )


def _violation(rng: random.Random, n: int) -> Sample:
    data, says = rng.choice(
        [
            ({"must": None}, '"must"'),
            ({"age": 1}, '"must"'),
            ({"must": "m", "age": -1}, "strict_age_check"),
            ({"must": "m", "email": "taken"}, "strict_email_key.*taken"),
            ({"must": "m", "parent": n + 10**6}, "strict_parent_fkey.*not present"),
            ({"must": "m", "later": n + 10**6}, "strict_later_fkey.*not present"),
            ({"must": "m", "span": "[5,6)"}, "strict_span_excl"),
        ]
    )
    return Sample("violation", _text({"table": "strict", "id": n, "data": data}).encode(), says=says)


def _wrong_key(rng: random.Random, n: int) -> Sample:
    id = rng.choice(["x", "", 1.5, True, 10**20, f"{n}; DROP TABLE things", "0x", "1e2"])
    body = _text({"table": "things", "id": id, "data": {"name": f"{n}"}})
    return Sample("wrong key", body.encode(), says=r"public\.things\.id: ")


def _no_row(rng: random.Random, n: int) -> Sample:
    body = _text({"table": "things", "id": n, "op": "patch", "data": {"name": "x"}})
    return Sample("no row", body.encode(), says="no row with this key")


def refused_by_postgres(rng: random.Random, n: int, types: list[str]) -> Sample:
    """One that only Postgres can refuse."""
    form = rng.randrange(8)
    if form < 5:
        return _wrong_value(rng, n, types)
    return (_violation, _wrong_key, _no_row)[form - 5](rng, n)


HUGE = 50 * 1024 * 1024


def huge(n: int) -> Iterator[Sample]:
    """Values of 50 MB, good ones and bad ones; their keys are ``n`` and those that follow."""
    text = "x" * HUGE
    body = f'{{"table":"things","id":{n},"data":{{"name":"{text}"}}}}'
    yield Sample("huge text", body.encode(), ("things", n, "name", text))
    body = f'{{"table":"typed","id":{n + 1},"data":{{"c_int":"{text}"}}}}'
    yield Sample("huge in an integer", body.encode(), says="invalid input syntax for type integer")
    body = f'{{"table":"things","id":{n + 2},"data":{{"name":"{text}'
    yield Sample("huge and unfinished", body.encode(), says="truncated")


def samples(seed: int, bad: int, by_postgres: int, good_ones: int, types: list[str]) -> Iterator[Sample]:
    """So many of each, mixed; keys from 1 on, one for each message.

    Those that Postgres refuses come in crowds, a good one beside each: alone among thousands each costs
    a dozen statements, and a few come so.
    """
    rng = random.Random(seed)
    makers, weights = zip(*REFUSED_BY_THE_WORKER, strict=True)
    chosen: list[Callable[[random.Random, int], Sample]] = rng.choices(makers, weights, k=bad)
    chosen += [_deep] * 200
    chosen += [lambda r, n: good(r, n, types)] * good_ones
    alone = by_postgres // 100
    chosen += [lambda r, n: refused_by_postgres(r, n, types)] * alone
    rng.shuffle(chosen)
    crowd = 200
    starts = set(rng.sample(range(len(chosen)), (by_postgres - alone) // crowd))
    n = 0
    for i, make in enumerate(chosen):
        n += 1
        yield make(rng, n)
        for _ in range(crowd if i in starts else 0):
            yield refused_by_postgres(rng, n + 1, types)
            yield good(rng, n + 2, types)
            n += 2
