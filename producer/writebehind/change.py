"""What the worker tells of changes that are durable, as an application sees it. No I/O."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import msgspec

MOST_BYTES = 1 << 20
"""Of a message; the worker's are much smaller."""


class Change(msgspec.Struct, frozen=True):
    """A row has been written, or a write to it was rejected: what you keep of it is old.

    Attributes:
        table: as the write named it.
        id: as JSON has it: text or a number, or a dict of the key's columns; ``None`` where a rejected write
            had none.
        key: of the entry in the cache; ``None`` where the write named none.
        seq: of the last of these writes; ``None`` where it has none.
    """

    table: str
    id: Any = None
    key: str | None = None
    seq: int | None = None


class Missed(msgspec.Struct, frozen=True):
    """There may have been changes that nobody has told you of: empty your cache."""


class _Message(msgspec.Struct):
    changes: list[Change] = []
    missed: bool = False


_decode = msgspec.json.Decoder(_Message).decode


def read_changes(data: Any, tables: Container[str] | None) -> Iterable[Change | Missed]:
    """Those in one message, of these tables; none where it is not the worker's."""
    if not isinstance(data, bytes) or len(data) > MOST_BYTES:
        return ()
    try:
        message = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ()
    found: list[Change | Missed] = [Missed()] if message.missed else []
    return found + [change for change in message.changes if tables is None or change.table in tables]


def chosen_tables(tables: Iterable[str] | None) -> Container[str] | None:
    """What was asked for, checked."""
    if isinstance(tables, str):
        raise TypeError(f"tables must be several names, such as [{tables!r}], not one text")
    return None if tables is None else frozenset(tables)
