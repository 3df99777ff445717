"""Brings frozen batches to Postgres, again and again until they are in; says what they wait for."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from structlog.typing import FilteringBoundLogger

from .apply import Patience
from .backoff import Backoff
from .config import Config
from .errors import BreakerTripped, HeldByLock, LedgerRefused, OwnershipLost
from .flush import Flushed, Flusher
from .metrics import Metrics
from .postgres import is_broken
from .resolve import RowId
from .sqlstate import Verdict, advice, judge
from .state import WorkerState
from .unit import Unit

if TYPE_CHECKING:
    from .tracing import FlushTracing

_COUNT_EVERY_S = 1.0  # the open dead letters; more seldom where there are so many that it takes long
_COUNT_BUSY_EVERY_S = 5.0  # while writes come: they wait for it, a few ms
_COUNT_SHARE = 0.02
_TIMEOUTS_BEFORE_HALVING = 2
_TIMEOUTS_OF_WRITES = 4  # more are not of the writes: those are found by halving
_REFUSALS_BEFORE_RECONNECTING = 5
_RACES = frozenset({"40001", "40P01"})  # serialization failure, deadlock: no other server would help
_RACES_AS_USUAL = 3  # more in a row, of one batch, are told as Postgres' refusal
_LOCK_PAUSE_S = 1.0
_LOCKED = "55P03"
_TABLE = re.compile(r'relation ("[^"]+")')


def _delay(error: psycopg.Error) -> str:
    """What an attempt timed out for; of the context it tells the table only: there may be values in it."""
    table = _TABLE.search(error.diag.context or "")
    what = f"a lock in {table[1]}" if table else "a lock"
    if error.sqlstate != _LOCKED:
        what = "a statement that takes longer than --statement-timeout"
    return f"{what} (SQLSTATE {error.sqlstate})"


class Stop(Protocol):
    """What is asked whether to end: ``threading.Event`` will do."""

    def is_set(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...


@dataclass(slots=True)
class _Waiting:
    """How long the batch at hand has been failing."""

    backoff: Backoff
    timeouts: int = 0
    refusals: int = 0
    races: int = 0
    held_since: dict[RowId, float] = field(default_factory=dict)

    def gives_way(self) -> bool:
        """It has lost a race with somebody else's transaction; whether that is nothing to speak of."""
        self.races += 1
        return self.races <= _RACES_AS_USUAL

    def hold(self, rows: Collection[RowId], longest_s: float) -> None:
        """These rows wait for a lock now; of others only those are kept that have waited long enough."""
        now = time.monotonic()
        self.refusals = 0
        self.held_since = {
            row: since for row, since in self.held_since.items() if row in rows or now - since >= longest_s
        } | {row: self.held_since.get(row, now) for row in rows}


