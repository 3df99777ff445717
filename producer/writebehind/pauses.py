"""How long to wait between two looks. No I/O."""

from __future__ import annotations

from collections.abc import Iterator


def pauses(first_s: float = 0.001, longest_s: float = 0.05) -> Iterator[float]:
    """Growing pauses between two looks at Redis, in seconds."""
    pause = first_s
    while True:
        yield pause
        pause = min(pause * 2, longest_s)
