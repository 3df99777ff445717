"""Everything this library raises.

WriteBehindError
 ├─ InvalidWrite        the call's arguments cannot be written; nothing was sent
 ├─ InvalidLoad         what a loader returned is not what it was asked for
 ├─ QueueFull           the queue is at its bound; nothing was written
 ├─ RedisUnavailable    no answer from Redis: the write may or may not have been accepted
 ├─ RedisRefused        Redis answered with an error; nothing was written
 │   └─ RedisFull       it is out of memory (maxmemory)
 ├─ WriteRejected       Postgres refused the write: it is a dead letter, with the reason
 ├─ SessionEnded        there is no such login session: it never was, has expired, or was revoked
 ├─ FlushTimeout        not committed within the time given; it may be later
 └─ OutcomeUnknown      Redis lost its history, or the receipt is too old to tell
"""

from __future__ import annotations


class WriteBehindError(Exception):
    """Base class of all errors of this library."""


class InvalidWrite(WriteBehindError, ValueError):
    """The write cannot be expressed: no table, an empty id, a value JSON cannot carry, too large."""


class InvalidLoad(WriteBehindError, ValueError):
    """What a loader returned cannot be told from a mistake: nothing was cached."""


class QueueFull(WriteBehindError):
    """The queue holds as many writes as it may. Nothing was written; try again later, or shed load."""

    def __init__(self, queue: str, length: int, limit: int) -> None:
        super().__init__(
            f"queue {queue!r} is full: {length} writes pending, at most {limit} allowed; "
            "the worker is behind or not running (see `writebehind status`)"
        )
        self.queue, self.length, self.limit = queue, length, limit


class RedisUnavailable(WriteBehindError, ConnectionError):
    """Redis could not be reached, did not answer in time, or is still loading, retries included.

    Raised by a write, its outcome is unknown: Redis may have accepted it before the connection broke.
    """


class RedisRefused(WriteBehindError):
    """Redis answered with an error (permissions, read-only replica, ...). Nothing was written."""


class RedisFull(RedisRefused):
    """Redis is at ``maxmemory`` and evicts nothing. Nothing was written."""


class WriteRejected(WriteBehindError):
    """Postgres refused the write; it is kept as a dead letter.

    ``seq`` names the write, ``sqlstate`` is Postgres' five-letter code, or the one that it would have given
    where the worker saw the fault first, and ``reason`` says why.
    """

    def __init__(self, seq: int, sqlstate: str | None, reason: str) -> None:
        code = f" (SQLSTATE {sqlstate})" if sqlstate else ""
        super().__init__(f"write {seq} was rejected: {reason}{code}")
        self.seq, self.sqlstate, self.reason = seq, sqlstate, reason


class SessionEnded(WriteBehindError, LookupError):
    """There is no such login session (any more). Nothing was written; the user has to log in."""


class FlushTimeout(WriteBehindError, TimeoutError):
    """The write was not committed in Postgres within the time given; it is still queued."""


class OutcomeUnknown(WriteBehindError):
    """Whether the write was committed can no longer be told from Redis."""
