"""Lists of writes in which a group stays whole: it is applied, held back or refused as one. No I/O.

A write that is of no group is a group of itself here; the writes of a group stand together in a list.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby

from .plan import barrier_shapes, segments
from .resolve import RowId, Write


def position(write: Write) -> int:
    """That of its item in the batch: the writes of a group have one."""
    return write.message.position


def wholes(writes: Sequence[Write]) -> Iterator[list[Write]]:
    """Each group of the list, in order."""
    for _, those in groupby(writes, key=position):
        yield list(those)


def is_one(writes: Sequence[Write]) -> bool:
    """Whether there is nothing to halve: one write, or one group."""
    return position(writes[0]) == position(writes[-1])


def halves(writes: Sequence[Write]) -> tuple[Sequence[Write], Sequence[Write]]:
    """Both of them have something, and neither a part of a group."""
    middle = cut = len(writes) // 2
    while cut and position(writes[cut - 1]) == position(writes[cut]):
        cut -= 1
    if not cut:
        cut = middle
        while position(writes[cut - 1]) == position(writes[cut]):
            cut += 1
    return writes[:cut], writes[cut:]


def meeting(writes: Sequence[Write], rows: Collection[RowId]) -> set[int]:
    """Positions of those that write to one of these rows."""
    return {position(w) for w in writes if w.row in rows}


def behind(writes: Sequence[Write], rows: dict[RowId, int]) -> set[int]:
    """Positions of those that must wait where these rows wait, each from a position on. Their rows are added.

    A group that waits for one of its rows makes the later writes to all of them wait, and no earlier one.
    """
    found: set[int] = set()
    for those in wholes(writes):
        own = position(those[0])
        if any(rows.get(w.row, own) < own for w in those):
            wait(rows, those)
            found.add(own)
    return found


def wait(rows: dict[RowId, int], those: Sequence[Write]) -> None:
    """The rows of a group wait from it on, unless they do so from an earlier position on."""
    for write in those:
        rows[write.row] = min(position(write), rows.get(write.row, position(write)))


def without(writes: Sequence[Write], positions: Collection[int]) -> Sequence[Write]:
    """The others."""
    return [w for w in writes if position(w) not in positions] if positions else writes


def parts(writes: Sequence[Write]) -> Iterator[Sequence[Write]]:
    """As `segments`, but for groups: one that is cut by a barrier is a part of its own, and is not cut."""
    if not any(w.message.member for w in writes):
        yield from segments(writes)
        return
    barriers = barrier_shapes(writes)
    run: list[Write] = []
    last: bool | None = False
    for those in wholes(writes):
        found = {id(w.shape) in barriers for w in those}
        kind = None if len(found) > 1 else found.pop()
        if run and (kind is None or last is None or kind is not last):
            yield run
            run = []
        run += those
        last = kind
    if run:
        yield run
