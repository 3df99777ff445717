"""A list of writes as statements under a savepoint, and what their errors mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import psycopg

from .plan import Group, RowGroup, groups
from .received import Fault, make_fault
from .resolve import Write
from .sqlstate import Verdict, judge
from .statement import delete, insert_missing, json_records, may_upsert, parameter, update, upsert


class Statement(NamedTuple):
    """So many rows that one statement takes: as a JSON parameter, or as lines of CSV for COPY."""

    group: Group
    size: int
    rows: str | bytes


def statements(writes: Sequence[Write]) -> Iterator[Statement]:
    """What a list of writes comes to, in order."""
    return map(statement_of, groups(writes))


def statement_of(group: RowGroup) -> Statement:
    """With its rows as JSON."""
    return Statement(group, len(group.rows), parameter(group))


class Untouched(Exception):
    """A statement touched fewer rows than it was given keys."""

    def __init__(self, group: Group) -> None:
        if group.op == "patch":
            what = "has no row with this key (or a trigger or policy skipped it)"
            super().__init__(f"{group.table.full_name} {what}: a patch changes rows that exist")
        else:
            what = "was not written: a trigger or a row-level security policy skipped it"
            super().__init__(f"the row of {group.table.full_name} {what}")


class Execution:
    """Parts of a batch, each under a savepoint of its own. ``rows`` counts rows written by ``schema.table``.

    ``error`` is that of the last part that failed, ``is_late`` whether only the check after its statements
    failed, ``failed`` what kind of write the statement was that failed. ``takes_timeouts``: as a fault of
    the writes, instead of raising them.
    """

    def __init__(self, conn: psycopg.Connection[Any], takes_timeouts: bool) -> None:
        self._conn, self._takes_timeouts = conn, takes_timeouts
        self.rows: dict[str, int] = {}
        self.error: psycopg.Error | None = None
        self.is_late = False
        self.failed: Group | None = None

    def attempt(
        self, writes: Sequence[Write], is_checked: bool = True, ready: Sequence[Statement] = ()
    ) -> Fault | None:
        """Applies writes, by statements that are ``ready``; on a fault of theirs nothing of it remains."""
        # An earlier part left constraints immediate; within a part they may be met in any order.
        self._conn.execute("SAVEPOINT part; SET CONSTRAINTS ALL DEFERRED")
        self.error, self.is_late, self.failed = None, False, None
        try:
            rows = self._execute(ready or statements(writes))
            self.is_late, self.failed = True, None
            # Deferred ones would fail at COMMIT, outside every savepoint.
            check = "SET CONSTRAINTS ALL IMMEDIATE; " if is_checked else ""
            self._conn.execute(check + "RELEASE SAVEPOINT part")
        except Untouched as error:
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
        for statement in them:
            group = self.failed = statement.group
            execute(self._conn, statement, json_records(group), [statement.rows])()
            rows[group.table.full_name] = rows.get(group.table.full_name, 0) + statement.size
        return rows


def execute(
    conn: psycopg.Connection[Any],
    statement: Statement,
    records: str,
    parameters: Sequence[object] = (),
    arrive: Callable[[], None] = lambda: None,
) -> Callable[[], None]:
    """Writes the rows, which come from ``records``. Raises ``psycopg.Error``.

    What it returns is to be called once the replies are there, and raises `Untouched`. ``arrive`` is that of
    `one_trip`.
    """

    def run(sql: str) -> psycopg.Cursor[Any]:
        # What is copied is of another size each time: a plan of before may be a bad one.
        return conn.execute(sql, parameters, prepare=None if parameters else False)

    group = statement.group
    done: list[psycopg.Cursor[Any]] = []
    if group.op == "delete":
        run(delete(group, records))
    elif group.op == "patch":
        done.append(run(update(group, records)))
    elif may_upsert(group):
        done.append(run(upsert(group, records)))
    else:
        if group.columns:
            done.append(run(update(group, records)))
            arrive()
        if sum(cursor.rowcount for cursor in done) < statement.size:
            done.append(run(insert_missing(group, records)))

    def check() -> None:
        if group.columns and done and sum(cursor.rowcount for cursor in done) < statement.size:
            raise Untouched(group)

    return check
