"""Write to Redis, return at once; a worker brings every write to Postgres exactly once, in order."""

from .async_atomic import AsyncAtomic
from .async_batch import AsyncBatch
from .async_changes import AsyncChanges
from .async_client import AsyncWriteBehind
from .async_lock import AsyncLock
from .async_rate_limiter import AsyncRateLimiter
from .async_receipt import AsyncReceipt
from .async_session_store import AsyncSessionStore
from .async_table import AsyncTable
from .atomic import Atomic
from .batch import Batch
from .change import Change, Missed
from .changes import Changes
from .client import WriteBehind
from .durability import Durability
from .errors import (
    DurabilityNotReached,
    FlushTimeout,
    InvalidLoad,
    InvalidWrite,
    LockLost,
    LockNotAcquired,
    OutcomeUnknown,
    QueueFull,
    RateLimited,
    RedisFull,
    RedisRefused,
    RedisUnavailable,
    RowMismatch,
    SessionEnded,
    ShardsDiffer,
    WriteBehindError,
    WriteRejected,
)
from .lock import Lock
from .login_session import LoginSession
from .observer import Observer
from .rate import RateLimit, RateResult
from .rate_limiter import RateLimiter
from .receipt import Receipt
from .session_store import SessionStore
from .settings import Options, Settings
from .table import Table, TableWrites

__all__ = [
    "WriteBehind",
    "Batch",
    "Atomic",
    "Receipt",
    "Table",
    "TableWrites",
    "Lock",
    "RateLimit",
    "RateLimiter",
    "RateResult",
    "AsyncWriteBehind",
    "AsyncBatch",
    "AsyncAtomic",
    "AsyncReceipt",
    "AsyncTable",
    "AsyncLock",
    "AsyncRateLimiter",
    "SessionStore",
    "AsyncSessionStore",
    "LoginSession",
    "Durability",
    "Changes",
    "AsyncChanges",
    "Change",
    "Missed",
    "Options",
    "Settings",
    "Observer",
    "WriteBehindError",
    "InvalidWrite",
    "InvalidLoad",
    "RowMismatch",
    "QueueFull",
    "ShardsDiffer",
    "RedisUnavailable",
    "RedisRefused",
    "RedisFull",
    "WriteRejected",
    "SessionEnded",
    "FlushTimeout",
    "DurabilityNotReached",
    "OutcomeUnknown",
    "LockNotAcquired",
    "LockLost",
    "RateLimited",
]
