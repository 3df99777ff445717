"""Many writes, one round trip."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from .carrier import Carrier
from .durability import Assurance
from .errors import InvalidWrite
from .message import Id, Op, Write, make_write
from .receipt import Receipt, wait_durable

MAX_BATCH = 10_000
"""Writes in one batch: Redis does nothing else while it accepts them."""


class Writes:
    """Writes that are collected, to be sent together."""

    def __init__(self) -> None:
        self._writes: list[Write] = []

    def __len__(self) -> int:
        return len(self._writes)

    def put(self, table: str, id: Id, data: Mapping[str, Any]) -> None:
        """See :meth:`WriteBehind.put`."""
        self._add("put", table, id, data)

    def patch(self, table: str, id: Id, data: Mapping[str, Any]) -> None:
        """See :meth:`WriteBehind.patch`."""
        self._add("patch", table, id, data)

    def increment(self, table: str, id: Id, data: Mapping[str, Any]) -> None:
        """See :meth:`WriteBehind.increment`."""
        self._add("increment", table, id, data)

    def delete(self, table: str, id: Id) -> None:
        """See :meth:`WriteBehind.delete`."""
        self._add("delete", table, id, None)

    def _add(self, op: Op, table: str, id: Id, data: Mapping[str, Any] | None) -> None:
        if len(self._writes) >= MAX_BATCH:
            raise InvalidWrite(f"a batch holds at most {MAX_BATCH} writes: use several")
        self._writes.append(make_write(op, table, id, data))

    def _check_sent(self) -> None:
        if self._writes:
            raise InvalidWrite("the batch has not been sent: wait after its block has ended well")


class Batch(Writes):
    """Collects writes and sends them when the ``with`` block ends well: all are accepted, or none.

    A batch whose sending was refused can be entered again, to send the same writes once more.

    ``receipts`` has one receipt a write, in order, once the block has ended.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Write], Assurance | None, Callable[[list[Receipt]], None]], None],
        carrier: Carrier,
        wanted: Assurance | None,
    ) -> None:
        super().__init__()
        self._send, self._carrier, self._wanted = send, carrier, wanted
        self.receipts: list[Receipt] = []

    def wait(self, timeout: float | None = None) -> None:
        """Waits until all are committed; raises for the first that was not, as :meth:`Receipt.wait`."""
        self._check_sent()
        if self.receipts:
            self._carrier.run(wait_durable(self.receipts[0], self.receipts[-1], timeout))

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None and self._writes:
            self._send(self._writes, self._wanted, self._accepted)

    def _accepted(self, receipts: list[Receipt]) -> None:
        """Whatever is waited for now: they must not be sent again."""
        self.receipts, self._writes = receipts, []
