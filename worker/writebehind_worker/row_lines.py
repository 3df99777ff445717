"""A row as a line that COPY reads, made while its message is at hand. No I/O.

A JSON array of scalars without a backslash is a line of CSV but for its brackets, and by COPY that takes
0.5 to 0.9 of the time of JSON. To make the lines later, in the order of their keys, costs more: what they
are made of has left the core's cache by then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from .plain_shape import Key, Values

COPIED_FROM = 500
"""So many rows are worth a COPY, which takes two more round trips."""

CHUNK = 500
"""Writes at a time: what is made of so many stays in a core's cache; twice as fast as all at once."""

_LARGE_BYTES = 2000  # of a row as JSON: at 8 kB, COPY takes the worker 1.5 and Postgres 1.1 of the time
_SAMPLE = 10  # rows

Line = bytes
"""For ``COPY … (FORMAT csv, NULL 'null')``, the key first, without its end."""

Row = Line | Values
"""As a line, or the values of its columns."""

_encoder = msgspec.json.Encoder()
_decode = msgspec.json.Decoder(list[msgspec.Raw]).decode


def as_lines(keys: Sequence[Key], values: Sequence[Values]) -> Sequence[Row]:
    """A line for each row; its values where they may mean something else there, or are large."""
    rows = [(key, *row) for key, row in zip(keys, values, strict=True)]
    if _are_large(rows[:: len(rows) // _SAMPLE + 1]):
        return values
    text = _encoder.encode_lines(rows)
    if _is_plain(text, len(rows)):
        return text[1:-2].split(b"]\n[")
    return [_as_line(row) or given for row, given in zip(rows, values, strict=True)]


def _are_large(rows: Sequence[Values]) -> bool:
    """Postgres keeps large values apart from their row, by way of a temporary table twice."""
    return len(_encoder.encode(rows)) > _LARGE_BYTES * len(rows)


def _as_line(row: Values) -> Line | None:
    text = _encoder.encode(row)
    return text[1:-1] if _is_plain(text, 1) else None


def _is_plain(text: bytes, rows: int) -> bool:
    """No escape, no object, no array in it; nor text with such a character, which is as rare."""
    return not (b"\\" in text or b"{" in text) and text.count(b"[") == rows


def all_as_lines(rows: Mapping[Key, Row]) -> Iterator[tuple[Key, Row]]:
    """Those too that are none yet, where they can be."""
    values = {key: row for key, row in rows.items() if not isinstance(row, bytes)}
    keys = [*values]
    for start in range(0, len(keys), CHUNK):
        those = keys[start : start + CHUNK]
        yield from zip(those, as_lines(those, [values[key] for key in those]), strict=True)


def with_key(key: Key, row: Row) -> Sequence[object]:
    """The values, the key's first: what is JSON as `msgspec.Raw`."""
    if isinstance(row, bytes):
        return _decode(b"[%b]" % row)
    return key, *row
