"""Exponential backoff with jitter. No I/O."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Delays that double from ``first_s`` to ``longest_s``, each drawn from its upper half.

    The jitter keeps workers that lost a server together from coming back together; the lower bound of
    a half keeps the delays growing.
    """

    first_s: float = 0.05
    longest_s: float = 5.0
    attempts: int = 0

    def next_s(self, draw: float | None = None) -> float:
        """The next delay in seconds; ``draw`` in [0, 1) stands for chance in tests."""
        full = min(self.longest_s, self.first_s * 2.0 ** min(self.attempts, 30))
        self.attempts += 1
        return full * (0.5 + 0.5 * (random.random() if draw is None else draw))  # noqa: S311 — no secret

    def reset(self) -> None:
        """After a success."""
        self.attempts = 0
