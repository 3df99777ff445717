"""Several writes that Postgres applies together, or not at all, on an event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType

from .async_receipt import AsyncReceipt
from .atomic import GroupWrites, Keep
from .durability import Assurance
from .message import Route, Write


class AsyncAtomic(GroupWrites[AsyncReceipt]):
    """Collects writes and sends them as one when the ``async with`` block ends well.

    ``put`` and the like are plain methods: they only collect. See :class:`Atomic`.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Write], Assurance | None, Keep[AsyncReceipt]], Awaitable[None]],
        route: Route,
        wanted: Assurance | None,
    ) -> None:
        super().__init__(route)
        self._send, self._wanted = send, wanted

    async def __aenter__(self) -> AsyncAtomic:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._ends(error):
            await self._send(self._writes, self._wanted, self._accepted)
