"""Applying writes inside the batch's transaction: a bad one neither blocks a good one nor takes it along.

Rejected by Postgres, a list of writes is cut at its barriers, halved under savepoints, and each part
coalesced anew from the original messages. A write that fails alone for want of a row that it references is
held back with the later ones of its row, and tried again at the end of its segment, in list order, until
that gets no further: its parent may have come after it. What is left then are orphans and rings of rows that
reference each other; the rings are found by leaving the orphans out. Nothing else is held back, and nothing
beyond a barrier: what is delayed without need can find its row cascaded away, or its unique value taken.
Where a constraint refuses a write whose row or unique value others of the batch share, the segment is
applied again with all of these alone.

A group is one write in all of this: no list is cut within it, and what happens to one of its writes happens
to all of them (`whole.py`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import psycopg

from .breaker import Trial, is_structural
from .contested import Conflict, cut, read_conflict, sharers
from .errors import HeldByLock
from .execution import Execution, Statement
from .orphans import existing_rows, find_orphans
from .received import Fault, make_fault
from .resolve import Refusal, RowId, Write, member_name, named_row
from .sqlstate import TIMEOUTS
from .unreadable import find_unreadable
from .whole import behind, halves, is_one, meeting, parts, position, wait, wholes, without

_NO_PARENT = "23503"  # foreign key violation
_DUPLICATE = "23505"  # unique violation
_OF_VALUES = frozenset({"22", "23", "42"})  # of domains, and of types that take names or expressions, too
_OF_NO_VALUE = frozenset({_NO_PARENT, _DUPLICATE, "23P01", "42501", "42703"})
_MOST_PASSES = 4  # over a segment whose writes stand in each other's way; then each is applied alone
_MOST_PROBED = 20  # writes of a refused group, each by itself, to tell which one it is refused for
_MOST_WAITING = 8  # rows that an attempt probes: behind more there is a locked table, which is waited for


@dataclass(frozen=True, slots=True)
class Patience:
    """What to do when a lock or a slow statement times out.

    ``halve``: look for the rows that wait, instead of giving up the whole attempt; ``bury``: those that have
    waited long enough: writes to them become dead letters.
    """

    halve: bool = False
    bury: Collection[RowId] = ()


@dataclass(frozen=True, slots=True)
class _NoParent:
    """What a write or group was held back for; ``is_late``: its statements went through, the check after
    them did not. ``writes`` are those of it that failed.
    """

    fault: Fault
    is_late: bool
    writes: Sequence[Write]


@dataclass(slots=True)
class Applied:
    """The outcome of a batch's writes: ``rows``, at the end, counts rows written by ``schema.table``."""

    written: list[Write] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Applied:
        """As it is now."""
        return Applied(list(self.written), list(self.refused))


