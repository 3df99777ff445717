"""Many writes, one round trip."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic

from .carrier import Carrier
from .collected import Collected
from .durability import Assurance, R
from .errors import InvalidWrite
from .message import Id, Op, Route, Write, make_write
from .receipt import Receipt, wait_durable
from .steps import Steps

MAX_BATCH = 10_000
"""Writes in one batch: Redis does nothing else while it accepts them."""


Accept = Callable[[Sequence[int], Sequence[R]], None]
"""Is told which of the writes that were given have been accepted, by position, and their receipts."""


class Writes(Collected, Generic[R]):
    """Writes that are collected, to be sent together; and the receipts of those that have been accepted."""

    def __init__(self) -> None:
        self._writes: dict[int, Write] = {}  # by the number in which they were added
        self._receipts: dict[int, R] = {}
        self._accepted: list[Sequence[R]] = []  # of each call to Redis
        self._added = 0

    def __len__(self) -> int:
        return len(self._writes)

    @property
    def receipts(self) -> list[R]:
        """One of each write that has been accepted, in the order in which they were added."""
        return [self._receipts[number] for number in sorted(self._receipts)]

    def _add(self, op: Op, table: str, id: Id, data: Mapping[str, Any] | None, route: Route | None) -> None:
        if len(self._writes) >= MAX_BATCH:
            raise InvalidWrite(f"a batch holds at most {MAX_BATCH} writes: use several")
        write = make_write(op, table, id, data, route)
        if not self._writes:  # whatever was before has been accepted
            self._receipts, self._accepted = {}, []
        self._writes[self._added] = write
        self._added += 1

    def _to_send(self) -> tuple[list[Write], Accept[R]]:
        """The writes, and what is to be told which of them are accepted, by position, with their receipts."""
        numbers = list(self._writes)

        def accept(positions: Sequence[int], receipts: Sequence[R]) -> None:
            for position, receipt in zip(positions, receipts, strict=True):
                del self._writes[numbers[position]]  # it must not be sent again
                self._receipts[numbers[position]] = receipt
            self._accepted.append(receipts)

        return list(self._writes.values()), accept

    def _waiting(self, timeout: float | None) -> Steps[None]:
        """Waits until all are committed."""
        if self._writes:
            raise InvalidWrite("the batch has not been sent: wait after its block has ended well")
        began = time.monotonic()
        for number, receipts in enumerate(self._accepted):
            spent = time.monotonic() - began if number else 0.0
            left = None if timeout is None else max(0.0, timeout - spent)
            yield from wait_durable(receipts[0], receipts[-1], left)


class Batch(Writes[Receipt]):
    """Collects writes and sends them when the ``with`` block ends well: all are accepted, or none.

    Where the queue has shards that holds for the writes to each of them. A batch whose sending was refused
    can be entered again, to send once more what was not accepted.

    ``receipts`` has one receipt a write, in order, once the block has ended.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Write], Assurance | None, Accept[Receipt]], None],
        carrier: Carrier,
        wanted: Assurance | None,
    ) -> None:
        super().__init__()
        self._send, self._carrier, self._wanted = send, carrier, wanted

    def wait(self, timeout: float | None = None) -> None:
        """Waits until all are committed; raises for the first that was not, as :meth:`Receipt.wait`."""
        self._carrier.run(self._waiting(timeout))

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None and self._writes:
            writes, accept = self._to_send()
            self._send(writes, self._wanted, accept)
