"""The writes of one producer, drawn from the seed: what it will ask for next. No I/O."""

from __future__ import annotations

import random
from collections.abc import Iterable

from .history import Data, Write, token

SHARED_ROWS = 300
ROUTES = 6  # of the shared rows: all writes of a call have one
RAW_ROWS = 60
OWN_ROWS = 6  # at a time
PLAIN_ROWS = 80  # at a time
GROUPED_ROWS = 12  # at a time
_MOST_IN_A_CALL = 400
_DELTA_BITS = 40  # a sum that is wrong tells which write it lacks, or has twice


class Stream:
    """``who`` is unique among all producers of a run, those that were killed included."""

    def __init__(self, seed: int, who: int) -> None:
        self.chance = random.Random(f"{seed}/producer {who}")
        self._who = who
        self._fresh = 0
        self._begun: set[str] = set()  # own rows that have been put: a patch of another is refused
        self._own: list[int] = [self._new_row() for _ in range(OWN_ROWS)]
        self._plain: list[int] = [self._new_row() for _ in range(PLAIN_ROWS)]
        self._grouped: list[int] = [self._new_row() for _ in range(GROUPED_ROWS)]

    def _new_row(self) -> int:
        self._fresh += 1
        return self._who * 100_000 + self._fresh

    def batch(self, call: int) -> list[Write]:
        """Writes to rows of all that have one route, new rows, and one mark."""
        size = min(_MOST_IN_A_CALL, 1 + int(self.chance.expovariate(1 / 80)))
        writes = [self._shared(token(self._who, call, i), route_of(call)) for i in range(size)]
        return self._marked(call, writes)

    def raw(self, call: int) -> list[Write]:
        """The same for a producer that has no library."""
        size = min(_MOST_IN_A_CALL, 1 + int(self.chance.expovariate(1 / 60)))
        writes = [self._raw(token(self._who, call, i)) for i in range(size)]
        return self._marked(call, writes)

    def single(self, call: int) -> Write:
        """One write to an own row."""
        at = token(self._who, call, 0)
        draw, row = self.chance.random(), self.own_row()
        if draw < 0.008:
            return Write("put", "own", row, {"a": f"bad {at}", "b": at})
        whole: Data = {"a": at, "b": at, "n": 0, "s": 1}
        if row not in self._begun and draw < 0.9:
            self._begun.add(row)
            return Write("put", "own", row, whole)
        write = self._write("own", row, at, deletes=0.02)
        # Of a row that was put in part the cache shows that part, and cannot add to the others.
        return write if write.op != "put" or draw < 0.1 else Write("put", "own", row, whole)

    def plain(self, call: int) -> list[Write]:
        """Good writes to own rows, at most one to each, without a mark: the worker may take all at once."""
        rows = self.chance.sample(self._plain, self.chance.randrange(1, PLAIN_ROWS))
        return [self._good(token(self._who, call, i), row) for i, row in enumerate(rows)]

    def group(self, call: int) -> list[Write]:
        """A new row, and writes to rows that groups alone write; a few groups are refused as a whole."""
        rows = self.chance.sample(self._grouped, self.chance.randrange(1, 5))
        writes = [Write("put", "events", token(self._who, call, 0), {"a": token(self._who, call, 0)})]
        for i, row in enumerate(rows, start=1):
            writes.append(self._in_group(token(self._who, call, i), str(row)))
        if self.chance.random() < 0.05:
            at = token(self._who, call, len(rows))
            writes[-1] = Write("put", "grouped", writes[-1].id, {"a": f"bad {at}", "b": at})
        return writes

    def _in_group(self, at: str, row: str) -> Write:
        delta = self.chance.getrandbits(_DELTA_BITS) + 1
        if self.chance.random() < 0.5:
            return Write("increment", "grouped", row, {"n": 1, "s": delta})
        return Write("put", "grouped", row, {"a": at, "b": at, "n": 0, "s": delta})

    def abandon_group(self, writes: Iterable[Write]) -> None:
        """As :meth:`abandon`."""
        for write in writes:
            if write.table == "grouped":
                self._grouped[self._grouped.index(int(write.id))] = self._new_row()

    def _good(self, at: str, row: int) -> Write:
        delta = self.chance.getrandbits(_DELTA_BITS) + 1
        is_begun, draw = str(row) in self._begun, self.chance.random()
        self._begun.add(str(row))
        # Most rows get writes of one kind; of some a few need a look of their own.
        if is_begun and (row % 2 if draw < 0.97 else draw < 0.98):
            return Write("increment", "plain", str(row), {"n": 1, "s": delta})
        if is_begun and draw > 0.99:
            return Write("patch", "plain", str(row), {"b": at})
        return Write("put", "plain", str(row), {"a": at, "b": at, "n": 0, "s": delta})

    def abandon_plain(self, rows: Iterable[str]) -> None:
        """As :meth:`abandon`."""
        for row in rows:
            self._plain[self._plain.index(int(row))] = self._new_row()

    def own_row(self) -> str:
        return str(self.chance.choice(self._own))

    def plain_row(self) -> str:
        return str(self.chance.choice(self._plain))

    def abandon(self, row: str) -> None:
        """A write to this own row has an unknown outcome: it must stay the last one."""
        self._own[self._own.index(int(row))] = self._new_row()

    def _marked(self, call: int, writes: list[Write]) -> list[Write]:
        place = self.chance.randrange(len(writes))
        at = token(self._who, call, place)
        writes[place] = Write("put", "marks", at, {"id": "of the key", "a": at})
        return writes

    def _shared(self, at: str, route: int) -> Write:
        draw, row = self.chance.random(), str(self.chance.randrange(route, SHARED_ROWS, ROUTES))
        if draw < 0.1:
            return Write("put", "events", at, {"a": at})
        if draw < 0.1002:
            return Write("put", "shared", row, {"a": f"bad {at}", "b": at})
        if draw < 0.1004:
            return Write("put", "shared", row, {"a": at, "no such column": at})
        return self._write("shared", row, at, deletes=0.001)

    def _raw(self, at: str) -> Write:
        draw, row = self.chance.random(), str(self.chance.randrange(RAW_ROWS))
        if draw < 0.002:
            return Write("broken", "raw", row, {"a": at})
        return self._write("raw", row, at, deletes=0.001)

    def _write(self, table: str, row: str, at: str, deletes: float) -> Write:
        draw = self.chance.random()
        delta = self.chance.getrandbits(_DELTA_BITS) + 1
        if draw < deletes:
            return Write("delete", table, row, {})
        if draw < 0.4:
            return Write("increment", table, row, {"n": 1, "s": delta})
        whole: Data = {"a": at, "b": at, "n": 0, "s": delta}
        if draw < 0.55:
            return Write("put", table, row, whole)
        column = self.chance.choice("ab")
        return Write("put" if draw < 0.7 else "patch", table, row, {column: at})


def route_of(call: int) -> int:
    """Of a batch to shared rows."""
    return call % ROUTES
