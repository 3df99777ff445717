"""Types of fields of typed rows: each is refused when the table is made, or what is put is what is got."""

from __future__ import annotations

import collections
import datetime as dt
import fractions
import ipaddress
import pathlib
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from typing_extensions import TypeAliasType, TypedDict  # as Pydantic has them before Python 3.12

from writebehind import RowMismatch, WriteBehind
from writebehind.field_types import plain_type
from writebehind.message import encode_row
from writebehind.shape import RowShape

ID = UUID("8c7a2f0e-7b7c-4c57-9d3a-0d2ad1a54d9e")
PARIS = dt.timezone(dt.timedelta(minutes=9, seconds=21))
T = typing.TypeVar("T")
NOW = dt.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=dt.UTC)


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Tone(StrEnum):
    DARK = "dark"


class Right(Flag):
    READ = 1
    WRITE = 2


class Pair(Enum):
    BOTH = (1, 2)


class Email(str):
    __slots__ = ()


class Own:
    pass


class Typed(TypedDict):
    blob: bytes
    took: dt.timedelta


class Named(NamedTuple):
    amount: int
    blob: bytes = b""


class Row(msgspec.Struct, array_like=True):
    count: int
    took: dt.timedelta


class Tagged(msgspec.Struct, array_like=True, tag="t"):
    count: int
    blob: bytes


class Renamed(msgspec.Struct, rename="camel", tag=True, omit_defaults=True, forbid_unknown_fields=True):
    some_blob: bytes
    model_config: int = 0  # no model's
    how_many: int | msgspec.UnsetType = msgspec.UNSET


@attrs.define
class Money:
    amount: int
    _currency: str = "EUR"
    inner: list[Money] = attrs.Factory(list)


@dataclass
class Box(typing.Generic[T]):
    value: T
    _hidden: int = 0


@dataclass
class Node:
    took: dt.timedelta
    next: Node | None = None


class Home(pydantic.BaseModel):
    photo: bytes
    paid: Decimal
    free: dict[str, Any] = {}
    inner: list[Home] = []
    number: int = pydantic.Field(default=1, alias="houseNumber")


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    a: int = 1


@pydantic.dataclasses.dataclass(config=pydantic.ConfigDict(extra="allow"))
class OpenClass:
    a: int = 1


class Root(pydantic.RootModel[list[int]]):
    pass


class Guarded(pydantic.BaseModel):
    password: pydantic.SecretStr


class Encoded(TypedDict):
    blob: pydantic.Base64Bytes


@pydantic.dataclasses.dataclass
class Checked:
    at: dt.datetime
    blob: bytes = b""


UserId = NewType("UserId", int)


def of_pydantic(annotation: Any, value: Any) -> Any:
    return pydantic.TypeAdapter(annotation).validate_python(value)


