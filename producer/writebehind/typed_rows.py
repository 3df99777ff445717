"""Typed rows read through the cache. No I/O: steps."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, cast

from .cache import BulkLoader, Loader, RowCache, Wanted
from .core import Core
from .errors import RowMismatch
from .message import Id
from .object_shape import R
from .shape import RowShape
from .steps import Steps, T

_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class TypedRows(Generic[R]):
    """The rows of one table as objects of one class."""

    def __init__(self, core: Core, kind: type[R], name: str | None, key: str | Sequence[str]) -> None:
        self._core = core
        self.shape = RowShape(kind, (key,) if isinstance(key, str) else tuple(key), core.settings.parse_float)
        self.name = name or _WORD.sub("_", kind.__name__).lower()
        self._cache = RowCache(core.settings, self.shape)

    def get(self, id: Any, load: Loader | None, timeout: float) -> Steps[R | None]:
        """See :meth:`Table.get`."""

        def get() -> Steps[R | None]:
            return self._core.by_shards_of_now(lambda left: self._get(id, load, left), timeout)

        return self._core.call("get", self.name, 1, get)

    def get_many(self, ids: Sequence[Any], load: BulkLoader | None, timeout: float) -> Steps[list[R | None]]:
        """See :meth:`Table.get_many`."""

        def get_many() -> Steps[list[R | None]]:
            return self._core.by_shards_of_now(lambda left: self._get_many(ids, load, left), timeout)

        return self._core.call("get_many", self.name, len(ids), get_many)

    def _get(self, id: Any, load: Loader | None, timeout: float) -> Steps[R | None]:
        wanted = yield from self._wanted(id)
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

    def _get_many(self, ids: Sequence[Any], load: BulkLoader | None, timeout: float) -> Steps[list[R | None]]:
        wanted: list[Wanted] = []
        for id in ids:
            wanted.append((yield from self._wanted(id)))
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

    def invalidate(self, id: Any, wait: float | None) -> Steps[bool]:
        """See :meth:`Table.invalidate`."""
        return self._core.invalidate(self.name, self.id(id), wait)

    def invalidate_many(self, ids: Sequence[Any]) -> Steps[list[bool]]:
        """See :meth:`Table.invalidate_many`."""
        return self._core.invalidate_many(self.name, [self.id(id) for id in ids])

    def id(self, id: Any) -> Id:
        """The id as the untyped calls have it."""
        return self.shape.id(self.name, id)

    def _wanted(self, id: Any) -> Steps[Wanted]:
        return (yield from self._core.wanted_row(self.name, self.id(id), id))

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
