"""Which rows written in this transaction lack a parent, or would leave children without one.

Postgres names one violation of a deferred foreign key at a time; here it is asked for all of them at once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar

import psycopg

from .resolve import RowId, Write
from .sqlstate import Verdict, judge
from .table import Table, quoted

_FOREIGN_KEYS = resources.files(__package__).joinpath("sql", "foreign_keys.sql").read_text()

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _ForeignKey:
    """``child`` and ``parent`` are quoted names; their ``columns`` pair up."""

    child_oid: int
    parent_oid: int
    child: str
    parent: str
    child_columns: Sequence[str]
    parent_columns: Sequence[str]
    is_match_full: bool


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of one table, as a parameter of a statement."""

    table: Table
    ids: Sequence[RowId]
    json: str

    def records(self, parameter: str, name: str) -> str:
        """Their keys as a relation ``name``: columns ``k0``, ``k1``, ... and ``place``, from 1 on."""
        types = ", ".join(f"{quoted(c.name)} {c.type}" for c in self.table.key)
        names = ", ".join(f"k{i}" for i in range(len(self.table.key)))
        return (
            f"ROWS FROM (json_to_recordset({parameter}::json) AS ({types})) "
            f"WITH ORDINALITY AS {name}({names}, place)"
        )

    def same_key(self, records: str, name: str) -> str:
        return " AND ".join(f"{name}.{quoted(c.name)} = {records}.k{i}" for i, c in enumerate(self.table.key))


def existing_rows(conn: psycopg.Connection[Any], writes: Sequence[Write]) -> set[RowId]:
    """The rows of these writes that there are now."""

    def ask() -> Iterator[RowId]:
        for rows in _by_table(writes).values():
            query = (
                f"SELECT r.place FROM {rows.records('$1', 'r')} "
                f"JOIN {rows.table.sql} AS t ON {rows.same_key('r', 't')}"
            )
            for (place,) in conn.execute(query, [rows.json]):
                yield rows.ids[place - 1]

    return set(_asked(conn, ask))


def find_orphans(
    conn: psycopg.Connection[Any], writes: Sequence[Write], there: Collection[RowId]
) -> set[RowId]:
    """The rows that violate a deferred foreign key, and those that would without them.

    ``there``: the rows that existed before; without its write such a one is still a parent.
    """
    edges = _asked(conn, lambda: _edges(conn, _by_table(writes)))
    children: dict[RowId, list[RowId]] = defaultdict(list)
    for child, parent in edges:
        if parent is not None:
            children[parent].append(child)
    times = Counter(w.row for w in writes)
    orphans, todo = set[RowId](), [child for child, parent in edges if parent is None]
    while todo:
        row = todo.pop()
        if row not in orphans:
            orphans.add(row)
            if row not in there and times[row] == 1:
                todo += children[row]
    return orphans


def _edges(
    conn: psycopg.Connection[Any], tables: Mapping[int, _Rows]
) -> Iterator[tuple[RowId, RowId | None]]:
    """(row, its parent among the rows, ``None``: violates a foreign key)."""
    for found in conn.execute(_FOREIGN_KEYS, [list(tables)]).fetchall():
        key = _ForeignKey(*found)
        children, parents = tables.get(key.child_oid), tables.get(key.parent_oid)
        if children is not None:
            parameters = [children.json] if parents is None else [children.json, parents.json]
            for child, parent in conn.execute(_parents(key, children, parents), parameters):
                yield children.ids[child - 1], parents.ids[parent - 1] if parents and parent else None
        if parents is not None and {c.name for c in parents.table.key} >= set(key.parent_columns):
            for (place,) in conn.execute(_still_referenced(key, parents), [parents.json]):
                yield parents.ids[place - 1], None


def _parents(key: _ForeignKey, children: _Rows, parents: _Rows | None) -> str:
    """For each child: its parent's place, or null where it has none; none whose parent is another row."""
    pairs = list(zip(key.child_columns, key.parent_columns, strict=True))
    given = (" OR " if key.is_match_full else " AND ").join(
        f"c.{quoted(name)} IS NOT NULL" for name in key.child_columns
    )
    match = " AND ".join(f"p.{quoted(parent)} = c.{quoted(child)}" for child, parent in pairs)
    missing = f"p.{quoted(key.parent_columns[0])} IS NULL"
    records = children.records("$1", "r")
    place, join = "NULL::bigint", ""
    if parents is not None:
        place, missing = "q.place", f"({missing} OR q.place IS NOT NULL)"
        join = f"LEFT JOIN {parents.records('$2', 'q')} ON {parents.same_key('q', 'p')} "
    return (
        f"SELECT r.place, {place} FROM {records} JOIN {key.child} AS c ON {children.same_key('r', 'c')} "
        f"LEFT JOIN {key.parent} AS p ON {match} {join}WHERE ({given}) AND {missing}"
    )


def _still_referenced(key: _ForeignKey, parents: _Rows) -> str:
    """Rows that are gone, and that somebody's child still references."""
    place = {c.name: f"r.k{i}" for i, c in enumerate(parents.table.key)}
    pairs = zip(key.child_columns, key.parent_columns, strict=True)
    match = " AND ".join(f"c.{quoted(child)} = {place[parent]}" for child, parent in pairs)
    return (
        f"SELECT r.place FROM {parents.records('$1', 'r')} "
        f"WHERE EXISTS (SELECT FROM {key.child} AS c WHERE {match}) "
        f"AND NOT EXISTS (SELECT FROM {key.parent} AS t WHERE {parents.same_key('r', 't')})"
    )


def _by_table(writes: Sequence[Write]) -> dict[int, _Rows]:
    first: dict[int, dict[RowId, Write]] = {}
    for write in writes:
        first.setdefault(write.table.oid, {}).setdefault(write.row, write)
    return {
        oid: _Rows(next(iter(rows.values())).table, list(rows), _json(rows.values()))
        for oid, rows in first.items()
    }


def _json(writes: Collection[Write]) -> str:
    keys = (w.table.shape("delete", ()).template % w.key_texts for w in writes)
    return (b"[" + b",".join(keys) + b"]").decode()


def _asked(conn: psycopg.Connection[Any], ask: Callable[[], Iterator[_T]]) -> list[_T]:
    """None where Postgres will not tell: the role may not read a parent, or it takes too long."""
    conn.execute("SAVEPOINT asking")
    try:
        answers = list(ask())
    except psycopg.Error as error:
        if judge(error) not in (Verdict.ROW, Verdict.TIMEOUT):
            raise
        answers = []
    conn.execute("ROLLBACK TO SAVEPOINT asking; RELEASE SAVEPOINT asking")
    return answers
