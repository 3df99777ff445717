"""The statements of a digest, with the rows as text that Postgres reads fast. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter

import msgspec

from . import row_lines
from .digest import Digest
from .execution import Statement, statement_of
from .plain_shape import Key, PlainShape
from .plan import waves
from .row_lines import Row, all_as_lines, with_key

_encoder = msgspec.json.Encoder()
_by_group = attrgetter("group.order")


def bulk_statements(digest: Digest, *, copies: bool = True) -> list[Statement]:
    """All that it comes to, in order. ``copies``: rows may go by COPY, as lines of CSV."""
    assert not digest.is_closed
    first, *later = [list(map(statement_of, wave)) for wave in waves(digest.others)] or [[]]
    copied: set[tuple[int, str, tuple[str, ...]]] = set()
    for shape, rows in digest.rows.items():
        # Of one kind there may be two shapes (`find_plain_shape` forgets), but there is one temporary table.
        kind = (shape.table.oid, shape.group.op, tuple(shape.group.columns))
        is_copied = copies and shape.copies and len(rows) >= row_lines.COPIED_FROM and kind not in copied
        if is_copied:
            copied.add(kind)
        first += _statements(shape, rows, is_copied)
    return [*sorted(first, key=_by_group), *(statement for wave in later for statement in wave)]


def _statements(shape: PlainShape, rows: Mapping[Key, Row], copies: bool) -> Iterator[Statement]:
    """In the order of their keys."""
    keys = others = sorted(rows)
    lines: list[bytes] = []
    if copies:
        if made := dict(all_as_lines(rows)):
            rows = {**rows, **made}
        lines = [row for key in keys if type(row := rows[key]) is bytes]
        others = [key for key in keys if type(rows[key]) is not bytes] if len(lines) < len(keys) else []
    if lines:
        yield Statement(shape.group, len(lines), b"\n".join(lines) + b"\n")
    if others:
        names = [shape.table.key[0].name, *shape.group.columns]
        objects = [dict(zip(names, with_key(key, rows[key]), strict=True)) for key in others]
        yield Statement(shape.group, len(others), _encoder.encode(objects).decode())