class Application:
    """One attempt at the writes of one batch, in the transaction that ``conn`` has begun.

    ``known`` are the messages of the batch that have been refused without asking Postgres. For the breaker
    those count whose table is known: to a table that never was, anybody may write by mistake.
    """

    def __init__(
        self, conn: psycopg.Connection[Any], trial: Trial, patience: Patience, known: Sequence[Refusal]
    ) -> None:
        self._conn, self._trial, self._patience = conn, trial, patience
        self._known = deque(known)
        self._execution = Execution(conn, patience.halve)
        self._outcome = Applied()
        self._held: dict[RowId, int] = {}  # from which position on
        self._held_back: list[Write] = []
        self._held_after = 0  # so many had been written when the first of them failed
        self._no_parent: dict[int, _NoParent] = {}  # by position
        self._stuck: dict[RowId, Fault] = {}  # rows on which this attempt has timed out
        self._waiting: list[Write] = []
        self._conflicts: list[Conflict] = []

    def run(self, writes: Sequence[Write], ready: Sequence[Statement] = ()) -> Applied:
        """Applies them all, but for the refused. ``ready`` are the statements of all, if they are known.

        Raises:
            BreakerTripped: too many refusals alike.
            HeldByLock: rows that wait for a lock have been found: all of them, or as many as we look for.
            psycopg.Error: transient, time-outs too unless ``patience`` says otherwise.
        """
        fault = self._execution.attempt(writes, ready=ready) if writes else None
        if fault is None:
            self._accept(writes)
        else:
            segments = list(parts(writes))
            for part in segments:
                self._apply_segment(part, fault if len(segments) == 1 else None)
        self._hear_known(None)
        if self._waiting:
            raise self._held_by_lock()
        self._outcome.rows = self._execution.rows
        return self._outcome

    def _apply_segment(self, writes: Sequence[Write], fault: Fault | None) -> None:
        """Applies it, and again with those alone that have stood in each other's way, until none is left."""
        alone: set[int] = set()
        for passes in count(1):
            before = self._outcome.copy(), self._trial.counts(), list(self._known)
            rows = dict(self._execution.rows)
            self._conflicts = []
            self._conn.execute("SAVEPOINT segment")
            self._apply_parts(writes, alone, fault)
            written = {position(w) for w in self._outcome.written} if self._conflicts else ()
            more = sharers(self._conflicts, writes, written) - alone
            if not more:
                break
            if passes == _MOST_PASSES:
                more = {w.message.position for w in writes}
            self._conn.execute("ROLLBACK TO SAVEPOINT segment")
            self._outcome, counts, known = before
            self._execution.rows = rows
            self._trial.go_back(counts)
            self._known = deque(known)
            alone |= more
            fault = None
        self._conn.execute("RELEASE SAVEPOINT segment")

    def _apply_parts(self, writes: Sequence[Write], alone: Collection[int], fault: Fault | None) -> None:
        for part in cut(writes, alone):
            self._apply(part, None if alone else fault)
        while self._held_back:
            while self._held_back and len(self._outcome.written) > self._held_after:
                for part in cut(self._take_held_back(), alone):
                    self._apply(part)
            rest = self._take_held_back()
            settled = self._accept_rings(rest) or self._refuse_orphans(rest)
            self._held_back = [w for w in rest if w.message.position not in settled]
            self._held_after = -1  # those are tried in any case

    def _take_held_back(self) -> list[Write]:
        held_back, self._held_back = self._held_back, []
        self._held.clear()
        return sorted(held_back, key=position)

    def _accept_rings(self, writes: Sequence[Write]) -> set[int]:
        """Accepts those that stand if all of them stand, their parents among them; their positions."""
        late = {p for p, failed in self._no_parent.items() if failed.is_late}
        if late.isdisjoint(map(position, writes)):
            return set()
        rows, there = dict(self._execution.rows), existing_rows(self._conn, writes)
        while writes:
            self._conn.execute("SAVEPOINT ring")
            placed = self._place(writes)
            orphans = find_orphans(self._conn, placed, there)
            if placed and not orphans and self._check(placed):
                self._conn.execute("RELEASE SAVEPOINT ring")
                self._accept(placed)
                return set(map(position, placed))
            self._conn.execute("ROLLBACK TO SAVEPOINT ring; RELEASE SAVEPOINT ring")
            self._execution.rows = dict(rows)
            last = {w.row: position(w) for w in placed}  # the earlier ones of its row may do without it
            left_out = {p for row, p in last.items() if row in orphans}
            behind_them: dict[RowId, int] = {}
            wait(behind_them, [w for w in placed if position(w) in left_out])
            writes = without(placed, left_out | behind(placed, behind_them)) if orphans else []
        return set()

    def _place(self, writes: Sequence[Write]) -> list[Write]:
        """Those that Postgres takes as long as it does not check deferred constraints."""
        placed: list[Write] = []
        while more := self._place_parts(writes, {}):
            placed += more
            writes = without(writes, set(map(position, more)))
        return sorted(placed, key=position)

    def _place_parts(self, writes: Sequence[Write], left_out: dict[RowId, int]) -> list[Write]:
        if left_out:
            writes = without(writes, behind(writes, left_out))
        fault = self._execution.attempt(writes, is_checked=False) if writes else None
        if fault is None:
            return list(writes)
        if is_one(writes):
            wait(left_out, writes)
            if fault.sqlstate in TIMEOUTS:
                self._wait(self._failing(writes, fault), fault)
            return []
        first, second = halves(writes)
        return self._place_parts(first, left_out) + self._place_parts(second, left_out)

    def _check(self, placed: Sequence[Write]) -> bool:
        """Whether all constraints are met now."""
        fault = self._execution.check()
        if fault is not None and fault.sqlstate in TIMEOUTS:
            self._wait(placed, fault)
        return fault is None

    def _refuse_orphans(self, rest: Sequence[Write]) -> set[int]:
        """Refuses the first write of each row, at first where others wait behind it: positions."""
        waiting = Counter(w.row for w in rest)
        seen: set[RowId] = set()
        firsts: list[list[Write]] = []
        stuck = meeting(rest, self._stuck)
        for those in wholes(rest):
            own = {w.row for w in those}
            if seen.isdisjoint(own) and position(those[0]) not in stuck:
                firsts.append(those)
            seen |= own
        blocking = [those for those in firsts if any(waiting[w.row] > 1 for w in those)] or firsts
        for those in blocking:
            failed = self._no_parent[position(those[0])]
            self._reject(those, failed.writes, failed.fault)
        return {position(those[0]) for those in blocking}

    def _apply(self, writes: Sequence[Write], fault: Fault | None = None) -> None:
        """Applies a part; ``fault`` is what it was refused for, if that is known already."""
        if self._stuck:  # one probe a row: the later writes to it share its fate
            stuck = meeting(writes, self._stuck)
            for those in wholes([w for w in writes if position(w) in stuck]):
                waits = [w for w in those if w.row in self._stuck]
                self._refuse(those, waits, self._stuck[waits[0].row])
            writes = without(writes, stuck)
        if self._held:
            held = behind(writes, self._held)
            self._held_back += [w for w in writes if position(w) in held]
            writes = without(writes, held)
        if not writes:
            return
        fault = fault or self._execution.attempt(writes)
        if fault is not None and is_one(writes) and fault.sqlstate == _DUPLICATE:
            fault = self._execution.attempt(
                writes
            )  # the application may have inserted the row since we looked
        if fault is None:
            self._accept(writes)
        elif is_one(writes):
            self._refuse(writes, self._failing(writes, fault), fault)
        else:
            first, second = halves(writes)
            self._apply(first)
            self._apply(second)

    def _accept(self, writes: Sequence[Write]) -> None:
        self._outcome.written += writes
        if self._known or not self._trial.is_quiet:
            for write in writes:
                self._hear_known(write.message.position)
                self._trial.applied(write.table.full_name)

    def _failing(self, those: Sequence[Write], fault: Fault) -> Sequence[Write]:
        """Of a write or group that has just failed: the one that did, or those that may have."""
        kind = self._execution.failed
        if kind is None or len(those) == 1:
            return those
        found = [w for w in those if w.table is kind.table and w.op == kind.op] or those
        is_wait = fault.sqlstate in TIMEOUTS
        if len(found) == 1 or (len(found) > _MOST_PROBED and not is_wait):
            return found
        execution = self._execution
        before, rows = (execution.error, execution.is_late, kind), dict(execution.rows)
        self._conn.execute("SAVEPOINT probe")
        alike: list[Write] = []
        for write in found:
            failed = execution.attempt([write], is_checked=False)
            if failed is not None and failed.sqlstate == fault.sqlstate:
                alike.append(write)
            if len(alike) == _MOST_WAITING:
                break
        self._conn.execute("ROLLBACK TO SAVEPOINT probe; RELEASE SAVEPOINT probe")
        (execution.error, execution.is_late, execution.failed), execution.rows = before, rows
        return alike if len(alike) == 1 or (alike and is_wait) else found

    def _refuse(self, those: Sequence[Write], failing: Sequence[Write], fault: Fault) -> None:
        """A write or group; ``failing`` are those of its writes that it failed for, as far as is known."""
        if fault.sqlstate in TIMEOUTS and self._wait(failing, fault):
            return
        if fault.sqlstate == _NO_PARENT:
            if not self._held_back:
                self._held_after = len(self._outcome.written)
            wait(self._held, those)
            self._held_back += those
            self._no_parent[position(those[0])] = _NoParent(fault, self._execution.is_late, failing)
        else:
            self._reject(those, failing, fault)

    def _wait(self, those: Sequence[Write], fault: Fault) -> bool:
        """Their rows are locked; whether one is still waited for."""
        self._stuck |= {w.row: fault for w in those}
        waiting = [w for w in those if w.row not in self._patience.bury]
        self._waiting += waiting
        if waiting and len(self._stuck) >= _MOST_WAITING:
            raise self._held_by_lock()
        return bool(waiting)

    def _reject(self, those: Sequence[Write], failing: Sequence[Write], fault: Fault) -> None:
        if fault.sqlstate.startswith("23"):
            error = self._execution.error
            self._conflicts += [read_conflict(self._conn, write, fault, error) for write in failing]
        write = failing[0]
        self._hear_known(write.message.position)
        column = self._unreadable_column(write, fault) if len(failing) == 1 else None
        if column is not None:  # no matter for the breaker: some types refuse a value by a code of class 42
            fault = make_fault(fault.sqlstate, f"{write.table.full_name}.{column}: {fault.reason}")
        refusal = Refusal(write.message, fault, write.table, write.row[1])
        if write.message.member:
            refusal = refused_group(those, failing, fault)
        if column is None:
            self._hear(refusal)
        self._outcome.refused.append(refusal)

    def _unreadable_column(self, write: Write, fault: Fault) -> str | None:
        if fault.sqlstate[:2] in _OF_VALUES and fault.sqlstate not in _OF_NO_VALUE:
            return find_unreadable(self._conn, write)
        return None

    def _held_by_lock(self) -> HeldByLock:
        first = self._waiting[0]
        state = self._stuck[first.row].sqlstate
        return HeldByLock(describe(first), {w.row for w in self._waiting}, f"SQLSTATE {state}")

    def _hear_known(self, position: int | None) -> None:
        """Tells the breaker of messages before ``position`` (``None``: all) that were refused before."""
        while self._known and (position is None or self._known[0].message.position < position):
            self._hear(self._known.popleft())

    def _hear(self, refusal: Refusal) -> None:
        if refusal.message.retry is not None:
            return  # it becomes no new dead letter: who retries too early does not pause the queue
        if refusal.table is not None and is_structural(refusal):
            self._trial.refused(refusal.table.full_name, refusal.fault)


def describe(write: Write) -> str:
    """The write without its values: for logs."""
    return f"{write.op} of {write.table.full_name} (seq {write.message.seq}, item {write.message.position})"


def refused_group(those: Sequence[Write], failing: Sequence[Write], fault: Fault) -> Refusal:
    """Of a whole group; what it is refused for is known where one write alone can have failed."""
    write, rows = failing[0], tuple(dict.fromkeys(map(named_row, those)))
    if len(failing) == 1:
        fault = make_fault(fault.sqlstate, f"{member_name(write.message)}: {fault.reason}")
    return Refusal(write.message, fault, write.table, write.row[1], rows)
