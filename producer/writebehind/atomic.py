"""Several writes that Postgres applies together, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic

from .collected import Collected
from .durability import Assurance, R
from .errors import InvalidWrite
from .group import MAX_GROUP
from .message import Id, Op, Route, Write, make_write, route_text
from .receipt import Receipt

Keep = Callable[[R], None]
"""Is told the receipt as soon as the group is accepted."""


class GroupWrites(Collected, Generic[R]):
    """Writes that are collected, to be sent as one; and their receipt, once they have been accepted."""

    def __init__(self, route: Route) -> None:
        self._route = route_text(route)
        self._writes: list[Write] = []
        self._receipt: R | None = None

    def __len__(self) -> int:
        return len(self._writes)

    @property
    def receipt(self) -> R | None:
        """Of all the writes together, once the block has ended; ``None`` if there were none."""
        return self._receipt

    def _add(self, op: Op, table: str, id: Id, data: Mapping[str, Any] | None, route: Route | None) -> None:
        if route is not None and route_text(route) != self._route:
            raise InvalidWrite(
                f"{table}: all writes of a group have its route, {self._route!r}, not {route!r}"
            )
        if len(self._writes) >= MAX_GROUP:
            raise InvalidWrite(f"a group holds at most {MAX_GROUP} writes")
        self._writes.append(make_write(op, table, id, data, self._route))

    def _accepted(self, receipt: R) -> None:
        self._receipt, self._writes = receipt, []

    def _ends(self, error: BaseException | None) -> bool:
        """Whether there is something to send at the end of the block; what has failed is forgotten."""
        if error is not None:
            self._writes = []
        return bool(self._writes)


class Atomic(GroupWrites[Receipt]):
    """Collects writes and sends them as one when the ``with`` block ends well.

    Postgres applies all of them, or refuses all: then they are one dead letter. Nothing is sent if the block
    raises. ``receipt`` stands for all of them.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Write], Assurance | None, Keep[Receipt]], None],
        route: Route,
        wanted: Assurance | None,
    ) -> None:
        super().__init__(route)
        self._send, self._wanted = send, wanted

    def __enter__(self) -> Atomic:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._ends(error):
            self._send(self._writes, self._wanted, self._accepted)
