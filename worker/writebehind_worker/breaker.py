"""The breaker: where every write to a table is refused alike, a pause beats a stream of dead letters.

No I/O.
"""

from __future__ import annotations

from collections.abc import Iterable

from .catalog import Catalog
from .errors import BreakerTripped
from .received import Fault
from .resolve import Refusal
from .sqlstate import DAMAGED, condition
from .table import Table

LIMIT = 1000
"""So many writes to one table refused in a row, with one code that no write can mend, trip it."""

# A generated column is given; a text column incremented; an id of the wrong shape.
_ONE_MESSAGE_ONLY = frozenset({"428C9", "42804", "42P10"})

Counts = dict[str, tuple[str, int]]
"""Table → (SQLSTATE, how many in a row)."""


class Breaker:
    """Counts, for each table, structural refusals in a row, over the batches that were committed.

    It remembers, from one tenure to the next, which tables and columns there have been: a write to one that
    never was is its producer's mistake, and no reason to stop the others.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.counts: Counts = {}
        self._tables: dict[str, Table] = {}
        self._columns: dict[str, set[str]] = {}

    def saw(self, catalog: Catalog) -> None:
        """These tables exist now."""
        self._tables |= catalog.tables
        for table in catalog.tables.values():
            self._columns.setdefault(table.full_name, set()).update(table.columns)

    def former_table(self, name: str) -> Table | None:
        """The table that a message could mean by ``name`` at some time."""
        return self._tables.get(name)

    def had_columns(self, table: Table, columns: Iterable[str]) -> bool:
        """Whether the table has, or had, all of these columns."""
        return self._columns[table.full_name].issuperset(columns)

    def trial(self) -> Trial:
        """For one attempt at a batch: what is counted in it counts once the batch is committed."""
        return Trial(self)


class Trial:
    """Hears the outcome of a batch's writes in list order."""

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self._counts: Counts = dict(breaker.counts)

    @property
    def is_quiet(self) -> bool:
        """Nothing is counted: an applied write need not be told."""
        return not self._counts

    def applied(self, table: str) -> None:
        """A write to the table went through."""
        self._counts.pop(table, None)

    def refused(self, table: str, fault: Fault) -> None:
        """A write was refused for what no write can mend.

        Raises:
            BreakerTripped: so many in a row. The next one like it will trip again at once.
        """
        limit = self._breaker.limit
        code, count = self._counts.get(table, (fault.sqlstate, 0))
        count = count + 1 if code == fault.sqlstate else 1
        if count >= limit:
            self._breaker.counts[table] = (fault.sqlstate, limit - 1)
            raise BreakerTripped(
                # Not the reason: it may hold values.
                f"the last {limit} writes to {table} were all refused with SQLSTATE {fault.sqlstate} "
                f"({condition(fault.sqlstate) or 'unknown'}); the queue waits until that is mended"
            )
        self._counts[table] = (fault.sqlstate, count)

    def counts(self) -> Counts:
        """What is counted now, to go back to."""
        return dict(self._counts)

    def go_back(self, counts: Counts) -> None:
        """What has been heard since is heard again."""
        self._counts = counts

    def commit(self) -> None:
        """The batch is in Postgres."""
        self._breaker.counts = self._counts


def is_structural(refusal: Refusal) -> bool:
    """Whether no other write could mend it: a column is missing, or a right, or an index is damaged.

    Under row-level security a missing right (42501) may be the row's fault, and is taken as such.
    """
    state, table = refusal.fault.sqlstate, refusal.table
    if state in _ONE_MESSAGE_ONLY or (state == "42501" and table is not None and table.row_security):
        return False
    return state.startswith("42") or state in DAMAGED
