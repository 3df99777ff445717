"""Whether cached rows are those of Postgres, as Postgres itself compares them.

It reads each cached value by the column's type, just as it does when the worker writes it: `1.0` is `1.00`
in a numeric, and a timestamp is the same in another zone. Both sides are then compared as jsonb, which every
type has: some types have no equality at all (json, point), others one that is too wide (citext, box).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import psycopg
from psycopg import errors as pg

from .errors import FatalError
from .postgres import Connection
from .sqlstate import Verdict, judge
from .table import Column, Table, quoted


class CachedRow(msgspec.Struct, frozen=True):
    """Key column → text, column → JSON text."""

    key: Mapping[str, str]
    columns: Mapping[str, bytes]


class Compared(msgspec.Struct, frozen=True):
    """``exists`` in Postgres; the columns that ``differ`` there, and those that the table does not have."""

    exists: bool
    differ: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class RowComparison:
    """Over a connection in autocommit that writes nothing."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._readable: set[int] = set()

    def __call__(self, table: Table, rows: Sequence[CachedRow]) -> list[Compared]:
        """Compares cached rows of one table with it, a statement for all that have the same columns.

        Raises:
            FatalError: the role may not read the table, or not all of its rows.
            psycopg.Error: as the connection does.
        """
        self._check_rights(table)
        groups: dict[tuple[str, ...], list[int]] = {}
        damaged = [{c for c, text in row.columns.items() if not _is_json(text)} for row in rows]
        for i, row in enumerate(rows):
            columns = tuple(c for c in row.columns if c in table.columns and c not in damaged[i])
            groups.setdefault(columns, []).append(i)
        found: dict[int, Compared] = {}
        for columns, places in groups.items():
            answers = self._compare(table, columns, [rows[i] for i in places])
            for i, (exists, differ) in zip(places, answers, strict=True):
                unknown = tuple(c for c in rows[i].columns if c not in table.columns)
                bad = tuple(sorted(damaged[i] - set(unknown))) if exists else ()
                found[i] = Compared(exists, differ + bad, unknown)
        return [found[i] for i in range(len(rows))]

    def values(self, table: Table, key: Mapping[str, str]) -> dict[str, bytes] | None:
        """Column → JSON text of the row in Postgres; ``None`` if there is none."""
        self._check_rights(table)
        try:
            found = self._conn.execute(
                f"SELECT to_json(t)::text FROM {_cached(table, ())} "
                f"JOIN {table.sql} AS t ON {_same_key(table)} ORDER BY {_own_first(table)} LIMIT 1",
                [_parameter(table, (), [CachedRow(key, {})])],
            ).fetchone()
        except psycopg.Error as error:
            self._must_be_of_value(error, table)
            return None
        if found is None:
            return None
        decoded = msgspec.json.decode(found[0], type=dict[str, msgspec.Raw])
        return {name: bytes(text) for name, text in decoded.items()}

    def _compare(
        self, table: Table, columns: tuple[str, ...], rows: Sequence[CachedRow]
    ) -> list[tuple[bool, tuple[str, ...]]]:
        try:
            return self._ask(table, columns, rows)
        except psycopg.Error as error:
            self._must_be_of_value(error, table)
        if len(rows) > 1:  # the value that Postgres cannot read is found by halving
            half = len(rows) // 2
            return self._compare(table, columns, rows[:half]) + self._compare(table, columns, rows[half:])
        return [self._compare_one(table, columns, rows[0])]

    def _compare_one(
        self, table: Table, columns: tuple[str, ...], row: CachedRow
    ) -> tuple[bool, tuple[str, ...]]:
        """One value of it cannot be read, and so is not that of Postgres; the others may be."""
        try:
            ((exists, _),) = self._ask(table, (), [row])
        except psycopg.Error as error:
            self._must_be_of_value(error, table)
            return False, ()  # the key cannot be read: no row has it
        differ = [c for c in columns if exists and not self._is_same(table, c, row)]
        return exists, tuple(differ)

    def _is_same(self, table: Table, column: str, row: CachedRow) -> bool:
        try:
            ((_, differ),) = self._ask(table, (column,), [row])
        except psycopg.Error as error:
            self._must_be_of_value(error, table)
            return False
        return not differ

    def _ask(
        self, table: Table, columns: tuple[str, ...], rows: Sequence[CachedRow]
    ) -> list[tuple[bool, tuple[str, ...]]]:
        answers = self._conn.execute(
            comparison(table, columns), [_parameter(table, columns, rows)]
        ).fetchall()
        return [
            (exists, tuple(c for c, ok in zip(columns, same, strict=True) if exists and not ok))
            for exists, *same in answers
        ]

    def _must_be_of_value(self, error: psycopg.Error, table: Table) -> None:
        """Raises what is no matter of the value that was given."""
        if isinstance(error, pg.UndefinedTable | pg.UndefinedColumn | pg.UndefinedObject):
            raise FatalError(
                f"{table.full_name} has been altered or dropped meanwhile", "run the command again"
            ) from error
        if judge(error) is not Verdict.ROW:
            raise error

    def _check_rights(self, table: Table) -> None:
        if table.oid in self._readable:
            return
        row = self._conn.execute(
            "SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'), "
            "row_security_active(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.oid = $1",
            [table.oid],
        ).fetchone()
        may, is_filtered = row or (True, False)
        user = quoted(self._conn.info.user)
        if not may:
            raise FatalError(
                f"Postgres: the role {user} may not read {table.full_name}",
                f"GRANT USAGE ON SCHEMA {quoted(table.schema)} TO {user}; "
                f"GRANT SELECT ON {table.sql} TO {user}",
            )
        if is_filtered:
            raise FatalError(
                f"Postgres: row-level security hides rows of {table.full_name} from the role {user}",
                f"connect as a role that sees them all (ALTER ROLE {user} BYPASSRLS)",
            )
        self._readable.add(table.oid)