WRITTEN: list[tuple[Any, Any]] = [
    (int, 2**70),
    (float, 0.1),
    (str, "ä\0\u2028"),
    (bool, True),
    (Decimal, Decimal("1.10000000000000000000000000000001")),
    (bytes, b"\0\xff"),
    (bytearray, bytearray(b"ab")),
    (UUID, ID),
    (dt.date, dt.date(1, 1, 1)),
    (dt.datetime, NOW),
    (dt.datetime, NOW.replace(tzinfo=None)),
    (dt.datetime, dt.datetime(1880, 1, 1, tzinfo=PARIS)),
    (dt.time, dt.time(1, 2, 3, 4)),
    (dt.timedelta, dt.timedelta(days=-3, microseconds=1)),
    (Colour, Colour.RED),
    (Level, Level.LOW),
    (Tone, Tone.DARK),
    (Right, Right.READ | Right.WRITE),
    (Literal["a", "b"], "a"),
    (Any, {"a": [1, 0.1, None]}),
    (UserId, 5),
    (Annotated[int, msgspec.Meta(gt=3)], 5),
    (pathlib.Path, pathlib.Path("/a/b")),
    (pathlib.PurePosixPath, pathlib.PurePosixPath("a")),
    (ipaddress.IPv4Address, ipaddress.IPv4Address("10.0.0.1")),
    (ipaddress.IPv6Address, ipaddress.IPv6Address("::1")),
    (ipaddress.IPv4Network, ipaddress.IPv4Network("10.0.0.0/8")),
    (ipaddress.IPv6Interface, ipaddress.IPv6Interface("::1/64")),
    (int | float, 1.5),
    (tuple[pathlib.Path, Any], (pathlib.Path("a"), 0.1)),
    (int | str | None, "a"),
    (tuple[int, bytes], (1, b"a")),
    (tuple[bytes, ...], (b"a", b"b")),
    (set[int], {1}),
    (frozenset[Decimal], frozenset({Decimal("0.10")})),
    (Sequence[bytes], [b"a"]),
    (Mapping[str, dt.timedelta], {"a": dt.timedelta(1)}),
    (dict[int, Decimal], {1: Decimal("0.1")}),
    (dict[UUID, bytes], {ID: b"a"}),
    (dict[dt.date, Decimal], {dt.date(2020, 1, 1): Decimal("1.10")}),
    (dict[dt.datetime, int], {NOW: 1, dt.datetime(1880, 1, 1, tzinfo=PARIS): 2}),
    (dict[Decimal, int], {Decimal("1.10"): 1}),
    (dict[Colour, int], {Colour.RED: 1}),
    (dict[Level, int], {Level.LOW: 1}),
    (dict[Literal["a", "b"], int], {"a": 1}),
    (Typed, {"blob": b"\xff", "took": dt.timedelta(1)}),
    (Named, Named(1, b"\xff")),
    (Row, Row(1, dt.timedelta(1))),
    (Tagged, Tagged(1, b"\xff")),
    (Renamed, Renamed(b"\xff")),
    (Renamed, Renamed(b"\xff", 1, 5)),
    (Money, Money(5, "USD", [Money(6, "CHF")])),
    (Box[bytes], Box(b"\xff", 5)),
    (Box[Box[bytes]], Box(Box(b"\xff"))),
    (Node, Node(dt.timedelta(1), Node(dt.timedelta(2)))),
    (Home, Home(photo=b"\xff", paid=Decimal("0.10"), free={"a": 0.1}, inner=[], houseNumber=7)),
    (Checked, Checked(NOW, b"\xff")),
    (pydantic.PositiveInt, 5),
    (pydantic.StrictBytes, b"\xff"),
    (pydantic.UUID4, ID),
    (pydantic.conlist(bytes, min_length=1), [b"\xff"]),
    *(
        (kind, of_pydantic(kind, text))
        for kind, text in (
            (pydantic.HttpUrl, "http://a.b/c"),
            (pydantic.AnyUrl, "redis://x/1"),
            (pydantic.PostgresDsn, "postgres://u:p@h/d"),
            (pydantic.RedisDsn, "redis://:p@h/1"),
            (pydantic.FilePath, __file__),
            (pydantic.ByteSize, "1KB"),
        )
    ),
]
NAMES: list[tuple[Any, Any]] = [
    (pydantic.AwareDatetime, NOW),
    (pydantic.NaiveDatetime, NOW.replace(tzinfo=None)),
    (pydantic.PastDatetime, dt.datetime(2020, 1, 1)),
    (pydantic.FutureDatetime, dt.datetime(2999, 1, 1)),
    (pydantic.PastDate, dt.date(2020, 1, 1)),
    (pydantic.FutureDate, dt.date(2999, 1, 1)),
]
REFUSED: list[tuple[Any, Any]] = [
    (pydantic.SecretStr, pydantic.SecretStr("hunter2")),
    (pydantic.SecretBytes, pydantic.SecretBytes(b"hunter2")),
    (pydantic.Secret[int], pydantic.Secret[int](5)),
    (pydantic.Base64Bytes, b"abcd"),
    (pydantic.Base64Str, "abcd"),
    (pydantic.Base64UrlBytes, b"abcd"),
    (TypeAliasType("EncodedAlias", pydantic.Base64Bytes), b"abcd"),
    (NewType("EncodedNew", pydantic.Base64Bytes), b"abcd"),
    (pydantic.Json, {"a": 1}),
    (pydantic.Json[list[int]], [1]),
    (pydantic.IPvAnyAddress, ipaddress.IPv4Address("10.0.0.1")),
    (pydantic.ImportString, "math.pi"),
    (Root, Root([1])),
    (Open, Open()),
    (OpenClass, OpenClass()),
    (Guarded, Guarded(password=pydantic.SecretStr("x"))),
    (Encoded, {"blob": b"abcd"}),
    (Email, Email("a@b.c")),
    (Own, Own()),
    (object, object()),
    (complex, 1j),
    (Pair, Pair.BOTH),
    (fractions.Fraction, fractions.Fraction(1, 2)),
    (re.Pattern, re.compile("a")),
    (collections.deque[int], collections.deque([1])),
    (collections.OrderedDict[str, int], collections.OrderedDict(a=1)),
    (type, int),
    (Callable[[], int], int),
    (msgspec.Raw, msgspec.Raw(b"1")),
    (bytes | str, b"a"),
    (Decimal | float, Decimal("1.10")),
    (dict[bytes, int], {b"a": 1}),
    (dict[dt.timedelta, int], {dt.timedelta(1): 1}),
    (dict[tuple[int, int], int], {(1, 2): 1}),
    (dict[pathlib.Path, int], {pathlib.Path("a"): 1}),
]
list_of: Any = list
dict_of: Any = dict
tuple_of: Any = tuple
optional: Any = Optional
named_tuple: Any = NamedTuple
typed_dict: Any = TypedDict
WRAPS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "itself": lambda t, v: (t, v),
    "Optional": lambda t, v: (optional[t], v),
    "list": lambda t, v: (list_of[t], [v, v]),
    "dict": lambda t, v: (dict_of[str, t], {"a": v}),
    "tuple": lambda t, v: (tuple_of[int, t], (1, v)),
    "dict of lists": lambda t, v: (dict_of[int, list_of[optional[t]]], {1: [v, None]}),
    "dataclass": lambda t, v: made(make_dataclass("In", [("a", int), ("_v", t)]), v),
    "attrs": lambda t, v: made(of_attrs("In", {"a": int, "_v": t}), v),
    "Struct": lambda t, v: made(msgspec.defstruct("In", [("a", int), ("v", t)]), v),
    "array": lambda t, v: made(msgspec.defstruct("In", [("a", int), ("v", t)], array_like=True), v),
    "NamedTuple": lambda t, v: made(named_tuple("In", [("a", int), ("v", t)]), v),
    "TypedDict": lambda t, v: (typed_dict("In", {"v": t}), {"v": v}),
    "model": lambda t, v: of_model(create("In", v=(t, ...)), v),
}
HOSTS: dict[str, Callable[[Any], Any]] = {
    "dataclass": lambda t: make_dataclass("Out", [("id", int), ("v", t)]),
    "Struct": lambda t: msgspec.defstruct("Out", [("id", int), ("v", t)]),
    "attrs": lambda t: of_attrs("Out", {"id": int, "v": t}),
    "model": lambda t: create("Out", id=(int, ...), v=(t, ...)),
}


