"""What the worker tells of changes that are durable, as an application sees it. No I/O."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import msgspec

MOST_BYTES = 1 << 20
"""Of a message; the worker's are much smaller."""


Scalar = str | int | float | bool | None


class CompositeId(dict[str, Any]):
    """The columns of a composite key: a dict that is hashable, so leave it as it is."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


class Change(msgspec.Struct, frozen=True):
    """A row has been written, or a write to it was rejected: what you keep of it is old.

    Attributes:
        table: as the write named it.
        id: as JSON has it, always hashable: text, a number or a boolean; of a composite key a dict of its
            columns, which may be a key of your own dict. A UUID or a date is text, and what one writer calls
            ``42`` may be ``"42"`` of another. ``None`` where a rejected write had none that names a row.
        key: of the entry in the cache; ``None`` where the write named none.
        seq: of the last of these writes; ``None`` where it has none.
    """

    table: str
    id: Any = None
    key: str | None = None
    seq: int | None = None


class Missed(msgspec.Struct, frozen=True):
    """There may have been changes that nobody has told you of: empty your cache."""


class _Told(msgspec.Struct):
    table: str
    id: Scalar | dict[str, Scalar] = None
    key: str | None = None
    seq: int | None = None


class _Message(msgspec.Struct):
    changes: list[_Told] = []
    missed: bool = False


_decode = msgspec.json.Decoder(_Message).decode


def read_changes(data: Any, tables: Container[str] | None) -> Iterable[Change | Missed]:
    """Those in one message, of these tables; :class:`Missed` where it cannot be read: it may tell of any."""
    if not isinstance(data, bytes) or len(data) > MOST_BYTES:
        return [Missed()]
    try:
        message = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return [Missed()]
    found: list[Change | Missed] = [Missed()] if message.missed else []
    return found + [_change(told) for told in message.changes if tables is None or told.table in tables]


def _change(told: _Told) -> Change:
    id = CompositeId(told.id) if isinstance(told.id, dict) else told.id
    return Change(told.table, id, told.key, told.seq)


def chosen_tables(tables: Iterable[str] | None) -> Container[str] | None:
    """What was asked for, checked."""
    if isinstance(tables, str):
        raise TypeError(f"tables must be several names, such as [{tables!r}], not one text")
    return None if tables is None else frozenset(tables)
