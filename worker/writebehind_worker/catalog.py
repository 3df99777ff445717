"""What the worker knows of the tables it writes to, read from Postgres' catalog."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import msgspec
import psycopg

from writebehind.identity import KeyKind

from .table import Column, KeyColumn, NumberKind, Table

_FIRST_OF_USERS = 16_384  # oids below are of Postgres itself
_INT_BITS = {"int2": 16, "int4": 32, "int8": 64}


@dataclass(frozen=True, slots=True)
class Catalog:
    """``tables`` maps each name that a message may use to its table; ``versions`` by oid."""

    tables: dict[str, Table]
    versions: dict[int, int] = field(default_factory=dict)

    def find(self, name: str) -> Table | None:
        """The table that a message names, ``table`` or ``schema.table``; names are as in the catalog."""
        return self.tables.get(name)

    def unwritable(self, names: Collection[str]) -> dict[str, str]:
        """Those of these tables to which no write can be applied, and why: each becomes a dead letter."""
        found = {name: self.find(name) for name in names}
        missing = {name: "it does not exist" for name, table in found.items() if table is None}
        return missing | {name: "it has no primary key" for name, t in found.items() if t and not t.key}


class _ColumnRow(msgspec.Struct):
    number: int
    name: str
    type: str
    type_oid: int
    type_name: str
    type_type: str
    type_category: str
    typmod: int
    not_null: bool
    has_default: bool
    generated: bool
    collation: str | None
    deterministic: bool


class _ForeignKeyRow(msgspec.Struct):
    parent: int
    on_delete: str


class _TableRow(msgspec.Struct):
    oid: int
    schema: str
    name: str
    visible: bool
    row_security: bool
    partitioned: bool
    columns: list[_ColumnRow] | None
    primary_key: list[int] | None
    key_deferrable: bool
    checked: list[int]
    unique: list[int]
    insert_triggers: bool
    foreign_keys: list[_ForeignKeyRow]


_read_table = msgspec.json.Decoder(_TableRow).decode


@dataclass(frozen=True, slots=True)
class _Domain:
    base: int
    typmod: int
    name: str
    kind: str
    constrained: bool


@cache
def _sql(name: str) -> str:
    return resources.files(__package__).joinpath("sql", f"{name}.sql").read_text()


def load_catalog(conn: psycopg.Connection[Any], allowed: tuple[str, ...] = ()) -> Catalog:
    """Reads the catalog; ``allowed`` names the only tables that messages may write to (empty: all)."""
    # The versions first: what is altered in between shows as altered.
    versions = read_versions(ask_versions(conn, None))
    rows = [_read_table(r[0]) for r in conn.execute(_sql("catalog"))]
    domains = {r[0]: _Domain(*r[1:]) for r in conn.execute(_sql("domains"))}
    ranks, cascades = _ranks(rows), _cascades(rows)
    tables: dict[str, Table] = {}
    # A visible table's bare name wins over another's `schema.table` of the same spelling.
    for row in sorted(rows, key=lambda r: not r.visible):
        table = _table(row, domains, ranks[row.oid], cascades[row.oid])
        if row.visible:
            tables[row.name] = table
        tables.setdefault(table.full_name, table)
    if allowed:
        permitted = {tables[name].oid for name in allowed if name in tables}
        tables = {name: t for name, t in tables.items() if t.oid in permitted}
    return Catalog(tables, versions)


def ask_versions(conn: psycopg.Connection[Any], oids: Collection[int] | None) -> psycopg.Cursor[Any]:
    """Asks for a number for each table (all, or those given) that changes when the table is altered."""
    return conn.execute(_sql("versions"), [None if oids is None else list(oids)])


def read_versions(asked: psycopg.Cursor[Any]) -> dict[int, int]:
    """The answer to `ask_versions`, by oid."""
    return {oid: int(version) for oid, version in asked}


def _table(row: _TableRow, domains: dict[int, _Domain], rank: int, cascades: frozenset[int]) -> Table:
    columns = row.columns or []
    by_number = {c.number: c for c in columns}
    made = {c.name: _column(c, domains) for c in columns}
    key = tuple(_key_column(by_number[n], domains) for n in row.primary_key or ())
    # A partition can have constraints and triggers that its parent knows nothing of.
    odd = row.key_deferrable or row.insert_triggers or row.row_security or row.partitioned
    upsert = not odd and bool(key)
    return Table(
        oid=row.oid,
        schema=row.schema,
        relation=row.name,
        name=row.name if row.visible else f"{row.schema}.{row.name}",
        columns=made,
        key=key,
        row_security=row.row_security,
        upsert=upsert,
        upsert_needs=_upsert_needs(row, by_number, domains),
        checked=frozenset(by_number[n].name for n in row.checked if n in by_number)
        | {c.name for c in made.values() if c.is_domain},
        rank=rank,
        cascades=cascades,
    )


def _upsert_needs(
    row: _TableRow, by_number: dict[int, _ColumnRow], domains: dict[int, _Domain]
) -> frozenset[str]:
    """Columns without which the row proposed to INSERT could fail where an UPDATE would not.

    Postgres checks NOT NULL, domains, CHECK and other unique constraints on the proposed row before, or
    without, looking for a conflict on the key.
    """
    watched = {*row.checked, *row.unique}
    writable = {n for n, c in by_number.items() if not c.generated}
    if not watched <= writable:  # an expression (0) or a generated column: it may depend on any column
        return frozenset(by_number[n].name for n in writable)
    for number in writable:
        column = by_number[number]
        domain = domains.get(column.type_oid)
        must = column.not_null or (domain is not None and domain.constrained)
        if must and not column.has_default:
            watched.add(number)
    return frozenset(by_number[n].name for n in watched)


def _base(column: _ColumnRow, domains: dict[int, _Domain]) -> tuple[str, str, int]:
    """(type name, kind of type, modifier) beneath domains."""
    name, kind, typmod, oid = column.type_name, column.type_type, column.typmod, column.type_oid
    while oid in domains:
        domain = domains[oid]
        name, kind, oid = domain.name, domain.kind, domain.base
        typmod = domain.typmod if domain.typmod != -1 else typmod
    return name, kind, typmod


def _column(row: _ColumnRow, domains: dict[int, _Domain]) -> Column:
    name, _, typmod = _base(row, domains)
    number: NumberKind | None = None
    precision = scale = None
    if name in _INT_BITS:
        number = "int"
    elif name == "numeric":
        number = "numeric"
        if typmod != -1:
            precision = (typmod - 4) >> 16
            scale = (((typmod - 4) & 0x7FF) ^ 1024) - 1024  # 11 bits, signed
    elif name in ("float4", "float8"):
        number = "float"
    # Not domains, arrays, composites, ranges: nor json, which keeps the quotes of a string. Nor a type that
    # somebody may drop: a temporary table with such a column would be in the way.
    is_own = row.type_oid < _FIRST_OF_USERS and row.type_type == "b"
    is_scalar = is_own and row.type_category != "A" and name not in ("json", "jsonb")
    is_domain = row.type_oid in domains
    bits = _INT_BITS.get(name, 0)
    return Column(row.name, row.type, row.generated, is_domain, number, bits, precision, scale, is_scalar)


def _key_column(row: _ColumnRow, domains: dict[int, _Domain]) -> KeyColumn:
    name, type_kind, typmod = _base(row, domains)
    max_length = typmod - 4 if name == "varchar" and typmod != -1 else None
    kind: KeyKind = "other"
    if name in _INT_BITS:
        kind = "int"
    elif name == "uuid":
        kind = "uuid"
    elif name == "bool":
        kind = "bool"
    elif type_kind == "e" or (name in ("text", "varchar") and row.deterministic):
        kind = "text"
    return KeyColumn(row.name, row.type, name, kind, row.collation, max_length)


def _ranks(rows: list[_TableRow]) -> dict[int, int]:
    """Depth in the graph of foreign keys, parents lower; an edge that closes a cycle is passed over."""
    parents = {r.oid: sorted({k.parent for k in r.foreign_keys} - {r.oid}) for r in rows}
    ranks: dict[int, int] = {}
    for root in parents:
        path, stack = set[int](), [(root, False)]
        while stack:
            oid, done = stack.pop()
            if done:
                path.discard(oid)
                ranks[oid] = 1 + max((ranks.get(p, 0) for p in parents.get(oid, ())), default=0)
            elif oid not in ranks and oid not in path:
                path.add(oid)
                stack.append((oid, True))
                stack += [(p, False) for p in parents.get(oid, ()) if p not in path]
    return ranks


def _cascades(rows: list[_TableRow]) -> dict[int, frozenset[int]]:
    """For each table those that a delete from it may reach: CASCADE, SET NULL (n), SET DEFAULT (d)."""
    children: dict[int, set[int]] = {r.oid: set() for r in rows}
    for row in rows:
        for fk in row.foreign_keys:
            if fk.on_delete in "cnd" and fk.parent in children:
                children[fk.parent].add(row.oid)
    reached: dict[int, frozenset[int]] = {}
    for oid, direct in children.items():
        found: set[int] = set()
        todo = list(direct)
        while todo:
            child = todo.pop()
            if child not in found:
                found.add(child)
                todo += children[child]
        reached[oid] = frozenset(found)
    return reached
