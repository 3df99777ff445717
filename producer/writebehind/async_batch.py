"""Many writes, one round trip, on an event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType

from .async_carrier import AsyncCarrier
from .async_receipt import AsyncReceipt
from .batch import Accept, Writes
from .durability import Assurance
from .message import Write


class AsyncBatch(Writes[AsyncReceipt]):
    """Collects writes and sends them when the ``async with`` block ends well: all are accepted, or none.

    ``put`` and the like are plain methods: they only collect. See :class:`Batch`.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Write], Assurance | None, Accept[AsyncReceipt]], Awaitable[None]],
        carrier: AsyncCarrier,
        wanted: Assurance | None,
    ) -> None:
        super().__init__()
        self._send, self._carrier, self._wanted = send, carrier, wanted

    async def wait(self, timeout: float | None = None) -> None:
        """Waits until all are committed; raises for the first that was not, as :meth:`Receipt.wait`."""
        await self._carrier.run(self._waiting(timeout))

    async def __aenter__(self) -> AsyncBatch:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None and self._writes:
            writes, accept = self._to_send()
            await self._send(writes, self._wanted, accept)
