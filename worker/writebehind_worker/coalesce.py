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
from collections.abc import Iterable, Mapping, Sequence

from .received import JsonText
from .resolve import RowId, Write
from .table import Column

_PLAIN_INTEGER = re.compile(rb"-?(0|[1-9][0-9]*)")
_EXACT = decimal.Context(prec=5000, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)
_FITS_ALL = 5  # so short a delta fits any integer column, or Postgres will say what is wrong with it
_MOST_DIGITS = 1000  # far beyond what a column holds by intent, far below what would take long


def coalesce(writes: Iterable[Write]) -> dict[RowId, list[Write]]:
    """The net operations of each row, to be done in order; rows as they first occur.

    A net operation is a write with the columns of all that it stands for, and the key as it was first spelt.
    """
    rows: dict[RowId, list[Write]] = {}
    runs: dict[RowId, list[Write]] = {}  # after the row's last, of the same shape: merged at once
    for write in writes:
        ops = rows.get(write.row)
        if ops is None:
            rows[write.row] = [write]
        elif ops[-1].shape is write.shape:
            runs.setdefault(write.row, []).append(write)
        else:
            ops += _merged_run(ops.pop(), runs.pop(write.row, ()))
            if write.shape.op == "delete":
                ops[:] = [write]
            else:
                ops += _merged_run(ops.pop(), (write,))
    for row, run in runs.items():
        rows[row] += _merged_run(rows[row].pop(), run)
    return rows


def _merged_run(last: Write, run: Sequence[Write]) -> list[Write]:
    """One operation and those after it, merged as far as that is the same."""
    if not run:
        return [last]
    if all(write.shape is last.shape for write in run):
        merged = _merged_alike(last, run)
        if merged is not None:
            return [merged]
    ops = [last]
    for write in run:
        merged = _merged(ops[-1], write)
        ops[-1:] = [ops[-1], write] if merged is None else [merged]
    return ops


def _merged_alike(first: Write, run: Sequence[Write]) -> Write | None:
    """All in one where they have one shape, and the last, or a plain sum, says it all."""
    last = run[-1]
    if first.shape.op != "increment":
        if first.key_texts == last.key_texts:
            return last
        return Write(last.message, last.shape, last.row, last.order, first.key_texts, last.columns)
    sums: dict[str, JsonText] = {}
    for name, delta in first.columns.items():
        if last.table.columns[name].number != "int":
            return None
        deltas = [bytes(delta), *(bytes(write.columns[name]) for write in run)]
        if sum(map(len, deltas)) > _MOST_DIGITS * len(deltas):
            return None
        try:
            sums[name] = b"%d" % sum(map(int, deltas))
        except ValueError:  # 1.5 or 1e3
            return None
    return Write(last.message, last.shape, last.row, last.order, first.key_texts, sums)


def _merged(last: Write, write: Write) -> Write | None:
    """Both in one, or ``None`` where one operation cannot stand for both."""
    columns: Mapping[str, JsonText]
    ops = (last.shape.op, write.shape.op)
    if ops in {("put", "put"), ("put", "patch"), ("patch", "patch")}:
        columns = {**last.columns, **write.columns}
    elif ops == ("increment", "increment") and last.shape.columns == write.shape.columns:
        sums: dict[str, JsonText] = {}
        known = write.table.columns
        for name, delta in last.columns.items():
            total = add(known[name], bytes(delta), bytes(write.columns[name]))
            if total is None:
                return None
            sums[name] = total
        columns = sums
    else:
        return None
    shape = last.shape if columns.keys() == last.columns.keys() else last.table.shape(last.op, tuple(columns))
    return Write(write.message, shape, write.row, write.order, last.key_texts, columns)


def add(column: Column, a: bytes, b: bytes) -> bytes | None:
    """The sum of two deltas as JSON text, or ``None`` where one addition may differ from two."""
    if column.number == "int":
        if len(a) + len(b) > _MOST_DIGITS:
            return None
        try:
            return b"%d" % (int(a) + int(b))
        except ValueError:  # 1.5 or 1e3
            return None
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
        if len(delta) < _FITS_ALL or not _PLAIN_INTEGER.fullmatch(delta) or len(delta) > _MOST_DIGITS:
            return False  # Postgres will say what is wrong with it
        limit = 1 << (column.bits - 1)
        return not -limit <= int(delta) < limit
    if column.number == "numeric":
        value = _decimal(delta)
        return value is None or not (fits_scale(column, value) and _fits_precision(column, value))
    return False
