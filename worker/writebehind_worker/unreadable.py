"""Which value of a refused write Postgres cannot read: its errors name the type, but not the column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg

from writebehind.message import encode

from .resolve import Write
from .sqlstate import Verdict, judge
from .statement import read

_MOST_BYTES = 2**20  # of a write: a longer one takes too long to send again


def find_unreadable(conn: psycopg.Connection[Any], write: Write) -> str | None:
    """The first column, by halving, whose value its type refuses; ``None`` if all can be read.

    Inside the batch's transaction, in which it leaves nothing behind.
    """
    values = write.texts
    if sum(map(len, values.values())) > _MOST_BYTES:
        return None
    names = list(values)
    if _can_read(conn, write, names, values):
        return None
    while len(names) > 1:
        first = names[: len(names) // 2]
        names = names[len(first) :] if _can_read(conn, write, first, values) else first
    return names[0]


def _can_read(
    conn: psycopg.Connection[Any], write: Write, names: Sequence[str], values: Mapping[str, bytes]
) -> bool:
    row = b",".join(encode(name) + b":" + values[name] for name in names)
    conn.execute("SAVEPOINT reading")
    try:
        conn.execute(read(write.table, names), [(b"[{" + row + b"}]").decode()])
        can_read = True
    except psycopg.Error as error:
        if judge(error) is not Verdict.ROW:
            raise
        can_read = False
    conn.execute("ROLLBACK TO SAVEPOINT reading; RELEASE SAVEPOINT reading")
    return can_read
