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
        "40",  # transaction rollback: serialization failure, deadlock
        "53",  # insufficient resources: disk, memory, connections
        "57",  # operator intervention: shutdown, crash, recovery
        "58",  # system error outside Postgres: I/O
    }
)
_TRANSIENT = frozenset(
    {
        "25006",  # read-only: a standby, or default_transaction_read_only
        "25P01",  # our transaction is not there (any more): of a write it tells nothing
        "25P02",  # our transaction has failed
        "25P03",  # idle in transaction for too long
        "25P04",  # transaction took too long
        "72000",  # snapshot too old
        "HV00N",  # a foreign server, of a partition say, does not answer
    }
)
_OF_THE_WRITE = frozenset({"40002"})  # a constraint, for which the transaction was rolled back
TIMEOUTS = frozenset({"55P03", "57014"})  # lock not available, statement timeout
_TARGET_CLASSES = frozenset({"28"})  # invalid authorization
_TARGET = frozenset(
    {
        "3D000",  # no such database
        # Another client's statement under the name of ours, or ours gone: a pooler shares out our session.
        "26000",
        "42P05",
    }
)
DAMAGED = frozenset({"XX001", "XX002"})
"""Data or an index is corrupted: a row error, for others may be sound; many in a row are the table's."""

_ADVICE = {
    "08P01": "if a pooler stands between, its log says more: pool_mode must be transaction or session",
    "25006": "it is a standby or read-only: point --postgres-url at the primary",
    "26000": "connect to it directly, or through a pooler in session mode",
    "42P05": "connect to it directly, or through a pooler in session mode",
    "28": "mend the role or its password, or --postgres-url",
    "3D000": "create the database, or mend --postgres-url",
    "53100": "free disk space on its host",
    "53200": "give it more memory, or locks (max_locks_per_transaction)",
    "53300": "close connections, or raise the limit of the server, the database or the role",
    "53400": "raise the limit that it names",
    "58": "look at its log: it cannot use a file",
}
_NO_ADVICE = "nothing is lost: writes wait in Redis"
_NO_CONNECTION = "check that it runs, and --postgres-url"


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
    if state in _OF_THE_WRITE:
        return Verdict.ROW
    if state in _TRANSIENT or state[:2] in _TRANSIENT_CLASSES:
        return Verdict.TRANSIENT
    if state in _TARGET or state[:2] in _TARGET_CLASSES:
        return Verdict.TARGET
    return Verdict.ROW


def advice(error: psycopg.Error) -> str:
    """What an operator can do about an error that is waited for."""
    state = error.sqlstate
    if state is None:  # libpq tells none of a connection that fails
        return _NO_CONNECTION
    return _ADVICE.get(state) or _ADVICE.get(state[:2]) or _NO_ADVICE
