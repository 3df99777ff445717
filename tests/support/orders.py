"""Readers that are stopped between any two of their steps, and what may happen meanwhile, in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, combinations_with_replacement
from typing import Any

from redis import Redis
from redis.exceptions import NoScriptError

from writebehind import FlushTimeout, WriteBehind
from writebehind.script import Script
from writebehind.steps import Pause
from writebehind_worker.settle import Settlement, packed

Row = dict[str, Any] | None
_SETTLE = Script("writebehind_worker", "settle")


class World:
    """One row: in Redis as the client and the worker leave it, and in a Postgres that is a variable.

    ``history`` has what the row was after each event: what is accepted counts, in Postgres or not.
    """

    def __init__(self, wb: WriteBehind, redis: Redis, id: int) -> None:
        self.wb, self._redis, self.id = wb, redis, id
        self.key = f"{wb.settings.cache_prefix}t:{id}"
        self.postgres: Row = {"n": 1, "name": "first"}
        self._pending: list[tuple[str, dict[str, Any], int]] = []
        self.history = [self.truth]
        self._serial = 1

    @property
    def truth(self) -> Row:
        """The row with all that was accepted; what Postgres will refuse is not in it."""
        row = self.postgres
        for op, data, _ in self._pending:
            row, _ = _apply(row, op, data)
        return row

    @property
    def is_pending(self) -> bool:
        """Whether there are writes that Postgres has not."""
        return bool(self._pending)

    def load(self, _: Any) -> Row:
        """The application's loader."""
        return None if self.postgres is None else dict(self.postgres)

    def happen(self, event: str) -> None:
        """One of EVENTS."""
        self._serial += 1
        EVENTS[event](self)
        self.history.append(self.truth)

    def write(self, op: str, data: dict[str, Any]) -> None:
        """Accepted by Redis."""
        call = getattr(self.wb, op)
        receipt = call("t", self.id) if op == "delete" else call("t", self.id, data)
        self._pending.append((op, data, receipt.seq))

    def flush(self) -> None:
        """What the worker does: into Postgres, then settled and acknowledged."""
        applied = rejected = last = 0
        is_put = False
        for op, data, seq in self._pending:
            self.postgres, is_applied = _apply(self.postgres, op, data)
            applied, rejected = (seq, rejected) if is_applied else (applied, seq)
            is_put = op == "put" if is_applied else is_put
            last = seq
        if self._pending:
            self._pending = []
            _SETTLE(self._redis, [], [60, packed([Settlement(self.key, 600, applied, rejected, is_put)])])
            self._redis.set(self.wb.keys.applied, last)

    def expire(self) -> None:
        """The entry's time is over; a pending one has none."""
        if self._redis.pttl(self.key) != -1:
            self._redis.delete(self.key)

    def fresh(self) -> dict[str, Any]:
        """Data that no earlier write had."""
        return {"n": self._serial * 10, "name": f"write {self._serial}"}


EVENTS: dict[str, Callable[[World], Any]] = {
    "put": lambda world: world.write("put", world.fresh()),
    "patch": lambda world: world.write("patch", {"name": world.fresh()["name"]}),
    "increment": lambda world: world.write("increment", {"n": 1}),
    "delete": lambda world: world.write("delete", {}),
    "flush": World.flush,
    "expire": World.expire,
    "invalidate": lambda world: world.wb.invalidate("t", world.id),
}


class Reader:
    """A ``get`` that does one step at a time."""

    def __init__(self, world: World) -> None:
        self._world, self._run = world, world.wb._carrier._do
        self._steps = world.wb._core.get("t", world.id, world.load, 1000)
        self._next: Any = None
        self._begun_at = 0
        self.is_done = False

    def step(self) -> None:
        """Does the next step; checks the answer, if it is one."""
        if self.is_done:
            return
        if self._next is None:
            self._begun_at = len(self._world.history) - 1
        try:
            if self._next is None:
                self._next = next(self._steps)
            self._next = self._do(self._next)
        except StopIteration as end:
            self.is_done = True
            valid = self._world.history[self._begun_at :]
            assert end.value in valid, f"read {end.value}, which was no row since: {valid}"

    def _do(self, step: Any) -> Any:
        try:
            result = None if isinstance(step, Pause) else self._run(step)
        except NoScriptError as error:
            return self._do(self._steps.throw(error))  # to send a script whole is no step of its own
        return self._steps.send(result)

    def go_on(self) -> None:
        """Does the next step; if it waits after it, for writes to be in Postgres, they get there."""
        self.step()
        if not self.is_done and isinstance(self._next, Pause):
            self._world.happen("flush")


def finish(*readers: Reader) -> None:
    """Does all that is left, step by step of each: one may wait for what another one has begun."""
    for _ in range(40):
        for reader in readers:
            reader.go_on()
        if all(reader.is_done for reader in readers):
            return
    raise AssertionError("a reader did not end")


def check(world: World) -> None:
    """What the cache shows, and what a reader gets now, is the row."""
    for wait in (False, True):
        if wait:
            world.flush()
        try:
            cached = world.wb.get("t", world.id, world.load, timeout=0)
        except FlushTimeout:
            assert world.is_pending
        else:
            assert cached == world.truth, f"the cache answers {cached}, the row is {world.truth}"


def placings(events: int, gaps: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Which gap each event is in, kept in order."""
    return combinations_with_replacement(gaps, events)


def merges(first: int, second: int) -> Iterator[list[int]]:
    """All orders of so many steps of 0 and so many of 1."""
    for places in combinations(range(first + second), first):
        yield [0 if place in places else 1 for place in range(first + second)]


def _apply(row: Row, op: str, data: dict[str, Any]) -> tuple[Row, bool]:
    """The row after a write as Postgres does it, and whether it was applied."""
    if op == "put":
        return data, True
    if op == "delete":
        return None, True
    if op == "patch":
        return (row, False) if row is None else (row | data, True)
    row = row or {"n": 0, "name": None}
    return row | {"n": row["n"] + data["n"]}, True
