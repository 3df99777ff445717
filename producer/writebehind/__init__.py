"""Write to Redis, return at once; a worker brings every write to Postgres exactly once, in order."""

from .async_batch import AsyncBatch
from .async_client import AsyncWriteBehind
from .async_receipt import AsyncReceipt
from .async_table import AsyncTable
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
    RowMismatch,
    WriteBehindError,
    WriteRejected,
)
from .observer import Observer
from .receipt import Receipt
from .settings import Options, Settings
from .table import Table, TableWrites

__all__ = [
    "WriteBehind",
    "Batch",
    "Receipt",
    "Table",
    "TableWrites",
    "AsyncWriteBehind",
    "AsyncBatch",
    "AsyncReceipt",
    "AsyncTable",
    "Options",
    "Settings",
    "Observer",
    "WriteBehindError",
    "InvalidWrite",
    "InvalidLoad",
    "RowMismatch",
    "QueueFull",
    "RedisUnavailable",
    "RedisRefused",
    "RedisFull",
    "WriteRejected",
    "FlushTimeout",
    "OutcomeUnknown",
]
