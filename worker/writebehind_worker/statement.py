"""The SQL of a group of rows: one JSON parameter, whose types come from the catalog. No I/O.

Postgres converts every value; no type has code of its own here. ``json``, not ``jsonb``: it keeps ``-0.0``
and the text of ``json`` columns.
"""

from __future__ import annotations

from collections.abc import Sequence

from .plan import Group, RowGroup
from .table import Column, KeyColumn, Table, quoted


def parameter(group: RowGroup) -> str:
    """The rows as a JSON array of objects, column → JSON text."""
    rows = [w.shape.template % (*w.key_texts, *w.columns.values()) for w in group.rows]
    return (b"[" + b",".join(rows) + b"]").decode()


def may_upsert(group: Group) -> bool:
    """Whether ``INSERT ... ON CONFLICT DO UPDATE`` does to each row what UPDATE, or else INSERT, would."""
    table = group.table
    given = {*group.columns, *(c.name for c in table.key)}
    if not table.upsert or not table.upsert_needs <= given:
        return False
    # A delta is proposed as the column's value first: a CHECK or a domain may refuse it there.
    return group.op != "increment" or not (group.wide or table.checked & set(group.columns))


def upsert(group: Group, records: str) -> str:
    """Puts or increments in one statement. Here and below the rows come from ``records``, as ``r``."""
    key = ", ".join(quoted(c.name) for c in group.table.key)
    if not group.columns:
        action = "NOTHING"
    elif group.op == "increment":
        action = "UPDATE SET " + ", ".join(
            f"{c} = coalesce(t.{c}, 0) + excluded.{c}" for c in map(quoted, group.columns)
        )
    else:
        action = "UPDATE SET " + ", ".join(f"{c} = excluded.{c}" for c in map(quoted, group.columns))
    return (
        f"INSERT INTO {group.table.sql} AS t ({_all_columns(group)}) OVERRIDING SYSTEM VALUE "
        f"SELECT {_all_columns(group, 'r.')} FROM {records} ON CONFLICT ({key}) DO {action}"
    )


def update(group: Group, records: str) -> str:
    """Patches, or the first half of puts and increments that cannot be upserted."""
    if group.op == "increment":
        sets = ", ".join(f"{c} = coalesce(t.{c}, 0) + r.{c}" for c in map(quoted, group.columns))
    else:
        sets = ", ".join(f"{c} = r.{c}" for c in map(quoted, group.columns))
    return f"UPDATE {group.table.sql} AS t SET {sets} FROM {records} WHERE {_same_key(group.table)}"


def insert_missing(group: Group, records: str) -> str:
    """The second half: the rows that the UPDATE did not find."""
    return (
        f"INSERT INTO {group.table.sql} ({_all_columns(group)}) OVERRIDING SYSTEM VALUE "
        f"SELECT {_all_columns(group, 'r.')} FROM {records} "
        f"WHERE NOT EXISTS (SELECT FROM {group.table.sql} AS t WHERE {_same_key(group.table)})"
    )


def delete(group: Group, records: str) -> str:
    """Deletes; a row that is not there is no error."""
    return f"DELETE FROM {group.table.sql} AS t USING {records} WHERE {_same_key(group.table)}"


def canonical_keys(table: Table) -> str:
    """For a JSON array of keys: each one's text, equal for keys that Postgres takes as equal."""
    columns = ", ".join(f"{quoted(c.name)} {c.type}" for c in table.key)
    same = ", ".join(
        f"r.{quoted(c.name)}" + (f" COLLATE {c.collation}" if c.collation else "") for c in table.key
    )
    texts = ", ".join(f"first_value({_canonical_text(c)}) OVER same" for c in table.key)
    return (
        f"SELECT {texts} FROM ROWS FROM (json_to_recordset($1::json) AS ({columns})) "
        f"WITH ORDINALITY AS r WINDOW same AS (PARTITION BY {same} ORDER BY r.ordinality) "
        "ORDER BY r.ordinality"
    )


def read(table: Table, columns: Sequence[str]) -> str:
    """Has Postgres read the values of these columns, and nothing else."""
    types = ", ".join(f"{quoted(name)} {table.columns[name].type}" for name in columns)
    return f"SELECT FROM json_to_recordset($1::json) AS r({types})"


def _canonical_text(column: KeyColumn) -> str:
    """Text that is the same in another batch too, for the types of keys that compare beyond their text."""
    value = f"r.{quoted(column.name)}"
    if column.base == "numeric":
        return f"trim_scale({value})::text"
    return f"lower({value}::text)" if column.base == "citext" else f"{value}::text"


def json_records(group: Group) -> str:
    """The rows of :func:`parameter`."""
    return f"json_to_recordset($1::json) AS r({record_types(group)})"


def record_types(group: Group) -> str:
    """Key and columns with their types, as Postgres has to read the rows."""
    types = [f"{quoted(c.name)} {c.type}" for c in group.table.key]
    types += [f"{quoted(n)} {_type(group, group.table.columns[n])}" for n in group.columns]
    return ", ".join(types)


def _type(group: Group, column: Column) -> str:
    if group.op != "increment" or may_upsert(group):
        return column.type
    # Wide enough for every delta; Postgres checks range, scale and domain of the sum on assignment.
    return {"int": "bigint", "numeric": "numeric"}.get(column.number or "", column.type)


def _all_columns(group: Group, prefix: str = "") -> str:
    names: Sequence[str] = [c.name for c in group.table.key] + list(group.columns)
    return ", ".join(prefix + quoted(n) for n in names)


def _same_key(table: Table) -> str:
    return " AND ".join(f"t.{quoted(c.name)} = r.{quoted(c.name)}" for c in table.key)
