"""Is my data safe, and how far behind is it? What there is to say, in sentences. No I/O.

The status page and `writebehind top` show these very sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from .figures import Backlog
from .quantities import duration

Level = Literal["good", "notice", "trouble"]
"""notice: somebody should know. trouble: nothing is written, or what is accepted is in danger."""

_LATE_S = 10.0
"""The oldest write waits longer than this, and nothing else explains it: the worker is behind."""

_STALE_S = 5.0
_SAID_BY_THE_ROLE = "the worker is "
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
    the figures. ``risks`` is None where nobody has looked. ``reasons``: why the worker is not ready.
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
    delay: str | None = None
    breaker: str | None = None
    paused: str | None = None
    risks: frozenset[str] | None = None
    backlog: Backlog | None = None
    dead_letters: int | None = None
    writes_per_s: float | None = None
    reasons: Sequence[str] = ()


def findings(now: Situation) -> list[Finding]:
    """All there is to say, what matters most first; never empty. The first one answers the two questions."""
    found = [*_of_the_worker(now)]
    dead = _dead_letters(now)
    risks = [*_risks(now)]
    if not found:
        goes_in = _goes_in(now)
        if dead is not None and goes_in.level != "trouble" and not risks:
            goes_in, dead = Finding("notice", f"{goes_in.text} {dead.text}"), None
        found.append(goes_in)
    found += [*risks, *([dead] if dead is not None else [])]
    found += [Finding("notice", f"Not ready: {reason}") for reason in now.reasons if _is_news(reason, found)]
    found.sort(key=lambda finding: ("trouble", "notice", "good").index(finding.level))
    return found


def _is_news(reason: str, found: Sequence[Finding]) -> bool:
    return not reason.startswith(_SAID_BY_THE_ROLE) and not any(reason in finding.text for finding in found)


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
    elif now.role == "starting" or (now.role == "owner" and not now.is_owner):
        yield Finding("notice", f"This worker asks for the queue; who owns it is not known.{_waiting(now)}")
    elif now.breaker is not None:
        yield Finding("trouble", f"Nothing is written: {now.breaker}.{_waiting(now)}")
    elif now.paused is not None:
        yield Finding("notice", f"{_sentence(now.paused)}{_waiting(now)}")
    elif now.held is not None:
        yield Finding(
            "notice", f"A write waits for somebody's lock, and all behind it: {now.held}.{_waiting(now)}"
        )
    elif now.delay is not None:
        yield Finding("notice", f"The oldest batch waits for {now.delay}.{_waiting(now)}")


def _risks(now: Situation) -> Iterator[Finding]:
    for risk, text in _RISKS.items():
        if risk in (now.risks or ()):
            yield Finding("notice" if risk == "memory" else "trouble", _sentence(text))


def _dead_letters(now: Situation) -> Finding | None:
    if not now.dead_letters:
        return None
    open_ones = "1 dead letter is" if now.dead_letters == 1 else f"{now.dead_letters:,} dead letters are"
    return Finding("notice", f"{open_ones} open (writebehind dead list).")


def _goes_in(now: Situation) -> Finding:
    """Nothing keeps this worker from its work, or another one does it."""
    if not now.is_owner:
        return Finding("good", f"Standby: {now.owner or 'another worker'} owns the queue and writes.")
    backlog = now.backlog
    if backlog is not None and backlog.oldest_age_s > _LATE_S:
        pace = f"{now.writes_per_s:,.0f} a second go in" if now.writes_per_s else "none goes in"
        return Finding("notice", f"Behind by {duration(backlog.oldest_age_s)}: {_count(backlog)}; {pace}.")
    is_well = not (now.risks or now.dead_letters)
    begin = "All is well" if is_well else "Writes go in"
    if backlog is None:
        return Finding("good", f"{begin}: this worker has just taken the queue.")
    if not backlog.waiting:
        rest = ", all writes are in Postgres" if is_well else ""
        return Finding("good", f"{begin}: nothing waits{rest}.")
    age = duration(backlog.oldest_age_s)
    count = _count(backlog) if is_well else _count(backlog, "")
    return Finding("good", f"{begin}: {count}, the oldest for {age}.")


def _waiting(now: Situation) -> str:
    """How much waits, as a sentence more; that it is safe only where somebody has looked."""
    if now.backlog is None:
        return " Writes wait in Redis."
    if not now.backlog.waiting:
        return " No writes wait."
    safely = " safely" if now.risks is not None and not now.risks else ""
    age = duration(now.backlog.oldest_age_s)
    return f" {_count(now.backlog)}{safely} in Redis, the oldest for {age}."


def _count(backlog: Backlog, noun: str = " write") -> str:
    if backlog.waiting == 1:
        return f"1{noun} waits"
    return f"{backlog.waiting:,}{noun and noun + 's'} wait"


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
