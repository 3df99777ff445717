"""The keys of the cache, made of table and id and taken apart again. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set

from writebehind.identity import TableKey, cache_key
from writebehind.keys import QueueKeys

from .table import Table

_ESCAPE = re.compile("%(3A|25)")
_GLOB = re.compile(r"([*?\[\]\\])")


class CacheNames:
    """Those of one ``prefix`` and ``version``, as `WriteBehind` takes them; ``version`` ``None``: no part."""

    def __init__(self, prefix: str = "", version: str | None = None) -> None:
        self.start = prefix + (f"v{version}:" if version is not None else "")
        self._heads: Set[str] = frozenset()
        self._mark = ""

    def on_cluster(self, homes: Iterable[QueueKeys], number: int) -> CacheNames:
        """The same names where each entry is in the slot of its shard, one of ``homes``."""
        names = CacheNames()
        names.start = self.start
        names._heads, names._mark = frozenset(home.entry("", number) for home in homes), f"/{number}/"
        return names

    @property
    def pattern(self) -> str:
        """What SCAN finds them by."""
        return ("*" if self._heads else "") + _GLOB.sub(r"\\\1", self._mark + self.start) + "*"

    def name(self, table: TableKey, key: str | Mapping[str, str]) -> str:
        """As a producer makes it; ``key`` is an id's text, or column → text."""
        return cache_key(self.start, table, key)

    def parts(self, name: bytes) -> tuple[str, str] | None:
        """The table's name and the text of the id; ``None`` if it is no such key."""
        try:
            text = self._plain(name.decode())
        except UnicodeDecodeError:
            return None
        if text is None:
            return None
        table, colon, id = text.removeprefix(self.start).partition(":")
        return (_unescaped(table), id) if text.startswith(self.start) and colon and table and id else None

    def _plain(self, name: str) -> str | None:
        if not self._heads:
            return name
        end = 0
        while found := name.find(self._mark, end) + 1:
            end = found - 1 + len(self._mark)
            if name[:end] in self._heads:
                return name[end:]
        return None


def key_texts(table: Table, id: str) -> dict[str, str] | None:
    """Column → text of a row's key, by the id in a cache key; ``None`` where it has other parts."""
    names = sorted(column.name for column in table.key)
    if len(names) == 1:
        return {names[0]: id}
    parts = id.split(":")
    if not names or len(parts) != len(names):
        return None
    return dict(zip(names, map(_unescaped, parts), strict=True))


def _unescaped(part: str) -> str:
    return _ESCAPE.sub(lambda found: ":" if found[1] == "3A" else "%", part)
