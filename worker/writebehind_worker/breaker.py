"""The breaker: where every write to a table is refused alike, a pause beats a stream of dead letters.

No I/O.
"""

from __future__ import annotations

from .errors import BreakerTripped
from .received import Fault
from .sqlstate import is_structural

LIMIT = 1000
"""So many writes to one table refused in a row, with one code that no write can mend, trip it."""


class Breaker:
    """Counts, for each table, structural refusals in a row. Bad values do not count: they are the writes'."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._counts: dict[str, tuple[str, int]] = {}

    def applied(self, table: str) -> None:
        """A write to the table went through."""
        self._counts.pop(table, None)

    def refused(self, table: str, fault: Fault) -> None:
        """A write was refused. Raises :class:`BreakerTripped` at the limit; the next one then trips again."""
        if not is_structural(fault.sqlstate):
            return
        code, count = self._counts.get(table, (fault.sqlstate, 0))
        count = count + 1 if code == fault.sqlstate else 1
        if count >= self._limit:
            self._counts[table] = (fault.sqlstate, self._limit - 1)
            raise BreakerTripped(
                f"the last {self._limit} writes to {table} were all refused: {fault.reason} "
                f"(SQLSTATE {fault.sqlstate}); the queue waits until that is mended"
            )
        self._counts[table] = (fault.sqlstate, count)
