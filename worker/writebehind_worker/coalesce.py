"""Merging writes to the same row, only where the result equals doing both in order. No I/O.

last \\ next   put      patch    increment   delete
put           put      put      appended    delete
patch         appended patch    appended    delete
increment     appended appended increment*  delete      * same columns, sums exact
delete        appended appended appended    delete
"""

from __future__ import annotations

import decimal
import math
import re
from collections.abc import Iterable, Mapping

import msgspec

from writebehind.message import Op

from .resolve import RowId, Write
from .table import Column, Table

_PLAIN_INTEGER = re.compile(rb"-?(0|[1-9][0-9]*)")
_EXACT = decimal.Context(prec=5000, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)
_MOST_DIGITS = 1000  # far beyond what a column holds by intent, far below what would take long


class NetOp(msgspec.Struct, frozen=True):
    """What several writes to one row come to. ``key_json`` is the key as it was first spelt."""

    op: Op
    table: Table
    row: RowId
    key_json: Mapping[str, bytes]
    columns: Mapping[str, bytes]


def coalesce(writes: Iterable[Write]) -> dict[RowId, list[NetOp]]:
    """The net operations of each row, to be done in order; rows as they first occur."""
    rows: dict[RowId, list[NetOp]] = {}
    for write in writes:
        ops = rows.get(write.row)
        if ops is None:
            rows[write.row] = [_first(write)]
        elif write.op == "delete":
            ops[:] = [_first(write)]
        else:
            merged = _merged(ops[-1], write)
            if merged is None:
                ops.append(_first(write))
            else:
                ops[-1] = NetOp(ops[-1].op, write.table, write.row, ops[-1].key_json, merged)
    return rows


def _first(write: Write) -> NetOp:
    return NetOp(write.op, write.table, write.row, write.key_json, write.columns)


def _merged(last: NetOp, write: Write) -> Mapping[str, bytes] | None:
    """The columns of both in one, or ``None`` where one operation cannot stand for both."""
    if (last.op, write.op) in {("put", "put"), ("put", "patch"), ("patch", "patch")}:
        return {**last.columns, **write.columns}
    if last.op == write.op == "increment" and last.columns.keys() == write.columns.keys():
        sums = {
            name: add(write.table.columns[name], delta, write.columns[name])
            for name, delta in last.columns.items()
        }
        return {n: s for n, s in sums.items() if s is not None} if None not in sums.values() else None
    return None


def add(column: Column, a: bytes, b: bytes) -> bytes | None:
    """The sum of two deltas as JSON text, or ``None`` where one addition may differ from two."""
    if column.number == "int":
        if not (_PLAIN_INTEGER.fullmatch(a) and _PLAIN_INTEGER.fullmatch(b)):
            return None
        if len(a) + len(b) > _MOST_DIGITS:
            return None
        return b"%d" % (int(a) + int(b))
    if column.number == "float":
        total = float(a) + float(b)
        return repr(total).encode() if math.isfinite(total) else None
    x, y = _decimal(a), _decimal(b)
    if x is None or y is None or not (fits_scale(column, x) and fits_scale(column, y)):
        return None
    return format(_EXACT.add(x, y), "f").encode()


def _decimal(delta: bytes) -> decimal.Decimal | None:
    try:
        return decimal.Decimal(delta.decode())
    except decimal.InvalidOperation:  # an exponent beyond what a Decimal can have
        return None


def fits_scale(column: Column, value: decimal.Decimal) -> bool:
    """Whether the column takes the delta without rounding it, and it is of a sane size."""
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)  # JSON has no NaN
    if max(abs(exponent), abs(value.adjusted())) > _MOST_DIGITS:
        return False
    return column.scale is None or -exponent <= column.scale


def _fits_precision(column: Column, value: decimal.Decimal) -> bool:
    """Whether the column could hold the delta as a value: its digits before the point."""
    if column.precision is None or column.scale is None:
        return True
    return not value or value.adjusted() < column.precision - column.scale


def needs_wide_delta(column: Column, delta: bytes) -> bool:
    """Whether the delta is not itself a value of the column: rounded, or out of its range."""
    if column.number == "int":
        if not _PLAIN_INTEGER.fullmatch(delta) or len(delta) > _MOST_DIGITS:
            return False  # Postgres will say what is wrong with it
        limit = 1 << (column.bits - 1)
        return not -limit <= int(delta) < limit
    if column.number == "numeric":
        value = _decimal(delta)
        return value is None or not (fits_scale(column, value) and _fits_precision(column, value))
    return False
