"""``AsyncTable``: rows as objects of a class of the application's, on an event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic

from .async_atomic import AsyncAtomic
from .async_batch import AsyncBatch
from .async_carrier import AsyncCarrier
from .async_receipt import AsyncReceipt
from .durability import Durability
from .message import Route
from .object_shape import R
from .table import TableWrites, TypedId, checked_names
from .typed_rows import TypedRows

if TYPE_CHECKING:
    from .async_client import AsyncWriteBehind


class AsyncTable(Generic[R]):
    """:class:`Table` for asyncio: the same calls, awaited; made by :meth:`AsyncWriteBehind.table`.

    A loader may be a coroutine function.
    """

    def __init__(self, wb: AsyncWriteBehind, carrier: AsyncCarrier, rows: TypedRows[R]) -> None:
        self._wb, self._carrier, self._rows = wb, carrier, rows
        self._shape, self.name = rows.shape, rows.name

    async def put(
        self,
        row: R,
        *,
        route: Route | None = None,
        wait: float | None = None,
        durability: Durability | None = None,
    ) -> AsyncReceipt:
        """See :meth:`Table.put`."""
        id, data = self._shape.id_of(self.name, row), self._shape.values(self.name, row)
        route = self._shape.route_of(self.name, row, route)
        return await self._wb.put(self.name, id, data, route=route, wait=wait, durability=durability)

    async def patch(
        self,
        id: TypedId,
        changes: Mapping[str, Any] | None = None,
        /,
        *,
        route: Route | None = None,
        wait: float | None = None,
        durability: Durability | None = None,
        **named: Any,
    ) -> AsyncReceipt:
        """See :meth:`Table.patch`."""
        data = self._shape.changes(self.name, self._shape.given(self.name, changes, named))
        route = self._rows.route(id, route)
        return await self._wb.patch(
            self.name, self._rows.id(id), data, route=route, wait=wait, durability=durability
        )

    async def increment(
        self,
        id: TypedId,
        deltas: Mapping[str, Any] | None = None,
        /,
        *,
        route: Route | None = None,
        wait: float | None = None,
        durability: Durability | None = None,
        **named: Any,
    ) -> AsyncReceipt:
        """See :meth:`Table.increment`."""
        data = checked_names(self._shape, self.name, self._shape.given(self.name, deltas, named))
        route = self._rows.route(id, route)
        return await self._wb.increment(
            self.name, self._rows.id(id), data, route=route, wait=wait, durability=durability
        )

    async def delete(
        self,
        id: TypedId,
        *,
        route: Route | None = None,
        wait: float | None = None,
        durability: Durability | None = None,
    ) -> AsyncReceipt:
        """See :meth:`Table.delete`."""
        route = self._rows.route(id, route)
        return await self._wb.delete(
            self.name, self._rows.id(id), route=route, wait=wait, durability=durability
        )

    def into(self, batch: AsyncBatch | AsyncAtomic) -> TableWrites[R]:
        """See :meth:`Table.into`."""
        return TableWrites(batch, self._rows)

    async def get(
        self,
        id: TypedId,
        load: Callable[[Any], R | Mapping[str, Any] | Awaitable[R | Mapping[str, Any] | None] | None]
        | None = None,
        *,
        route: Route | None = None,
        timeout: float = 5.0,
    ) -> R | None:
        """See :meth:`Table.get`."""
        return await self._carrier.run(self._rows.get(id, load, timeout, route))

    async def get_many(
        self,
        ids: Sequence[TypedId],
        load: Callable[
            [list[Any]], Mapping[Any, Any] | Sequence[Any] | Awaitable[Mapping[Any, Any] | Sequence[Any]]
        ]
        | None = None,
        *,
        route: Route | None = None,
        timeout: float = 5.0,
    ) -> list[R | None]:
        """See :meth:`Table.get_many`."""
        return await self._carrier.run(self._rows.get_many(ids, load, timeout, route))

    async def invalidate(self, id: TypedId, *, route: Route | None = None, wait: float | None = None) -> bool:
        """See :meth:`Table.invalidate`."""
        return await self._carrier.run(self._rows.invalidate(id, wait, route))

    async def invalidate_many(self, ids: Sequence[TypedId], *, route: Route | None = None) -> list[bool]:
        """See :meth:`Table.invalidate_many`."""
        return await self._carrier.run(self._rows.invalidate_many(ids, route))
