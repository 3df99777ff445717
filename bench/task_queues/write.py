"""The task: one upsert and a COMMIT, over a connection that the thread keeps."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import psycopg

from ..table import upsert

REDIS_URL, POSTGRES_URL = os.environ["BENCH_REDIS_URL"], os.environ["BENCH_POSTGRES_URL"]

_own = threading.local()


def write(message: str) -> None:
    if not hasattr(_own, "conn"):
        _own.conn = psycopg.connect(POSTGRES_URL)
    _own.conn.execute(*statement(message))
    _own.conn.commit()


def statement(message: str) -> tuple[Any, list[Any]]:
    found = json.loads(message)
    columns = found["data"]
    values = f"VALUES (%s{', %s' * len(columns)})"
    return upsert(columns, found["op"], values), [found["id"], *columns.values()]
