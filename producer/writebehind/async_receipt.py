"""Receipts of the async client."""

from __future__ import annotations

from .async_carrier import AsyncCarrier
from .keys import QueueKeys
from .receipt import AnyReceipt, all_durable, wait_durable


class AsyncReceipt(AnyReceipt):
    """Stands for one accepted write: (queue, generation, seq)."""

    __slots__ = ("_carrier",)

    def __init__(self, carrier: AsyncCarrier, keys: QueueKeys, generation: int, seq: int) -> None:
        super().__init__(keys, generation, seq)
        self._carrier = carrier

    async def wait(self, timeout: float | None = None) -> None:
        """Returns when the write is committed in Postgres; see :meth:`Receipt.wait`."""
        await self._carrier.run(wait_durable(self, self, timeout))

    async def is_durable(self) -> bool:
        """Whether the write is committed, by one look at Redis. Raises as :meth:`wait` does."""
        return await self._carrier.run(all_durable(self, self))
