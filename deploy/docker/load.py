"""A small load for compose.yaml: so many writes a second (an argument), one in a thousand bad on purpose."""

from __future__ import annotations

import os
import random
import sys
import time

import psycopg

from writebehind import QueueFull, WriteBehind

TABLES = """
CREATE TABLE IF NOT EXISTS users (id bigint PRIMARY KEY, name text NOT NULL, email text);
CREATE TABLE IF NOT EXISTS pages (id text PRIMARY KEY, views bigint NOT NULL DEFAULT 0);
"""
ROUNDS = 10  # a second


def main(per_second: int) -> None:
    with psycopg.connect(os.environ["WRITEBEHIND_POSTGRES_URL"], autocommit=True) as conn:
        conn.execute(TABLES)
    wb = WriteBehind.from_url(os.environ["WRITEBEHIND_REDIS_URL"], ttl=600)
    chance = random.Random()  # noqa: S311 - no secret
    while True:
        began = time.monotonic()
        try:
            with wb.batch() as batch:
                for _ in range(max(1, per_second // ROUNDS // 2)):
                    user = chance.randrange(10_000)
                    name = None if chance.random() < 0.001 else f"user {user}"  # a name must not be null
                    batch.put("users", user, {"name": name, "email": f"{user}@example.com"})
                    batch.increment("pages", f"/{chance.randrange(100)}", {"views": 1})
        except QueueFull:
            pass  # the worker is behind: a load waits
        time.sleep(max(0.0, began + 1 / ROUNDS - time.monotonic()))


if __name__ == "__main__":
    main(int(sys.argv[1]))
