"""The loads: a table, the rows in it before, and the writes that come; from a seed, so always the same."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from .sizes import Sizes

TABLE = "bench_rows"

Row = Mapping[str, Any]

_LETTERS = string.ascii_letters + string.digits
_USERS = {
    "name": "text",
    "email": "text",
    "score": "int",
    "balance": "numeric(14,2)",
    "seen_at": "timestamptz",
    "version": "int",
}


@dataclass(frozen=True, slots=True)
class Load:
    """``columns``: name → SQL type, without the key ``id``; each of ``writes`` is (id, column → value).

    ``table_rows``: the table has a row for each id below, too; no write is for those not in ``rows``.
    """

    title: str
    op: Literal["put", "increment"]
    columns: Mapping[str, str]
    rows: Mapping[int, Row]
    writes: Sequence[tuple[int, Row]]
    table_rows: int = 0

    def expected(self) -> dict[int, Row]:
        """The rows once every write has been applied."""
        found = {id: dict(row) for id, row in self.rows.items()}
        for id, data in self.writes:
            row = found.setdefault(id, {})
            if self.op == "put":
                row |= data
            else:
                for column, delta in data.items():
                    row[column] = row.get(column, 0) + delta
        return {**found}

    def head(self, writes: int) -> Load:
        """The same, with the first so many writes only."""
        return replace(self, writes=self.writes[:writes])


def unique_inserts(sizes: Sizes) -> Load:
    chance = random.Random(1)
    ids = chance.sample(range(sizes.inserts * 10), sizes.inserts)
    return Load("unique inserts", "put", _USERS, {}, [(id, user(chance, 0)) for id in ids])


def unique_updates(sizes: Sizes) -> Load:
    return _updates(max(sizes.rows, sizes.updates), sizes.updates)


def every_row_updated(sizes: Sizes) -> Load:
    """As many however long the other loads are."""
    return _updates(sizes.rows, sizes.rows)


def _updates(count: int, updates: int) -> Load:
    chance, rows = _users(2, count)
    ids = chance.sample(range(count), updates)
    return Load("unique updates", "put", _USERS, rows, [(id, user(chance, 1)) for id in ids])


def scattered_updates(sizes: Sizes, table_rows: int) -> Load:
    chance = random.Random(11)
    ids = chance.sample(range(table_rows), min(sizes.updates, table_rows))
    rows, writes = {id: user(chance, 0) for id in ids}, [(id, user(chance, 1)) for id in ids]
    return Load(f"unique updates, {table_rows:,} rows", "put", _USERS, rows, writes, table_rows)


def hot_keys(sizes: Sizes) -> Load:
    chance, rows = _users(3, sizes.hot_rows)
    weights = [1 / rank for rank in range(1, sizes.hot_rows + 1)]
    ids = chance.sample(range(sizes.hot_rows), sizes.hot_rows)
    drawn = chance.choices(ids, weights, k=sizes.hot_writes)
    writes = [(id, user(chance, version)) for version, id in enumerate(drawn)]
    return Load(f"hot keys (Zipf 1.0, {sizes.hot_rows:,} rows)", "put", _USERS, rows, writes)


def counters(sizes: Sizes) -> Load:
    chance = random.Random(4)
    rows = {id: {"hits": 0, "total": id} for id in range(sizes.counter_rows)}
    ids = chance.choices(range(sizes.counter_rows), k=sizes.counter_writes)
    writes = [(id, {"hits": 1, "total": chance.randrange(100)}) for id in ids]
    title = f"counters ({sizes.counter_rows:,} rows)"
    return Load(title, "increment", {"hits": "bigint", "total": "bigint"}, rows, writes)


def wide_rows(sizes: Sizes) -> Load:
    chance = random.Random(5)
    columns = {f"c{i:02}": "text" if i % 2 else "int" for i in range(40)}

    def row() -> Row:
        return {c: _text(chance, 12) if t == "text" else chance.randrange(10**6) for c, t in columns.items()}

    ids = chance.sample(range(sizes.wide), sizes.wide)
    rows = {id: row() for id in range(sizes.wide)}
    return Load("wide rows (40 columns)", "put", columns, rows, [(id, row()) for id in ids])


def large_values(sizes: Sizes) -> Load:
    chance = random.Random(6)

    def row(version: int) -> Row:
        return {"body": _text(chance, 8192), "version": version}

    ids = chance.sample(range(sizes.large), sizes.large)
    rows = {id: row(0) for id in range(sizes.large)}
    columns = {"body": "text", "version": "int"}
    return Load("large values (8 kB)", "put", columns, rows, [(id, row(1)) for id in ids])


def mixed_columns(sizes: Sizes) -> Load:
    chance, rows = _users(7, sizes.mixed)
    sets = [sorted(chance.sample(list(_USERS), chance.randint(1, 5))) for _ in range(12)]
    writes = []
    for id in chance.sample(range(sizes.mixed), sizes.mixed):
        given, whole = chance.choice(sets), user(chance, 1)
        writes.append((id, {c: whole[c] for c in given}))
    return Load("mixed column sets (12)", "put", _USERS, rows, writes)


def user(chance: random.Random, version: int) -> Row:
    """A row as applications have them."""
    name = _text(chance, 10)
    return {
        "name": name,
        "email": f"{name}@example.com",
        "score": chance.randrange(10**6),
        "balance": chance.randrange(10**8) / 100,
        "seen_at": f"2026-01-{chance.randint(1, 28):02}T{chance.randrange(24):02}:00:00+00:00",
        "version": version,
    }


def _users(seed: int, count: int) -> tuple[random.Random, dict[int, Row]]:
    chance = random.Random(seed)
    return chance, {id: user(chance, 0) for id in range(count)}


def _text(chance: random.Random, length: int) -> str:
    return "".join(chance.choices(_LETTERS, k=length))


LOADS: dict[str, Callable[[Sizes], Load]] = {
    "unique_inserts": unique_inserts,
    "unique_updates": unique_updates,
    "hot_keys": hot_keys,
    "counters": counters,
    "wide_rows": wide_rows,
    "large_values": large_values,
    "mixed_columns": mixed_columns,
}
