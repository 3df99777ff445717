"""A write as a message: what the wire format carries and what the cache shows. No I/O.

Values keep their JSON text from here to Postgres, so that numerics, big integers and JSON are exact.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, Literal, NoReturn
from uuid import UUID

import msgspec

from .errors import InvalidWrite
from .identity import scalar_text

Op = Literal["put", "patch", "increment", "delete"]
Id = str | int | UUID | Decimal | dt.date | Mapping[str, Any]
Route = str | int
"""What writes that have to be in one shard have in common: ``5`` and ``"5"`` are one."""

WIRE_VERSION: Final = 3
"""The newest that a message may say by its field ``v``; one that has none means 1."""

MAX_TTL_S = 10 * 366 * 86_400
"""Longest time to live of a cache entry: ten years. Redis refuses far greater ones when it is set."""

MAX_ROUTE = 1000
"""Characters of a routing value that is a text."""

MAX_COLUMNS = 1600
"""As many as a table of Postgres can have; a script's calls take not much more at once."""

encode = msgspec.json.Encoder(decimal_format="number").encode
"""JSON text of a value that :func:`plain` has passed."""

_KNOWN_NAMES, _KNOWN_LENGTH = 10_000, 100
_known: dict[str, str] = {}  # names found good, as plain strings: to look each over again takes 0.3 µs
_heads: dict[str, bytes] = {}  # of them, as members of an object: the name's JSON text and a colon

_NO_JSON = (ValueError, TypeError, OverflowError, RecursionError, msgspec.MsgspecError)
_AS_THEY_ARE = frozenset({str, int, bool, type(None), UUID, dt.date})


class Write(msgspec.Struct, frozen=True, gc=False):
    """One validated write: ``columns`` maps column → JSON text, ``key`` is the id's text or texts.

    ``route``: what decides about its shard; ``None``: table and id do.
    """

    op: Op
    table: str
    id_json: bytes
    key: str | dict[str, str]
    columns: dict[str, bytes]
    route: str | None = None

    @property
    def says_version(self) -> bool:
        """Whether its message has the field ``v`` already."""
        return self.route is not None

    def message(self, cache_key: str, ttl_s: int) -> bytes:
        """The queue item, but for ``seq``: the script that accepts it puts that in front."""
        op = b"" if self.op == "put" else b',"op":"%b"' % self.op.encode()
        data = b""
        if self.op != "delete":
            members = [(_heads.get(c) or encode(c) + b":") + v for c, v in self.columns.items()]
            data = b',"data":{%b}' % b",".join(members)
        route = b"" if self.route is None else b',"v":3,"route":%b' % encode(self.route)
        return b'{"table":%b,"id":%b%b%b,"key":%b,"ttl":%d%b}' % (
            encode(self.table), self.id_json, op, data, encode(cache_key), ttl_s, route,
        )  # fmt: skip

    def cache_fields(self) -> Sequence[str | bytes]:
        """Column, JSON text, column, ... as the cache entry holds them."""
        return cache_fields(self.columns)


def with_trace(message: bytes, trace: str, says_version: bool = False) -> bytes:
    """The message with the ``traceparent`` of what wrote it: one of version 2 at least."""
    version = b"" if says_version else b',"v":2'
    return b'%b%b,"trace":"%b"}' % (message[:-1], version, trace.encode())


def cache_fields(columns: Mapping[str, bytes]) -> list[str]:
    """Field, JSON text, field, ... as the hash of a row holds its columns."""
    if not columns:
        return []
    fields = [""] * (2 * len(columns))
    fields[::2] = columns
    fields[1::2] = b"\0".join(columns.values()).decode().split("\0")  # half the time of one by one
    if "@" in "".join(columns):
        # Our own fields begin with @, so a column's @ is doubled.
        fields[::2] = ["@" + c if c[:1] == "@" else c for c in columns]
    return fields


def plain(value: Any) -> Any:
    """The value, with what JSON lacks written as Postgres reads it. Raises ``ValueError``."""
    kind = type(value)
    if kind in _AS_THEY_ARE or (kind is float and math.isfinite(value)):
        return value
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, float | Decimal):
        if not (value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)):
            raise ValueError(f"{value} is no JSON number")
        return float(value) if isinstance(value, float) else Decimal(value)
    if isinstance(value, Mapping):
        members = {_member(k): plain(v) for k, v in value.items()}
        if len(members) < len(value):
            raise ValueError("two keys are the same as text")
        return members
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return "\\x" + bytes(value).hex()
    if isinstance(value, dt.timedelta):
        return f"{value.days} days {value.seconds}.{value.microseconds:06d} seconds"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    raise ValueError(f"a {type(value).__name__} has no JSON form")


def _member(name: Any) -> str:
    if isinstance(name, str):
        return name
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    raise ValueError(f"a {type(name).__name__} cannot name a member of a JSON object")


