"""A write becomes a message whose values keep their JSON text, or is refused before anything is sent."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from writebehind import InvalidWrite, WriteBehind
from writebehind.message import Op, cache_fields, encode_row, make_write


class Colour(enum.Enum):
    RED = "red"
    SHADES = ("light", 2)


class Level(enum.IntEnum):
    LOW = 1


class Role(enum.StrEnum):
    ADMIN = "admin"


class Access(enum.IntFlag):
    READ = 1
    WRITE = 2


class Tagged(str):
    """As SQLAlchemy's ``quoted_name``."""

    __slots__ = ()


class Measured(float):
    """As numpy's ``float64``."""


class Exact(Decimal):
    pass


@dataclasses.dataclass
class Point:
    x: int
    at: dt.date


@dataclasses.dataclass(slots=True)
class Slotted:
    x: Decimal


class Struct(msgspec.Struct):
    name: str
    inner: list[Point]


def raw_message(op: Op, id: Any, data: Mapping[str, Any] | None, table: str = "t") -> bytes:
    return make_write(op, table, id, data).message("the key", 60)


def message(op: Op, id: Any, data: Mapping[str, Any] | None, table: str = "t") -> Any:
    return json.loads(raw_message(op, id, data, table), parse_float=Decimal)


def value_text(value: Any) -> str:
    """The JSON text that a value has in the message."""
    columns = make_write("put", "t", 1, {"c": value}).columns
    assert b'"data":{"c":' + columns["c"] + b"}" in raw_message("put", 1, {"c": value})
    return columns["c"].decode()


UTC = dt.UTC
EAST = dt.timezone(dt.timedelta(hours=5, minutes=30))
ODD = dt.timezone(dt.timedelta(seconds=30))


