"""The statements of a digest, with the rows as text that Postgres reads fast. No I/O.

The rows are JSON arrays first, made at once, in the order of their keys. A JSON array of scalars without
a backslash is a line of CSV but for its brackets, and by COPY that takes 0.5 to 0.9 of the time of JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from operator import attrgetter, not_

import msgspec

from .digest import CHUNK, Digest
from .execution import Statement, statement_of
from .plain_shape import Key, PlainShape, Values, values_of
from .plan import waves

COPIED_FROM = 500
"""So many rows are worth a COPY, which takes two more round trips."""

_LARGE_BYTES = 2000  # of a row as JSON: at 8 kB, COPY takes the worker 1.5 and Postgres 1.1 of the time
_SAMPLE = 10  # rows

_encoder = msgspec.json.Encoder()
_by_group = attrgetter("group.order")


def bulk_statements(digest: Digest, *, copies: bool = True) -> list[Statement]:
    """All that it comes to, in order. ``copies``: rows may go by COPY, as lines of CSV."""
    assert not digest.is_closed
    first, *later = [list(map(statement_of, wave)) for wave in waves(digest.others)] or [[]]
    copied: set[tuple[int, str, Sequence[str]]] = set()
    for shape, rows in digest.rows.items():
        # Of one kind there may be two shapes (`find_plain_shape` forgets), but there is one temporary table.
        kind = (shape.table.oid, shape.group.op, tuple(shape.group.columns))
        is_copied = copies and shape.copies and len(rows) >= COPIED_FROM and kind not in copied
        if is_copied:
            copied.add(kind)
        first += _statements(shape, rows, is_copied)
    return [*sorted(first, key=_by_group), *(statement for wave in later for statement in wave)]


def _statements(shape: PlainShape, rows: Mapping[Key, Values], copies: bool) -> Iterator[Statement]:
    keys = sorted(rows)
    lines: list[bytes] = []
    others: list[Values] = []
    for start in range(0, len(keys), CHUNK):
        those = [(key, *values_of(rows[key])) for key in keys[start : start + CHUNK]]
        may_copy = copies and not _are_large(those)
        csv = as_csv(those) if may_copy else None
        if csv is not None:
            lines.append(csv)
        elif may_copy:
            each = list(map(as_csv, zip(those)))
            lines += filter(None, each)
            others += compress(those, map(not_, each))
        else:
            others += those
    if lines:
        yield Statement(shape.group, len(rows) - len(others), b"".join(lines))
    if others:
        yield Statement(shape.group, len(others), _as_json(shape, others))


def _are_large(rows: Sequence[Values]) -> bool:
    """Postgres keeps large values apart from their row, by way of a temporary table twice."""
    some = rows[:: len(rows) // _SAMPLE + 1]
    return len(_encoder.encode(some)) > _LARGE_BYTES * len(some)


def as_csv(rows: Sequence[Values]) -> bytes | None:
    """Lines for ``COPY … (FORMAT csv, NULL 'null')``; ``None`` if a value may mean something else there."""
    lines = _encoder.encode_lines(rows)
    if b"\\" in lines or b"{" in lines or lines.count(b"[") != len(rows):
        return None  # an escape, an object, an array; or text with such a character, which is as rare
    return lines[1:-2].replace(b"]\n[", b"\n") + b"\n"


def _as_json(shape: PlainShape, rows: Sequence[Values]) -> str:
    names = [shape.table.key[0].name, *shape.group.columns]
    return _encoder.encode([dict(zip(names, row, strict=True)) for row in rows]).decode()
