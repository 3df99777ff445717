"""Is my data safe, and how far behind is it? What there is to say, in sentences. No I/O.

The status page and `writebehind top` show these very sentences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .figures import Backlog

Level = Literal["good", "notice", "trouble"]
"""notice: somebody should know. trouble: nothing is written, or what is accepted is in danger."""

_LATE_S = 10.0
"""The oldest write waits longer than this, and nothing else explains it: the worker is behind."""

_STALE_S = 5.0
_RISKS = {
    "eviction": "what waits in Redis is in danger: when full it evicts the queue (maxmemory-policy)",
    "persistence": "what waits in Redis is not on disk (appendonly is off): a restart would lose it",
    "write_error": "Redis cannot write to its disk: a restart would lose what waits",
    "memory": "Redis' memory is nearly full: soon it refuses new writes",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence; no value of a row, no password."""

    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class Situation:
    """What a worker knows that matters to its operator; the reasons are for people.

    ``since_s``: seconds that it has been so: of ``redis_up``, ``postgres_up``, ``role`` and so on.
    ``stalled_s``: for so long the loop has not come round, though it should have. ``silent_s``: so old are
    the figures. ``risks`` is None where nobody has looked.
    """

    role: str
    owner: str | None = None
    is_owner: bool = False
    redis_up: bool | None = None
    redis_down_s: float = 0
    postgres_up: bool | None = None
    postgres_down_s: float = 0
    stalled_s: float | None = None
    silent_s: float | None = None
    held: str | None = None
    breaker: str | None = None
    paused: str | None = None
    risks: frozenset[str] | None = None
    backlog: Backlog | None = None
    dead_letters: int | None = None
    writes_per_s: float | None = None


def findings(now: Situation) -> list[Finding]:
    """All there is to say, what matters most first; never empty."""
    found = [*_of_the_worker(now), *_of_the_queue(now)]
    if not found:
        found.append(_standby(now) or _all_is_well(now))
    found.sort(key=lambda finding: ("trouble", "notice", "good").index(finding.level))
    return found


def duration(seconds: float) -> str:
    """For people: 0.03 s, 1.2 s, 45 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 10:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, smaller, size in (("d", "h", 86_400), ("h", "min", 3600), ("min", "s", 60)):
        if whole >= size:
            rest = whole % size // {"h": 3600, "min": 60, "s": 1}[smaller]
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def _of_the_worker(now: Situation) -> Iterator[Finding]:
    """Why nothing goes in at all; the first reason explains the others."""
    if now.stalled_s is not None:
        yield Finding(
            "trouble",
            f"The worker is stuck: its loop has not come round for {duration(now.stalled_s)}; restart it."
            f"{_waiting(now)}",
        )
    elif now.silent_s is not None and now.silent_s > _STALE_S:
        yield Finding(
            "trouble", f"These figures are {duration(now.silent_s)} old: the worker's process gets no time."
        )
    elif now.role == "stopping":
        yield Finding("notice", f"This worker is stopping; another one can go on.{_waiting(now)}")
    elif now.redis_up is False:
        yield Finding(
            "trouble",
            f"Redis has not answered for {duration(now.redis_down_s)}: no write is accepted, and those "
            "accepted before wait there.",
        )
    elif now.postgres_up is False:
        yield Finding(
            "trouble", f"Postgres has taken no writes for {duration(now.postgres_down_s)}.{_waiting(now)}"
        )
    elif now.role == "starting":
        yield Finding("notice", "This worker is starting.")
    elif now.breaker is not None:
        yield Finding("trouble", f"Nothing is written: {_sentence(now.breaker)}{_waiting(now)}")
    elif now.paused is not None:
        yield Finding("notice", f"{_sentence(now.paused)}{_waiting(now)}")
    elif now.held is not None:
        yield Finding(
            "notice", f"A write waits for somebody's lock, and all behind it: {now.held}.{_waiting(now)}"
        )
    elif now.role == "owner" and not now.is_owner:
        yield Finding("notice", "This worker asks for the queue again, which it does not own at the moment.")


def _of_the_queue(now: Situation) -> Iterator[Finding]:
    """What there is to say although writes may go in."""
    risks = now.risks or frozenset()
    for risk, text in _RISKS.items():
        if risk in risks:
            yield Finding("notice" if risk == "memory" else "trouble", f"{_sentence(text)}")
    goes_in = now.is_owner and not any((now.breaker, now.paused, now.held, now.stalled_s))
    late = now.backlog
    if goes_in and now.postgres_up and late is not None and late.oldest_age_s > _LATE_S:
        pace = f" {now.writes_per_s:,.0f} a second go in." if now.writes_per_s else " None goes in."
        yield Finding("notice", f"Behind by {duration(late.oldest_age_s)}: {_count(late)}.{pace}")
    if now.dead_letters:
        one = now.dead_letters == 1
        yield Finding(
            "notice",
            f"{now.dead_letters:,} rejected {'write is' if one else 'writes are'} kept as dead "
            f"letter{'' if one else 's'}, to be mended or dropped: see `writebehind dead list`.",
        )


def _standby(now: Situation) -> Finding | None:
    if now.is_owner:
        return None
    return Finding("good", f"Standby: {now.owner or 'another worker'} owns the queue and writes.")


def _all_is_well(now: Situation) -> Finding:
    if now.backlog is None:
        return Finding("good", "All is well: this worker has just taken the queue.")
    if not now.backlog.waiting:
        return Finding("good", "All is well: nothing waits, all writes are in Postgres.")
    age = duration(now.backlog.oldest_age_s)
    return Finding("good", f"All is well: {_count(now.backlog)}, the oldest for {age}.")


def _waiting(now: Situation) -> str:
    """How much waits, as a sentence more; that it is safe only where somebody has looked."""
    if now.backlog is None:
        return " Writes wait in Redis."
    if not now.backlog.waiting:
        return " No writes wait."
    safely = " safely" if now.risks is not None and not now.risks else ""
    age = duration(now.backlog.oldest_age_s)
    return f" {_count(now.backlog)}{safely} in Redis, the oldest for {age}."


def _count(backlog: Backlog) -> str:
    return "1 write waits" if backlog.waiting == 1 else f"{backlog.waiting:,} writes wait"


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
