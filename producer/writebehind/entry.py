"""A cache entry: the hash of one row in Redis, and what it says to a reader. No I/O.

Fields: column → JSON text, or the frame of one (`frame.py`); ``@seq`` the last write that changed it
(0: loaded); ``@is`` marker, tombstone, negative or fill, absent for a row; ``@token`` of a fill; ``@refresh``
while a reader loads it anew; ``@dirty`` once a write before its last one was rejected.
While a write is pending the entry has no TTL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from redis.exceptions import ResponseError

from .frame import MARKS, BadFrame, framed_columns, unpack_all

State = Literal["absent", "row", "marker", "gone", "filling", "foreign"]


@dataclass(frozen=True, slots=True)
class Entry:
    """``gone`` is a tombstone or a negative entry: there is no such row. ``refresh`` is a row's token."""

    state: State
    columns: dict[str, bytes]
    seq: int = 0
    refresh: bytes = b""


_STATES: dict[bytes, State] = {
    b"marker": "marker",
    b"tombstone": "gone",
    b"negative": "gone",
    b"fill": "filling",
    b"foreign": "foreign",
}


_KNOWN_COLUMNS, _KNOWN_LENGTH = 10_000, 100
_columns: dict[bytes, str] = {}  # the columns that fields are: many rows have the same


def _column(field: bytes) -> str:
    """The column that a field is, if it is one; a column's own @ is doubled."""
    if not field.startswith(b"@"):
        column = field.decode()
    elif field.startswith(b"@@"):
        column = field[1:].decode()
    else:
        return ""
    if len(field) <= _KNOWN_LENGTH and len(_columns) < _KNOWN_COLUMNS:
        _columns[field] = column
    return column


def read_entry(fields: Mapping[bytes, bytes], *, unpacks: bool = True) -> Entry:
    """What a hash in the cache says. Unless it ``unpacks``, columns of a row may be frames.

    A row that cannot be unpacked here is to its reader what a marker is: the write that it shows, if it shows
    one, is waited for, and then Postgres tells.
    """
    if not fields:
        return Entry("absent", {})
    kind = fields.get(b"@is")
    seq = fields.get(b"@seq", b"" if kind is None else b"0")
    if not seq.isdigit():  # a hash of somebody else's
        return Entry("foreign", {})
    if kind is not None:
        return Entry(_STATES.get(kind, "foreign"), {}, int(seq))
    columns, are_plain = {}, True
    for name, value in fields.items():
        column = _columns.get(name) or _column(name)
        if not column:
            continue
        columns[column] = value
        if value[:1] in MARKS:
            are_plain = False
    if unpacks and not are_plain:
        try:
            columns |= unpack_all({column: columns[column] for column in framed_columns(columns)})
        except BadFrame:
            return Entry("marker", {}, int(seq))
    return Entry("row", columns, int(seq), fields.get(b"@refresh", b""))


def read_look(reply: Any) -> Entry:
    """What the reply to HGETALL says, be it an error. Raises one that says nothing of the entry.

    An entry is what it is already.
    """
    if isinstance(reply, Entry):
        return reply
    if not isinstance(reply, Exception):
        return read_entry(reply)
    if isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE"):
        return Entry("foreign", {})
    raise reply


def row_decoder(
    parse_float: Callable[[str], Any],
) -> Callable[[Mapping[str, bytes]], dict[str, Any]]:
    """Decodes column → JSON text into a row; ``parse_float`` gets the text of numbers with a fraction."""
    decode = msgspec.json.Decoder(float_hook=parse_float).decode

    def row(columns: Mapping[str, bytes]) -> dict[str, Any]:
        return {name: decode(value) for name, value in columns.items()}

    return row
