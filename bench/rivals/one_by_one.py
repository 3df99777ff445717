"""The reliable queue of the tutorials: each item is moved aside, written, committed, removed."""

from __future__ import annotations

import json
from multiprocessing.connection import Connection
from typing import Any

import psycopg
from redis import Redis

from ..table import upsert
from .child import answer


def work(connection: Connection[Any, Any], redis_url: str, postgres_url: str, queue: str) -> None:
    """The process: it ends with the queue."""
    aside = f"{queue}:aside"
    with Redis.from_url(redis_url) as redis, psycopg.connect(postgres_url) as conn:
        redis.ping()

        def run() -> None:
            while item := redis.lmove(queue, aside, "RIGHT", "LEFT"):
                message = json.loads(item)
                columns = message["data"]
                statement = upsert(columns, message["op"], f"VALUES (%s{', %s' * len(columns)})")
                conn.execute(statement, [message["id"], *columns.values()])
                conn.commit()
                redis.lrem(aside, 1, item)

        answer(connection, run)
