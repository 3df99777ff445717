"""The tables of Postgres by the names that messages and cache keys have for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from redis import Redis

from writebehind.identity import TableKey
from writebehind.keys import QueueKeys

from .catalog import Catalog
from .table import Table

_MOST_NAMES = 10_000
_decode = msgspec.json.Decoder(TableKey).decode


def read_published(client: Redis, keys: QueueKeys) -> dict[str, TableKey]:
    """What the worker has told producers of the tables, by each name; what cannot be read is left out."""
    found: dict[str, TableKey] = {}
    fields: Any = client.hgetall(keys.tables)
    for name, value in fields.items():
        try:
            found[name.decode()] = _decode(value)
        except (UnicodeDecodeError, msgspec.MsgspecError):
            continue
    return found


class KnownTables:
    """The worker's view counts: its role may have another search path than ours.

    ``catalog`` is ``None`` where Postgres could not be asked.
    """

    def __init__(self, catalog: Catalog | None, published: Mapping[str, TableKey]) -> None:
        self._catalog, self._published = catalog, published
        self._found: dict[str, Table | None] = {}
        self._by_full_name = {t.full_name: t for t in catalog.tables.values()} if catalog else {}

    def find(self, name: str) -> Table | None:
        """The table that a message or a cache key calls so."""
        if name not in self._found:
            if len(self._found) >= _MOST_NAMES:  # anything may stand in a shared Redis
                self._found.clear()
            self._found[name] = self._look_up(name)
        return self._found[name]

    def _look_up(self, name: str) -> Table | None:
        known = self._published.get(name)
        if known is not None:
            for alias, key in self._published.items():
                if key.name == known.name and alias in self._by_full_name:
                    return self._by_full_name[alias]
        return self._catalog.find(name) if self._catalog else None

    def identity(self, name: str) -> TableKey:
        """What a producer makes the cache key with: the name as it is where no worker has told more."""
        return self._published.get(name) or TableKey(name)

    def means_the_same(self, name: str, other: str) -> bool:
        """Whether two names are of one table."""
        if name == other:
            return True
        table = self.find(name)
        if table is not None:
            return self.find(other) is table
        return self.identity(name) == self.identity(other)
