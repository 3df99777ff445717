"""In which order net operations go to Postgres: segments, waves, groups. No I/O.

Within a wave each row occurs once, so that one statement can take many rows: deletes first, children
before parents; then the others, parents before children. Rows are sorted by key, so that two writers
lock them in one order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from writebehind.message import Op

from .coalesce import NetOp, coalesce, needs_wide_delta
from .resolve import Write
from .table import Table

_OP_ORDER: dict[Op, int] = {"delete": 0, "put": 1, "patch": 2, "increment": 3}


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that one statement takes: the same table, operation and columns.

    ``wide``: increments with deltas that the column itself could not hold.
    """

    table: Table
    op: Op
    columns: tuple[str, ...]
    wide: bool
    rows: Sequence[NetOp]


def groups(writes: Sequence[Write]) -> Iterator[Group]:
    """The statements that a list of writes comes to, in order."""
    for segment in segments(writes):
        ops = list(coalesce(segment).values())
        for i in range(max(len(o) for o in ops)):
            yield from _wave([o[i] for o in ops if len(o) > i])


def segments(writes: Sequence[Write]) -> Iterator[Sequence[Write]]:
    """Cuts the list before and after deletes that reach into other tables of the batch.

    A delete that cascades changes rows that are not in its message: what stands before it must be flushed
    before it, what stands after it after it, else rows vanish without an error.
    """
    present = {w.table.oid for w in writes}
    start = 0
    for i in range(1, len(writes)):
        if _is_barrier(writes[i - 1], present) != _is_barrier(writes[i], present):
            yield writes[start:i]
            start = i
    if writes:
        yield writes[start:]


def _is_barrier(write: Write, present: set[int]) -> bool:
    return write.op == "delete" and not write.table.cascades.isdisjoint(present)


def _wave(ops: Sequence[NetOp]) -> Iterator[Group]:
    found: dict[tuple[int, Op, tuple[str, ...], bool], list[NetOp]] = defaultdict(list)
    for op in ops:
        found[(op.table.oid, op.op, tuple(sorted(op.columns)), _is_wide(op))].append(op)
    made = [Group(rows[0].table, op, cs, wide, rows) for (_, op, cs, wide), rows in found.items()]
    for group in sorted(made, key=_group_order):
        yield Group(group.table, group.op, group.columns, group.wide, sorted(group.rows, key=_row_order))


def _is_wide(op: NetOp) -> bool:
    return op.op == "increment" and any(
        needs_wide_delta(op.table.columns[name], delta) for name, delta in op.columns.items()
    )


def _group_order(group: Group) -> tuple[bool, int, int, int, tuple[str, ...], bool]:
    is_delete = group.op == "delete"
    rank = -group.table.rank if is_delete else group.table.rank
    return (not is_delete, rank, group.table.oid, _OP_ORDER[group.op], group.columns, group.wide)


def _row_order(op: NetOp) -> tuple[tuple[int, str], ...]:
    """Integers by value; what is none is the text of a key that Postgres will refuse."""
    return tuple(
        (int(text), "") if column.kind == "int" and column.canonical(text) else (0, text)
        for column, text in zip(op.table.key, op.row[1], strict=True)
    )
