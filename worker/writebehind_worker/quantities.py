"""How figures are written for people; the script of the status page writes them the same way. No I/O."""

from __future__ import annotations

import math

UNKNOWN = "—"


def count(value: float | None) -> str:
    return UNKNOWN if value is None else f"{_nearest(value):,}"


def rate(value: float | None) -> str:
    """One decimal where it is small."""
    return f"{value:.1f}" if value is not None and 0 < value < 10 else count(value)


def ratio(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2f}"


def duration(seconds: float | None) -> str:
    """0 s, 1.5 ms, 30 ms, 0.25 s, 1.2 s, 45 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds is None:
        return UNKNOWN
    if seconds == 0:
        return "0 s"
    if seconds < 0.1:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{_nearest(seconds * 1000)} ms"
    if seconds < 10:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = _nearest(seconds)
    for unit, size, smaller, part in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def _nearest(value: float) -> int:
    return math.floor(value + 0.5)
