"""Comparing what Redis holds with what the ledger says: has either gone back in time? No I/O."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """The ledger of one queue, as it stands in Postgres. Columns as in schema.sql."""

    epoch: int
    recent_batches: Sequence[int]
    applied_seq: int
    generations: Sequence[int]
    redis_run_id: str | None
    rollback_seq: int
    rollback_items: int


@dataclass(frozen=True, slots=True)
class Holdings:
    """What Redis held when the owner installed its epoch; ``now_us`` and ``clock_seq`` in µs."""

    now_us: int
    clock_seq: int
    generation: int
    applied: int
    acked: int
    inflight: Sequence[int]


@dataclass(frozen=True, slots=True)
class History:
    """What a new owner has found.

    ``redis_restarted``: another process answers; it may have lost writes that we never saw.
    ``redis_is_new``: its history is unknown to the ledger, so nothing in it has been applied.
    """

    redis_restarted: bool = False
    redis_is_new: bool = False
    redis_went_back: bool = False
    postgres_went_back: bool = False

    @property
    def must_count(self) -> bool:
        """Items in Redis may have been applied before."""
        return self.redis_went_back or self.redis_restarted

    @property
    def receipts_are_void(self) -> bool:
        """What earlier receipts stand for may be gone: a new generation begins."""
        return self.redis_went_back or self.redis_restarted or self.postgres_went_back

    @property
    def is_plain(self) -> bool:
        """Nothing has happened but perhaps a change of owner."""
        return self == History()


def committed(recent: Container[int], inflight: Sequence[int]) -> Sequence[int]:
    """Those of the frozen batches that are in Postgres, by the batches that the ledger remembers.

    They get there in the order in which they were frozen: what comes before one of those is there too, though
    the ledger may have forgotten it since. Were it recorded once more, the ledger would forget the next one.
    """
    known = [i for i, batch in enumerate(inflight, start=1) if batch in recent]
    return inflight[: known[-1] if known else 0]


def compare(ledger: LedgerRow, redis: Holdings, run_id: str | None) -> History:
    """Batches are committed and acknowledged in one order, so the last of each must be the same one."""
    last = ledger.recent_batches[-1] if ledger.recent_batches else 0
    those = committed(ledger.recent_batches, redis.inflight)
    known = those[-1] if those else redis.acked
    if redis.generation not in ledger.generations:
        if known == 0:
            return History(redis_is_new=True)
        # An owner has served it: Postgres has failed over, and forgotten what had been noticed of Redis.
        forgot = known > last
        return History(redis_restarted=forgot, redis_went_back=not forgot, postgres_went_back=forgot)
    return History(
        redis_restarted=None not in (run_id, ledger.redis_run_id) and run_id != ledger.redis_run_id,
        redis_went_back=known < last or redis.generation != ledger.generations[-1],
        postgres_went_back=known > last,
    )
