"""`Overview`: all that the status page and `writebehind top` show, as one JSON document.

Only tables, SQLSTATEs and numbers: no value of a row, no key, no password.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from .course import Course, Rates
from .figures import Figures, Reason
from .findings import Finding, Situation, findings
from .lease import own_name
from .metrics import Metrics
from .sqlstate import condition
from .state import WorkerState
from .version import installed_version

MOST_SHARDS = 16
"""So many are told one by one."""
_DRAWN = 8  # reasons of dead letters that come with their course
_LONGEST = 500  # characters; a producer may name a table as it likes


class ReasonCount(msgspec.Struct, frozen=True):
    """Open dead letters of one table and SQLSTATE (``none``: not given to Postgres), and their course."""

    table: str
    sqlstate: str
    condition: str | None
    count: int
    course: list[float | None] | None = None


class Shard(msgspec.Struct, frozen=True):
    """One that this process owns, or the queue itself, which stays beside them. None: not looked at yet."""

    queue: str
    oldest_age_s: float | None
    waiting: int | None


class Overview(msgspec.Struct, frozen=True):
    """What one worker knows. None: it does not know, for it is not the owner, or a server is away.

    ``findings`` says it in sentences, the most important first. ``role`` is that of `WorkerState`.
    ``course`` has a value for each of the last seconds, the oldest first, by the fields of `Sample`;
    ``recent`` are the rates of the last ten.
    """

    version: str
    queue: str
    process: str
    role: str
    role_for_s: float
    owner: str | None
    epoch: int | None
    findings: list[Finding]
    ready: bool
    reasons: list[str]
    redis_up: bool | None
    postgres_up: bool | None
    held: str | None
    breaker: str | None
    paused: str | None
    redis_risks: list[str] | None
    queue_length: int | None
    frozen_items: int | None
    frozen_batches: int | None
    oldest_age_s: float | None
    applied: int
    rejected: int
    rows: int
    recent: Rates
    dead_letters: int | None
    dead_letter_reasons: int | None
    dead_letters_by_reason: list[ReasonCount]
    course: dict[str, list[float | None]]
    shards_owned: int = 0
    shards: list[Shard] = []
    """Of a queue that has some; the most late ones, if there are more."""

    @property
    def waiting(self) -> int | None:
        """Writes that are not known to be in Postgres."""
        if self.queue_length is None or self.frozen_items is None:
            return None
        return self.queue_length + self.frozen_items


def overview(metrics: Metrics, state: WorkerState, course: Course) -> Overview:
    """Of this moment. Asks no server; takes a millisecond or two."""
    figures, recent = metrics.figures(), course.recent()
    facts = {name: _cut(value) for name, value in state.facts().items()}
    healthy, health = state.health()
    ready, readiness = state.readiness()
    backlog, dead = figures.backlog, figures.dead_letters
    reasons = [_cut(reason) for reason in readiness["reasons"]]
    situation = Situation(
        role=facts["role"],
        owner=facts["owner"],
        is_owner=figures.is_owner,
        redis_up=facts["redis_up"],
        redis_down_s=state.for_s("redis_up"),
        postgres_up=facts["postgres_up"],
        postgres_down_s=state.for_s("postgres_up"),
        stalled_s=None if healthy else health["since_progress_s"],
        silent_s=course.silent_s(time.monotonic()),
        held=facts["held"],
        delay=facts["delay"],
        breaker=facts["breaker"],
        paused=facts["paused"],
        risks=figures.risks,
        backlog=backlog,
        dead_letters=None if dead is None else dead.total,
        writes_per_s=recent.writes_per_s,
        reasons=reasons,
    )
    return Overview(
        version=installed_version(),
        queue=metrics.queue,
        process=own_name(),
        role=facts["role"],
        role_for_s=round(state.for_s("role"), 1),
        owner=facts["owner"],
        epoch=facts["epoch"] if figures.is_owner else None,
        findings=findings(situation),
        ready=ready,
        reasons=reasons,
        redis_up=facts["redis_up"],
        postgres_up=facts["postgres_up"],
        held=facts["held"],
        breaker=facts["breaker"],
        paused=facts["paused"],
        redis_risks=None if figures.risks is None else sorted(figures.risks),
        queue_length=None if backlog is None else backlog.length,
        frozen_items=None if backlog is None else backlog.frozen_items,
        frozen_batches=None if backlog is None else backlog.frozen_batches,
        oldest_age_s=None if backlog is None else round(backlog.oldest_age_s, 3),
        applied=figures.applied,
        rejected=figures.rejected,
        rows=figures.rows,
        recent=recent,
        dead_letters=None if dead is None else dead.total,
        dead_letter_reasons=None if dead is None else dead.reasons,
        dead_letters_by_reason=[] if dead is None else _reasons(dead.largest.items(), course),
        course=course.series(),
        shards_owned=len(shards := _shards(metrics.owned_shards())),
        shards=shards[:MOST_SHARDS],
    )


def _shards(owned: Mapping[str, Figures]) -> list[Shard]:
    """The latest first."""
    backlogs = [(queue, figures.backlog) for queue, figures in sorted(owned.items())]
    found = [
        Shard(_cut(queue), None, None)
        if b is None
        else Shard(_cut(queue), round(b.oldest_age_s, 3), b.waiting)
        for queue, b in backlogs
    ]
    return sorted(found, key=lambda shard: -(shard.oldest_age_s or 0))


def _reasons(counts: Iterable[tuple[Reason, int]], course: Course) -> list[ReasonCount]:
    return [
        ReasonCount(
            table=_cut(reason[0]),
            sqlstate=reason[1],
            condition=condition(reason[1]),
            count=count,
            course=course.series_of(reason) if place < _DRAWN else None,
        )
        for place, (reason, count) in enumerate(counts)
    ]


def _cut(value: Any) -> Any:
    return value[:_LONGEST] if isinstance(value, str) else value
