"""One ownership of the queue: a thread for Redis and a thread for Postgres, a few frozen batches between.

          Redis thread                                   Postgres thread (the caller's)
    ┌──▶ claim ─▶ prepare ─▶ [ frozen, at most max_in_flight ] ─▶ flush, again and again until it is in
    └─── acknowledge ◀─ settle ◀──── [ flushed ] ◀───────────────┘

Batches are flushed, settled and acknowledged in the order in which they were frozen. Whatever goes wrong
on either side ends the tenure: the next one begins by reading both servers again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

import psycopg
from redis.exceptions import OutOfMemoryError
from structlog.typing import FilteringBoundLogger

from writebehind.receipt import Rejection

from .apply import Patience
from .backoff import Backoff
from .config import Config
from .errors import BreakerTripped, HeldByLock, LedgerRefused, OwnershipLost
from .flush import Flushed, Flusher
from .frozen import FrozenBatch
from .metrics import Metrics
from .owned_queue import OwnedQueue
from .postgres import is_broken
from .prepared import Prepared, prepare
from .resolve import RowId
from .settle import settlements
from .sqlstate import Verdict, advice, judge
from .state import WorkerState

_BLOCK_S = 1.0  # an idle owner looks at its lease, and at the stop signal, so often
_LOOK_AGAIN_S = 0.005  # while a batch is in Postgres and the queue is empty: at first, and then ...
_LOOK_AGAIN_LONGEST_S = 0.1
_COUNT_EVERY_S = 1.0  # the open dead letters; more seldom where there are so many that it takes long
_COUNT_SHARE = 0.02
_POLL_FULL_S = 0.1  # a full Redis refuses to block
_TIMEOUTS_BEFORE_HALVING = 2
_TIMEOUTS_OF_WRITES = 4  # more are not of the writes: those are found by halving
_REFUSALS_BEFORE_RECONNECTING = 5
_RACES = frozenset({"40001", "40P01"})  # serialization failure, deadlock: no other server would help
_LOCK_PAUSE_S = 1.0


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
    held_since: dict[RowId, float] = field(default_factory=dict)

    def hold(self, rows: Collection[RowId], longest_s: float) -> None:
        """These rows wait for a lock now; of others only those are kept that have waited long enough."""
        now = time.monotonic()
        self.refusals = 0
        self.held_since = {
            row: since for row, since in self.held_since.items() if row in rows or now - since >= longest_s
        } | {row: self.held_since.get(row, now) for row in rows}


class Tenure:
    """Serves the queue until told to stop, or until ownership is lost."""

    def __init__(
        self,
        config: Config,
        queue: OwnedQueue,
        flusher: Flusher,
        conn: psycopg.Connection[Any],
        recovered: list[FrozenBatch],
        state: WorkerState,
        metrics: Metrics,
        log: FilteringBoundLogger,
    ) -> None:
        self._config, self._queue, self._flusher, self._conn = config, queue, flusher, conn
        self._state, self._metrics, self._log = state, metrics, log
        self._turn = threading.Condition()
        self._frozen: deque[tuple[FrozenBatch, Prepared | None]] = deque((b, None) for b in recovered)
        self._flushed: deque[tuple[FrozenBatch, Flushed]] = deque()
        self._look_again_s = _LOOK_AGAIN_S
        self._count_at = 0.0
        self._is_over = False  # nothing more will be frozen
        self._failure: BaseException | None = None

    def serve(self, stop: Stop, lost: Stop) -> None:
        """Returns when ``stop`` is set and what was frozen is acknowledged; raises what ended the tenure."""
        redis_side = threading.Thread(target=self._redis_side, args=(stop, lost), name="redis", daemon=True)
        redis_side.start()
        try:
            self._count_dead_letters()
            while (found := self._next_frozen()) is not None:
                batch, prepared = found
                flushed = self._flush(batch, prepared, stop)
                with self._turn:
                    self._frozen.popleft()
                    self._flushed.append((batch, flushed))
                    self._turn.notify_all()
                self._count_dead_letters()
        except BaseException as error:
            self._fail(error)
        redis_side.join()
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: BaseException) -> None:
        with self._turn:
            self._failure = self._failure or error
            self._turn.notify_all()

    # The Postgres side.

    def _next_frozen(self) -> tuple[FrozenBatch, Prepared | None] | None:
        while True:
            with self._turn:
                if not (self._frozen or self._is_over or self._failure):
                    self._turn.wait(_COUNT_EVERY_S)
                if self._is_over or self._failure is not None:
                    return None
                if self._frozen:
                    return self._frozen[0]
            self._count_dead_letters()
            self._conn.execute("SELECT")  # idle: a server that is gone is noticed, and said

    def _count_dead_letters(self) -> None:
        """For the gauge, if it is time: others retry and drop them too."""
        began = time.monotonic()
        if began < self._count_at:
            return
        counts = self._flusher.count_dead_letters()
        if counts is not None:
            self._metrics.dead_letters_are(counts)
        now = time.monotonic()
        self._count_at = now + max(_COUNT_EVERY_S, (now - began) / _COUNT_SHARE)

    def _flush(self, batch: FrozenBatch, prepared: Prepared | None, stop: Stop) -> Flushed:
        """Tries until the batch is in Postgres; a broken connection or a lost ownership is raised."""
        waiting = _Waiting(Backoff())
        while True:
            started = time.monotonic()
            try:
                flushed = self._flusher.flush(batch, self._patience(waiting), prepared)
            except (HeldByLock, BreakerTripped, LedgerRefused, psycopg.Error) as error:
                self._wait_after(error, waiting, stop)
            else:
                self._went_through(batch, flushed, time.monotonic() - started)
                return flushed

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
                if waiting.timeouts > _TIMEOUTS_OF_WRITES and self._state.postgres_is(False, reason):
                    self._log.warning("postgres makes us wait, and not for a row of a write", reason=reason)
            elif waiting.refusals >= _REFUSALS_BEFORE_RECONNECTING:
                raise error  # read-only, say: behind a new connection may be another server
            elif self._state.postgres_is(False, reason):
                self._log.warning("postgres refuses", reason=reason, sqlstate=error.sqlstate)
        elif isinstance(error, HeldByLock):
            waiting.hold(error.rows, self._config.hold_timeout_s)
            if self._state.held_is(error.write):
                self._log.warning("waiting for a lock", write=error.write, reason=reason)
                self._flusher.say_waiting(reason)
        elif isinstance(error, BreakerTripped):
            if self._state.breaker_is(reason):
                self._log.error("queue paused", reason=reason)
                self._flusher.say_waiting(reason)
        elif self._state.postgres_is(False, reason):
            self._log.error("ledger refused", reason=reason)
        self._metrics.retried(type(error).__name__)
        self._state.progress()
        if self._failure is not None:
            raise self._failure
        pause_s = waiting.backoff.next_s()
        if stop.wait(min(pause_s, _LOCK_PAUSE_S) if isinstance(error, HeldByLock) else pause_s):
            raise OwnershipLost("stopping; the batch stays frozen for the next owner") from error

    def _went_through(self, batch: FrozenBatch, flushed: Flushed, seconds: float) -> None:
        if self._state.postgres_is(True):
            self._log.info("postgres answers")
        if self._state.held_is(None) | self._state.breaker_is(None):
            self._log.info("queue goes on")
            self._flusher.say_waiting(None)
        self._state.progress()
        self._metrics.postgres_is(True)
        self._metrics.batch(len(batch.messages), seconds)
        self._metrics.lag(self._queue.now_us(), [m.seq for m in batch.messages if m.seq is not None])
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
                batch=batch.id,
                retries=len(flushed.passed_over),
                dead_letters=flushed.passed_over[:20],
            )
        self._log.info(
            "flushed",
            batch=batch.id,
            writes=len(batch.messages),
            rows=sum(flushed.rows.values()),
            rejected=len(rejected),
            seconds=round(seconds, 4),
        )

    # The Redis side.

    def _redis_side(self, stop: Stop, lost: Stop) -> None:
        try:
            while self._failure is None:
                if lost.is_set():
                    raise OwnershipLost("the lease was not renewed in time")
                self._state.progress()
                if self._acknowledge_one():
                    continue
                if stop.is_set():
                    if self._end_if_idle():
                        return
                    self._wait_for_turn(_BLOCK_S)
                elif self._queue.frozen >= self._config.max_in_flight:
                    self._wait_for_turn(_BLOCK_S)
                else:
                    self._claim_one(stop)
        except BaseException as error:
            self._fail(error)

    def _end_if_idle(self) -> bool:
        with self._turn:
            self._is_over = not self._frozen and not self._flushed
            self._turn.notify_all()
            return self._is_over

    def _acknowledge_one(self) -> bool:
        with self._turn:
            if not self._flushed:
                return False
            batch, flushed = self._flushed[0]
        buried = {b.position for b in flushed.buried}
        self._queue.settle(settlements(batch.messages, buried))
        self._queue.acknowledge(batch, flushed.last_batch, _rejections(batch, flushed))
        with self._turn:
            self._flushed.popleft()
        return True

    def _claim_one(self, stop: Stop) -> None:
        c = self._config
        claimed = self._queue.claim(c.batch_size, c.batch_bytes, c.write_delay_s)
        if isinstance(claimed, FrozenBatch):
            self._look_again_s = _LOOK_AGAIN_S
            prepared = prepare(claimed, self._flusher.catalog)
            with self._turn:
                self._frozen.append((claimed, prepared))
                self._turn.notify_all()
        elif claimed > 0:
            self._wait_for_turn(min(claimed, _BLOCK_S))
        elif self._queue.frozen:
            self._wait_for_turn(self._look_again_s)
            self._look_again_s = min(self._look_again_s * 2, _LOOK_AGAIN_LONGEST_S)
        else:
            try:
                self._queue.peek(_BLOCK_S)
            except OutOfMemoryError:
                stop.wait(_POLL_FULL_S)

    def _wait_for_turn(self, timeout_s: float) -> None:
        with self._turn:
            if not self._flushed and self._failure is None:
                self._turn.wait(timeout_s)


def _rejections(batch: FrozenBatch, flushed: Flushed) -> list[Rejection]:
    """What receipts must hear; those of a rolled back history cannot tell their outcome anyway."""
    found = []
    for buried in flushed.buried:
        seq = batch.messages[buried.position].seq
        if buried.kind == "rejected" and seq is not None:
            found.append(Rejection(seq, buried.reason, buried.sqlstate))
    return found
