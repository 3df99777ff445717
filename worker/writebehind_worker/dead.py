"""The dead letters of a queue in Postgres, as an operator asks for them. Memory is bounded by pages.

Reading needs SELECT only; `remove`, for `dead drop`, DELETE.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import psycopg
from psycopg.rows import class_row

from .ledger import OF_WHOLE
from .postgres import DURABLE
from .sqlstate import condition

PAGE = 1000
"""Dead letters read at once."""

Kind = Literal["rejected", "rollback"]
Which = Literal["open", "superseded", "all"]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which dead letters are meant; what is None or empty does not restrict it. Ages are in seconds."""

    ids: tuple[int, ...] = ()
    table: str | None = None
    sqlstate: str | None = None
    kind: Kind | None = None
    older_than_s: float | None = None
    newer_than_s: float | None = None
    which: Which = "all"

    @property
    def is_everything(self) -> bool:
        """Nothing is restricted, but perhaps to the open or the superseded ones."""
        return self == Choice(which=self.which)


class Letter(msgspec.Struct, frozen=True):
    """One dead letter, but for its body and its history. ``body_bytes``: how long the body is."""

    id: int
    queue: str
    kind: Kind
    table: str | None
    key: str | None
    sqlstate: str | None
    reason: str
    created_at: dt.datetime
    retried_at: dt.datetime | None
    superseded_at: dt.datetime | None
    rejections: int
    batch: int
    position: int
    seq: int | None
    cache_key: str | None
    body_bytes: int

    @property
    def condition(self) -> str | None:
        """What Postgres' manual calls the code."""
        return condition(self.sqlstate)

    @property
    def needs_force(self) -> str | None:
        """Why only a forced retry sends it; ``None``: any does."""
        if self.kind == "rollback":
            return "it was applied before Redis went back in time; --force applies it a second time"
        if self.superseded_at is not None:
            return "a later write of its row has been applied; --force lets this older one overwrite it"
        return None


_COLUMNS = (
    'd.id, d.queue, d.kind, d.table_name AS "table", d.key, d.sqlstate, d.reason, d.created_at, '
    "d.retried_at, d.superseded_at, jsonb_array_length(d.history) + 1 AS rejections, d.batch, d.position, "
    "d.seq, d.cache_key, octet_length(d.body) AS body_bytes"
)


@dataclass(frozen=True, slots=True)
class Reason:
    """Dead letters of one table, kind and SQLSTATE."""

    table: str | None
    kind: Kind
    sqlstate: str | None
    count: int


class DeadLetters:
    """Those of ``queue`` and of its shards, former ones too, over a connection in autocommit."""

    def __init__(self, conn: psycopg.Connection[Any], queue: str) -> None:
        self.connection, self._queue = conn, queue

    def count(self, choice: Choice) -> int:
        """How many are meant."""
        where, values = self._where(choice)
        found = self.connection.execute(f"SELECT count(*) FROM writebehind.dead_letters d {where}", values)
        return int((found.fetchone() or (0,))[0])

    def reasons(self, choice: Choice) -> list[Reason]:
        """What is meant, counted by reason; the most frequent first."""
        where, values = self._where(choice)
        rows = self.connection.execute(
            f"SELECT d.table_name, d.kind, d.sqlstate, count(*) FROM writebehind.dead_letters d {where} "
            "GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3",
            values,
        ).fetchall()
        return [Reason(*row) for row in rows]

    def pages(self, choice: Choice, limit: int | None = None) -> Iterator[list[Letter]]:
        """What is meant, oldest first, up to the newest there is now; a page is read when it is asked for."""
        newest = self.connection.execute(
            "SELECT coalesce(max(id), 0) FROM writebehind.dead_letters"
        ).fetchone()
        where, values = self._where(choice)
        query = (
            f"SELECT {_COLUMNS} FROM writebehind.dead_letters d {where} AND d.id <= ${len(values) + 1} "
            f"AND d.id > ${len(values) + 2} ORDER BY d.id LIMIT ${len(values) + 3}"
        )
        after, left = 0, limit
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            with self.connection.cursor(row_factory=class_row(Letter)) as cursor:
                page = cursor.execute(query, [*values, (newest or (0,))[0], after, size]).fetchall()
            if page:
                yield page
                after, left = page[-1].id, None if left is None else left - len(page)
            if len(page) < size:
                return

    def history(self, letter: int) -> list[dict[str, Any]]:
        """Its earlier rejections, oldest first: at, batch, sqlstate, reason."""
        found = self._one("history", letter)
        return list(found or ())

    def body(self, letter: int) -> bytes:
        """The message as it was received; empty if the letter is gone."""
        return bytes(self._one("body", letter) or b"")

    def bodies(self, letters: Sequence[Letter]) -> dict[int, bytes]:
        """The messages of several, by id; those of letters that are gone are missing."""
        return dict(
            self.connection.execute(
                "SELECT id, body FROM writebehind.dead_letters "
                f"WHERE queue = ANY ({OF_WHOLE}) AND id = ANY ($2::bigint[])",
                [self._queue, [letter.id for letter in letters]],
            ).fetchall()
        )

    def remove(self, letters: Sequence[Letter]) -> int:
        """Drops those that still are as they were read: one that was retried since belongs to a new batch."""
        return self.connection.execute(
            "DELETE FROM writebehind.dead_letters d USING "
            "unnest($2::bigint[], $3::bigint[]) AS l(id, batch), "
            f"(SELECT {DURABLE}) AS durable "
            f"WHERE d.queue = ANY ({OF_WHOLE}) AND d.id = l.id AND d.batch = l.batch",
            [self._queue, [letter.id for letter in letters], [letter.batch for letter in letters]],
        ).rowcount

    def _one(self, column: str, letter: int) -> Any:
        found = self.connection.execute(
            f"SELECT {column} FROM writebehind.dead_letters WHERE queue = ANY ({OF_WHOLE}) AND id = $2",
            [self._queue, letter],
        ).fetchone()
        return found[0] if found else None

    def _where(self, choice: Choice) -> tuple[str, list[Any]]:
        terms: list[str] = [f"d.queue = ANY ({OF_WHOLE})"]
        values: list[Any] = [self._queue]

        def term(sql: str, value: Any) -> None:
            if value:
                values.append(value)
                terms.append(sql.replace("?", f"${len(values)}"))

        term("d.id = ANY (?::bigint[])", list(choice.ids))
        term("(d.table_name = ?::text OR right(d.table_name, length(?) + 1) = '.' || ?)", choice.table)
        term("d.sqlstate = ?::text", choice.sqlstate)
        term("d.kind = ?::text", choice.kind)
        term("d.created_at <= now() - make_interval(secs => ?::float8)", choice.older_than_s)
        term("d.created_at >= now() - make_interval(secs => ?::float8)", choice.newer_than_s)
        if choice.which != "all":
            terms.append(f"d.superseded_at IS {'NULL' if choice.which == 'open' else 'NOT NULL'}")
        return "WHERE " + " AND ".join(terms), values


def acknowledged(letters: Sequence[Letter], inflight: Collection[tuple[str, int]]) -> list[Letter]:
    """Those whose batch is no longer in flight; ``inflight`` must have been read after the letters.

    While it is, a next owner of the queue may still have to tell from its dead letters which of its writes
    were rejected: the others are settled in the cache, and reported to receipts, as applied.
    """
    return [letter for letter in letters if (letter.queue, letter.batch) not in inflight]
