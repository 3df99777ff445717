"""In which order net operations go to Postgres: segments, waves, groups. No I/O.

Within a wave each row occurs once, so that one statement can take many rows: deletes first, children
before parents; then the others, parents before children. Rows are sorted by key, so that two writers
lock them in one order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

from writebehind.message import Op

from .coalesce import coalesce, needs_wide_delta
from .resolve import Write
from .table import Shape, Table

_OP_ORDER: dict[Op, int] = {"delete": 0, "put": 1, "patch": 2, "increment": 3}


@dataclass(frozen=True, slots=True)
class Group:
    """What rows have in common that one statement takes: table, operation, columns.

    ``wide``: increments with deltas that the column itself could not hold.
    """

    table: Table
    op: Op
    columns: tuple[str, ...]
    wide: bool

    @property
    def order(self) -> tuple[bool, int, int, int, tuple[str, ...], bool]:
        """Its place within a wave."""
        is_delete = self.op == "delete"
        rank = -self.table.rank if is_delete else self.table.rank
        return (not is_delete, rank, self.table.oid, _OP_ORDER[self.op], self.columns, self.wide)


@dataclass(frozen=True, slots=True)
class RowGroup(Group):
    """The rows of a group, too."""

    rows: Sequence[Write]


def groups(writes: Sequence[Write]) -> Iterator[RowGroup]:
    """The statements that a list of writes comes to, in order."""
    for segment in segments(writes):
        for wave in waves(segment):
            yield from wave


def waves(segment: Sequence[Write]) -> Iterator[list[RowGroup]]:
    """The statements of a list without barriers: those of a wave have no row in common."""
    ops = list(coalesce(segment).values())
    for i in range(max((len(o) for o in ops), default=0)):
        yield _wave([o[i] for o in ops if len(o) > i])


def segments(writes: Sequence[Write]) -> Iterator[Sequence[Write]]:
    """Cuts the list before and after deletes that reach into other tables of the batch.

    A delete that cascades changes rows that are not in its message: what stands before it must be flushed
    before it, what stands after it after it, else rows vanish without an error.
    """
    barriers = barrier_shapes(writes)
    start = 0
    if barriers:
        for i in range(1, len(writes)):
            if (id(writes[i - 1].shape) in barriers) != (id(writes[i].shape) in barriers):
                yield writes[start:i]
                start = i
    if writes:
        yield writes[start:]


def barrier_shapes(writes: Sequence[Write]) -> set[int]:
    """The ids of the shapes that are deletes which reach into other tables of the list."""
    shapes = {id(w.shape): w.shape for w in writes}
    present = {shape.table.oid for shape in shapes.values()}
    return {i for i, shape in shapes.items() if _is_barrier(shape, present)}


def _is_barrier(shape: Shape, present: set[int]) -> bool:
    return shape.op == "delete" and not shape.table.cascades.isdisjoint(present)


def _wave(ops: Sequence[Write]) -> list[RowGroup]:
    alike: dict[tuple[int, bool], list[Write]] = defaultdict(list)
    for op in ops:
        alike[id(op.shape), op.shape.op == "increment" and _is_wide(op)].append(op)
    found: dict[tuple[int, Op, tuple[str, ...], bool], list[Write]] = defaultdict(list)
    for (_, wide), rows in alike.items():  # the same columns may come in another order
        shape = rows[0].shape
        found[shape.table.oid, shape.op, shape.columns, wide] += rows
    made = [
        RowGroup(rows[0].table, op, columns, wide, sorted(rows, key=_row_order))
        for (_, op, columns, wide), rows in found.items()
    ]
    return sorted(made, key=_group_order)


def _is_wide(op: Write) -> bool:
    known = op.table.columns
    return any(needs_wide_delta(known[name], bytes(delta)) for name, delta in op.columns.items())


_group_order = attrgetter("order")
_row_order = attrgetter("order")
