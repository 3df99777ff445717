"""The demo's verdict: every row in Postgres, and every cache entry, against what the producers expect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

import msgspec
import psycopg
from rich.table import Table

from writebehind import WriteBehind

from .demo_load import COUNTERS, KEY_COLUMNS, Expected, Key, Row, row_id, shared_rows, shows

Fault = Literal["lost", "repeated", "stale"]

_decode = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal).decode


@dataclass(slots=True)
class Verdict:
    """Lines of the table (what, compared with, outcome), and the faults found."""

    faults: Counter[Fault] = field(default_factory=Counter)
    lines: list[tuple[str, str, str, int]] = field(default_factory=list)
    dead_letters: int = 0
    unsettled: int = 0

    @property
    def is_good(self) -> bool:
        return not any(line[3] for line in self.lines)

    def summary(self, writes: int) -> str:
        """The last line of the demo."""
        faults: list[Fault] = ["lost", "repeated", "stale"]
        found = ", ".join(f"{self.faults[fault]:,} {fault}" for fault in faults)
        for count, what in ((self.dead_letters, "dead letters"), (self.unsettled, "left without a TTL")):
            found += f", {count:,} {what}" if count else ""
        return f"demo: {writes:,} writes, 1 worker killed, {found}"

    def add(self, what: str, expected: object, found: object, wrong: int) -> None:
        """A line; it is a bad one if ``wrong`` is not 0."""
        self.lines.append((what, _text(expected), _text(found), wrong))

    def table(self) -> Table:
        table = Table("check", title="Postgres and the cache, against what the producers computed")
        for name in ("expected", "found", "wrong"):
            table.add_column(name, justify="right")
        for what, expected, found, wrong in self.lines:
            table.add_row(what, expected, found, f"{wrong:,}", style="bold red" if wrong else None)
        return table


def merged(expected: Iterable[Expected], rows: int) -> dict[Key, Row | None]:
    """What all producers together expect; None: there must be no such row."""
    whole: dict[Key, Row | None] = {**shared_rows(rows)}
    for part in expected:
        whole.update(part.rows)
        for key, deltas in part.sums:
            row = whole[key] or {}
            whole[key] = row | {column: row[column] + delta for column, delta in deltas.items()}
    return whole


def check(
    conn: psycopg.Connection[Any], wb: WriteBehind, parts: list[Expected], rows: int, dead_letters: int
) -> Verdict:
    """Compares everything. Nothing may be pending, and nobody writing."""
    verdict, expected, found = Verdict(), merged(parts, rows), _read_rows(conn)
    for table, counters in COUNTERS.items():
        keys = [key for key in expected.keys() | found.keys() if key[0] == table]
        faults = [fault(expected.get(key), found.get(key), counters) for key in keys]
        verdict.faults.update(fault for fault in faults if fault)
        live = sum(expected.get(key) is not None for key in keys)
        verdict.add(f"{table}: rows", live, sum(key in found for key in keys), sum(map(bool, faults)))
        for column in counters:
            want, have = _sum(expected, table, column), _sum(found, table, column)
            verdict.add(f"{table}: sum of {column}", want, have, want != have)
    _check_cache(wb, expected, found, verdict)
    reads, stale = sum(part.reads for part in parts), sum(part.stale_reads for part in parts)
    verdict.faults["stale"] += stale
    verdict.add("own writes read back at once", reads, reads - stale, stale)
    verdict.dead_letters = dead_letters
    verdict.add("dead letters", 0, dead_letters, dead_letters)
    return verdict


def _read_rows(conn: psycopg.Connection[Any]) -> dict[Key, Row]:
    found: dict[Key, Row] = {}
    conn.execute("SET timezone = 'UTC'")
    for table, columns in KEY_COLUMNS.items():
        for (document,) in conn.execute(f"SELECT to_jsonb(t)::text FROM {table} t"):
            row = _decode(document)
            found[(table, *(row.pop(column) for column in columns))] = row
    return found


def fault(want: Row | None, have: Row | None, counters: Iterable[str]) -> Fault | None:
    """How a row is wrong. Of a column that is no counter we only know that it is not the last one."""
    if want == have:
        return None
    if have is None:
        return "lost"
    if want is None:
        return "stale"
    if any(have[column] > want[column] for column in counters):
        return "repeated"
    if any(have[column] < want[column] for column in counters):
        return "lost"
    return "stale"


def _sum(rows: Mapping[Key, Row | None], table: str, column: str) -> Decimal:
    return sum((Decimal(row[column]) for key, row in rows.items() if row and key[0] == table), Decimal())


def _check_cache(wb: WriteBehind, keys: Iterable[Key], found: dict[Key, Row], verdict: Verdict) -> None:
    entries = [name for table in KEY_COLUMNS for name in wb.redis.scan_iter(f"{table}:*", count=1000)]
    with wb.redis.pipeline(transaction=False) as pipe:
        for name in entries:
            pipe.ttl(name)
        unsettled = verdict.unsettled = sum(ttl == -1 for ttl in pipe.execute())
    verdict.add("cache entries with a TTL", len(entries), len(entries) - unsettled, unsettled)
    read = [_reads_true(wb, key, found.get(key)) for key in keys]
    compared, stale = sum(true is not None for true in read), sum(true is False for true in read)
    verdict.faults["stale"] += stale
    verdict.add("reads that the cache answers", compared, compared - stale, stale)


def _reads_true(wb: WriteBehind, key: Key, row: Row | None) -> bool | None:
    """Whether a reader of the cache sees what is in Postgres; None where the cache has to ask for it."""
    asked = False

    def load(_: object) -> Row | None:
        nonlocal asked
        asked = True
        return row

    seen = wb.get(str(key[0]), row_id(key), load)
    if asked:
        return None
    whole = row and row | dict(zip(KEY_COLUMNS[str(key[0])], key[1:], strict=True))
    return whole is None if seen is None else shows(seen, whole)


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | Decimal) else str(value)