def made(kind: Any, value: Any) -> tuple[Any, Any]:
    return kind, kind(1, value)


def of_attrs(name: str, annotations: dict[str, Any]) -> Any:
    return attrs.define(type(name, (), {"__annotations__": annotations}))


def of_model(kind: Any, value: Any) -> tuple[Any, Any]:
    return kind, kind.model_construct(v=value)


def create(name: str, **fields: Any) -> Any:
    return pydantic.create_model(name, __config__=pydantic.ConfigDict(arbitrary_types_allowed=True), **fields)


def named(cases: Sequence[tuple[Any, Any]]) -> list[Any]:
    return [pytest.param(t, v, id=f"{i}-{getattr(t, '__name__', t)}") for i, (t, v) in enumerate(cases)]


def outcomes(annotation: Any, value: Any) -> dict[str, str]:
    """How it went, for each class of rows and each place in it."""
    found: dict[str, str] = {}
    for wrap, wrapped in WRAPS.items():
        for host, make_host in HOSTS.items():
            if wrap != "itself" and host in ("attrs", "Struct"):
                continue  # as a dataclass
            kind_of_field, inside = wrapped(annotation, value)
            kind = make_host(kind_of_field)
            try:
                shape: RowShape[Any] = RowShape(kind, ("id",), float)
            except TypeError as error:
                found[f"{wrap} in {host}"] = f"refused: {error}"
                continue
            row = row_of(kind, inside)
            got = shape.row(encode_row("t", shape.values("t", row)))
            equal = got == row and type(got.v) is type(row.v)
            found[f"{wrap} in {host}"] = "equal" if equal else f"{row} became {got}"
    return found


