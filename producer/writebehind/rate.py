"""Rate limits: how many in how long, and what a call is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .names import check_name

MAX_LIMIT = 1_000_000
_MAX_S = 30 * 86_400


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most ``limit`` slots in any ``per`` seconds, counted together by all that use ``name``.

    Attributes:
        name: printable text of at most 256 bytes.
        limit: from 1 to a million; Redis keeps about 100 bytes for each slot that is taken.
        per: seconds, from a millisecond to 30 days.
    """

    name: str
    limit: int
    per: float

    def __post_init__(self) -> None:
        check_name("rate limit", self.name)
        whole(f"the limit of {self.name!r}", self.limit, MAX_LIMIT)
        if (
            isinstance(self.per, bool)
            or not isinstance(self.per, int | float)
            or not 0.001 <= self.per <= _MAX_S
        ):
            raise ValueError(f"{self.name!r}: per must be from 0.001 s to 30 days, not {self.per!r}")


class RateResult(NamedTuple):
    """What the limiter said.

    ``remaining``: slots that were left then. ``retry_after``: seconds until a call like this is let in, if no
    other takes its place; 0 if it was allowed. ``at``: server time of the decision, in µs.
    """

    allowed: bool
    remaining: int
    retry_after: float
    at: int


def whole(what: str, number: int, most: int) -> int:
    """``number`` itself. Raises ``ValueError`` unless it is whole, and from 1 to ``most``."""
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= most:
        raise ValueError(f"{what} must be a whole number from 1 to {most}, not {number!r}")
    return number
