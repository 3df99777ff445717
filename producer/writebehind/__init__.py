"""Write to Redis, return at once; a worker brings every write to Postgres exactly once, in order."""

from .async_batch import AsyncBatch
from .async_client import AsyncWriteBehind
from .async_lock import AsyncLock
from .async_receipt import AsyncReceipt
from .batch import Batch
from .client import WriteBehind
from .errors import (
    FlushTimeout,
    InvalidLoad,
    InvalidWrite,
    LockLost,
    LockNotAcquired,
    OutcomeUnknown,
    QueueFull,
    RedisFull,
    RedisRefused,
    RedisUnavailable,
    WriteBehindError,
    WriteRejected,
)
from .lock import Lock
from .receipt import Receipt
from .settings import Options, Settings

__all__ = [
    "WriteBehind",
    "Batch",
    "Receipt",
    "Lock",
    "AsyncWriteBehind",
    "AsyncBatch",
    "AsyncReceipt",
    "AsyncLock",
    "Options",
    "Settings",
    "WriteBehindError",
    "InvalidWrite",
    "InvalidLoad",
    "QueueFull",
    "RedisUnavailable",
    "RedisRefused",
    "RedisFull",
    "WriteRejected",
    "FlushTimeout",
    "OutcomeUnknown",
    "LockNotAcquired",
    "LockLost",
]
