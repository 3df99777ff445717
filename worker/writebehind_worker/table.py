"""A table as the worker writes to it. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from writebehind.identity import KeyKind, TableKey, canonical
from writebehind.message import Op, encode

NumberKind = Literal["int", "numeric", "float"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column. ``bits`` of an integer, ``precision`` and ``scale`` of a numeric that declares them."""

    name: str
    type: str  # as SQL names it, with its modifier
    is_generated: bool
    is_domain: bool
    number: NumberKind | None
    bits: int = 0
    precision: int | None = None
    scale: int | None = None
    is_scalar: bool = False  # for a JSON scalar Postgres reads its text, and nothing else


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """One column of the primary key; ``collation`` is quoted, ``None`` for the default.

    ``base`` is the type beneath domains. Of text longer than ``max_length`` Postgres cuts trailing blanks.
    """

    name: str
    type: str
    base: str
    kind: KeyKind
    collation: str | None
    max_length: int | None = None

    def canonical(self, text: str) -> str | None:
        """The one spelling of a value; ``None`` if only Postgres can tell."""
        if self.max_length is not None and len(text) > self.max_length:
            return None
        return canonical(self.kind, text)


_MOST_SHAPES = 1000  # of a table: a producer may send any set of columns


class Shape(msgspec.Struct, frozen=True, eq=False):
    """A table, an operation and a set of columns, none of them of the key; ``columns`` are sorted.

    ``template`` makes a row's JSON object of the texts of key and columns: it is found once, and not for
    each of the many writes that are alike.
    """

    table: Table
    op: Op
    columns: tuple[str, ...]
    template: bytes
    is_int_keyed: bool


@dataclass(frozen=True, slots=True)
class Table:
    """One table. Compared by identity of the catalog entry; ``name`` is how messages best spell it."""

    oid: int
    schema: str
    relation: str
    name: str
    columns: dict[str, Column]
    key: tuple[KeyColumn, ...]
    row_security: bool
    upsert: bool  # whether INSERT ... ON CONFLICT (key) DO UPDATE does what an UPDATE would
    upsert_needs: frozenset[str]  # and if so, which columns must be given for that
    checked: frozenset[str]  # columns under a CHECK constraint or of a domain type
    rank: int  # parents before children: greater than that of every table it references
    cascades: frozenset[int]  # tables whose rows a delete here may remove or change
    shapes: dict[tuple[str, ...], Shape] = field(default_factory=dict, compare=False, repr=False)
    plain_shapes: dict[tuple[str, ...], Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def full_name(self) -> str:
        """``schema.table``, for people."""
        return f"{self.schema}.{self.relation}"

    @property
    def sql(self) -> str:
        """Quoted, with its schema."""
        return f"{quoted(self.schema)}.{quoted(self.relation)}"

    @property
    def is_int_keyed(self) -> bool:
        """One integer is the key."""
        return len(self.key) == 1 and self.key[0].kind == "int"

    def shape(self, op: Op, columns: tuple[str, ...]) -> Shape:
        """What all writes with this operation and these columns, in this order, have in common."""
        found = self.shapes.get((op, *columns))
        if found is None:
            if len(self.shapes) >= _MOST_SHAPES:
                self.shapes.clear()
            members = [encode(name).replace(b"%", b"%%") + b":%b" for name in self._key_names + columns]
            template = b"{" + b",".join(members) + b"}"
            found = Shape(self, op, tuple(sorted(columns)), template, self.is_int_keyed)
            self.shapes[(op, *columns)] = found
        return found

    @property
    def _key_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.key)

    @property
    def identity(self) -> TableKey:
        """What producers need for cache keys."""
        return TableKey(self.name, tuple((c.name, c.kind) for c in self.key))


def quoted(identifier: str) -> str:
    """An SQL identifier: the only way by which a name gets into a statement."""
    return '"' + identifier.replace('"', '""') + '"'
