"""What `writebehind doctor` finds. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Severity = Literal["ok", "note", "warning", "fatal"]
"""From least to worst.

note: worth knowing, nothing to mend. warning: the worker works, but writes are slower, are refused, or could
be lost. fatal: as things are, `writebehind run` brings nothing to Postgres: it refuses to start, or waits.
"""

SEVERITIES: tuple[Severity, ...] = get_args(Severity)

Check = Literal[
    "redis.connection", "redis.version", "redis.cluster", "redis.role", "redis.rights", "redis.changes",
    "redis.eviction", "redis.persistence", "redis.appendfsync", "redis.write_errors",
    "redis.memory", "redis.replicas", "redis.clients", "redis.timeout", "redis.socket_timeout",
    "redis.division",
    "postgres.connection", "postgres.version", "postgres.hosts", "postgres.pooler",
    "postgres.writable", "postgres.ledger",
    "postgres.ledger_rights", "postgres.owner_role", "postgres.search_path", "postgres.temporary",
    "postgres.connections",
    "postgres.durability", "postgres.synchronous_commit", "postgres.encoding",
    "postgres.statement_timeout", "postgres.transaction_timeout",
    "postgres.idle_in_transaction_session_timeout", "postgres.idle_session_timeout",
    "tables.named", "tables.rights", "tables.primary_keys", "tables.conflict_targets",
    "tables.partitions", "tables.triggers", "tables.rules", "tables.row_security", "tables.sequences",
    "tables.generated_columns", "tables.cascades", "tables.references", "tables.unlogged",
    "clock.redis", "clock.postgres",
]  # fmt: skip
"""What is looked at; docs/doctor.md has a line for each."""

CHECKS: tuple[Check, ...] = get_args(Check)

_CLOCK_DIFFERENCE_S = 1.0
_MOST_NAMES = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One look: what is so, and where it should not be, how to mend it."""

    check: Check
    severity: Severity
    what: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class ClockReading:
    """A server's clock, seconds ahead of this host's; ``error_s`` is what the round trip leaves open."""

    ahead_s: float
    error_s: float


def worst(findings: Iterable[Finding]) -> Severity:
    """The worst severity there is."""
    return max((finding.severity for finding in findings), key=SEVERITIES.index, default="ok")


def exit_code(findings: Iterable[Finding]) -> int:
    """0: nothing worse than a note. 1: warnings. 2: something fatal."""
    return max(0, SEVERITIES.index(worst(findings)) - 1)


def names(them: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = len(them) - _MOST_NAMES
    return ", ".join(them[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def duration(seconds: float) -> str:
    """For people."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s".replace(".0 s", " s")


def size(count: float) -> str:
    """So many bytes, for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def clock_findings(redis: ClockReading | None, postgres: ClockReading | None) -> Iterator[Finding]:
    """Whether the servers' clocks agree with this host's; None: that server could not be asked."""
    yield _clock(
        "clock.redis", "Redis", redis, "ages and lag in `status` and in the metrics are wrong by that"
    )
    yield _clock("clock.postgres", "Postgres", postgres, "times in dead letters and logs do not fit together")


def _clock(check: Check, server: str, reading: ClockReading | None, effect: str) -> Finding:
    if reading is None:
        return Finding(check, "note", f"not told: {server} could not be asked for the time")
    away_s = abs(reading.ahead_s)
    if away_s - reading.error_s < _CLOCK_DIFFERENCE_S:
        return Finding(check, "ok", f"{server} and this host differ by {duration(away_s)} at most")
    direction = "ahead of" if reading.ahead_s > 0 else "behind"
    return Finding(
        check,
        "warning",
        f"the clock of {server} is {duration(away_s)} {direction} this host's: {effect}. The order of writes "
        "is not touched: Redis alone gives it",
        "synchronise the clocks of the hosts (NTP: chrony, systemd-timesyncd)",
    )
