"""A kind of write that can be read and written by the thousand: table, operation, columns. No I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw

from writebehind.message import MAX_TTL_S, Op

from .plan import Group
from .table import Table

Key = int | str
Values = tuple[Any, ...]
"""Of one row, its columns in the order of their names: JSON texts, or an increment's deltas as integers."""

_BIGINT = range(-(1 << 63), 1 << 63)
_MOST_SHAPES = 1000  # of a table: a producer may send any set of columns
_ESCAPED = re.compile(r'["\\\x00-\x1f]')
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


class PlainMessage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """The wire format but for what is rare: a key of several columns, a retry, packed columns."""

    # As the library orders them: msgspec finds each at once then, for 3% less of the time of reading.
    seq: Annotated[int, Meta(gt=0)] | None = None
    table: str
    id: Key
    op: Op = "put"
    data: Any = Raw(b"")
    key: str | None = None
    ttl: Annotated[int, Meta(ge=1, le=MAX_TTL_S)] | None = None
    v: Literal[1, 2, 3] = 1
    route: str | int | None = None
    trace: Raw = Raw(b"")  # whatever it is: only `tracing` looks at it


class PlainShape(msgspec.Struct, frozen=True, eq=False):
    """What all writes with this operation and these columns have in common.

    ``read`` makes a struct of a message's `data`, its fields the `Values`; it raises where other columns are
    given, or for an increment other values. ``copies``: COPY reads the columns' JSON texts as they are, if
    they are scalars.
    """

    group: Group
    key_kind: Literal["int", "text", "uuid"]
    data: type[msgspec.Struct]
    read: Callable[[Raw], Any]
    copies: bool
    message_readers: dict[str, Callable[[bytes], Any]]

    @property
    def table(self) -> Table:
        """Whose rows are written."""
        return self.group.table

    def message_reader(self, name: str) -> Callable[[bytes], Any]:
        """Reads whole messages of this shape, that call the table so: ``data`` is what ``read`` makes.

        It takes two thirds of the time of reading a message and then its `data`.
        """
        found = self.message_readers.get(name)
        if found is None:
            literal: Any = Literal
            op = self.group.op
            fields: list[Any] = [("table", literal[name]), ("data", self.data)]
            fields.append(("op", literal[op], "put") if op == "put" else ("op", literal[op]))
            made = msgspec.defstruct(
                "Alike", fields, bases=(PlainMessage,), kw_only=True, forbid_unknown_fields=True, gc=False
            )
            found = self.message_readers[name] = msgspec.json.Decoder(made).decode
        return found

    @property
    def adds(self) -> bool:
        """The deltas of several writes are added, else the last one says it all."""
        return self.group.op == "increment"

    def has_plain(self, keys: Sequence[Key]) -> bool:
        """Whether each is spelt in the one way that its type has, so that equal keys are equal here."""
        if self.key_kind == "int":
            return set(map(type, keys)) == {int} and min(keys) in _BIGINT and max(keys) in _BIGINT
        if set(map(type, keys)) != {str}:
            return False
        return self.key_kind == "text" or all(_UUID.fullmatch(str(key)) for key in keys)

    def fits(self, rows: Sequence[Any]) -> bool:
        """Whether the sums are values of their columns: else Postgres could not read them as such."""
        if not self.adds:
            return True
        known = (self.table.columns[name] for name in self.group.columns)
        limits = [range(-(1 << c.bits - 1), 1 << c.bits - 1) for c in known]
        return all(
            min(sums) in limit and max(sums) in limit
            for limit, sums in zip(limits, zip(*rows, strict=True), strict=True)
        )


def find_plain_shape(table: Table, op: Op, names: tuple[str, ...]) -> PlainShape | None:
    """``None`` where such writes have to be looked at one by one."""
    known: dict[tuple[str, ...], PlainShape | None] = table.plain_shapes
    if (op, *names) not in known:
        if len(known) >= _MOST_SHAPES:
            known.clear()
        columns = tuple(sorted(names))
        if columns != names:
            known[(op, *names)] = find_plain_shape(table, op, columns)
        else:
            known[(op, *names)] = _make(table, op, columns)
    return known[(op, *names)]


def _make(table: Table, op: Op, columns: tuple[str, ...]) -> PlainShape | None:
    kind = table.key[0].kind if len(table.key) == 1 else None
    if kind not in ("int", "text", "uuid") or table.key[0].max_length is not None:
        return None
    known = [table.columns.get(name) for name in columns]
    if any(c is None or c.is_generated or c.name == table.key[0].name for c in known):
        return None
    if any(map(_ESCAPED.search, columns)):  # msgspec has no field with such a name
        return None
    if op in ("patch", "increment") and not columns:
        return None
    if op == "increment" and any(c is not None and c.number != "int" for c in known):
        return None
    given = [table.columns[table.key[0].name], *(c for c in known if c is not None)]
    data = _data_of(op, columns)
    return PlainShape(
        Group(table, op, columns, False),
        kind,
        data,
        msgspec.json.Decoder(data).decode,
        all(c.is_scalar for c in given),
        {},
    )


def _data_of(op: Op, columns: tuple[str, ...]) -> type[msgspec.Struct]:
    """Just these columns: read in a quarter of the time of a dictionary."""
    kind = int if op == "increment" else Raw
    fields = [(f"c{i}", kind) for i in range(len(columns))]
    names = {f"c{i}": name for i, name in enumerate(columns)}
    return msgspec.defstruct("Data", fields, rename=names, forbid_unknown_fields=True, gc=False)
