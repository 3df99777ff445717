"""The calls by which writes are collected, to be sent together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from .message import Id, Op, Route


class Collected(ABC):
    """What batches and groups take; what becomes of it is theirs."""

    def put(self, table: str, id: Id, data: Mapping[str, Any], *, route: Route | None = None) -> None:
        """See :meth:`WriteBehind.put`."""
        self._add("put", table, id, data, route)

    def patch(self, table: str, id: Id, data: Mapping[str, Any], *, route: Route | None = None) -> None:
        """See :meth:`WriteBehind.patch`."""
        self._add("patch", table, id, data, route)

    def increment(self, table: str, id: Id, data: Mapping[str, Any], *, route: Route | None = None) -> None:
        """See :meth:`WriteBehind.increment`."""
        self._add("increment", table, id, data, route)

    def delete(self, table: str, id: Id, *, route: Route | None = None) -> None:
        """See :meth:`WriteBehind.delete`."""
        self._add("delete", table, id, None, route)

    @abstractmethod
    def _add(
        self, op: Op, table: str, id: Id, data: Mapping[str, Any] | None, route: Route | None
    ) -> None: ...
