"""What Postgres keeps of a row's writes beside the row itself: what is committed, and its dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from .ledger import OF_WHOLE
from .postgres import Connection
from .resolve import key_text

_MOST_LETTERS = 20


class LedgerView(msgspec.Struct, frozen=True):
    """What Postgres has committed of a queue, or shard; all zero before its first owner."""

    applied_seq: int = 0
    recent_batches: tuple[int, ...] = ()


class LetterView(msgspec.Struct, frozen=True):
    """A dead letter of the row."""

    id: int
    kind: str
    seq: int | None
    sqlstate: str | None
    reason: str
    is_superseded: bool


def read_ledgers(conn: Connection, queues: Sequence[str]) -> dict[str, LedgerView]:
    """By queue; those that have had an owner."""
    rows = conn.execute(
        "SELECT queue, applied_seq, recent_batches FROM writebehind.ledger WHERE queue = ANY ($1::text[])",
        [list(queues)],
    ).fetchall()
    return {queue: LedgerView(applied_seq, tuple(recent)) for queue, applied_seq, recent in rows}


def read_letters(
    conn: Connection, queue: str, names: Sequence[str], key: Sequence[str], cache_key: str
) -> list[LetterView]:
    """The newest of the row: by its key, or by the cache entry where the worker could not tell the key.

    Of all shards of the ``queue``; ``names``: what its table is called in them.
    """
    rows: list[Any] = conn.execute(
        "SELECT id, kind, seq, sqlstate, reason, superseded_at IS NOT NULL FROM writebehind.dead_letters "
        f"WHERE queue = ANY ({OF_WHOLE}) "
        "AND (table_name = ANY ($2::text[]) AND key = $3 OR key IS NULL AND cache_key = $4 "
        "OR EXISTS (SELECT FROM jsonb_array_elements(group_rows) AS r "
        "WHERE r ->> 0 = ANY ($2::text[]) AND r ->> 1 = $3)) "
        f"ORDER BY superseded_at IS NOT NULL, id DESC LIMIT {_MOST_LETTERS}",
        [queue, list(names), _without_nul(key_text(tuple(key))), _without_nul(cache_key)],
    ).fetchall()
    return [LetterView(*row) for row in rows]


def _without_nul(text: str) -> str:
    return text.replace("\0", "\\0")
