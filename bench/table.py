"""The table that all write to: brought back to the same state before each run, compared after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import psycopg

from .load import TABLE, Load, Row


class BenchTable:
    """Of one load; made anew with it."""

    def __init__(self, pg: psycopg.Connection[Any], load: Load) -> None:
        self._pg, self._columns, self._others = pg, load.columns, load.table_rows
        body = "id bigint PRIMARY KEY, " + ", ".join(f"{c} {t}" for c, t in load.columns.items())
        pg.execute(f"DROP TABLE IF EXISTS {TABLE}, bench_before, bench_expected")
        pg.execute(f"CREATE TABLE {TABLE} ({body})")
        pg.execute(f"CREATE UNLOGGED TABLE bench_before ({body})")
        pg.execute(f"CREATE UNLOGGED TABLE bench_expected ({body})")
        self._fill("bench_before", load.rows)
        self.expect(load)
        if self._others:
            self._fill_up()

    def expect(self, load: Load) -> None:
        """From now on compares with what this load leaves behind."""
        self._pg.execute("TRUNCATE bench_expected")
        self._fill("bench_expected", load.expected())

    def reset(self) -> None:
        if self._others:  # too many to be made anew
            changes = ", ".join(f"{c} = b.{c}" for c in self._columns)
            self._pg.execute(f"UPDATE {TABLE} r SET {changes} FROM bench_before b WHERE b.id = r.id")
        else:
            self._pg.execute(f"TRUNCATE {TABLE}")
            self._pg.execute(f"INSERT INTO {TABLE} TABLE bench_before")
        self._pg.execute(f"VACUUM (ANALYZE) {TABLE}")
        self._pg.execute("CHECKPOINT")

    def wrong_rows(self) -> int:
        """How many rows are missing, too many, or not as they must be."""
        names = ", ".join(["id", *self._columns])
        kind = "RIGHT" if self._others else "FULL"
        found = self._pg.execute(
            f"SELECT count(*) FROM {TABLE} r {kind} JOIN bench_expected e ON r.id = e.id "
            f"WHERE ({_of('r', names)}) IS DISTINCT FROM ({_of('e', names)})"
        ).fetchone()
        assert found is not None
        return int(found[0])

    def _fill_up(self) -> None:
        """A row for every id, alike those of the load."""
        given = ", ".join(f"b.{c}" for c in self._columns)
        self._pg.execute(
            f"INSERT INTO {TABLE} SELECT n, {given} FROM generate_series(0, {self._others - 1}) n, "
            "LATERAL (SELECT * FROM bench_before LIMIT 1) b"
        )

    def sum_of(self, column: str) -> int:
        found = self._pg.execute(f"SELECT coalesce(sum({column}), 0) FROM {TABLE}").fetchone()
        assert found is not None
        return int(found[0])

    def _fill(self, table: str, rows: Mapping[int, Row]) -> None:
        names = ["id", *self._columns]
        with self._pg.cursor().copy(f"COPY {table} ({', '.join(names)}) FROM STDIN") as copy:
            copy.write(copy_text([id, *(row[c] for c in self._columns)] for id, row in rows.items()))


def copy_text(rows: Iterable[Iterable[object]]) -> bytes:
    """Rows in COPY's text format; the loads have no character that it would escape."""
    return "".join("\t".join(map(str, row)) + "\n" for row in rows).encode()


def upsert(columns: Iterable[str], op: str, values: str) -> str:
    """The statement that all rivals use; ``values`` is where the rows come from."""
    given = list(columns)
    if op == "put":
        changes = [f"{c} = excluded.{c}" for c in given]
    else:
        changes = [f"{c} = coalesce({TABLE}.{c}, 0) + excluded.{c}" for c in given]
    names = ", ".join(["id", *given])
    return f"INSERT INTO {TABLE} ({names}) {values} ON CONFLICT (id) DO UPDATE SET {', '.join(changes)}"


def _of(alias: str, names: str) -> str:
    return ", ".join(f"{alias}.{name}" for name in names.split(", "))
