"""Everything this library raises.

WriteBehindError
 ├─ InvalidWrite        the call's arguments cannot be written; nothing was sent
 ├─ InvalidLoad         what a loader returned is not what it was asked for
 ├─ RowMismatch         a cached row does not fit the class it is read as
 ├─ QueueFull           the queue is at its bound; nothing was written
 ├─ ShardsDiffer        the queue has another number of shards than the client was told; nothing was written
 ├─ RedisUnavailable    no answer from Redis: the write may or may not have been accepted
 ├─ RedisRefused        Redis answered with an error; nothing was written
 │   └─ RedisFull       it is out of memory (maxmemory)
 ├─ WriteRejected       Postgres refused the write: it is a dead letter, with the reason
 ├─ SessionEnded        there is no such login session: it never was, has expired, or was revoked
 ├─ FlushTimeout        not committed within the time given; it may be later
 ├─ DurabilityNotReached  accepted, but not as safe as was asked for in time
 ├─ RateLimited         the setting `admit` refused the write; nothing was written
 ├─ LockNotAcquired     somebody else had the lock for as long as was waited
 ├─ LockLost            the lock ran out before it was released or extended
 └─ OutcomeUnknown      Redis lost its history, or the receipt is too old to tell
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.exceptions import LockError, LockNotOwnedError

if TYPE_CHECKING:
    from .receipt import AnyReceipt


class WriteBehindError(Exception):
    """Base class of all errors of this library.

    ``receipt`` is that of an accepted write whose call raised this instead of returning it, ``token`` that of
    a login session that it has made.
    """

    receipt: AnyReceipt | None = None
    token: str | None = None


class InvalidWrite(WriteBehindError, ValueError):
    """The write cannot be expressed: no table, an empty id, a value JSON cannot carry, too large."""


class InvalidLoad(WriteBehindError, ValueError):
    """What a loader returned cannot be told from a mistake: nothing was cached."""


class RowMismatch(WriteBehindError, ValueError):
    """A cached row does not fit the class of a typed table, and there was no loader to read it afresh.

    It was written by another version of the application, or with some of its columns only. ``field`` is the
    one that does not fit, or ``None`` where the class as a whole refused. Give a loader, and a new
    ``version`` to a client whose classes have changed.
    """

    def __init__(self, kind: str, field: str | None, reason: str) -> None:
        where = f"{kind}.{field}" if field else kind
        super().__init__(
            f"the cached row does not fit {where}: {reason}; "
            "give get a loader, and the client a new version when its classes change"
        )
        self.field, self.reason = field, reason


class QueueFull(WriteBehindError):
    """The queue holds as many writes as it may. Nothing was written; try again later, or shed load."""

    def __init__(self, queue: str, length: int, limit: int) -> None:
        super().__init__(
            f"queue {queue!r} is full: {length} writes pending, at most {limit} allowed; "
            "the worker is behind or not running (see `writebehind status`)"
        )
        self.queue, self.length, self.limit = queue, length, limit


class ShardsDiffer(WriteBehindError):
    """The queue has another number of shards than the client was told. Nothing was written."""

    def __init__(self, queue: str, told: int, found: int) -> None:
        super().__init__(
            f"queue {queue!r} has {found} shards, and this client was told {told}: give it shards={found}, "
            f"or none, so that it asks Redis; or run `writebehind reshard {told}`"
        )
        self.queue, self.told, self.found = queue, told, found


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


class DurabilityNotReached(WriteBehindError, TimeoutError):
    """The write is accepted and queued, but not as safe as was asked for: not in time, or Redis cannot tell.

    To repeat the call would be to write twice. ``receipt`` still tells when it is in Postgres.
    """


class OutcomeUnknown(WriteBehindError):
    """Whether the write was committed can no longer be told from Redis."""


class LockNotAcquired(WriteBehindError, LockError):
    """Somebody else had the lock for as long as was waited."""

    def __init__(self, name: str) -> None:
        message = f"lock {name!r} is held by somebody else; try again later, or wait longer for it"
        super().__init__(message)
        self.args = (message,)  # redis-py's class leaves there what the constructor was given
        self.name = name


class LockLost(WriteBehindError, LockNotOwnedError):
    """The lock ran out before it was released or extended: somebody else may have had it since.

    What was written meanwhile is safe only where it was checked against the fence.
    """

    def __init__(self, name: str) -> None:
        message = (
            f"lock {name!r} ran out while it was held, and may be another's now: "
            "give it a longer timeout, or extend it in time"
        )
        super().__init__(message)
        self.args = (message,)
        self.name = name


class RateLimited(WriteBehindError):
    """The setting ``admit`` gave a rate limit that has no slots left for the write. Nothing was written.

    ``retry_after``: seconds until it would be let in; infinite for a batch that is larger than the limit.
    """

    def __init__(self, name: str, retry_after: float, cost: int, limit: int, per: float) -> None:
        todo = f"try again in {retry_after:.3f} s" if cost <= limit else "send smaller batches"
        super().__init__(
            f"rate limit {name!r}: no room for {cost} more writes, of {limit} in {per:g} s; "
            f"nothing was written: {todo}"
        )
        self.name, self.retry_after = name, retry_after
