"""`Figures`: what the worker has counted and measured, at one moment. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MOST_REASONS = 20
"""So many reasons of dead letters are told one by one: those with the most."""

Reason = tuple[str, str]
"""Table and SQLSTATE; ``none`` where Postgres was not asked."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in Redis, and when that was seen: seconds of the monotonic clock."""

    length: int
    frozen_items: int
    frozen_batches: int
    oldest_age_s: float
    seen_at_s: float

    @property
    def waiting(self) -> int:
        """Writes that are not known to be in Postgres."""
        return self.length + self.frozen_items


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """All open ones; ``largest`` has the most frequent reasons, at most `MOST_REASONS` of them."""

    total: int = 0
    reasons: int = 0
    largest: Mapping[Reason, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Figures:
    """Sums since the process began, and the last look at what changes; None where nobody has told."""

    applied: int = 0
    rejected: int = 0
    rows: int = 0
    retries: int = 0
    flushes: int = 0
    flush_s: float = 0.0
    lag: tuple[int, ...] = ()
    """Writes that took at most as long as each of `LAG_BUCKETS_S`; the last one counts all."""
    is_owner: bool = False
    backlog: Backlog | None = None
    dead_letters: DeadLetters | None = None
    risks: frozenset[str] | None = None
    """What endangers the writes that wait in Redis, as seen last: see `redis_risks`."""


def summed(those: Sequence[Figures]) -> Figures:
    """Of several queues together; what is told of a moment, of those that tell it."""
    backlogs = [f.backlog for f in those if f.backlog is not None]
    letters = [f.dead_letters for f in those if f.dead_letters is not None]
    risks = [f.risks for f in those if f.risks is not None]
    largest: dict[Reason, int] = {}
    for told in letters:
        for reason, count in told.largest.items():
            largest[reason] = largest.get(reason, 0) + count
    return Figures(
        applied=sum(f.applied for f in those),
        rejected=sum(f.rejected for f in those),
        rows=sum(f.rows for f in those),
        retries=sum(f.retries for f in those),
        flushes=sum(f.flushes for f in those),
        flush_s=sum(f.flush_s for f in those),
        lag=tuple(map(sum, zip(*(f.lag for f in those if f.lag), strict=True))),
        is_owner=any(f.is_owner for f in those),
        backlog=_backlog(backlogs) if backlogs else None,
        dead_letters=DeadLetters(sum(d.total for d in letters), len(largest), largest) if letters else None,
        risks=frozenset().union(*risks) if risks else None,
    )


def _backlog(those: Sequence[Backlog]) -> Backlog:
    return Backlog(
        sum(b.length for b in those),
        sum(b.frozen_items for b in those),
        sum(b.frozen_batches for b in those),
        max(b.oldest_age_s for b in those),
        min(b.seen_at_s for b in those),
    )
