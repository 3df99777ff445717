"""Applying writes inside the batch's transaction: a bad one neither blocks a good one nor takes it along.

Rejected by Postgres, a list of writes is cut at its barriers, halved under savepoints, and each part
coalesced anew from the original messages. A write that fails alone for want of a row that it references is
held back with the later ones of its row, and tried once more at the end of its segment, in list order: its
parent may have come after it. Nothing else is held back, and nothing beyond a barrier: what is delayed
without need can find its row cascaded away, or its unique value taken. Where a constraint refuses a write
whose row or unique value others of the batch share, the segment is applied again with all of these alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import psycopg

from .breaker import Trial
from .contested import Conflict, read_conflict, sharers
from .errors import HeldByLock
from .plan import Group, groups, segments
from .received import Fault, make_fault
from .resolve import Refusal, RowId, Write
from .sqlstate import DAMAGED, TIMEOUTS, Verdict, judge
from .statement import delete, insert_missing, may_upsert, parameter, update, upsert
from .unreadable import find_unreadable

_NO_PARENT = "23503"  # foreign key violation
_DUPLICATE = "23505"  # unique violation
_OF_VALUES = frozenset({"22", "23", "42"})  # of domains, and of types that take names or expressions, too
_OF_NO_VALUE = frozenset({_NO_PARENT, _DUPLICATE, "23P01", "42501", "42703"})
_MOST_PASSES = 4  # over a segment whose writes stand in each other's way; then each is applied alone
_MOST_WAITING = 8  # rows that an attempt probes: behind more there is a locked table, which is waited for
# A generated column is given; a text column incremented; an id of the wrong shape.
_ONE_MESSAGE_ONLY = frozenset({"428C9", "42804", "42P10"})


@dataclass(frozen=True, slots=True)
class Patience:
    """What to do when a lock or a slow statement times out.

    ``halve``: look for the rows that wait, instead of giving up the whole attempt; ``bury``: those that have
    waited long enough: writes to them become dead letters.
    """

    halve: bool = False
    bury: Collection[RowId] = ()


class _Refused(Exception):
    """A statement touched fewer rows than it was given keys."""


@dataclass(slots=True)
class Applied:
    """The outcome of a batch's writes: ``rows`` counts rows written by ``schema.table``."""

    written: list[Write] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Applied:
        """As it is now."""
        return Applied(list(self.written), list(self.refused), dict(self.rows))


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
        self._outcome = Applied()
        self._held: set[RowId] = set()
        self._held_back: list[Write] = []
        self._is_last_try = False
        self._stuck: dict[RowId, Fault] = {}  # rows on which this attempt has timed out
        self._waiting: list[Write] = []
        self._conflicts: list[Conflict] = []

    def run(self, writes: Sequence[Write]) -> Applied:
        """Applies them all, but for the refused.

        Raises:
            BreakerTripped: too many refusals alike.
            HeldByLock: rows that wait for a lock have been found: all of them, or as many as we look for.
            psycopg.Error: transient, time-outs too unless ``patience`` says otherwise.
        """
        fault = self._attempt(writes) if writes else None
        if fault is None:
            self._accept(writes)
        else:
            parts = list(segments(writes))
            for part in parts:
                self._apply_segment(part, fault if len(parts) == 1 else None)
        self._hear_known(None)
        if self._waiting:
            raise self._held_by_lock()
        return self._outcome

    def _apply_segment(self, writes: Sequence[Write], fault: Fault | None) -> None:
        """Applies it, and again with those alone that have stood in each other's way, until none is left."""
        alone: set[int] = set()
        for passes in count(1):
            before = self._outcome.copy(), self._trial.counts(), list(self._known)
            self._conflicts = []
            self._conn.execute("SAVEPOINT segment")
            self._apply_parts(writes, alone, fault)
            more = sharers(self._conflicts, writes) - alone
            if not more:
                break
            if passes == _MOST_PASSES:
                more = {w.message.position for w in writes}
            self._conn.execute("ROLLBACK TO SAVEPOINT segment")
            self._outcome, counts, known = before
            self._trial.go_back(counts)
            self._known = deque(known)
            alone |= more
            fault = None
        self._conn.execute("RELEASE SAVEPOINT segment")

    def _apply_parts(self, writes: Sequence[Write], alone: Collection[int], fault: Fault | None) -> None:
        for part in _cut(writes, alone):
            self._apply(part, None if alone else fault)
        held_back, self._held_back, self._is_last_try = self._held_back, [], True
        self._held.clear()
        for part in _cut(held_back, alone):
            self._apply(part)
        self._is_last_try = False

    def _apply(self, writes: Sequence[Write], fault: Fault | None = None) -> None:
        """Applies a part; ``fault`` is what it was refused for, if that is known already."""
        if self._stuck:  # one probe a row: the later writes to it share its fate
            for write in [w for w in writes if w.row in self._stuck]:
                self._refuse(write, self._stuck[write.row])
            writes = [w for w in writes if w.row not in self._stuck]
        if self._held:
            self._held_back += [w for w in writes if w.row in self._held]
            writes = [w for w in writes if w.row not in self._held]
        if not writes:
            return
        fault = fault or self._attempt(writes)
        if fault is not None and len(writes) == 1 and fault.sqlstate == _DUPLICATE:
            fault = self._attempt(writes)  # the application may have inserted the row since we looked
        if fault is None:
            self._accept(writes)
        elif len(writes) == 1:
            self._refuse(writes[0], fault)
        else:
            half = len(writes) // 2
            self._apply(writes[:half])
            self._apply(writes[half:])

    def _accept(self, writes: Sequence[Write]) -> None:
        self._outcome.written += writes
        if self._known or not self._trial.is_quiet:
            for write in writes:
                self._hear_known(write.message.position)
                self._trial.applied(write.table.full_name)

    def _refuse(self, write: Write, fault: Fault) -> None:
        if fault.sqlstate in TIMEOUTS:
            self._stuck[write.row] = fault
            if write.row not in self._patience.bury:
                self._waiting.append(write)
                if len(self._stuck) >= _MOST_WAITING:
                    raise self._held_by_lock()
                return
        if fault.sqlstate == _NO_PARENT and not self._is_last_try:
            self._held.add(write.row)
            self._held_back.append(write)
            return
        self._hear_known(write.message.position)
        column = self._unreadable_column(write, fault)
        if column is not None:  # no matter for the breaker: some types refuse a value by a code of class 42
            fault = make_fault(fault.sqlstate, f"{write.table.full_name}.{column}: {fault.reason}")
        refusal = Refusal(write.message, fault, write.table, write.row[1])
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

    def _attempt(self, writes: Sequence[Write]) -> Fault | None:
        """Applies writes under a savepoint; on a fault of theirs nothing of it remains."""
        # An earlier part left constraints immediate; within a part they may be met in any order.
        failed: psycopg.Error | None = None
        self._conn.execute("SAVEPOINT part; SET CONSTRAINTS ALL DEFERRED")
        try:
            rows = self._run(writes)
            # Deferred ones would fail at COMMIT, outside every savepoint.
            self._conn.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except _Refused as error:
            fault = Fault("P0002", str(error))
        except psycopg.Error as error:
            fault = self._fault(writes, error)
            failed = error
        else:
            self._conn.execute("RELEASE SAVEPOINT part")
            for table, count in rows.items():
                self._outcome.rows[table] = self._outcome.rows.get(table, 0) + count
            return None
        self._conn.execute("ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part")
        if failed is not None and len(writes) == 1 and fault.sqlstate[:2] == "23":
            self._conflicts.append(read_conflict(self._conn, writes[0], failed))
        return fault

    def _fault(self, writes: Sequence[Write], error: psycopg.Error) -> Fault:
        """The fault of the writes, or the error raised again if it is none of theirs."""
        verdict = judge(error)
        reason = error.diag.message_primary or str(error)
        if verdict is Verdict.TIMEOUT and self._patience.halve:
            return Fault(str(error.sqlstate), reason)
        if verdict is not Verdict.ROW:
            raise error
        detail = f" ({error.diag.message_detail})" if error.diag.message_detail else ""
        return make_fault(error.sqlstate or "XX000", reason + detail)

    def _run(self, writes: Sequence[Write]) -> dict[str, int]:
        rows: dict[str, int] = {}
        for group in groups(writes):
            self._write(group)
            name = group.table.full_name
            rows[name] = rows.get(name, 0) + len(group.rows)
        return rows

    def _write(self, group: Group) -> None:
        records, expected = [parameter(group)], len(group.rows)
        if group.op == "delete":
            self._conn.execute(delete(group), records)
        elif group.op == "patch":
            if self._conn.execute(update(group), records).rowcount < expected:
                raise _Refused(
                    f"{group.table.full_name} has no row with this key (or a trigger or policy skipped it): "
                    "a patch changes rows that exist"
                )
        elif may_upsert(group):
            written = self._conn.execute(upsert(group), records).rowcount
            self._check(group, written)
        else:
            written = self._conn.execute(update(group), records).rowcount if group.columns else 0
            if written < expected:
                written += self._conn.execute(insert_missing(group), records).rowcount
            self._check(group, written)

    def _check(self, group: Group, written: int) -> None:
        if group.columns and written < len(group.rows):
            raise _Refused(
                f"the row of {group.table.full_name} was not written: "
                "a trigger or a row-level security policy skipped it"
            )


def _cut(writes: Sequence[Write], alone: Collection[int]) -> Iterator[Sequence[Write]]:
    """Parts of the list, in order: each of these positions is a part of its own."""
    start = 0
    for i, write in enumerate(writes):
        if write.message.position in alone:
            if i > start:
                yield writes[start:i]
            yield writes[i : i + 1]
            start = i + 1
    if writes[start:]:
        yield writes[start:]


def is_structural(refusal: Refusal) -> bool:
    """Whether no other write could mend it: a column is missing, or a right, or an index is damaged.

    Under row-level security a missing right (42501) may be the row's fault, and is taken as such.
    """
    state, table = refusal.fault.sqlstate, refusal.table
    if state in _ONE_MESSAGE_ONLY or (state == "42501" and table is not None and table.row_security):
        return False
    return state.startswith("42") or state in DAMAGED


def describe(write: Write) -> str:
    """The write without its values: for logs."""
    return f"{write.op} of {write.table.full_name} (seq {write.message.seq}, item {write.message.position})"
