"""Asks Postgres which keys are equal, for key types that only it can compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg

from writebehind.message import encode

from .postgres import begin, milliseconds, roll_back
from .resolve import Key
from .sqlstate import Verdict, judge
from .statement import canonical_keys
from .table import Table


class KeyReader:
    """Outside a batch's transaction: an unreadable key must not abort it."""

    def __init__(self, conn: psycopg.Connection[Any], timeout_s: float) -> None:
        self._conn, self._timeout_s = conn, timeout_s

    def __call__(self, table: Table, keys: Sequence[Mapping[str, bytes]]) -> list[Key | None]:
        """The canonical texts of each key (column → JSON text); ``None`` for one it cannot read."""
        answers = self._ask(table, keys)
        if answers is not None:
            return answers
        readable = self._readable(table, keys)
        found = iter(self._ask(table, [k for k, ok in zip(keys, readable, strict=True) if ok]) or ())
        return [next(found, None) if ok else None for ok in readable]

    def _readable(self, table: Table, keys: Sequence[Mapping[str, bytes]]) -> list[bool]:
        if self._ask(table, keys) is not None:
            return [True] * len(keys)
        if len(keys) == 1:
            return [False]
        half = len(keys) // 2
        return self._readable(table, keys[:half]) + self._readable(table, keys[half:])

    def _ask(self, table: Table, keys: Sequence[Mapping[str, bytes]]) -> list[Key | None] | None:
        names = [(c.name, encode(c.name) + b":") for c in table.key]
        members = [b"{" + b",".join(label + key[n] for n, label in names) + b"}" for key in keys]
        begin(self._conn, statement_timeout=milliseconds(self._timeout_s))
        try:
            rows = self._conn.execute(
                canonical_keys(table), [(b"[" + b",".join(members) + b"]").decode()]
            ).fetchall()
        except psycopg.Error as error:
            if judge(error) is Verdict.ROW:
                return None
            raise
        finally:
            roll_back(self._conn)
        return [None if None in row else tuple(row) for row in rows]
