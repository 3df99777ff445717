"""Write to Redis, return at once; a worker brings every write to Postgres exactly once, in order."""

from .async_batch import AsyncBatch
from .async_client import AsyncWriteBehind
from .async_receipt import AsyncReceipt
from .async_session_store import AsyncSessionStore
from .batch import Batch
from .client import WriteBehind
from .errors import (
    FlushTimeout,
    InvalidLoad,
    InvalidWrite,
    OutcomeUnknown,
    QueueFull,
    RedisFull,
    RedisRefused,
    RedisUnavailable,
    SessionEnded,
    WriteBehindError,
    WriteRejected,
)
from .login_session import LoginSession
from .receipt import Receipt
from .session_store import SessionStore
from .settings import Options, Settings

__all__ = [
    "WriteBehind",
    "Batch",
    "Receipt",
    "AsyncWriteBehind",
    "AsyncBatch",
    "AsyncReceipt",
    "SessionStore",
    "AsyncSessionStore",
    "LoginSession",
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
    "SessionEnded",
    "FlushTimeout",
    "OutcomeUnknown",
]
