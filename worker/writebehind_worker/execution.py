"""A list of writes as statements, one after the other: deferred constraints are not checked yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from .plan import Group, groups
from .resolve import Write
from .statement import delete, insert_missing, may_upsert, parameter, update, upsert


class Untouched(Exception):
    """A statement touched fewer rows than it was given keys."""


def execute(conn: psycopg.Connection[Any], writes: Sequence[Write]) -> dict[str, int]:
    """Rows written by ``schema.table``; raises :class:`Untouched` and what Postgres says."""
    rows: dict[str, int] = {}
    for group in groups(writes):
        _write(conn, group)
        name = group.table.full_name
        rows[name] = rows.get(name, 0) + len(group.rows)
    return rows


def _write(conn: psycopg.Connection[Any], group: Group) -> None:
    records, expected = [parameter(group)], len(group.rows)
    if group.op == "delete":
        conn.execute(delete(group), records)
    elif group.op == "patch":
        if conn.execute(update(group), records).rowcount < expected:
            raise Untouched(
                f"{group.table.full_name} has no row with this key (or a trigger or policy skipped it): "
                "a patch changes rows that exist"
            )
    elif may_upsert(group):
        _check(group, conn.execute(upsert(group), records).rowcount)
    else:
        written = conn.execute(update(group), records).rowcount if group.columns else 0
        if written < expected:
            written += conn.execute(insert_missing(group), records).rowcount
        _check(group, written)


def _check(group: Group, written: int) -> None:
    if group.columns and written < len(group.rows):
        raise Untouched(
            f"the row of {group.table.full_name} was not written: "
            "a trigger or a row-level security policy skipped it"
        )