def _is_json(text: bytes) -> bool:
    """Anybody may write to the cache: what is no JSON must not come into the parameter."""
    try:
        text.decode()
        msgspec.json.decode(text, type=msgspec.Raw)
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError):
        return False
    return True


def comparison(table: Table, columns: Sequence[str]) -> str:
    """For a JSON array of cached rows: whether each exists, and whether each column is the same."""
    same = "".join(
        ", " + _same(f"r.v{i}", f"t.{quoted(name)}", table.columns[name]) for i, name in enumerate(columns)
    )
    return (
        f"SELECT DISTINCT ON (r.ordinality) t.{quoted(table.key[0].name)} IS NOT NULL{same} "
        f"FROM {_cached(table, columns)} LEFT JOIN {table.sql} AS t ON {_same_key(table)} "
        f"ORDER BY r.ordinality, {_own_first(table)}"
    )


def _own_first(table: Table) -> str:
    """The order of rows with one key, of a table and those that inherit from it, which share no unique index.

    A patch or delete means the rows of all of them, a put inserts into the table itself: its row is there
    after each, and a child's counts where it is alone.
    """
    return f"t.tableoid <> {table.oid}::oid, t.tableoid"


def _same(cached: str, stored: str, column: Column) -> str:
    # To a reader JSON's null and SQL's are one.
    same = f"coalesce(to_jsonb({cached}), 'null') = coalesce(to_jsonb({stored}), 'null')"
    # A month and thirty days are one interval, and have two texts.
    return f"({same} OR {cached} = {stored})" if column.type.startswith("interval") else same


def _cached(table: Table, columns: Sequence[str]) -> str:
    """The parameter's rows as ``r``: names of our own, for a column of the key may be among the others."""
    types = [f"k{i} {column.type}" for i, column in enumerate(table.key)]
    types += [f"v{i} {table.columns[name].type}" for i, name in enumerate(columns)]
    return f"ROWS FROM (json_to_recordset($1::json) AS ({', '.join(types)})) WITH ORDINALITY AS r"


def _same_key(table: Table) -> str:
    return " AND ".join(f"t.{quoted(c.name)} = r.k{i}" for i, c in enumerate(table.key))


def _parameter(table: Table, columns: Sequence[str], rows: Sequence[CachedRow]) -> str:
    made = []
    for row in rows:
        members = [b'"k%d":%b' % (i, msgspec.json.encode(row.key[c.name])) for i, c in enumerate(table.key)]
        members += [b'"v%d":%b' % (i, row.columns[name]) for i, name in enumerate(columns)]
        made.append(b"{" + b",".join(members) + b"}")
    return (b"[" + b",".join(made) + b"]").decode()
