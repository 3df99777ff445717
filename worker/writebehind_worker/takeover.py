"""Becoming the owner: after a clean stop, a kill, a lost reply or a server that went back in time alike.

lease in Redis ─▶ epoch in the ledger ─▶ epoch in Redis ─▶ compare ─▶ the frozen batches, oldest first
                                                             │
                          a server went back: adopt ledger ──┴─▶ new generation in Redis
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .frozen import FrozenBatch, count_applied_before
from .history import History, Holdings, LedgerRow, committed, compare
from .ledger import Ledger
from .owned_queue import OwnedQueue


@dataclass(frozen=True, slots=True)
class Takeover:
    """What the new owner starts with; ``found`` is what Redis held before the two were made to agree.

    ``committed``: ids of those of the ``frozen`` batches that are in Postgres.
    """

    row: LedgerRow
    found: Holdings
    history: History
    frozen: Sequence[FrozenBatch]
    committed: Sequence[int]


def take_over(
    queue: OwnedQueue,
    ledger: Ledger,
    owner: str,
    run_id: str | None,
    progress: Callable[[], None],
    has_moved: Callable[[str, int], bool] = lambda former, since_us: False,
) -> Takeover:
    """Takes the queue over, holding the lease; ``run_id`` names the Redis process that answers.

    ``progress`` is called now and then, where it takes long. ``has_moved`` tells whether the former process
    has handed all that it held to this one, so that nothing of it was lost since a time in µs.
    """
    row = ledger.take(owner, queue.epoch_floor())
    holdings = queue.own(row.epoch, row.applied_seq)
    former = row.redis_run_id
    moved = former not in (None, run_id) and has_moved(str(former), row.applied_seq)
    history = compare(replace(row, redis_run_id=run_id) if moved else row, holdings, run_id)
    done = committed(row.recent_batches, holdings.inflight)
    frozen = []
    for batch in holdings.inflight:
        frozen.append(queue.read_frozen(batch, holdings.clock_seq))
        progress()
    if history.is_plain and row.redis_run_id == run_id:
        return Takeover(row, holdings, history, frozen, done)
    left = frozen[len(done) :]
    adopted = _adopt(queue, ledger, row, holdings, history, left, run_id, progress)
    return Takeover(adopted, holdings, history, frozen, done)


def _adopt(
    queue: OwnedQueue,
    ledger: Ledger,
    row: LedgerRow,
    holdings: Holdings,
    history: History,
    left: Sequence[FrozenBatch],
    run_id: str | None,
    progress: Callable[[], None],
) -> LedgerRow:
    """Settles on one history in both servers. The ledger first: killed in between, we find the same again.

    ``left``: the frozen batches that the ledger does not know to be committed.
    """
    generation: int | None = None
    rollback_seq, rollback_items = row.rollback_seq, row.rollback_items
    if history.must_count:  # how far, nothing else tells
        bodies = [item for b in left for item in b.items]
        rollback_seq = row.applied_seq
        rollback_items, is_all = count_applied_before(bodies, rollback_seq, holdings.clock_seq)
        if not is_all and (waiting := queue.count_applied_before(rollback_seq, holdings.clock_seq, progress)):
            rollback_items = len(bodies) + waiting
    elif history.redis_is_new:
        rollback_seq = rollback_items = 0
    if history.receipts_are_void:
        generation = max(holdings.now_us, holdings.generation + 1)
    served = [holdings.generation] if generation is None else [holdings.generation, generation]
    ledger.adopt(row.epoch, served, run_id, rollback_seq, rollback_items)
    last = row.recent_batches[-1] if row.recent_batches else 0
    queue.own(row.epoch, row.applied_seq, generation=generation, acked=last)
    return replace(row, rollback_seq=rollback_seq, rollback_items=rollback_items)
