"""What a run says of itself: the live line, the last line, and the violations."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import get_args

from .checker import Verdict
from .model import Kind

_MOST_SHOWN = 20
_PLAIN_EVERY_S = 10.0
_FAULTS = (
    "kills", "pauses", "restarts", "backends terminated", "links cut", "links delayed", "links half-open",
    "replies dropped", "times read-only", "times full", "queue pauses", "failovers", "slots moved",
    "reshards", "moves",
)  # fmt: skip
_ALWAYS: tuple[Kind, ...] = ("lost", "repeated", "out of order")


def last_line(counts: Counter[str], violations: Counter[str]) -> str:
    """The whole run in numbers. Kinds of violations that did not occur are named only if they always are."""
    done = [f"{counts['writes']:,} writes"]
    done += [f"{counts[name]:,} {name}" for name in _FAULTS if counts[name]]
    kinds = [kind for kind in get_args(Kind) if kind in _ALWAYS or violations[kind]]
    wrong = [f"{violations[kind]:,} {kind}" for kind in kinds]
    return f"chaos: {', '.join(done)}: {', '.join(wrong)}"


def checked_line(verdict: Verdict) -> str:
    """What a round's check has looked at."""
    names = ("writes", "versions", "groups", "dead letters", "reads", "cache entries")
    looked = ", ".join(f"{verdict.counts[name]:,} {name}" for name in names)
    ways = ", ".join(f"{verdict.counts[name]:,} {name}" for name in ("at once", "write by write"))
    unknown = f"{verdict.counts['unknown']} calls whose producer never knew the outcome"
    return f"checked {looked}; {unknown}; transactions: {ways}"


def violation_lines(verdict: Verdict) -> Sequence[str]:
    """The first few of each kind."""
    shown: Counter[str] = Counter()
    lines = []
    for violation in verdict.violations:
        shown[violation.kind] += 1
        if shown[violation.kind] <= _MOST_SHOWN:
            lines.append(f"  {violation}")
    return lines + [
        f"  ... and {n - _MOST_SHOWN} more: {kind}" for kind, n in shown.items() if n > _MOST_SHOWN
    ]


class LiveLine:
    """One line that changes, on a terminal; elsewhere a line now and then."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._told_at = time.monotonic()

    def show(self, text: str) -> None:
        if self._is_terminal:
            print(f"\r\x1b[K{text}", end="", flush=True)
        elif time.monotonic() - self._told_at > _PLAIN_EVERY_S:
            self._told_at = time.monotonic()
            print(text, flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        print(f"\r\x1b[K{text}" if self._is_terminal else text, flush=True)
