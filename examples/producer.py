"""Writes rows by the library: `python examples/producer.py`, with a worker beside it.

REDIS_URL (redis://localhost:6379/0) and QUEUE (db:write:queue) say where to; the tables are in tables.sql.
"""

from __future__ import annotations

import os
from decimal import Decimal

from writebehind import FlushTimeout, QueueFull, WriteBehind, WriteRejected


def main() -> None:
    url = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
    queue = os.environ.get("QUEUE", "db:write:queue")
    with WriteBehind.from_url(url, queue=queue, prefix="cache:", ttl=3600) as wb:
        # Each call returns when Redis has the write; Postgres gets it from the worker, in this order.
        wb.put("users", 1, {"name": "Ada", "email": "ada@example.com", "balance": Decimal("10.50")})
        wb.patch("users", 1, {"email": "ada@lovelace.org"})
        print("cached:", wb.get("users", 1))  # what was just written
        wb.increment("users", 1, {"balance": Decimal("2.25")})
        wb.increment("pages", "/home", {"views": 1})
        wb.put("users", 2, {"name": "nobody"})
        receipt = wb.delete("users", 2)

        # Many writes in one round trip: all are accepted, or none.
        with wb.batch() as batch:
            for id in range(100, 200):
                batch.put("users", id, {"name": f"user {id}"})
            batch.increment("pages", "/home", {"views": 1})

        # A receipt tells when a write, and with it every one before it, is in Postgres.
        try:
            receipt.wait(timeout=10)
            batch.wait(timeout=10)
        except FlushTimeout:
            print("accepted, and still on its way: is a worker running?")
            raise SystemExit(1) from None

        # What Postgres refuses is kept as a dead letter: see `writebehind dead list`.
        try:
            wb.put("users", 3, {"name": "Eve", "balance": "much"}).wait(timeout=10)
        except WriteRejected as error:
            print(f"rejected: {error.sqlstate}")
        except QueueFull:
            print("at the queue's bound: try again later, or tell the caller")
    print("committed")


if __name__ == "__main__":
    main()
