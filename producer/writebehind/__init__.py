"""Write to Redis, return at once; a worker brings every write to Postgres exactly once, in order."""

from .async_batch import AsyncBatch
from .async_client import AsyncWriteBehind
from .async_lock import AsyncLock
from .async_rate_limiter import AsyncRateLimiter
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
    RateLimited,
    RedisFull,
    RedisRefused,
    RedisUnavailable,
    WriteBehindError,
    WriteRejected,
)
from .lock import Lock
from .rate import RateLimit, RateResult
from .rate_limiter import RateLimiter
from .receipt import Receipt
from .settings import Options, Settings

__all__ = [
    "WriteBehind",
    "Batch",
    "Receipt",
    "Lock",
    "RateLimit",
    "RateLimiter",
    "RateResult",
    "AsyncWriteBehind",
    "AsyncBatch",
    "AsyncReceipt",
    "AsyncLock",
    "AsyncRateLimiter",
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
    "RateLimited",
]
