"""A cache entry: the hash of one row in Redis, and what it says to a reader. No I/O.

Fields: column → JSON text; ``@seq`` the last write that changed it (0: loaded); ``@is`` marker, tombstone,
negative or fill, absent for a row; ``@token`` of a fill; ``@refresh`` while a reader loads it anew;
``@dirty`` once a write that it shows was rejected.
While a write is pending the entry has no TTL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

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


def read_entry(fields: Mapping[bytes, bytes]) -> Entry:
    """What a hash in the cache says."""
    if not fields:
        return Entry("absent", {})
    kind = fields.get(b"@is")
    seq = fields.get(b"@seq", b"" if kind is None else b"0")
    if not seq.isdigit():  # a hash of somebody else's
        return Entry("foreign", {})
    if kind is not None:
        return Entry(_STATES.get(kind, "foreign"), {}, int(seq))
    columns = {}
    for name, value in fields.items():
        if not name.startswith(b"@"):
            columns[name.decode()] = value
        elif name.startswith(b"@@"):
            columns[name[1:].decode()] = value
    return Entry("row", columns, int(seq), fields.get(b"@refresh", b""))


def row_decoder(
    parse_float: Callable[[str], Any],
) -> Callable[[Mapping[str, bytes]], dict[str, Any]]:
    """Decodes column → JSON text into a row; ``parse_float`` gets the text of numbers with a fraction."""
    decode = msgspec.json.Decoder(float_hook=parse_float).decode

    def row(columns: Mapping[str, bytes]) -> dict[str, Any]:
        return {name: decode(value) for name, value in columns.items()}

    return row
