"""Frozen batches into Postgres, one or several at once: the ledger, the writes, the dead letters."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import psycopg

from writebehind.frame import ZSTD_HINT
from writebehind.identity import TableKey
from writebehind.message import WIRE_VERSION

from .apply import Application, Applied, Patience
from .breaker import Breaker
from .bulk import Bulk
from .catalog import Catalog, ask_versions, load_catalog, read_versions
from .digest import Digest
from .errors import FatalError, NewerVersion, OwnershipLost
from .execution import Statement, Untouched
from .frozen import FrozenBatch, split_applied_before
from .history import LedgerRow
from .key_reader import KeyReader
from .ledger import AlreadyApplied, Buried, Ledger
from .metrics import Outcome
from .postgres import begin, milliseconds, one_trip, roll_back
from .prepared import Prepared
from .received import Fault, Message
from .resolve import Refusal, Write, names_unknown, resolve
from .retry import digested_rows, letters_of, without_effect, written_rows
from .sqlstate import Verdict, judge

_ROLLED_BACK = Fault("", "applied before Redis went back in time; not applied again")
_NEWER_HINT = "or, if nothing newer writes to the queue, --refuse-newer makes such messages dead letters"
_PATIENT_LOCK_TIMEOUT_S = 1.0
_COUNT_TIMEOUT_S = 2.0
_MOST_ALTERATIONS = 5  # of a batch's tables while it is flushed


class _CatalogChanged(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Flushed:
    """A batch that is in Postgres: what Redis and the metrics must hear of it.

    ``last_batch`` is the last one that the ledger has: this one, unless it had been committed before.
    ``writes`` counts messages by (``schema.table`` or ``unknown``, outcome), ``rows`` rows by table,
    ``passed_over`` are the dead letters whose retry had no effect;
    all are empty where an earlier attempt had already been committed. ``is_at_once``: by `flush_at_once`.
    """

    buried: Sequence[Buried]
    last_batch: int
    writes: Mapping[tuple[str, Outcome], int] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    passed_over: Sequence[int] = ()
    is_at_once: bool = False


class Flusher:
    """Flushes batches as the owner of ``row.epoch``, over one connection.

    ``committed``: frozen batches that are in Postgres, as the owner has found.
    """

    def __init__(
        self,
        conn: psycopg.Connection[Any],
        ledger: Ledger,
        row: LedgerRow,
        *,
        committed: Container[int] = (),
        tables: tuple[str, ...],
        lock_timeout_s: float,
        statement_timeout_s: float,
        breaker: Breaker,
        publish: Callable[[Mapping[str, TableKey]], None],
        refuse_newer: bool = False,
    ) -> None:
        self._conn, self._ledger, self._breaker = conn, ledger, breaker
        self._epoch, self._committed = row.epoch, committed
        self._rollback_seq, self._rollback_items = row.rollback_seq, row.rollback_items
        self._allowed = tables
        self._lock_timeout_s, self._statement_timeout_s = lock_timeout_s, statement_timeout_s
        self._keys = KeyReader(conn, statement_timeout_s)
        self._bulk = Bulk(conn)
        self._refused_tables = _tables_of(ledger, ledger.open_dead_letters())
        self._publish, self._refuse_newer = publish, refuse_newer
        self.around_commit: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
        """All that a transaction does is done then, and checked: COMMIT waits for the disk."""
        self.timed_out: psycopg.Error | None = None
        """Why `flush_at_once` came to nothing, if it was a lock, or took too long."""
        self.catalog = self._read_catalog()

    def flush(self, batch: FrozenBatch, patience: Patience, prepared: Prepared | None = None) -> Flushed:
        """Brings the batch to Postgres, or finds that it is there.

        ``prepared`` is what :func:`prepare` has found for it by this flusher's catalog, if it has.

        Raises:
            OwnershipLost, LedgerRefused, HeldByLock, BreakerTripped, NewerVersion: nothing was committed.
            psycopg.Error: nothing was committed, unless the connection broke during COMMIT: the ledger knows.
        """
        if batch.id in self._committed:
            return self._as_before(batch)
        newer = max((m.newer_version for m in batch.messages if m.newer_version is not None), default=None)
        if newer is not None and not self._refuse_newer:
            raise NewerVersion(
                "a message in the queue has the wire format's", newer, WIRE_VERSION, _NEWER_HINT
            )
        if any(m.lacks_zstd for m in batch.messages) and not self._refuse_newer:
            raise FatalError(
                "a message in the queue is compressed with zstd, and this writebehind cannot", ZSTD_HINT
            )
        self._look_at_shards()
        for alterations in range(_MOST_ALTERATIONS):
            try:
                return self._flush(batch, patience, prepared, is_first=alterations == 0)
            except _CatalogChanged:
                self.catalog = self._read_catalog()
        raise OwnershipLost("the tables of a batch are being altered again and again")

    def flush_at_once(
        self, batches: Sequence[int], digest: Digest, statements: Sequence[Statement] = ()
    ) -> Flushed | None:
        """Brings frozen batches to Postgres in one transaction. ``statements``: of the digest, if known.

        ``None``, and nothing is there, where they have to be flushed one by one: a write is refused, a row is
        locked, a batch was committed before, or something is going on that needs each message.

        Raises:
            LedgerRefused, psycopg.Error: as :meth:`flush`. That ownership is lost, the careful way tells.
        """
        self.timed_out = None
        if not self._is_calm(digest):
            return None
        try:
            ready = self._bulk.ready(digest, statements)
            if ready is None:
                return None
            self._look_at_shards()
            with self._transaction():
                self._write_at_once(batches, digest, ready)
                if refused := self._refused_tables & digest.messages.keys():
                    self._ledger.supersede(batches[-1], digested_rows(digest, refused))
        except (Untouched, _CatalogChanged):
            return None
        except psycopg.Error as error:
            verdict = judge(error)
            if verdict is Verdict.TIMEOUT:
                self.timed_out = error
            if verdict in (Verdict.ROW, Verdict.TIMEOUT):
                return None
            raise
        writes: dict[tuple[str, Outcome], int] = {(t, "applied"): n for t, n in digest.messages.items()}
        rows: Counter[str] = Counter()
        for group, size, _ in ready:
            rows[group.table.full_name] += size
        return Flushed((), batches[-1], writes, rows, is_at_once=True)

    def _write_at_once(self, batches: Sequence[int], digest: Digest, ready: Sequence[Statement]) -> None:
        """All from BEGIN to the last check before COMMIT: one round trip, unless something goes by COPY."""
        copies = any(isinstance(statement.rows, bytes) for statement in ready)
        if copies:
            self._begin(Patience())
        self._bulk.copy(ready)  # before the ledger's row is held
        with one_trip(self._conn) as arrive:
            if not copies:
                self._begin(Patience())
            self._ledger.record(self._epoch, batches, digest.applied_seq, 0, is_of_trip=True)
            check = self._bulk.write(ready, arrive)
            versions = ask_versions(self._conn, digest.tables)
        check()
        self._check_catalog(versions, digest.tables)

    @property
    def may_copy(self) -> bool:
        """Whether rows may go to Postgres by COPY, as far as is known."""
        return self._bulk.may_copy

    def _look_at_shards(self) -> None:
        """A former shard may have got dead letters until just before this one's first batch."""
        if self._ledger.is_divided:
            self._refused_tables |= self._ledger.tables_of_shards()

    def _is_calm(self, digest: Digest) -> bool:
        """No rollback of Redis is being dealt with, and no breaker counts."""
        return digest.catalog is self.catalog and not self._rollback_items and self._breaker.trial().is_quiet

    def count_dead_letters(self, present: Collection[str]) -> dict[tuple[str | None, str | None], int] | None:
        """As :meth:`Ledger.open_dead_letters`; ``None`` if somebody's lock, or their number, holds it up."""
        limit = milliseconds(min(self._statement_timeout_s, _COUNT_TIMEOUT_S))
        begin(self._conn, lock_timeout=limit, statement_timeout=limit)
        try:
            counts = self._ledger.open_dead_letters(present)
            tables = _tables_of(self._ledger, counts)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled):
            return None
        finally:
            roll_back(self._conn)
        # Only we add some: what has none now has none until we do.
        self._refused_tables = tables
        return counts

    def say_waiting(self, reason: str | None) -> None:
        """Lets `writebehind status` tell what the queue waits for."""
        with contextlib.suppress(psycopg.errors.LockNotAvailable):  # then the log alone says it
            self._ledger.say_waiting(self._epoch, reason)

    def _flush(
        self, batch: FrozenBatch, patience: Patience, prepared: Prepared | None, *, is_first: bool
    ) -> Flushed:
        before, messages, rollback_left = split_applied_before(
            batch.messages, self._rollback_seq, self._rollback_items
        )
        retried_before = letters_of(before)  # whatever became of them: the dead letters tell
        before = [m for m in before if m.retry is None and m.member < 2]
        ready: Sequence[Statement] = ()
        if prepared is not None and prepared.catalog is self.catalog and len(messages) == len(batch.messages):
            writes, refusals, ready = list(prepared.writes), list(prepared.refusals), prepared.statements
        else:
            writes, refusals = resolve(messages, self.catalog, self._keys)
        if is_first and names_unknown(refusals):
            raise _CatalogChanged
        known_as = {w.row[0] for w in writes} | {r.table.oid for r in refusals if r.table is not None}
        refusals = [self._placed(r) for r in refusals]
        try:
            with self._transaction():
                self._begin(patience)
                self._ledger.record(self._epoch, [batch.id], batch.applied_seq, rollback_left)
                over = self._passed_over(messages, writes)
                if over:
                    ready = ()
                    writes = [w for w in writes if w.message.position not in over]
                    refusals = [r for r in refusals if r.message.position not in over]
                trial = self._breaker.trial()
                known = [r for r in refusals if self._was_right(r)]
                applied = Application(self._conn, trial, patience, known).run(writes, ready)
                if known_as:
                    self._check_catalog(ask_versions(self._conn, known_as), known_as)
                refusals += applied.refused
                touched = self._bury(batch.id, before, refusals, applied.written)
        except AlreadyApplied:
            return self._as_before(batch)
        trial.commit()
        self._rollback_items = rollback_left
        self._refused_tables |= touched
        passed_over = retried_before + letters_of(m for m in messages if m.position in over)
        return _flushed(batch.id, before, refusals, applied, passed_over)

    def _as_before(self, batch: FrozenBatch) -> Flushed:
        return Flushed(self._ledger.buried(batch.id), self._ledger.last_batch())

    def _read_catalog(self) -> Catalog:
        catalog = load_catalog(self._conn, self._allowed)
        self._publish({name: table.identity for name, table in catalog.tables.items() if table.key})
        self._breaker.saw(catalog)
        return catalog

    def _placed(self, refusal: Refusal) -> Refusal:
        """With its table, if that has been dropped or renamed since: for the breaker, and for people."""
        if refusal.table is not None or refusal.message.table is None:
            return refusal
        table = self._breaker.former_table(refusal.message.table)
        return msgspec.structs.replace(refusal, table=table)

    def _was_right(self, refusal: Refusal) -> bool:
        """Whether the table and the columns that it names have existed: then they were dropped or renamed."""
        table = refusal.table
        return table is not None and self._breaker.had_columns(table, refusal.message.columns or ())

    def _check_catalog(self, versions: psycopg.Cursor[Any], oids: Collection[int]) -> None:
        """Whether the tables are as we believed; from the writes to COMMIT nobody can alter them.

        Values are read by the types that we remember: after ALTER TYPE they could lose digits silently. And
        what we have refused by ourselves, for want of a primary key, say, may be good by now.
        """
        if read_versions(versions) != {oid: self.catalog.versions.get(oid) for oid in oids}:
            raise _CatalogChanged

    def _passed_over(self, messages: Sequence[Message], writes: Sequence[Write]) -> set[int]:
        """Positions of the retries that have no effect; the letters of the others are ours until the end."""
        letters = letters_of(messages)
        return without_effect(messages, writes, self._ledger.retriable(letters)) if letters else set()

    def _bury(
        self,
        batch: int,
        before: Sequence[Message],
        refusals: Sequence[Refusal],
        written: Sequence[Write],
    ) -> set[str]:
        """Writes the dead letters, takes away those that were retried: the tables that have some now."""
        if before:
            self._ledger.bury(batch, [Refusal(m, _ROLLED_BACK) for m in before], "rollback")
        if fresh := [r for r in refusals if r.message.retry is None]:
            self._ledger.bury(batch, fresh, "rejected")
        if again := [r for r in refusals if r.message.retry is not None]:
            self._ledger.bury_again(batch, again)
        if landed := letters_of(w.message for w in written):
            self._ledger.remove(landed)
        touched = {r.table.full_name for r in refusals if r.table is not None}
        touched |= {table for r in refusals for table, _ in r.rows}
        open_tables = self._refused_tables | touched
        if open_tables and (rows := written_rows(w for w in written if w.table.full_name in open_tables)):
            self._ledger.supersede(batch, rows)
        return touched

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Who enters it begins it; then it is committed, or rolled back."""
        try:
            yield
            with self.around_commit():
                self._conn.execute("COMMIT")
        except BaseException:
            roll_back(self._conn)
            raise

    def _begin(self, patience: Patience) -> None:
        lock_s = self._lock_timeout_s
        if patience.halve:
            lock_s = min(lock_s, _PATIENT_LOCK_TIMEOUT_S)
        begin(
            self._conn,
            lock_timeout=milliseconds(lock_s),
            statement_timeout=milliseconds(self._statement_timeout_s),
        )


def _tables_of(ledger: Ledger, counts: Mapping[tuple[str | None, str | None], int]) -> set[str]:
    """The tables whose rows have dead letters that a write can supersede."""
    return {table for table, _ in counts if table is not None} | ledger.tables_of_groups()


def _flushed(
    batch: int,
    before: Sequence[Message],
    refusals: Sequence[Refusal],
    applied: Applied,
    passed_over: Sequence[int],
) -> Flushed:
    counts: dict[tuple[str, Outcome], int] = {}
    label: tuple[str, Outcome]
    shapes = {id(write.shape): write.shape for write in applied.written}
    for shape, number in Counter(id(write.shape) for write in applied.written).items():
        label = (shapes[shape].table.full_name, "applied")
        counts[label] = counts.get(label, 0) + number
    for refusal in refusals:
        one = refusal.table.full_name if refusal.table else "unknown"
        for table in [table for table, _ in refusal.rows] or [one]:
            label = (table, "rejected")
            counts[label] = counts.get(label, 0) + 1
    if before:
        counts[("unknown", "rollback")] = len(before)
    if passed_over:
        counts[("unknown", "passed_over")] = len(passed_over)
    buried = [Buried(m.position, "rollback", None, _ROLLED_BACK.reason) for m in before]
    buried += [Buried(r.message.position, "rejected", r.fault.sqlstate, r.fault.reason) for r in refusals]
    return Flushed(sorted(buried, key=lambda b: b.position), batch, counts, applied.rows, passed_over)
