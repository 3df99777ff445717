"""What one Postgres connection can take: the same rows, coalesced, sorted, and made COPY text before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psycopg

from ..items import Items
from ..load import Load
from ..table import copy_text, upsert
from .child import answer


@dataclass(frozen=True, slots=True)
class Statement:
    """One COPY into a temporary table of these columns, and one upsert from it."""

    columns: tuple[str, ...]
    text: bytes


Batch = Sequence[Statement]


def make_batches(load: Load, items: Items) -> list[Batch]:
    """Cut where the worker cuts; each batch coalesced, by columns, sorted."""
    return [_batch(load, positions) for positions in items.batches()]


def _batch(load: Load, positions: range) -> Batch:
    rows: dict[int, dict[str, Any]] = {}
    for id, data in (load.writes[at] for at in positions):
        row = rows.setdefault(id, {})
        if load.op == "put":
            row |= data
        else:
            row |= {c: row.get(c, 0) + delta for c, delta in data.items()}
    groups: dict[tuple[str, ...], list[list[object]]] = {}
    for id, row in sorted(rows.items()):
        groups.setdefault(tuple(row), []).append([id, *row.values()])
    return [Statement(columns, copy_text(rows)) for columns, rows in groups.items()]


def work(connection: Connection[Any, Any], postgres_url: str, load: Load, batches: Sequence[Batch]) -> None:
    """The process."""
    with psycopg.connect(postgres_url) as conn:
        conn.execute("SET temp_buffers = '128MB'")
        names: dict[tuple[str, ...], str] = {}
        for columns in {s.columns for batch in batches for s in batch}:
            names[columns] = f"staged_{len(names)}"
            given = ", ".join(f"{c} {load.columns[c]}" for c in columns)
            conn.execute(f"CREATE TEMP TABLE {names[columns]} (id bigint, {given})")
        conn.commit()

        def run() -> None:
            for batch in batches:
                for statement in batch:
                    _write(conn, names[statement.columns], load.op, statement)
                conn.commit()

        answer(connection, run)


def _write(conn: psycopg.Connection[Any], table: str, op: str, statement: Statement) -> None:
    names = ", ".join(["id", *statement.columns])
    conn.execute(f"TRUNCATE {table}")
    with conn.cursor().copy(f"COPY {table} ({names}) FROM STDIN") as copy:
        copy.write(statement.text)
    conn.execute(upsert(statement.columns, op, f"SELECT {names} FROM {table}"))
