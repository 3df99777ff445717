"""Percentiles of sorted figures."""

from __future__ import annotations

from collections.abc import Sequence


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest that at least so many percent do not exceed."""
    at = -(-len(ordered) * percent // 100)
    return ordered[max(0, min(len(ordered), int(at)) - 1)]
