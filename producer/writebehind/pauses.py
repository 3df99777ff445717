"""How long to wait between two looks. No I/O."""

from __future__ import annotations

from collections.abc import Iterator


def pauses(first_s: float = 0.001, factor: float = 1.25, longest_s: float = 0.05) -> Iterator[float]:
    """Growing pauses between two looks at Redis, in seconds.

    Each is a fifth of what was waited by then, at most: so small a share of the whole time is lost by looking
    late.
    """
    pause = first_s
    while True:
        yield pause
        pause = min(pause * factor, longest_s)
