"""Typed rows read through the cache. No I/O: steps."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, cast

from .cache import BulkLoader, Loader, RowCache
from .core import Core
from .errors import RowMismatch
from .home import Wanted
from .message import Id, Route
from .object_shape import R
from .shape import RowShape
from .steps import Steps, T

_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class TypedRows(Generic[R]):
    """The rows of one table as objects of one class."""

    def __init__(
        self,
        core: Core,
        kind: type[R],
        name: str | None,
        key: str | Sequence[str],
        route: str | None = None,
    ) -> None:
        self._core = core
        keys = (key,) if isinstance(key, str) else tuple(key)
        self.shape = RowShape(kind, keys, core.settings.parse_float, route)
        self.name = name or _WORD.sub("_", kind.__name__).lower()
        self._cache = RowCache(core.settings, core.places.confirm, self.shape)

    def get(self, id: Any, load: Loader | None, timeout: float, route: Route | None) -> Steps[R | None]:
        """See :meth:`Table.get`."""

        def get() -> Steps[R | None]:
            return self._core.by_shards_of_now(
                self.name, lambda left: self._get(id, load, left, route), timeout
            )

        return self._core.call("get", self.name, 1, get)

    def get_many(
        self, ids: Sequence[Any], load: BulkLoader | None, timeout: float, route: Route | None
    ) -> Steps[list[R | None]]:
        """See :meth:`Table.get_many`."""

        def get_many() -> Steps[list[R | None]]:
            return self._core.by_shards_of_now(
                self.name, lambda left: self._get_many(ids, load, left, route), timeout
            )

        return self._core.call("get_many", self.name, len(ids), get_many)

    def _get(self, id: Any, load: Loader | None, timeout: float, route: Route | None) -> Steps[R | None]:
        wanted = yield from self._wanted(id, route)
        deadline = time.monotonic() + timeout
        try:
            row = yield from self._cache.get(wanted, self.name, load, timeout)
        except RowMismatch:
            if load is None:
                raise
            row = yield from self._afresh(
                [wanted], lambda left: self._cache.get(wanted, self.name, load, left), deadline
            )
        return cast(R | None, row)

    def _get_many(
        self, ids: Sequence[Any], load: BulkLoader | None, timeout: float, route: Route | None
    ) -> Steps[list[R | None]]:
        wanted = yield from self._all_wanted(ids, route)
        deadline = time.monotonic() + timeout
        try:
            rows = yield from self._cache.get_many(wanted, self.name, load, timeout)
        except RowMismatch:
            if load is None:
                raise
            rows = yield from self._afresh(
                wanted, lambda left: self._cache.get_many(wanted, self.name, load, left), deadline
            )
        return cast(list[R | None], rows)

    def invalidate(self, id: Any, wait: float | None, route: Route | None) -> Steps[bool]:
        """See :meth:`Table.invalidate`."""
        return self._core.invalidate(self.name, self.id(id), wait, self.route(id, route))

    def invalidate_many(self, ids: Sequence[Any], route: Route | None) -> Steps[list[bool]]:
        """See :meth:`Table.invalidate_many`."""

        def invalidate_many() -> Steps[list[bool]]:
            wanted = yield from self._all_wanted(ids, route)
            return (yield from self._cache.invalidate_many(wanted))

        begin = partial(self._core.at_home, self.name)
        return self._core.call("invalidate_many", self.name, len(ids), lambda: begin(invalidate_many))

    def id(self, id: Any) -> Id:
        """The id as the untyped calls have it."""
        return self.shape.id(self.name, id)

    def route(self, id: Any, given: Route | None) -> Route | None:
        """The routing value of a row by its id; ``given`` by the call, if it is."""
        return self.shape.route(self.name, id, given)

    def _wanted(self, id: Any, route: Route | None) -> Steps[Wanted]:
        return (yield from self._core.wanted_row(self.name, self.id(id), id, self.route(id, route)))

    def _all_wanted(self, ids: Sequence[Any], route: Route | None) -> Steps[list[Wanted]]:
        wanted: list[Wanted] = []
        for id in ids:
            wanted.append((yield from self._wanted(id, route)))
        return wanted

    def _afresh(
        self, wanted: Sequence[Wanted], read: Callable[[float], Steps[T]], deadline: float
    ) -> Steps[T]:
        """Reads once more: a cached row that does not fit the class counts as a miss. Until it stays so."""
        while True:
            yield from self._cache.remove_misfits(wanted, self.name, deadline)
            left = max(0.0, deadline - time.monotonic())
            try:
                return (yield from read(left))
            except RowMismatch:
                if left == 0.0:
                    raise
