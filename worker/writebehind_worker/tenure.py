"""One ownership of the queue: threads for Redis and one for Postgres, a few frozen batches between.

    claiming thread              reading thread                        Postgres thread (the caller's)
    claim ─▶ [ claimed: batches ] ─▶ digest ─▶ [ waiting: units of batches ] ─▶ flush, until it is in ─╮
                                                                                                       │
             acknowledge ◀─ settle ◀─ announce ◀─ [ flushed ] ◀────────────────────────────────────────╯
                                    finishing thread

Batches are flushed, settled and acknowledged in the order in which they were frozen. A batch joins the last
unit that waits where that pays: rows that get many writes go to Postgres once. Whatever goes wrong on any
side ends the tenure: the next one begins by reading both servers again.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from redis.exceptions import OutOfMemoryError
from structlog.typing import FilteringBoundLogger

from writebehind.receipt import Rejection

from .catalog import Catalog
from .config import Config
from .digest import digest
from .errors import OwnershipLost
from .flush import Flushed, Flusher
from .frozen import FrozenBatch
from .ledger import RECENT
from .metrics import Metrics
from .owned_queue import SETTLED_AT_ONCE, OwnedQueue
from .pause import Pause
from .persist import Persister, Stop
from .prepared import prepare
from .publisher import Publisher
from .settle import Settlement, still_shown
from .state import WorkerState
from .unit import Unit

BLOCK_S = 1.0  # an idle owner looks at its lease, and at the stop signal, so often
_POLL_PAUSED_S = 0.2
_POLL_FULL_S = 0.1  # a full Redis refuses to block
_IDLE_S = 1.0  # a thread that waits for another one says so often that it lives
TOUCH_EVERY_S = 5.0  # a server's `timeout` closes connections that are silent for longer
_MOST_CLAIMED = 2  # batches: one is read while the next one comes
_UNITS = 3  # by their batches: one grows while one is in Postgres and one is settled
_MOST_OF_ONE = 2 / 3  # of the bytes in flight: on two cores hot rows were 1.07 x as fast as with a third
_MOST_JOINED = 256 << 20  # bytes: a parameter of Postgres holds 1 GB, and rows grow as JSON
MANY_ENTRIES = 100  # to settle them takes Redis longer than to be asked once more
_MOST_EARLY = 1.5  # of a batch's way to here: in a longer COMMIT, too many writes come after its claim
_MOST_FROZEN = RECENT * 3 // 4  # batches, however small: the ledger must remember all of them


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
        publisher: Publisher,
        log: FilteringBoundLogger,
    ) -> None:
        self._config, self._queue, self._flusher = config, queue, flusher
        self._state, self._metrics, self._log = state, metrics, log
        self._persister = Persister(
            config, flusher, conn, state, metrics, log, queue.now_us, lambda: self._failure
        )
        self._publisher = publisher
        self._most_bytes = config.max_in_flight * config.batch_bytes
        self._turn = threading.Lock()
        # One for each side: woken by all that happens, four threads look in vain most of the time.
        self._to_claim, self._to_read, self._to_flush, self._to_finish = self._sides = [
            threading.Condition(self._turn) for _ in range(4)
        ]
        self._claimed: deque[FrozenBatch] = deque()  # the first one is being read
        now = time.monotonic()
        self._waiting: deque[Unit] = deque(Unit([batch], since=now) for batch in recovered)
        self._flushing: Unit | None = None
        self._is_committing = False  # what is being flushed, and the next batch may come meanwhile
        self._commit_s = math.inf  # the last COMMIT
        self._claim_began = self._ahead_s = 0.0  # from the last claim until its batch had been read
        self._flushed: deque[tuple[Unit, Flushed]] = deque()
        self._has_backlog = False  # the last claim was full, so that another one is worth it at once ...
        self._is_full = False  # ... but for want of room
        self._claims = self._reads = self._flushes = True  # False: nothing more will come from there
        self._failure: BaseException | None = None
        self._touch_at = time.monotonic() + TOUCH_EVERY_S
        self._look_at = 0.0  # whether Postgres is there, where nothing else tells

    def serve(self, stop: Stop, lost: Stop) -> None:
        """Returns when ``stop`` is set and what was frozen is acknowledged; raises what ended the tenure."""
        sides = (("claim", self._claim, stop, lost), ("read", self._read), ("finish", self._finish))
        threads = [
            threading.Thread(target=self._side, args=(name, side, *given), name=name, daemon=True)
            for name, side, *given in sides
        ]
        for thread in threads:
            thread.start()
        self._guarded(self._flush, stop)
        for thread in threads:
            while thread.is_alive():
                thread.join(_IDLE_S)
                self._state.progress()
        if self._failure is not None:
            raise self._failure

    def _side(self, name: str, side: Callable[..., None], *given: Stop) -> None:
        self._state.progress(name)
        self._guarded(side, *given)
        self._state.ended(name)

    def _guarded(self, side: Callable[..., None], *given: Stop) -> None:
        try:
            side(*given)
        except BaseException as error:
            self._state.role_is("starting")  # the other threads may take a while to end
            with self._turn:
                self._failure = self._failure or error
                for waiting in self._sides:
                    waiting.notify()

    # The Postgres side.

    def _flush(self, stop: Stop) -> None:
        self._flusher.around_commit = self._commit
        self._persister.count_dead_letters()
        while (unit := self._next_unit()) is not None:
            for part, flushed in self._persister.flush(unit, stop):
                with self._turn:
                    self._flushed.append((part, flushed))
                    self._to_finish.notify()
            with self._turn:
                self._flushing = None
                self._to_claim.notify()
            self._persister.count_dead_letters(is_busy=True)
            self._look_at = time.monotonic() + _IDLE_S
        with self._turn:
            self._flushes = False
            self._to_finish.notify()

    @contextmanager
    def _commit(self) -> Iterator[None]:
        """Meanwhile the next batch may come, unless it would be here long before: it would be the smaller."""
        began = time.monotonic()
        with self._turn:
            self._is_committing = self._commit_s < _MOST_EARLY * self._ahead_s
            if self._is_committing:
                self._to_claim.notify()
        try:
            yield
        finally:
            with self._turn:
                self._is_committing, self._commit_s = False, time.monotonic() - began

    def _next_unit(self) -> Unit | None:
        while True:
            self._state.progress()
            with self._turn:
                if self._reads and not self._is_ready() and self._failure is None:
                    is_empty = not (self._waiting or self._claimed)
                    self._to_flush.wait(max(0, self._look_at - time.monotonic()) if is_empty else _IDLE_S)
                if self._failure is not None or not (self._waiting or self._reads):
                    return None
                if self._is_ready():
                    self._flushing = self._waiting.popleft()
                    self._metrics.stages.took("wait", time.monotonic() - self._flushing.since)
                    return self._flushing
                is_idle = not (self._waiting or self._claimed) and time.monotonic() >= self._look_at
            if is_idle:
                self._persister.idle()
                self._look_at = time.monotonic() + _IDLE_S

    def _is_ready(self) -> bool:
        """Whether there is a unit that need not wait for more batches."""
        return len(self._waiting) > (self._comes_more() and self._grows())

    def _comes_more(self) -> bool:
        return (self._has_backlog and not self._is_full) or len(self._claimed) > 0

    def _grows(self) -> bool:
        """Whether more batches should join the last unit that waits; it leaves room for others."""
        if not self._waiting:
            return False
        last = self._waiting[-1]
        one_more = last.size_bytes + last.batches[-1].size_bytes  # if it is like the last one
        most_bytes = min(self._most_bytes * _MOST_OF_ONE, _MOST_JOINED)
        is_small = one_more <= most_bytes and len(last.batches) < _MOST_FROZEN // _UNITS
        return is_small and last.pays

    # Between: what can be found out before its transaction, while another one is in Postgres.

    def _read(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._take_in(batch)
        with self._turn:
            self._reads = False
            self._to_flush.notify()

    def _take_in(self, batch: FrozenBatch) -> None:
        """Reads it: then it waits for Postgres, with the last unit if it has joined that."""
        with self._metrics.stages.time("read"):
            unit = _read(batch, self._flusher.catalog)
            with self._turn:
                has_joined = self._grows() and self._waiting[-1].add(unit)
            if not (has_joined or unit.pays):  # nothing will join it either
                unit.close(self._flusher.may_copy)
        unit.since = time.monotonic()
        self._ahead_s = unit.since - self._claim_began
        with self._turn:
            if not has_joined:
                self._waiting.append(unit)
            if self._claimed and self._claimed[0] is batch:
                self._claimed.popleft()
                self._to_claim.notify()
            self._to_flush.notify()

    def _next_batch(self) -> FrozenBatch | None:
        with self._turn:
            while self._failure is None and self._claims and not self._claimed:
                self._to_read.wait(_IDLE_S)
                self._state.progress("read")
            self._state.progress("read")
            return self._claimed[0] if self._claimed and self._failure is None else None

    # The Redis sides.

    def _finish(self) -> None:
        while those := self._next_flushed():
            entries: list[Settlement] = []
            rejections: list[Rejection] = []
            for unit, flushed in those:
                entries += unit.settlements({b.position for b in flushed.buried})
                rejections += _rejections(unit, flushed)
            with self._turn:
                later = [unit.latest for unit in (self._flushing, *self._waiting) if unit is not None]
            shown = list(still_shown(entries, later))
            messages = [message for unit, _ in those for message in unit.changes]
            applied_seq = max(unit.applied_seq for unit, _ in those)
            if len(shown) > MANY_ENTRIES and not (messages or rejections):  # these are told first
                with self._metrics.stages.time("announce"):
                    self._queue.announce(applied_seq)
            if messages or len(shown) > SETTLED_AT_ONCE:
                with self._metrics.stages.time("settle"):
                    self._queue.settle(shown)
                self._publisher.publish(self._queue, messages)
                shown = []
            ids = [id for unit, _ in those for id in unit.ids]
            with self._metrics.stages.time("acknowledge"):
                self._queue.acknowledge(ids, applied_seq, those[-1][1].last_batch, rejections, shown)
            with self._turn:
                for _ in those:
                    self._flushed.popleft()
                self._to_claim.notify()

    def _next_flushed(self) -> Sequence[tuple[Unit, Flushed]]:
        """All that is in Postgres and that Redis does not know yet; empty at the end."""
        with self._turn:
            while self._failure is None and self._flushes and not self._flushed:
                self._to_finish.wait(_IDLE_S)
                self._state.progress("finish")
            self._state.progress("finish")
            return [] if self._failure is not None else list(self._flushed)

    def _claim(self, stop: Stop, lost: Stop) -> None:
        while self._failure is None and not stop.is_set():
            if lost.is_set():
                raise OwnershipLost("the lease was not renewed in time")
            self._state.progress("claim")
            if self._may_claim():
                self._claim_one(stop)
        with self._turn:
            self._claims = self._has_backlog = False
            self._to_read.notify()
            self._to_flush.notify()

    def _may_claim(self) -> bool:
        """Waits for it; not too long."""
        with self._turn:
            if not self._wait_until(lambda: len(self._claimed) < _MOST_CLAIMED):
                return False
            self._is_full = not self._has_room()  # then what waits need not wait for more
            self._to_flush.notify()
            if not self._wait_until(self._has_room):
                return False
            self._is_full = False
            return True

    def _has_room(self) -> bool:
        """Whether one more batch may be frozen: for a few units, and within the bytes of as many batches.

        Without a backlog one is frozen when Postgres can have it at once, or has but its COMMIT to do: it is
        the larger, the longer Postgres was busy, and the cores are spared many small ones.
        """
        if self._queue.frozen >= _MOST_FROZEN:
            return False
        if not self._has_backlog:
            is_busy = self._flushing is not None and not self._is_committing
            return not (self._claimed or self._waiting or is_busy)
        most = self._config.max_in_flight
        if self._queue.frozen < most:
            return True
        units = [*self._waiting, *(unit for unit, _ in self._flushed)]
        units += [self._flushing] if self._flushing is not None else []
        size = sum(u.size_bytes for u in units) + sum(b.size_bytes for b in self._claimed)
        has_place = len(units) + len(self._claimed) < most or self._grows()
        return has_place and size < self._most_bytes

    def _claim_one(self, stop: Stop) -> None:
        c = self._config
        began = time.monotonic()
        claimed = self._queue.claim(c.batch_size, c.batch_bytes, c.write_delay_s)
        if isinstance(claimed, FrozenBatch):
            self._metrics.stages.took("claim", time.monotonic() - began)
            self._claim_began = began
            with self._turn:
                self._has_backlog = _is_full(claimed, c)
                is_read_here = not (self._has_backlog or self._claimed or self._waiting)
                if not is_read_here:
                    self._claimed.append(claimed)
                    self._to_read.notify()
            if is_read_here:  # there is nothing to claim meanwhile: to wake up the other thread takes longer
                self._take_in(claimed)
            self._pause_is(None)
            return
        with self._turn:
            self._has_backlog = False
            self._to_flush.notify()
        self._pause_is(claimed if isinstance(claimed, Pause) else None)
        self._keep_alive()
        if isinstance(claimed, Pause):
            self._wait_for_turn(_POLL_PAUSED_S)
        elif claimed > 0:
            self._wait_for_turn(min(claimed, BLOCK_S))
        else:
            try:
                self._queue.peek(BLOCK_S)
            except OutOfMemoryError:
                stop.wait(_POLL_FULL_S)

    def _keep_alive(self) -> None:
        if self._queue.frozen == 0 and time.monotonic() >= self._touch_at:
            self._queue.keep_alive()
            self._touch_at = time.monotonic() + TOUCH_EVERY_S

    def _pause_is(self, pause: Pause | None) -> None:
        if self._state.paused_is(None if pause is None else str(pause)):
            self._metrics.held_is("paused", pause is not None)
            if pause is not None:
                self._log.warning(f"queue paused by {pause.by}", reason=pause.reason)
            else:
                self._log.info("queue resumed")

    def _wait_until(self, is_so: Callable[[], bool]) -> bool:
        """Whether it has come to be so in a while. The caller has the turn."""
        return self._to_claim.wait_for(lambda: self._failure is not None or is_so(), BLOCK_S) and is_so()

    def _wait_for_turn(self, timeout_s: float) -> None:
        with self._turn:
            if self._failure is None:
                self._to_claim.wait(timeout_s)


def _read(batch: FrozenBatch, catalog: Catalog) -> Unit:
    found = digest(batch, catalog)
    return Unit([batch], found, prepare(batch, catalog) if found is None else None)


def _is_full(batch: FrozenBatch, config: Config) -> bool:
    """Whether it has left something behind."""
    return len(batch.items) == config.batch_size or batch.size_bytes > config.batch_bytes // 2


def _rejections(unit: Unit, flushed: Flushed) -> list[Rejection]:
    """What receipts must hear; those of a rolled back history cannot tell their outcome anyway."""
    found: list[Rejection] = []
    if not flushed.buried:
        return found
    seqs = {message.position: message.seq for message in unit.batches[0].messages}
    for buried in flushed.buried:
        seq = seqs[buried.position]
        if buried.kind == "rejected" and seq is not None:
            found.append(Rejection(seq, buried.reason, buried.sqlstate))
    return found