class Persister:
    """Over one connection; for one thread.

    ``now_us`` is the time by the clock that stamps writes; ``failure`` tells what has ended the tenure
    elsewhere, so that nothing is tried again for it.
    """

    def __init__(
        self,
        config: Config,
        flusher: Flusher,
        conn: psycopg.Connection[Any],
        state: WorkerState,
        metrics: Metrics,
        log: FilteringBoundLogger,
        now_us: Callable[[], int],
        failure: Callable[[], BaseException | None],
    ) -> None:
        self._config, self._flusher, self._conn = config, flusher, conn
        self._state, self._metrics, self._log = state, metrics, log
        self._now_us, self._failure = now_us, failure
        self._count_at = 0.0
        self._tracing: FlushTracing | None = None
        if config.tracing:
            from .tracing import FlushTracing  # noqa: PLC0415 - not everybody has what it imports

            self._tracing = FlushTracing(config.queue, log)

    def idle(self) -> None:
        """There is nothing to flush: a server that is gone is noticed, and said."""
        self.count_dead_letters()
        self._conn.execute("SELECT")

    def count_dead_letters(self, *, is_busy: bool = False) -> None:
        """For the gauge, if it is time: others retry and drop them too. ``is_busy``: writes come."""
        began = time.monotonic()
        if began < self._count_at + (_COUNT_BUSY_EVERY_S - _COUNT_EVERY_S if is_busy else 0.0):
            return
        counts = self._flusher.count_dead_letters(self._metrics.present_shards)
        if counts is not None:
            self._metrics.dead_letters_are(counts)
        now = time.monotonic()
        self._count_at = now + max(_COUNT_EVERY_S, (now - began) / _COUNT_SHARE)

    def flush(self, unit: Unit, stop: Stop) -> Iterator[tuple[Unit, Flushed]]:
        """Tries until all of it is in Postgres; what goes in by itself is told by itself.

        A broken connection or a lost ownership is raised.
        """
        waiting = _Waiting(Backoff())
        began_ns = time.time_ns()
        while True:
            started = time.monotonic()
            try:
                flushed = self._attempt(unit, self._patience(waiting))
            except (HeldByLock, BreakerTripped, LedgerRefused, psycopg.Error) as error:
                self._wait_after(error, waiting, stop)
            else:
                if flushed is None:
                    if self._flusher.timed_out is not None:
                        self._state.delay_is(_delay(self._flusher.timed_out))
                    break
                self._went_through(unit, flushed, time.monotonic() - started)
                if self._tracing is not None:
                    self._tracing.flushed(unit, flushed, began_ns)
                if self._config.publish_changes:
                    unit.read_changes()
                unit.land()
                yield unit, flushed
                return
        for part in unit.split():
            yield from self.flush(part, stop)

    def _attempt(self, unit: Unit, patience: Patience) -> Flushed | None:
        if unit.digest is not None:
            return self._flusher.flush_at_once(unit.ids, unit.digest, unit.statements)
        (batch,) = unit.batches
        return self._flusher.flush(batch, patience, unit.prepared)

    def _patience(self, waiting: _Waiting) -> Patience:
        enough = time.monotonic() - self._config.hold_timeout_s
        return Patience(
            halve=waiting.timeouts >= _TIMEOUTS_BEFORE_HALVING,
            bury={row for row, since in waiting.held_since.items() if since <= enough},
        )

    def _wait_after(self, error: Exception, waiting: _Waiting, stop: Stop) -> None:
        """Says what the batch waits for, once a change, and waits; raises what waiting cannot mend here."""
        reason = str(error)
        if isinstance(error, psycopg.Error):
            verdict = judge(error)
            if is_broken(self._conn):
                raise error
            # Of a row error's message nothing is said: it may hold values.
            reason = f"SQLSTATE {error.sqlstate}" + (
                "" if verdict is Verdict.ROW else f": {error.diag.message_primary}; {advice(error)}"
            )
            waiting.refusals += error.sqlstate not in _RACES
            if verdict is Verdict.TIMEOUT:
                waiting.refusals = 0
                waiting.timeouts += 1
                self._state.delay_is(_delay(error))
                if waiting.timeouts > _TIMEOUTS_OF_WRITES and self._is_refused(reason):
                    self._log.warning("postgres makes us wait, and not for a row of a write", reason=reason)
            elif error.sqlstate in _RACES and waiting.gives_way():
                self._log.info("another transaction was in the way", sqlstate=error.sqlstate)
            elif waiting.refusals >= _REFUSALS_BEFORE_RECONNECTING:
                raise error  # read-only, say: behind a new connection may be another server
            elif self._is_refused(reason):
                self._log.warning("postgres refuses", reason=reason, sqlstate=error.sqlstate)
        elif isinstance(error, HeldByLock):
            self._metrics.postgres_is(True)
            waiting.hold(error.rows, self._config.hold_timeout_s)
            if self._state.held_is(error.write):
                self._metrics.held_is("lock", True)
                self._log.warning("waiting for a lock", write=error.write, reason=reason)
                self._flusher.say_waiting(reason)
        elif isinstance(error, BreakerTripped):
            self._metrics.postgres_is(True)
            if self._state.breaker_is(reason):
                self._metrics.held_is("breaker", True)
                self._log.error("queue paused", reason=reason)
                self._flusher.say_waiting(reason)
        elif self._is_refused(reason):
            self._log.error("ledger refused", reason=reason)
        self._metrics.retried(type(error).__name__)
        self._state.progress()
        if (failure := self._failure()) is not None:
            raise failure
        pause_s = waiting.backoff.next_s()
        if stop.wait(min(pause_s, _LOCK_PAUSE_S) if isinstance(error, HeldByLock) else pause_s):
            raise OwnershipLost("stopping; the batch stays frozen for the next owner") from error

    def _is_refused(self, reason: str) -> bool:
        """Tells that Postgres takes no batch; whether that is news."""
        self._metrics.postgres_is(False)
        return self._state.postgres_is(False, reason)

    def _went_through(self, unit: Unit, flushed: Flushed, seconds: float) -> None:
        if self._state.postgres_is(True):
            self._log.info("postgres answers")
        self._state.delay_is(None)
        if self._state.held_is(None) | self._state.breaker_is(None):
            self._metrics.held_is("lock", False)
            self._metrics.held_is("breaker", False)
            self._log.info("queue goes on")
            self._flusher.say_waiting(None)
        self._state.progress()
        self._metrics.postgres_is(True)
        self._metrics.flush([len(batch.items) for batch in unit.batches], seconds)
        for batch in unit.batches:
            self._metrics.received(batch.sizes)
        self._metrics.lag(self._now_us(), unit.seqs)
        for (table, outcome), writes in flushed.writes.items():
            self._metrics.flushed(table, outcome, writes)
        for table, rows in flushed.rows.items():
            self._metrics.rows_written(table, rows)
        rejected = [b for b in flushed.buried if b.kind == "rejected"]
        for buried in rejected:
            self._metrics.dead_lettered(buried.sqlstate, 1)
        if flushed.passed_over:
            self._log.warning(
                "retries passed over: the dead letters are gone, superseded by newer writes, or locked",
                batch=unit.ids[-1],
                retries=len(flushed.passed_over),
                dead_letters=flushed.passed_over[:20],
            )
        self._log.info(
            "flushed",
            batch=unit.ids[-1],
            batches=len(unit.batches),
            writes=unit.writes,
            rows=sum(flushed.rows.values()),
            rejected=len(rejected),
            at_once=flushed.is_at_once,
            seconds=round(seconds, 4),
        )
