"""A reader who is under way."""

from __future__ import annotations

from writebehind import WriteBehind
from writebehind.entry import Entry


def begin_fill(wb: WriteBehind, where: str, token: str) -> Entry:
    """What a reader does before it loads: ``absent`` if its token is in place now."""
    (entry,) = wb._carrier.run(wb._core._cache.begin_fills([where], token))
    return entry
