"""``Table``: rows as objects of a class of the application's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic

from .atomic import Atomic
from .batch import Batch
from .carrier import Carrier
from .durability import Durability
from .message import Id, Route
from .object_shape import R
from .receipt import Receipt
from .shape import RowShape
from .typed_rows import TypedRows

if TYPE_CHECKING:
    from .async_atomic import AsyncAtomic
    from .async_batch import AsyncBatch
    from .client import WriteBehind

TypedId = Id | tuple[Any, ...]
"""Of a key of several fields it is a tuple, in the order in which ``key`` names them."""


class Table(Generic[R]):
    """Rows of one table as objects of one class; made by :meth:`WriteBehind.table`.

    An id is the value of the key field; of several, the tuple of their values. Writes raise as those of
    :class:`WriteBehind` do, and :class:`InvalidWrite` for a field that the class does not have, or a value
    that its field cannot hold.
    """

    def __init__(self, wb: WriteBehind, carrier: Carrier, rows: TypedRows[R]) -> None:
        self._wb, self._carrier, self._rows = wb, carrier, rows
        self._shape, self.name = rows.shape, rows.name

    def put(
        self,
        row: R,
        *,
        route: Route | None = None,
        wait: float | None = None,
        durability: Durability | None = None,
    ) -> Receipt:
        """The row exists, and is so: all fields are written. See :meth:`WriteBehind.put`."""
        id, data = self._shape.id_of(self.name, row), self._shape.values(self.name, row)
        route = self._shape.route_of(self.name, row, route)
        return self._wb.put(self.name, id, data, route=route, wait=wait, durability=durability)

    def patch(
        self,
        id: TypedId,
        changes: Mapping[str, Any] | None = None,
        /,
        *,
        route: Route | None = None,
        wait: float | None = None,
        durability: Durability | None = None,
        **named: Any,
    ) -> Receipt:
        """Changes fields of a row that exists. See :meth:`WriteBehind.patch`.

        Of a class with a field ``wait``, ``durability`` or ``route`` the fields are given as a mapping only.
        """
        data = self._shape.changes(self.name, self._shape.given(self.name, changes, named))
        route = self._rows.route(id, route)
        return self._wb.patch(
            self.name, self._rows.id(id), data, route=route, wait=wait, durability=durability
        )

    def increment(
        self,
        id: TypedId,
        deltas: Mapping[str, Any] | None = None,
        /,
        *,
        route: Route | None = None,
        wait: float | None = None,
        durability: Durability | None = None,
        **named: Any,
    ) -> Receipt:
        """Adds to numeric fields, given as by :meth:`patch`. See :meth:`WriteBehind.increment`."""
        data = checked_names(self._shape, self.name, self._shape.given(self.name, deltas, named))
        route = self._rows.route(id, route)
        return self._wb.increment(
            self.name, self._rows.id(id), data, route=route, wait=wait, durability=durability
        )

    def delete(
        self,
        id: TypedId,
        *,
        route: Route | None = None,
        wait: float | None = None,
        durability: Durability | None = None,
    ) -> Receipt:
        """The row does not exist any more. See :meth:`WriteBehind.delete`."""
        route = self._rows.route(id, route)
        return self._wb.delete(self.name, self._rows.id(id), route=route, wait=wait, durability=durability)

    def into(self, batch: Batch | Atomic) -> TableWrites[R]:
        """Typed writes that go into a batch or group: ``with wb.batch() as b: users.into(b).put(row)``."""
        return TableWrites(batch, self._rows)

    def get(
        self,
        id: TypedId,
        load: Callable[[Any], R | Mapping[str, Any] | None] | None = None,
        *,
        route: Route | None = None,
        timeout: float = 5.0,
    ) -> R | None:
        """The row as last written, or ``None``. See :meth:`WriteBehind.get`.

        A cached row that does not fit the class counts as a miss: it is loaded afresh, once a write that it
        shows is committed.

        Args:
            load: called with ``id`` on a miss; returns a row, or a mapping field → value.
            timeout: longest wait, in seconds, for a write that the cache cannot show yet.

        Raises:
            RowMismatch: the cached row does not fit, and there is no loader.
            InvalidLoad: what the loader returned does not fit.
            FlushTimeout: as :meth:`WriteBehind.get`.
        """
        return self._carrier.run(self._rows.get(id, load, timeout, route))

    def get_many(
        self,
        ids: Sequence[TypedId],
        load: Callable[[list[Any]], Mapping[Any, Any] | Sequence[Any]] | None = None,
        *,
        route: Route | None = None,
        timeout: float = 5.0,
    ) -> list[R | None]:
        """A row or ``None`` for each id. See :meth:`WriteBehind.get_many`.

        Cached rows that do not fit the class are treated as by :meth:`get`.
        """
        return self._carrier.run(self._rows.get_many(ids, load, timeout, route))

    def invalidate(self, id: TypedId, *, route: Route | None = None, wait: float | None = None) -> bool:
        """Removes a row from the cache. See :meth:`WriteBehind.invalidate`."""
        return self._carrier.run(self._rows.invalidate(id, wait, route))

    def invalidate_many(self, ids: Sequence[TypedId], *, route: Route | None = None) -> list[bool]:
        """Removes many rows from the cache. See :meth:`WriteBehind.invalidate_many`."""
        return self._carrier.run(self._rows.invalidate_many(ids, route))


class TableWrites(Generic[R]):
    """Typed writes of one table into a batch or group; made by ``into`` of a table."""

    def __init__(self, batch: Batch | AsyncBatch | Atomic | AsyncAtomic, rows: TypedRows[R]) -> None:
        self._batch, self._rows = batch, rows
        self._shape, self.name = rows.shape, rows.name

    def put(self, row: R, *, route: Route | None = None) -> None:
        """See :meth:`Table.put`."""
        id, data = self._shape.id_of(self.name, row), self._shape.values(self.name, row)
        self._batch.put(self.name, id, data, route=self._shape.route_of(self.name, row, route))

    def patch(
        self,
        id: TypedId,
        changes: Mapping[str, Any] | None = None,
        /,
        *,
        route: Route | None = None,
        **named: Any,
    ) -> None:
        """See :meth:`Table.patch`."""
        data = self._shape.changes(self.name, self._shape.given(self.name, changes, named, ("route",)))
        self._batch.patch(self.name, self._rows.id(id), data, route=self._rows.route(id, route))

    def increment(
        self,
        id: TypedId,
        deltas: Mapping[str, Any] | None = None,
        /,
        *,
        route: Route | None = None,
        **named: Any,
    ) -> None:
        """See :meth:`Table.increment`."""
        data = checked_names(self._shape, self.name, self._shape.given(self.name, deltas, named, ("route",)))
        self._batch.increment(self.name, self._rows.id(id), data, route=self._rows.route(id, route))

    def delete(self, id: TypedId, *, route: Route | None = None) -> None:
        """See :meth:`Table.delete`."""
        self._batch.delete(self.name, self._rows.id(id), route=self._rows.route(id, route))


def checked_names(shape: RowShape[Any], table: str, deltas: Mapping[str, Any]) -> Mapping[str, Any]:
    """The deltas, if each is of a field that may change."""
    for name in deltas:
        shape.check_name(table, name)
    return deltas
