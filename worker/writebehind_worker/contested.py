"""Refusals that may be the batch's doing, and not the write's: where others share its row or unique value.

A batch takes what is right in sum: a stock that falls below zero and is filled again, a unique value taken
before its owner gives it up. What one by one would have been refused then stands in the way of a later
write that is good by itself. Applied again with all of these alone, in list order, each meets its own fate.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from .received import Fault
from .resolve import Write

_UNIQUE = frozenset({"23505", "23P01"})
_MANY = 50  # unique values that were refused, each of which is compared with all writes


@dataclass(frozen=True, slots=True)
class Conflict:
    """A write that a constraint refused; ``columns`` are those of a unique one, as far as they have names."""

    write: Write
    columns: Collection[str]
    is_unique: bool


def read_conflict(
    conn: psycopg.Connection[Any], write: Write, fault: Fault, last_error: psycopg.Error | None
) -> Conflict:
    """For a refusal of class 23, outside of the savepoint that its error has broken.

    ``last_error`` is the fault's own, but for writes that were held back.
    """
    if last_error is None or fault.sqlstate not in _UNIQUE:
        return Conflict(write, (), False)
    columns = conn.execute(
        "SELECT a.attname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "JOIN pg_namespace n ON n.oid = c.relnamespace "
        "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) "
        "WHERE n.nspname = $1 AND c.relname = $2",
        [last_error.diag.schema_name, last_error.diag.constraint_name],
    )
    return Conflict(write, {name for (name,) in columns}, True)


def sharers(conflicts: Sequence[Conflict], writes: Sequence[Write], written: Collection[int]) -> set[int]:
    """Positions of the writes that share the row or the unique value of a refused one, its own too.

    Only where one of them has been ``written``: what is refused stands in nobody's way.
    """
    refused = {c.write.row for c in conflicts}
    refused &= {w.row for w in writes if w.message.position in written}
    found = {w.message.position for w in writes if w.row in refused}
    values = {
        (c.write.table.oid, frozenset(c.columns), tuple(sorted(_given(c).items())))
        for c in conflicts
        if c.is_unique
    }
    tables = {oid for oid, _, _ in values}
    if len(values) > _MANY:  # most come to be applied alone anyway
        return found | {w.message.position for w in writes if w.table.oid in tables}
    given = {oid: [(w, _values(w)) for w in writes if w.table.oid == oid] for oid in tables}
    for oid, columns, mine in values:
        same = {w.message.position for w, theirs in given[oid] if _may_be_same(dict(mine), theirs, columns)}
        found |= set() if same.isdisjoint(written) else same
    return found


def cut(writes: Sequence[Write], alone: Collection[int]) -> Iterator[Sequence[Write]]:
    """Parts of the list, in order: each of these positions is a part of its own."""
    start = 0
    for i in range(1, len(writes) + 1):
        before = writes[i - 1].message.position
        after = writes[i].message.position if i < len(writes) else -1
        if before != after and (before in alone or after in alone or after == -1):
            yield writes[start:i]
            start = i


def _given(conflict: Conflict) -> Mapping[str, bytes]:
    """What the refused write gives of the constraint's columns."""
    return {n: v for n, v in _values(conflict.write).items() if n in conflict.columns or not conflict.columns}


def _may_be_same(mine: Mapping[str, bytes], theirs: Mapping[str, bytes], columns: Collection[str]) -> bool:
    same = (mine[name] == theirs[name] for name in mine.keys() & theirs.keys())
    return all(same) if columns else any(same)  # an index on an expression: any column may matter


def _values(write: Write) -> Mapping[str, bytes]:
    """Column → JSON text, in one case: how `citext` compares is not known here."""
    return {name: text.lower() for name, text in write.texts.items()}
