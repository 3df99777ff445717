"""Write to Redis, return at once; a worker brings every write to Postgres exactly once, in order."""

from .batch import Batch
from .client import WriteBehind
from .errors import (
    FlushTimeout,
    InvalidWrite,
    OutcomeUnknown,
    QueueFull,
    RedisFull,
    RedisRefused,
    RedisUnavailable,
    WriteBehindError,
    WriteRejected,
)
from .receipt import Receipt

__all__ = [
    "WriteBehind",
    "Batch",
    "Receipt",
    "WriteBehindError",
    "InvalidWrite",
    "QueueFull",
    "RedisUnavailable",
    "RedisRefused",
    "RedisFull",
    "WriteRejected",
    "FlushTimeout",
    "OutcomeUnknown",
]
