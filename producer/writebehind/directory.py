"""What the worker has published of the tables: by it a producer makes canonical cache keys."""

from __future__ import annotations

import time

import msgspec

from .identity import TableKey
from .keys import QueueKeys
from .steps import Command, Steps
from .translate import redis_errors_as_ours

UNKNOWN_FOR_S = 5.0
"""How long a table that was not published is taken as unknown before we look again."""

_decode = msgspec.json.Decoder(TableKey).decode


class TableDirectory:
    """Looks a table up in ``{q}:tables``, once a process."""

    def __init__(self, keys: QueueKeys) -> None:
        self._field = keys.tables
        self._known: dict[str, TableKey] = {}
        self._unknown_until: dict[str, float] = {}

    def known(self, table: str) -> TableKey | None:
        """As :meth:`find` says, if that is known without asking."""
        known = self._known.get(table)
        if known is None and self._unknown_until.get(table, 0.0) > time.monotonic():
            return TableKey(table)
        return known

    def find(self, table: str) -> Steps[TableKey]:
        """The table's canonical name and key columns; as it was spelt where nothing is published."""
        known = self.known(table)
        if known is not None:
            return known
        with redis_errors_as_ours(f"table {table}"):
            raw = yield Command(("HGET", self._field, table))
        if raw is None:
            self._unknown_until[table] = time.monotonic() + UNKNOWN_FOR_S
            return TableKey(table)
        found = self._known[table] = _decode(raw)
        return found