def row_of(kind: Any, value: Any) -> Any:
    return kind.model_construct(id=1, v=value) if hasattr(kind, "model_construct") else kind(1, value)


@pytest.mark.parametrize(("annotation", "value"), named(WRITTEN))
def test_what_is_written_is_read_wherever_it_stands(annotation: Any, value: Any) -> None:
    found = outcomes(annotation, value)
    assert {place: how for place, how in found.items() if how != "equal"} == {}


@pytest.mark.parametrize(("annotation", "value"), named(NAMES))
def test_a_name_of_pydantics_is_a_type_but_for_within_other_classes(annotation: Any, value: Any) -> None:
    found = outcomes(annotation, value)
    refused = {place.split(" in ")[0] for place, how in found.items() if "use datetime." in how}
    assert refused == {"dataclass", "attrs", "Struct", "array", "NamedTuple", "TypedDict"}
    assert {how for place, how in found.items() if place.split(" in ")[0] not in refused} == {"equal"}


def test_a_name_of_a_type_is_the_type() -> None:
    assert plain_type(TypeAliasType("Born", pydantic.PastDate | None)) == dt.date | None
    assert plain_type(NewType("Seen", list[pydantic.AwareDatetime])) == list[dt.datetime]


def test_what_a_name_says_is_checked_when_a_row_is_read() -> None:
    class Meeting(pydantic.BaseModel):
        id: int
        at: pydantic.AwareDatetime

    with pytest.raises(RowMismatch, match="timezone"):
        RowShape(Meeting, ("id",), float).row({"id": b"1", "at": b'"2026-01-01T00:00:00"'})


@pytest.mark.parametrize(
    ("annotation", "instead"),
    [
        (pydantic.SecretStr, "keep a hash or a ciphertext"),
        (list[pydantic.Base64Bytes], "use bytes"),
        (pydantic.Json[int], "use the type of that"),
        (Root, "use the type of its root"),
        (Open, "use a field of type dict"),
        (Own, "Own: use a type of Python"),
        (dict[bytes, int], "a bytes cannot be the key of a dict: use str"),
    ],
)
def test_a_refusal_says_what_to_use_instead(annotation: Any, instead: str) -> None:
    with pytest.raises(TypeError, match=rf"Out\.v: .*{instead}"):
        RowShape(HOSTS["model"](annotation), ("id",), float)


@pytest.mark.parametrize(("annotation", "value"), named(REFUSED))
def test_what_cannot_be_read_back_is_refused_before_it_is_written(annotation: Any, value: Any) -> None:
    found = outcomes(annotation, value)
    assert {place: how for place, how in found.items() if not how.startswith("refused")} == {}


def test_each_is_put_and_got_or_refused_by_the_client(connect: Callable[..., WriteBehind]) -> None:
    wb = connect()
    for annotation, value in WRITTEN + NAMES:
        for host in HOSTS.values():
            kind = host(annotation)
            table, row = wb.table(kind, name="t"), row_of(kind, value)
            table.put(row)
            assert table.get(1) == row
    for annotation, _ in REFUSED:
        for host in HOSTS.values():
            with pytest.raises(TypeError):
                wb.table(host(annotation))
