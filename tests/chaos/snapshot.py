"""What both servers hold once all is quiet. It knows the documented formats, and no code of the product."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import psycopg
from redis import Redis

State = tuple[str | None, str | None, int, int]
"""The columns a, b, n, s of a row."""
RowId = tuple[str, str]
"""Table, id."""

TABLES = ("shared", "own", "plain", "grouped", "raw", "events", "marks")
_TOKEN = re.compile(rb"[0-9]+\.[0-9]+\.[0-9]+")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """``token`` of the write, as its body has it."""

    token: str
    batch: int
    position: int
    kind: str
    seq: int | None
    reason: str
    queue: str = ""

    @property
    def place(self) -> tuple[int, int]:
        """Where it came in the order of its queue."""
        return self.batch, self.position


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """``ttl_ms`` as PTTL tells it; ``fields`` is ``None`` for what is no hash."""

    key: str
    fields: dict[str, str] | None
    ttl_ms: int


@dataclass(slots=True)
class Snapshot:
    """``versions`` of each row, oldest first; ``None``: deleted. ``made_by``: the transaction of each."""

    rows: dict[RowId, State] = field(default_factory=dict)
    versions: dict[RowId, list[State | None]] = field(default_factory=dict)
    made_by: dict[RowId, list[int]] = field(default_factory=dict)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    cache: list[CacheEntry] = field(default_factory=list)


def take_snapshot(pg: psycopg.Connection[Any], entries: Iterable[tuple[Redis, str]]) -> Snapshot:
    """Reads both servers. ``entries``: where cache entries are, and what is taken off their keys."""
    cache = [entry for redis, prefix in entries for entry in _cache(redis, prefix)]
    return Snapshot(_rows(pg), *_versions(pg), _dead_letters(pg), cache)


def _rows(pg: psycopg.Connection[Any]) -> dict[RowId, State]:
    found: dict[RowId, State] = {}
    for table in TABLES:
        for id, a, b, n, s in pg.execute(f"SELECT id::text, a, b, n, s FROM {table}"):
            found[table, id] = (a, b, n, s)
    return found


def _versions(pg: psycopg.Connection[Any]) -> tuple[dict[RowId, list[State | None]], dict[RowId, list[int]]]:
    found: dict[RowId, list[State | None]] = defaultdict(list)
    made_by: dict[RowId, list[int]] = defaultdict(list)
    query = "SELECT relation, id, gone, a, b, n, s, made_by::text::bigint FROM versions ORDER BY version"
    for relation, id, gone, a, b, n, s, transaction in pg.execute(query):
        found[relation, id].append(None if gone else (a, b, n, s))
        made_by[relation, id].append(transaction)
    return dict(found), dict(made_by)


def _dead_letters(pg: psycopg.Connection[Any]) -> list[DeadLetter]:
    query = "SELECT body, batch, position, kind, seq, reason, queue FROM writebehind.dead_letters"
    found = []
    for body, *rest in pg.execute(f"{query} ORDER BY batch, position"):
        token = _TOKEN.search(body)
        found.append(DeadLetter(token[0].decode() if token else repr(body), *rest))
    return found


def _cache(redis: Redis, prefix: str) -> list[CacheEntry]:
    keys: list[Any] = list(redis.scan_iter(match=f"{prefix}*", count=1000))
    found = []
    for start in range(0, len(keys), 1000):
        part = keys[start : start + 1000]
        pipe: Any = redis.pipeline(transaction=False)
        for key in part:
            pipe.hgetall(key)
            pipe.pttl(key)
        answers = pipe.execute(raise_on_error=False)
        for key, fields, ttl_ms in zip(part, answers[::2], answers[1::2], strict=True):
            if ttl_ms == -2:  # it ran out meanwhile
                continue
            texts = {f.decode(): v.decode() for f, v in fields.items()} if isinstance(fields, dict) else None
            found.append(CacheEntry(key.decode().removeprefix(prefix), texts, ttl_ms))
    return found


def cached_row(fields: dict[str, str]) -> dict[str, Any]:
    """Column → value of an entry that shows a row."""
    return {name: json.loads(text) for name, text in fields.items() if not name.startswith("@")}
