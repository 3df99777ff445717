"""What a good engineer writes in an afternoon. Killed, it loses a batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import psycopg
from redis import Redis

from ..table import upsert
from .child import answer

_BATCH = 1000


def work(connection: Connection[Any, Any], redis_url: str, postgres_url: str, queue: str) -> None:
    """The process: it ends with the queue."""
    with Redis.from_url(redis_url) as redis, psycopg.connect(postgres_url) as conn:
        redis.ping()

        def run() -> None:
            while items := redis.rpop(queue, _BATCH):
                for statement, rows in _merged(items):
                    conn.cursor().executemany(statement, rows)
                conn.commit()

        answer(connection, run)


def _merged(items: list[bytes]) -> Iterator[tuple[str, list[list[Any]]]]:
    """Statements with their rows: one row for each key."""
    merged: dict[tuple[str, int], dict[str, Any]] = {}
    for item in items:
        message = json.loads(item)
        row = merged.setdefault((message["op"], message["id"]), {})
        if message["op"] == "put":
            row.update(message["data"])
        else:
            for column, delta in message["data"].items():
                row[column] = row.get(column, 0) + delta
    groups: dict[tuple[str, tuple[str, ...]], list[list[Any]]] = {}
    for (op, id), row in merged.items():
        groups.setdefault((op, tuple(row)), []).append([id, *row.values()])
    for (op, columns), rows in groups.items():
        yield upsert(columns, op, f"VALUES (%s{', %s' * len(columns)})"), rows
