"""arq, with its defaults: one process, ten tasks at a time."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import psycopg
from arq import create_pool
from arq.connections import RedisSettings

from .write import POSTGRES_URL, REDIS_URL, statement

_SETTINGS = RedisSettings.from_dsn(REDIS_URL)


async def write(context: dict[str, Any], message: str) -> None:
    idle: list[Any] = context.setdefault("idle", [])
    conn = idle.pop() if idle else await psycopg.AsyncConnection.connect(POSTGRES_URL)
    await conn.execute(*statement(message))
    await conn.commit()
    idle.append(conn)


class WorkerSettings:
    """What ``arq`` reads."""

    functions = (write,)
    redis_settings = _SETTINGS


async def _enqueue() -> None:
    pool = await create_pool(_SETTINGS)
    for line in sys.stdin:
        await pool.enqueue_job("write", line)


if __name__ == "__main__":
    asyncio.run(_enqueue())