def _name_of(value: object) -> str:
    """For a case's name: without the address that some objects show, which differs between processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", ascii(value))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (0, "0"),
        (-7, "-7"),
        (2**53 + 1, "9007199254740993"),
        (2**63, "9223372036854775808"),
        (-(2**63) - 1, "-9223372036854775809"),
        (10**60, "1" + "0" * 60),
        (1.5, "1.5"),
        (-0.0, "-0.0"),
        (0.1, "0.1"),
        (Measured(1.5), "1.5"),
        (Decimal("0.10"), "0.10"),
        (Decimal("123456789012345678901234567890.123456789"), "123456789012345678901234567890.123456789"),
        (Decimal("1E+3"), "1E+3"),
        (Decimal("-0"), "-0"),
        (Exact("1.50"), "1.50"),
        ("plain", '"plain"'),
        ('"quoted"\n\\', r'"\"quoted\"\n\\"'),
        ("ö😀", '"ö😀"'),
        (Tagged("t"), '"t"'),
        (dt.date(2024, 2, 29), '"2024-02-29"'),
        (dt.date(1, 1, 1), '"0001-01-01"'),
        (dt.datetime(2024, 1, 2, 3, 4, 5, 6), '"2024-01-02T03:04:05.000006"'),
        (dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=EAST), '"2024-01-02T03:04:05+05:30"'),
        (dt.time(3, 4, 5, 6), '"03:04:05.000006"'),
        (dt.time(3, 4, tzinfo=EAST), '"03:04:00+05:30"'),
        (dt.timedelta(days=1, seconds=2, microseconds=3), '"1 days 2.000003 seconds"'),
        (dt.timedelta(seconds=-1), '"-1 days 86399.000000 seconds"'),
        (dt.timedelta(microseconds=-1), '"-1 days 86399.999999 seconds"'),
        (dt.timedelta(0), '"0 days 0.000000 seconds"'),
        (UUID("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"), '"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"'),
        (b"\x00\xff", r'"\\x00ff"'),
        (bytearray(b"\x01"), r'"\\x01"'),
        (memoryview(b"\x02"), r'"\\x02"'),
        (b"", r'"\\x"'),
        (Level.LOW, "1"),
        (Role.ADMIN, '"admin"'),
        (Access.READ | Access.WRITE, "3"),
        (Colour.RED, '"red"'),
        (Colour.SHADES, '["light",2]'),
        (Point(1, dt.date(2024, 1, 1)), '{"x":1,"at":"2024-01-01"}'),
        (Slotted(Decimal("1.10")), '{"x":1.10}'),
        (
            Struct("n", [Point(1, dt.date(2024, 1, 1))]),
            '{"name":"n","inner":[{"x":1,"at":"2024-01-01"}]}',
        ),
        ([1, (2, [3])], "[1,[2,[3]]]"),
        ({"a": {"b": [Decimal("1.0"), None]}}, '{"a":{"b":[1.0,null]}}'),
        (MappingProxyType({"a": 1}), '{"a":1}'),
        ({1: "x", Role.ADMIN: 2}, '{"1":"x","admin":2}'),
        ({7}, "[7]"),
        ([], "[]"),
        ({}, "{}"),
    ],
    ids=lambda value: _name_of(value)[:40],
)
def test_a_value_has_the_json_text_that_postgres_reads(value: object, text: str) -> None:
    assert value_text(value) == text


@pytest.mark.parametrize(
    "moment",
    [
        dt.datetime(2024, 7, 1, 12, tzinfo=UTC),
        dt.datetime(2024, 7, 1, 12, tzinfo=ZoneInfo("America/New_York")),
        dt.datetime(2024, 11, 3, 1, 30, fold=1, tzinfo=ZoneInfo("America/New_York")),
        dt.datetime(1900, 1, 1, tzinfo=ZoneInfo("Europe/Amsterdam")),  # an offset with seconds
        dt.datetime(2024, 1, 1, tzinfo=ODD),
    ],
    ids=_name_of,
)
def test_a_datetime_with_a_zone_stays_the_same_instant(moment: dt.datetime) -> None:
    read = dt.datetime.fromisoformat(json.loads(value_text(moment)))
    assert read.timestamp() == moment.timestamp()
    assert read.utcoffset() == moment.utcoffset()


def test_a_time_with_an_offset_of_seconds_keeps_it() -> None:
    read = dt.time.fromisoformat(json.loads(value_text(dt.time(1, 2, tzinfo=ODD))))
    assert read.utcoffset() == dt.timedelta(seconds=30)


@given(st.timedeltas())
def test_a_timedelta_keeps_its_length(value: dt.timedelta) -> None:
    days, _, seconds, _ = json.loads(value_text(value)).split(" ")
    micros = int(Decimal(seconds) * 1_000_000)
    assert dt.timedelta(days=int(days), microseconds=micros) == value


def test_a_put_is_the_default_operation_and_a_delete_has_no_data() -> None:
    put = message("put", 1, {"name": "Ada", "born": None})
    assert put == {
        "table": "t",
        "id": 1,
        "data": {"name": "Ada", "born": None},
        "key": "the key",
        "ttl": 60,
    }
    assert message("delete", 1, None) == {
        "table": "t",
        "id": 1,
        "op": "delete",
        "key": "the key",
        "ttl": 60,
    }
    assert message("patch", 1, {"a": 1})["op"] == "patch"
    assert message("increment", 1, {"a": Decimal("0.10")})["data"] == {"a": Decimal("0.10")}


def test_a_put_without_columns_is_a_row_of_defaults() -> None:
    assert message("put", 1, {})["data"] == {}


@pytest.mark.parametrize(
    ("id", "expected"),
    [
        (42, 42),
        ("42", "42"),
        (True, True),
        (Level.LOW, 1),
        (Role.ADMIN, "admin"),
        (Decimal("1.50"), Decimal("1.50")),
        (dt.date(2024, 1, 1), "2024-01-01"),
        (UUID("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"), "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ({"tenant": 1, "day": dt.date(2024, 1, 1)}, {"tenant": 1, "day": "2024-01-01"}),
        (10**30, 10**30),
    ],
    ids=_name_of,
)
def test_an_id_is_a_scalar_or_an_object_of_scalars(id: Any, expected: object) -> None:
    assert message("delete", id, None)["id"] == expected


def test_names_may_be_subclasses_of_str() -> None:
    read = message("put", {Tagged("tenant"): 1}, {Tagged("name"): 1, Role.ADMIN: 2}, table=Tagged("users"))
    assert read["table"] == "users"
    assert read["id"] == {"tenant": 1}
    assert read["data"] == {"name": 1, "admin": 2}


def looped() -> list[Any]:
    loop: list[Any] = []
    loop.append({"again": loop})
    return loop


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    return value


@pytest.mark.parametrize("table", ["", None, 7, "a\0b", b"users", "\ud800"], ids=ascii)
def test_a_table_must_be_a_name(table: Any) -> None:
    with pytest.raises(InvalidWrite):
        raw_message("put", 1, {"a": 1}, table)


@pytest.mark.parametrize(
    "id",
    [
        None,
        "",
        {},
        [],
        [1],
        {"a": None},
        {"a": ""},
        {"a": {"b": 1}},
        {"a": [1]},
        {"": 1},
        {1: 1},
        math.nan,
        Decimal("Infinity"),
        {"a": math.inf},
        object(),
        "\ud800",
        {"a": "\ud800"},
    ],
    ids=_name_of,
)
def test_an_id_that_names_no_row_is_refused(id: Any) -> None:
    for op in ("put", "patch", "increment", "delete"):
        with pytest.raises(InvalidWrite):
            raw_message(op, id, {"a": 1})


REFUSED = {
    "nan": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "decimal nan": Decimal("NaN"),
    "signalling nan": Decimal("sNaN"),
    "decimal infinity": Decimal("-Infinity"),
    "nested nan": {"a": [math.nan]},
    "nested decimal infinity": [{"a": Decimal("Infinity")}],
    "in a dataclass": Slotted(Decimal("NaN")),
    "in a struct": Struct("n", [object()]),  # type: ignore[list-item]
    "object": object(),
    "function": looped,
    "class": Point,
    "complex": 1j,
    "iterator": iter([1]),
    "lone surrogate": "\ud800",
    "nested lone surrogate": ["\udfff"],
    "lone surrogate as a name": {"\ud800": 1},
    "member named by a float": {1.5: 1},
    "member named by None": {None: 1},
    "member named by a bool": {True: 1},
    "contains itself": looped(),
    "too deep": deep(),
    "a number of 5000 digits": 10**5000,
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_a_value_that_json_cannot_carry_is_refused(what: str) -> None:
    for op in ("put", "patch"):
        with pytest.raises(InvalidWrite, match=r"t\.c: "):
            raw_message(op, 1, {"c": REFUSED[what]})
    with pytest.raises(InvalidWrite):
        encode_row("t", {"c": REFUSED[what]})


@pytest.mark.parametrize("column", ["", None, 7, b"c", ("a",), "\ud800"], ids=ascii)
def test_a_column_must_be_a_name(column: Any) -> None:
    for op in ("put", "patch", "increment"):
        with pytest.raises(InvalidWrite):
            raw_message(op, 1, {column: 1})


@pytest.mark.parametrize("data", [None, [], "a", [("a", 1)], 7, object()], ids=lambda v: type(v).__name__)
def test_data_must_map_columns_to_values(data: Any) -> None:
    for op in ("put", "patch", "increment"):
        with pytest.raises(InvalidWrite, match="column"):
            raw_message(op, 1, data)


@pytest.mark.parametrize("op", ["patch", "increment"])
def test_a_change_of_no_column_is_refused(op: Op) -> None:
    with pytest.raises(InvalidWrite, match="at least one column"):
        raw_message(op, 1, {})


@pytest.mark.parametrize(
    "delta",
    ["1", True, False, None, math.nan, math.inf, Decimal("NaN"), [1], {"a": 1}, b"1", object(), 1j],
    ids=lambda value: _name_of(value)[:20],
)
def test_an_increment_by_what_is_no_number_is_refused(delta: object) -> None:
    with pytest.raises(InvalidWrite, match=r"t\.n: "):
        raw_message("increment", 1, {"n": delta})


@pytest.mark.parametrize(
    "delta", [0, -3, 10**30, 0.5, Decimal("0.10"), Decimal("1E+400"), Level.LOW, Measured(2.5)], ids=repr
)
def test_an_increment_by_any_number_is_written(delta: Any) -> None:
    assert message("increment", 1, {"n": delta})["data"]["n"] == delta


@pytest.fixture
def wb(redis_url: str, queue: str) -> Iterator[WriteBehind]:
    with WriteBehind.from_url(redis_url, queue=queue, prefix=f"{queue}:", max_message_bytes=200) as wb:
        yield wb


@pytest.fixture
def nothing_written(wb: WriteBehind, redis_client: redis.Redis) -> Iterator[None]:
    """Checks after the test that Redis holds nothing of its queue."""
    yield
    assert redis_client.keys(f"*{wb.keys.queue}*") == []


@pytest.mark.usefixtures("nothing_written")
def test_a_refused_write_leaves_nothing_in_redis(wb: WriteBehind) -> None:
    calls: list[Callable[[], object]] = [
        lambda: wb.put("", 1, {"a": 1}),
        lambda: wb.put("t", "", {"a": 1}),
        lambda: wb.put("t", 1, {"a": math.nan}),
        lambda: wb.patch("t", 1, {}),
        lambda: wb.increment("t", 1, {"a": "1"}),
        lambda: wb.delete("t", {"a": None}),
    ]
    for call in calls:
        with pytest.raises(InvalidWrite):
            call()


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize(("table", "column"), [("\ud800", "a"), ("t", "\ud800")], ids=["table", "column"])
def test_a_name_that_is_no_unicode_leaves_nothing_in_redis(wb: WriteBehind, table: str, column: str) -> None:
    with pytest.raises(InvalidWrite):
        wb.put(table, 1, {column: 1})


@pytest.mark.usefixtures("nothing_written")
def test_a_message_above_the_largest_size_leaves_nothing_in_redis(wb: WriteBehind) -> None:
    with pytest.raises(InvalidWrite, match="max_message_bytes"):
        wb.put("t", 1, {"a": "x" * 200})
    with pytest.raises(InvalidWrite, match="max_message_bytes"), wb.batch() as batch:
        batch.put("t", 1, {"a": 1})
        batch.put("t", 2, {"a": "x" * 200})


def test_a_message_of_just_the_largest_size_is_written(wb: WriteBehind, redis_client: redis.Redis) -> None:
    wb.put("t", 1, {"a": ""})
    (item,) = redis_client.lrange(wb.keys.queue, 0, -1)
    without_seq = len(b"{" + cast(bytes, item).split(b",", 1)[1])
    wb.put("t", 1, {"a": "x" * (200 - without_seq)})
    with pytest.raises(InvalidWrite, match="201 bytes"):
        wb.put("t", 1, {"a": "x" * (201 - without_seq)})
    assert redis_client.llen(wb.keys.queue) == 2


# Surrogates are no text; names are not empty.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=10)
numbers = (
    st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.decimals(allow_nan=False, allow_infinity=False)
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


def as_read(value: Any) -> Any:
    """What an exact JSON reader makes of a value: floats by their shortest text."""
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, list):
        return [as_read(v) for v in value]
    if isinstance(value, dict):
        return {k: as_read(v) for k, v in value.items()}
    return value


@given(names.filter(lambda name: "\0" not in name), numbers | names, st.dictionaries(names, values))
def test_any_row_survives_the_message_exactly(table: str, id: Any, row: dict[str, Any]) -> None:
    read = message("put", id, row, table)
    assert read["table"] == table
    assert read["id"] == as_read(id)
    assert read["data"] == as_read(row)
    assert list(read["data"]) == list(row)


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(st.dictionaries(NAMES | st.sampled_from(["@x", "@@", "a@b"]), st.text() | st.integers() | st.none()))
def test_the_entry_holds_each_column_beside_our_own_fields(row: dict[str, Any]) -> None:
    found = cache_fields(encode_row("t", row))
    names = ["@" + name if name.startswith("@") else name for name in row]
    assert found[::2] == names
    assert [json.loads(text) for text in found[1::2]] == list(row.values())


@pytest.mark.parametrize(
    ("id", "text"),
    [
        (0, "0"),
        (-1, "-1"),
        (-(1 << 63), str(-(1 << 63))),
        ((1 << 63) - 1, str((1 << 63) - 1)),
        (1 << 63, str(1 << 63)),
        (True, "true"),
        (Level.LOW, "1"),
    ],
)
def test_a_whole_number_is_a_key_as_it_is_written(id: int, text: str) -> None:
    write = make_write("put", "t", id, {"c": 1})
    assert (write.id_json, write.key) == (text.encode(), text)
    assert message("put", id, {"c": 1})["id"] == json.loads(text)
