"""Applying writes inside the batch's transaction: a bad one neither blocks a good one nor takes it along.

Rejected by Postgres, a list of writes is halved under savepoints and each half coalesced anew from the
original messages. A write that fails alone is held back with the later ones of its row, and tried once
more at the end, in list order: what it needs may have come after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from .breaker import Breaker
from .errors import HeldByLock
from .plan import Group, groups
from .received import Fault
from .resolve import Refusal, RowId, Write
from .sqlstate import Verdict, is_structural, judge
from .statement import delete, insert_missing, may_upsert, parameter, update, upsert


@dataclass(frozen=True, slots=True)
class Patience:
    """What to do when a lock or a slow statement times out.

    ``halve``: look for the write that waits, instead of giving up the whole attempt; ``bury``: it has
    waited long enough, and becomes a dead letter.
    """

    halve: bool = False
    bury: bool = False


class _Refused(Exception):
    """A statement touched fewer rows than it was given keys."""


@dataclass(slots=True)
class Applied:
    """The outcome of a batch's writes: ``rows`` counts rows written by ``schema.table``."""

    written: list[Write] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)


class Application:
    """One attempt at the writes of one batch, in the transaction that ``conn`` has begun."""

    def __init__(self, conn: psycopg.Connection[Any], breaker: Breaker, patience: Patience) -> None:
        self._conn, self._breaker, self._patience = conn, breaker, patience
        self._outcome = Applied()
        self._held: dict[RowId, None] = {}
        self._held_back: list[Write] = []
        self._last_try = False

    def run(self, writes: Sequence[Write]) -> Applied:
        """Applies them all, but for the refused.

        Raises:
            BreakerTripped: too many refusals alike.
            HeldByLock: the write that waits for a lock has been found.
            psycopg.Error: transient, time-outs too unless ``patience`` says otherwise.
        """
        self._apply(writes)
        held_back, self._held_back, self._last_try = self._held_back, [], True
        self._held.clear()
        self._apply(held_back)
        return self._outcome

    def _apply(self, writes: Sequence[Write]) -> None:
        if self._held:
            self._held_back += [w for w in writes if w.row in self._held]
            writes = [w for w in writes if w.row not in self._held]
        if not writes:
            return
        fault = self._attempt(writes)
        if fault is None:
            self._outcome.written += writes
            for table in {w.table.full_name for w in writes}:
                self._breaker.applied(table)
        elif len(writes) == 1:
            self._refuse(writes[0], fault)
        else:
            half = len(writes) // 2
            self._apply(writes[:half])
            self._apply(writes[half:])

    def _refuse(self, write: Write, fault: Fault) -> None:
        # No other write of the batch can mend a missing column or right.
        if self._last_try or is_structural(fault.sqlstate):
            self._breaker.refused(write.table.full_name, fault)
            self._outcome.refused.append(Refusal(write.message, fault, write))
        else:
            self._held[write.row] = None
            self._held_back.append(write)

    def _attempt(self, writes: Sequence[Write]) -> Fault | None:
        """Applies writes under a savepoint; on a fault of theirs nothing of it remains."""
        # An earlier part left constraints immediate; within a part they may be met in any order.
        self._conn.execute("SAVEPOINT part; SET CONSTRAINTS ALL DEFERRED")
        try:
            rows = self._run(writes)
            # Deferred ones would fail at COMMIT, outside every savepoint.
            self._conn.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except _Refused as error:
            fault = Fault("P0002", str(error))
        except psycopg.Error as error:
            fault = self._fault(writes, error)
        else:
            self._conn.execute("RELEASE SAVEPOINT part")
            for table, count in rows.items():
                self._outcome.rows[table] = self._outcome.rows.get(table, 0) + count
            return None
        self._conn.execute("ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part")
        return fault

    def _fault(self, writes: Sequence[Write], error: psycopg.Error) -> Fault:
        """The fault of the writes, or the error raised again if it is none of theirs."""
        verdict = judge(error)
        reason = error.diag.message_primary or str(error)
        if verdict is Verdict.TIMEOUT and self._patience.halve:
            if len(writes) == 1 and not self._patience.bury:
                raise HeldByLock(describe(writes[0]), f"{reason} (SQLSTATE {error.sqlstate})") from error
        elif verdict is not Verdict.ROW:
            raise error
        detail = f" ({error.diag.message_detail})" if error.diag.message_detail else ""
        return Fault(error.sqlstate or "XX000", reason + detail)

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
                raise _Refused("there is no row with this key: a patch changes rows that exist")
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
            raise _Refused("the row was not written: a trigger or a row-level security policy skipped it")


def describe(write: Write) -> str:
    """The write without its values: for logs."""
    return f"{write.op} of {write.table.full_name} (seq {write.message.seq}, item {write.message.position})"
