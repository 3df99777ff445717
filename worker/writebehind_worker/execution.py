"""A list of writes as statements under a savepoint, and what their errors mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import psycopg

from .plan import Group, groups
from .received import Fault, make_fault
from .resolve import Write
from .sqlstate import Verdict, judge
from .statement import delete, insert_missing, may_upsert, parameter, update, upsert

Statement = tuple[Group, str]
"""Rows that one statement takes, and its parameter."""


def statements(writes: Sequence[Write]) -> Iterator[Statement]:
    """What a list of writes comes to, in order."""
    for group in groups(writes):
        yield group, parameter(group)


class _Untouched(Exception):
    """A statement touched fewer rows than it was given keys."""


class Execution:
    """Parts of a batch, each under a savepoint of its own. ``rows`` counts rows written by ``schema.table``.

    ``error`` is that of the last part that failed, ``is_late`` whether only the check after its statements
    failed. ``takes_timeouts``: as a fault of the writes, instead of raising them.
    """

    def __init__(self, conn: psycopg.Connection[Any], takes_timeouts: bool) -> None:
        self._conn, self._takes_timeouts = conn, takes_timeouts
        self.rows: dict[str, int] = {}
        self.error: psycopg.Error | None = None
        self.is_late = False

    def attempt(
        self, writes: Sequence[Write], is_checked: bool = True, ready: Sequence[Statement] = ()
    ) -> Fault | None:
        """Applies writes, by statements that are ``ready``; on a fault of theirs nothing of it remains."""
        # An earlier part left constraints immediate; within a part they may be met in any order.
        self._conn.execute("SAVEPOINT part; SET CONSTRAINTS ALL DEFERRED")
        self.error, self.is_late = None, False
        try:
            rows = self._execute(ready or statements(writes))
            self.is_late = True
            # Deferred ones would fail at COMMIT, outside every savepoint.
            check = "SET CONSTRAINTS ALL IMMEDIATE; " if is_checked else ""
            self._conn.execute(check + "RELEASE SAVEPOINT part")
        except _Untouched as error:
            fault = Fault("P0002", str(error))
        except psycopg.Error as error:
            fault = self._fault(error)
        else:
            for table, count in rows.items():
                self.rows[table] = self.rows.get(table, 0) + count
            return None
        self._conn.execute("ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part")
        return fault

    def check(self) -> Fault | None:
        """Whether all constraints are met now; if not, the caller's savepoint is broken."""
        try:
            self._conn.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except psycopg.Error as error:
            return self._fault(error)
        return None

    def _fault(self, error: psycopg.Error) -> Fault:
        """The fault of the writes, or the error raised again if it is none of theirs."""
        self.error = error
        verdict = judge(error)
        reason = error.diag.message_primary or str(error)
        if verdict is Verdict.TIMEOUT and self._takes_timeouts:
            return Fault(str(error.sqlstate), reason)
        if verdict is not Verdict.ROW:
            raise error
        detail = f" ({error.diag.message_detail})" if error.diag.message_detail else ""
        return make_fault(error.sqlstate or "XX000", reason + detail)

    def _execute(self, them: Iterable[Statement]) -> dict[str, int]:
        rows: dict[str, int] = {}
        for group, records in them:
            _write(self._conn, group, [records])
            name = group.table.full_name
            rows[name] = rows.get(name, 0) + len(group.rows)
        return rows


def _write(conn: psycopg.Connection[Any], group: Group, records: list[str]) -> None:
    expected = len(group.rows)
    if group.op == "delete":
        conn.execute(delete(group), records)
    elif group.op == "patch":
        if conn.execute(update(group), records).rowcount < expected:
            raise _Untouched(
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
        raise _Untouched(
            f"the row of {group.table.full_name} was not written: "
            "a trigger or a row-level security policy skipped it"
        )
