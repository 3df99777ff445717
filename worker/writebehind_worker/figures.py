"""`Figures`: what the worker has counted and measured, at one moment. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
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
