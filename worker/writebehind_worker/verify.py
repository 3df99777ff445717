"""The cache against Postgres: which entries show a reader something else than is there.

An entry that a write has touched is left alone until that write is settled, and a difference is believed only
where the entry was the same before and after Postgres was asked, twice: each write changes the entry's seq in
the moment in which it is accepted, and an entry with a time to live shows no write that is not committed.
One without is taken for pending until every queue of the database is known to have settled its write.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
from redis import Redis

from writebehind.keys import QueueKeys
from writebehind.script import Argument, Script

from .cache_names import CacheNames, key_texts
from .cached_entry import NO_TTL, CachedEntry, read_entries
from .known_tables import KnownTables
from .nodes import primaries
from .other_queues import OtherQueues, is_of_a_queue
from .packed_rows import unpacked_columns
from .row_comparison import CachedRow, Compared, RowComparison
from .table import Table

PAGE = 500
"""Entries compared at once."""

_FORGET = Script("writebehind_worker", "forget")
_SCANNED_AT_ONCE = 1000
_MOST_LOOKS = 6
_MOST_NAMES = 20
_MOST_BYTES = 32 << 20  # of values, compared at once

Fault = Literal["columns", "missing", "exists", "stuck"]
"""``columns`` differ; the row is ``missing`` in Postgres; it ``exists`` and the cache says that it does not;
the entry is ``stuck``: without a time to live, though its write is settled."""


class Difference(msgspec.Struct, frozen=True):
    """An entry that is not as Postgres has it. ``expires_ms``: Unix time, -1: never."""

    entry: CachedEntry
    table: str
    fault: Fault
    columns: tuple[str, ...] = ()

    @property
    def expires_ms(self) -> int:
        """When it is gone by itself."""
        return self.entry.expires_ms


class Tally(msgspec.Struct):
    """What became of the keys that were looked at. ``entries`` are those of the tables in Postgres.

    ``pending`` show a write that may not be in Postgres yet, or kept changing; ``filling`` are being loaded;
    ``foreign`` hold something else. ``unknown_tables``: keys by the table that they seem to name.
    """

    entries: int = 0
    agree: int = 0
    differ: int = 0
    pending: int = 0
    filling: int = 0
    vanished: int = 0
    foreign: int = 0
    repaired: int = 0
    unknown_keys: int = 0
    unknown_tables: Counter[str] = msgspec.field(default_factory=Counter)
    unknown_columns: Counter[str] = msgspec.field(default_factory=Counter)


class _Asked(msgspec.Struct):
    entry: CachedEntry
    table: Table
    key: dict[str, str]


class Verification:
    """Compares cache entries with Postgres; ``tally`` says how many of which kind there were."""

    def __init__(
        self,
        client: Redis,
        keys: QueueKeys,
        names: CacheNames,
        tables: KnownTables,
        compare: RowComparison,
        only: Sequence[Table] = (),
    ) -> None:
        self._client, self._keys, self._names, self._tables = client, keys, names, tables
        self._compare, self._only = compare, {table.oid for table in only}
        self._others = OtherQueues(client, keys)
        self.tally = Tally()

    def all_names(self) -> Iterator[list[bytes]]:
        """The cache keys that can be told to be of a table, as SCAN finds them: one may come twice."""
        for node in primaries(self._client):
            yield from self._names_of(node)

    def _names_of(self, node: Redis) -> Iterator[list[bytes]]:
        cursor = 0
        while True:
            answer: Any = node.scan(cursor, match=self._names.pattern, count=_SCANNED_AT_ONCE)
            cursor, found = answer
            yield [name for name in found if self._is_ours(name)]
            if cursor == 0:
                return

    def sample(self, size: int) -> Iterator[list[bytes]]:
        """So many of them at random, each with the same chance; empty pages while it looks for them."""
        chosen: list[bytes] = []
        seen = 0
        for page in self.all_names():
            for name in page:
                seen += 1
                if len(chosen) < size:
                    chosen.append(name)
                elif (place := random.randrange(seen)) < size:  # noqa: S311 - no secret
                    chosen[place] = name
            yield []
        yield list(dict.fromkeys(chosen))

    def check(self, names: Sequence[bytes]) -> Iterator[Difference]:
        """Compares these entries; counts each in the tally, and yields those that differ."""
        for start in range(0, len(names), PAGE):
            yield from self._check(names[start : start + PAGE])

    def repair(self, difference: Difference) -> bool:
        """Removes an entry that is still what was compared, so that the next reader loads the row."""
        entry = difference.entry
        arguments: list[Argument] = [entry.expires_ms]
        for field, value in (entry.fields or {}).items():
            arguments += (field, value)
        removed: object = _FORGET(self._client, [entry.name], arguments)  # type: ignore[list-item]
        self.tally.repaired += removed == 1
        return removed == 1

    def _is_ours(self, name: bytes) -> bool:
        parts = self._names.parts(name)
        if parts is None or self._keys.owns(name.decode()):
            return False
        table = self._tables.find(parts[0])
        if table is None or key_texts(table, parts[1]) is None:
            if is_of_a_queue(name.decode(), self._keys.queue) or name.decode() in self._others.names:
                return False
            self.tally.unknown_keys += 1
            if len(self.tally.unknown_tables) < _MOST_NAMES or parts[0] in self.tally.unknown_tables:
                self.tally.unknown_tables[parts[0]] += 1
            return False
        return not self._only or table.oid in self._only

    def _check(self, names: Sequence[bytes]) -> Iterator[Difference]:
        entries = self._read(names)
        self.tally.entries += len(entries)
        seen: dict[bytes, CachedEntry] = {}
        for _ in range(_MOST_LOOKS):
            differences = self._look(entries)
            if not differences:
                return
            again = self._read([d.entry.name for d in differences])
            entries = []
            for difference, entry in zip(differences, again, strict=True):
                if not entry.is_still(difference.entry):
                    seen.pop(entry.name, None)
                    entries.append(entry)
                elif entry.name not in seen:
                    seen[entry.name] = entry
                    entries.append(entry)
                elif entry.is_still(seen[entry.name]):
                    self.tally.differ += 1
                    yield difference
        self.tally.pending += len(entries)  # they change all the time: no moment to compare them in

    def _read(self, names: Sequence[bytes]) -> list[CachedEntry]:
        entries = read_entries(self._client, self._keys, names)
        doubtful = [e for e in entries if e.has_no_ttl and e.moment.has_settled(e.entry.seq)]
        marked = {entry.name: entry for entry in self._others.exclude(doubtful)}
        return [marked.get(entry.name, entry) for entry in entries]

    def _look(self, entries: Sequence[CachedEntry]) -> list[Difference]:
        """Those that differ at this look; all others are counted."""
        found: list[Difference] = []
        by_table: dict[int, list[_Asked]] = {}
        for entry in entries:
            table_name, id = self._names.parts(entry.name) or ("", "")
            table = self._tables.find(table_name)
            assert table is not None
            standing = entry.standing
            if standing in ("row", "gone"):
                key = key_texts(table, id)
                assert key is not None
                by_table.setdefault(table.oid, []).append(_Asked(entry, table, key))
            elif standing == "stuck":
                found.append(Difference(entry, table.full_name, "stuck"))
            elif standing == "pending":
                self.tally.pending += 1
            elif standing == "filling":
                self.tally.filling += 1
            elif standing == "foreign":
                self.tally.foreign += 1
            else:
                self.tally.vanished += 1
        for asked in by_table.values():
            found += self._differences(asked)
        return found

    def _differences(self, asked: Sequence[_Asked]) -> Iterator[Difference]:
        for part, rows in _parts(asked):
            yield from self._compared(part, rows)

    def _compared(self, asked: Sequence[_Asked], rows: Sequence[CachedRow]) -> Iterator[Difference]:
        table = asked[0].table
        for one, compared in zip(asked, self._compare(table, rows), strict=True):
            difference = difference_of(one.entry, table, compared)
            if difference is not None:
                yield difference
                continue
            self.tally.agree += 1
            for column in compared.unknown:
                name = f"{table.full_name}.{column}"
                if len(self.tally.unknown_columns) < _MOST_NAMES or name in self.tally.unknown_columns:
                    self.tally.unknown_columns[name] += 1


def _parts(asked: Sequence[_Asked]) -> Iterator[tuple[Sequence[_Asked], Sequence[CachedRow]]]:
    """So many at once as can be held, unpacked."""
    part: list[_Asked] = []
    rows: list[CachedRow] = []
    size = 0
    for one in asked:
        columns = unpacked_columns(one.entry.entry.columns)
        bytes_ = sum(map(len, columns.values()))
        if part and size + bytes_ > _MOST_BYTES:
            yield part, rows
            part, rows, size = [], [], 0
        size += bytes_
        part.append(one)
        rows.append(CachedRow(one.key, columns))
    yield part, rows


def difference_of(entry: CachedEntry, table: Table, compared: Compared) -> Difference | None:
    """What is wrong with an entry that shows no pending write; ``None``: nothing."""
    name = table.full_name
    if entry.standing == "gone":
        return Difference(entry, name, "exists") if compared.exists else None
    if not compared.exists:
        return Difference(entry, name, "missing")
    return Difference(entry, name, "columns", compared.differ) if compared.differ else None


def expires_in_s(expires_ms: int, now_ms: int) -> float | None:
    """Seconds until an entry expires; ``None``: never."""
    return None if expires_ms == NO_TTL else max(0.0, (expires_ms - now_ms) / 1000)