def make_write(
    op: Op, table: str, id: Id, data: Mapping[str, Any] | None, route: Route | None = None
) -> Write:
    """Validates the arguments of a write.

    Raises:
        InvalidWrite: no table, an empty id, a value that JSON cannot carry, an increment that is no number,
            a route that is none.
    """
    if type(table) is not str or table not in _known:
        table = _name("table", table)
    id_json, key = _identity(table, id)
    columns: dict[str, bytes] = {}
    if op != "delete":
        if not isinstance(data, Mapping):
            raise InvalidWrite(f"{table}: data must map column → value, not {type(data).__name__}")
        if op != "put" and not data:
            raise InvalidWrite(f"{table}: {op} needs at least one column")
        if len(data) > MAX_COLUMNS:
            raise InvalidWrite(f"{table}: {len(data)} columns; a table has at most {MAX_COLUMNS}")
        if op == "increment":
            _check_deltas(table, data)
        columns = encode_row(table, data)
    return Write(op, table, id_json, key, columns, None if route is None else route_text(route))


def route_text(route: Route) -> str:
    """A routing value as messages carry it. Raises :class:`InvalidWrite` for what is none."""
    if isinstance(route, int) and not isinstance(route, bool):
        return str(int(route))
    if not isinstance(route, str) or not route or len(route) > MAX_ROUTE:
        raise InvalidWrite(f"route: must be a number or a text of 1 to {MAX_ROUTE} characters, not {route!r}")
    try:
        return route.encode().decode()
    except UnicodeEncodeError as error:
        raise InvalidWrite(f"route: {route!r} is not Unicode: {error.reason}") from error


def row_key(table: str, id: Id) -> str | dict[str, str]:
    """The ``key`` that a write to the row has, validated as there: a look at a row needs no more of it."""
    if (
        type(table) is str
        and table in _known
        and ((type(id) is int and -(1 << 63) <= id < 1 << 63) or (type(id) is str and id and id.isascii()))
    ):
        return str(id)  # saves 2 of 3 µs
    return make_write("delete", table, id, None).key


def encode_row(table: str, row: Mapping[str, Any]) -> dict[str, bytes]:
    """Column → JSON text of a row. Raises :class:`InvalidWrite` for a value JSON cannot carry."""
    if not isinstance(row, Mapping):
        hint = "; psycopg gives them by row_factory=dict_row" if isinstance(row, tuple) else ""
        raise InvalidWrite(f"{table}: a row must map column → value, not {type(row).__name__}{hint}")
    columns: dict[str, bytes] = {}
    for name, value in row.items():
        column = _known.get(name) or _name(f"{table}: column", name)
        try:
            columns[column] = encode(plain(value))
        except _NO_JSON as error:
            _refuse(f"{table}.{column}", error)
    return columns


def _check_deltas(table: str, deltas: Mapping[str, Any]) -> None:
    for column, value in deltas.items():
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
            raise InvalidWrite(
                f"{table}.{column}: an increment must be a number, not a {type(value).__name__}"
            )


def _name(what: str, name: Any) -> str:
    """The name as a plain string; a subclass of ``str`` is taken, what Postgres cannot name is not."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise InvalidWrite(f"{what}: a name must be a non-empty string without NUL, not {name!r}")
    try:
        plain_name = name.encode().decode()
    except UnicodeEncodeError as error:
        raise InvalidWrite(f"{what}: {name!r} is not Unicode: {error.reason}") from error
    if len(plain_name) <= _KNOWN_LENGTH and len(_known) < _KNOWN_NAMES:
        _known[plain_name] = plain_name
        _heads[plain_name] = encode(plain_name) + b":"
    return plain_name


def _json(where: str, value: Any) -> bytes:
    try:
        return encode(plain(value))
    except _NO_JSON as error:
        _refuse(where, error)


def _refuse(where: str, error: Exception) -> NoReturn:
    if isinstance(error, RecursionError):
        raise InvalidWrite(f"{where}: nested too deep, or in itself") from None
    raise InvalidWrite(f"{where}: {error}") from error


def _identity(table: str, id: Id) -> tuple[bytes, str | dict[str, str]]:
    if type(id) is int and -(1 << 63) <= id < 1 << 63:
        return b"%d" % id, str(id)  # saves 0.4 of 0.6 µs
    if isinstance(id, Mapping):
        if not id:
            raise InvalidWrite(f"{table}: the id is empty")
        plain_id = {_name(f"{table}: key column", c): v for c, v in id.items()}
        return _json(table, plain_id), {c: _key_text(f"{table}.{c}", v)[1] for c, v in plain_id.items()}
    return _key_text(f"{table}: id", id)


def _key_text(where: str, value: Any) -> tuple[bytes, str]:
    """The JSON text of a key's value, and the text of the scalar."""
    raw = _json(where, value)
    text = scalar_text(raw)
    if text is None or text == "":
        raise InvalidWrite(f"{where}: a key must be a non-empty scalar, not {value!r}")
    return raw, text
