"""Many rows at once into the tables, in a transaction: through temporary tables where that is faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg.errors import DuplicateTable, InsufficientPrivilege, UndefinedTable

from .bulk_rows import bulk_statements
from .digest import Digest
from .execution import Statement, execute
from .plan import Group
from .postgres import is_pooled
from .statement import json_records, record_types
from .table import quoted

_MOST_STAGES = 100  # temporary tables; then they are made anew
_MOST_LOSSES = 2  # of temporary tables; then a pooler, say, gives each transaction another session


class Bulk:
    """Over one connection. It makes a temporary table for each set of columns that comes often enough."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn
        self._stages: dict[tuple[int, str, str], str] = {}  # temporary tables
        self._may_copy = True
        self._is_pooled = is_pooled(conn)
        self._has_lost, self._losses = False, 0

    @property
    def may_copy(self) -> bool:
        """Whether statements for COPY are of use."""
        return self._may_copy

    def ready(self, digest: Digest, statements: Sequence[Statement]) -> Sequence[Statement] | None:
        """What `write` takes; outside of the transaction. ``statements``: of the digest, if known.

        ``None``: they are of no use here, and the digest is closed.
        """
        if not self._is_pooled and (self._has_lost or len(self._stages) > _MOST_STAGES):
            self._conn.execute("DISCARD TEMP")
            self._stages.clear()
            self._has_lost = False
        found = statements or bulk_statements(digest, copies=self._may_copy)
        copied = [statement for statement in found if isinstance(statement.rows, bytes)]
        if self._may_copy and not self._is_pooled:
            try:
                for statement in copied:
                    self._make_stage(statement.group)
            except (InsufficientPrivilege, DuplicateTable):  # no TEMPORARY; or another's session: all as JSON
                self._may_copy = False
        if self._may_copy or not copied:
            return found
        return None if digest.is_closed else bulk_statements(digest, copies=False)

    def copy(self, statements: Sequence[Statement]) -> None:
        """Brings the rows of those to Postgres that go by COPY. No table of others is touched."""
        if self._is_pooled:
            self._make_stages_of_transaction([s.group for s in statements if isinstance(s.rows, bytes)])
        for group, _, rows in statements:
            if isinstance(rows, bytes):
                names = ", ".join(quoted(n) for n in (group.table.key[0].name, *group.columns))
                sql = f"COPY {self._stage(group)} ({names}) FROM STDIN (FORMAT csv, NULL 'null')"
                try:
                    with self._conn.cursor().copy(sql) as copy:
                        copy.write(rows)
                except UndefinedTable:  # somebody has taken it away
                    self._has_lost, self._losses = True, self._losses + 1
                    self._may_copy = self._losses < _MOST_LOSSES
                    raise

    def write(self, statements: Sequence[Statement], arrive: Callable[[], None]) -> Callable[[], None]:
        """Writes to the tables, within `one_trip`; what it returns, and raises, is as `execute` does."""
        checks: list[Callable[[], None]] = []
        for statement in statements:
            group = statement.group
            if isinstance(statement.rows, bytes):
                check = execute(self._conn, statement, f"{self._stage(group)} AS r", (), arrive)
            else:
                check = execute(self._conn, statement, json_records(group), [statement.rows], arrive)
            checks.append(check)

        def check_all() -> None:
            for check in checks:
                check()

        return check_all

    def _make_stages_of_transaction(self, groups: Sequence[Group]) -> None:
        """Where the next transaction is another session's."""
        self._stages = {_stage_key(g): f"pg_temp.writebehind_once_{i}" for i, g in enumerate(groups)}
        made = [f"CREATE TEMPORARY TABLE {self._stage(g)} ({record_types(g)}) ON COMMIT DROP" for g in groups]
        try:
            if made:
                self._conn.execute("; ".join(made))
        except InsufficientPrivilege:
            self._may_copy = False
            raise

    def _stage(self, group: Group) -> str:
        return self._stages[_stage_key(group)]

    def _make_stage(self, group: Group) -> None:
        key = _stage_key(group)
        if key in self._stages:
            return
        name = f"pg_temp.writebehind_{len(self._stages)}"
        self._conn.execute(f"CREATE TEMPORARY TABLE {name} ({record_types(group)}) ON COMMIT DELETE ROWS")
        self._stages[key] = name


def _stage_key(group: Group) -> tuple[int, str, str]:
    """No two statements of a transaction share one: see `bulk_statements`. Altered types make another."""
    return group.table.oid, group.op, record_types(group)
