"""What an error of Postgres means for the batch: decided by SQLSTATE, never by message text. No I/O."""

from __future__ import annotations

import re
from enum import Enum

import psycopg


class Verdict(Enum):
    """What to do about an error."""

    TRANSIENT = "transient"  # wait and try the same batch again
    TIMEOUT = "timeout"  # a lock or a slow statement: wait; if it repeats, find the write that waits
    TARGET = "target"  # the database itself must be mended: wait, and say what
    ROW = "row"  # the write is at fault


_TRANSIENT_CLASSES = frozenset(
    {
        "08",  # connection exception
        "53",  # insufficient resources: disk, memory, connections
        "57",  # operator intervention: shutdown, crash, recovery
        "58",  # system error outside Postgres: I/O
    }
)
_TRANSIENT = frozenset(
    {
        "25006",  # read-only: a standby, or default_transaction_read_only
        "25P03",  # idle in transaction for too long
        "25P04",  # transaction took too long
        "40001",  # serialization failure
        "40003",  # statement completion unknown
        "40P01",  # deadlock
    }
)
TIMEOUTS = frozenset({"55P03", "57014"})  # lock not available, statement timeout
_TARGET_CLASSES = frozenset({"28"})  # invalid authorization
_TARGET = frozenset({"3D000"})  # no such database


def condition(sqlstate: str | None) -> str | None:
    """What Postgres' manual calls a code: 23505 is unique_violation."""
    try:
        name = psycopg.errors.lookup(sqlstate or "").__name__
    except KeyError:
        return None
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rstrip("_")).lower()


def judge(error: psycopg.Error) -> Verdict:
    """The verdict on an error raised by a statement; one without a code is a broken connection."""
    state = error.sqlstate
    if state is None:
        return Verdict.TRANSIENT if isinstance(error, psycopg.OperationalError) else Verdict.ROW
    if state in TIMEOUTS:
        return Verdict.TIMEOUT
    if state in _TRANSIENT or state[:2] in _TRANSIENT_CLASSES:
        return Verdict.TRANSIENT
    if state in _TARGET or state[:2] in _TARGET_CLASSES:
        return Verdict.TARGET
    return Verdict.ROW
