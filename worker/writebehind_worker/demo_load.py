"""The demo's producers: each a process that writes to rows of its own, and works out by itself, in plain
dicts, what must be in Postgres in the end. A few counters are shared: increments commute, so that their
sums are known too.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from writebehind import Batch, QueueFull, WriteBehind
from writebehind.message import Op

Key = tuple[str | int, ...]
"""The table, then the values of its primary key."""
Row = dict[str, Any]

SCHEMA = """
CREATE TABLE users (
    id bigint PRIMARY KEY, name text NOT NULL, email text, account bigint, active boolean DEFAULT true,
    balance numeric(14, 2) DEFAULT 0, born date, seen_at timestamptz, profile jsonb, tags text[],
    visits bigint DEFAULT 0
);
CREATE TABLE order_lines (
    order_id bigint, line integer, sku text NOT NULL DEFAULT '', price numeric(10, 2), note text,
    quantity bigint DEFAULT 0, PRIMARY KEY (order_id, line)
);
"""
KEY_COLUMNS = {"users": ("id",), "order_lines": ("order_id", "line")}
COUNTERS = {"users": ("visits", "balance"), "order_lines": ("quantity",)}
PRODUCERS = 2

_NEW_ROW: dict[str | int, Row] = {
    "users": dict.fromkeys(("email", "account", "born", "seen_at", "profile", "tags"))
    | {"active": True, "balance": 0, "visits": 0},
    "order_lines": {"sku": "", "price": None, "note": None, "quantity": 0},
}
_PARTS = {  # what a patch, or a put of a part of a row, gives
    "users": (("email",), ("name", "seen_at"), ("active", "tags", "profile")),
    "order_lines": (("note",), ("sku", "price")),
}
_SHARED = 20  # rows that all producers increment
_HOT = 20  # rows of each producer that get half of its writes
_QUEUE_FULL_PAUSE_S = 0.05
_REPORT_S = 0.05


class Expected(msgspec.Struct):
    """What a producer hands back: what it accepted, and what must be in Postgres now."""

    operations: dict[str, int]
    rows: list[tuple[Key, Row | None]]
    """Of its own rows; None: there must be no such row."""
    sums: list[tuple[Key, Row]]
    """What it has added to the shared rows."""
    reads: int
    """How many of its own writes it read back from the cache at once ..."""
    stale_reads: int
    """... and how often it saw something else."""


def row_key(index: int) -> Key:
    """The key of the demo's n-th row: the tables take turns."""
    place = index // 2
    return ("order_lines", place // 5 + 1, place % 5 + 1) if index % 2 else ("users", place + 1)


def shared_rows(rows: int) -> dict[Key, Row]:
    """The rows that are there before the load begins."""
    keys = [row_key(index) for index in range(min(_SHARED, rows))]
    names: dict[str | int, Row] = {"users": {"name": "shared"}, "order_lines": {"sku": "shared"}}
    return {key: _NEW_ROW[key[0]] | names[key[0]] for key in keys}


def row_id(key: Key) -> Any:
    """The ``id`` argument of a write or a read."""
    return key[1] if key[0] == "users" else dict(zip(KEY_COLUMNS["order_lines"], key[1:], strict=True))


class _Plan:
    """A reproducible stream of writes, and the model of what they do."""

    def __init__(self, producer: int, rows: int) -> None:
        self._random = random.Random(producer)  # noqa: S311 - no secret
        mine = (i for i in range(_SHARED, rows) if i // 2 % PRODUCERS == producer)
        self._keys = [row_key(index) for index in mine]
        self._untouched = self._random.sample(self._keys, len(self._keys))
        self._shared = list(shared_rows(rows))
        self._count = 0
        self.rows: dict[Key, Row | None] = {}
        self.sums: dict[Key, Row] = {}

    def next(self, left: int) -> tuple[Op, Key, Row]:
        """The next write; ``left``: how many will come. The model shows it from now on."""
        self._count += 1
        chance = self._random.random
        if not self._keys or chance() < 0.15:
            key = self._random.choice(self._shared)
            data = {COUNTERS[str(key[0])][0]: self._random.randint(1, 9)}
            self.sums[key] = _added(self.sums.get(key, {}), data)
            return "increment", key, data
        if chance() * left < 2 * len(self._untouched):
            key = self._untouched.pop()
        else:
            key = self._random.choice(self._keys[:_HOT] if chance() < 0.5 else self._keys)
        op, data = self._write(key)
        self._apply(op, key, data)
        return op, key, data

    def _write(self, key: Key) -> tuple[Op, Row]:
        row, draw = self.rows.get(key), self._random.random()
        whole = self._user() if key[0] == "users" else self._order_line()
        if row is None:
            if draw < 0.05:
                return "delete", {}
            if draw < 0.3 and key[0] == "order_lines":
                return "increment", {"quantity": 3}
            return "put", whole
        if draw < 0.1:
            return "delete", {}
        if draw < 0.4:
            column = self._random.choice(COUNTERS[str(key[0])])
            cents = self._random.randint(-500, 1000)
            return "increment", {column: Decimal(cents).scaleb(-2) if column == "balance" else cents}
        if draw < 0.8:
            columns = self._random.choice(_PARTS[str(key[0])])
            return ("patch" if draw < 0.7 else "put"), {column: whole[column] for column in columns}
        return "put", whole

    def _user(self) -> Row:
        n, some = self._count, self._random.randint(0, 99_999)
        return {
            "name": f'Zoë "{n}" O\'Neil',
            "email": f"user{n}@example.com" if some % 7 else None,
            "account": 2**62 + n,  # above what a float holds
            "active": some % 2 == 0,
            "balance": Decimal(some).scaleb(-2),
            "born": f"19{some % 90 + 10}-0{some % 9 + 1}-1{some % 9}",
            "seen_at": f"2025-06-1{n % 9}T12:{some % 50 + 10}:00+00:00",
            "profile": {"theme": "dark", "n": n, "recent": [some, None, []]},
            "tags": [f"t{some % 5}", "a,b", ""][: n % 4],
            "visits": some,
        }

    def _order_line(self) -> Row:
        some = self._random.randint(0, 99_999)
        return {
            "sku": f"sku-{some}",
            "price": Decimal(some).scaleb(-2),
            "note": None if some % 3 else f"line one\nline {self._count}",
            "quantity": some,
        }

    def _apply(self, op: Op, key: Key, data: Row) -> None:
        row = self.rows.get(key) or _NEW_ROW[key[0]]
        if op == "delete":
            self.rows[key] = None
        else:
            self.rows[key] = _added(row, data) if op == "increment" else row | data


def _added(row: Row, deltas: Row) -> Row:
    return row | {column: row.get(column, 0) + delta for column, delta in deltas.items()}


def _send(target: WriteBehind | Batch, op: Op, key: Key, data: Row) -> None:
    table, id = str(key[0]), row_id(key)
    if op == "delete":
        target.delete(table, id)
    else:
        getattr(target, op)(table, id, data)


def _accepted(wb: WriteBehind, writes: list[tuple[Op, Key, Row]]) -> None:
    """Sends one write by itself, several as a batch; waits where the queue is full."""
    while True:
        try:
            if len(writes) == 1:
                _send(wb, *writes[0])
                return
            with wb.batch() as batch:
                for write in writes:
                    _send(batch, *write)
            return
        except QueueFull:
            time.sleep(_QUEUE_FULL_PAUSE_S)


def produce(
    wb: WriteBehind, producer: int, rows: int, writes: int, report: Callable[[int], object]
) -> Expected:
    """Sends so many writes, most of them in batches; ``report`` hears how many were accepted."""
    plan, draw = _Plan(producer, rows), random.Random(-producer - 1)  # noqa: S311 - no secret
    expected, operations = Expected({}, [], [], 0, 0), Counter[str]()
    done, reported = 0, 0.0
    while done < writes:
        size = min(50 if draw.random() < 0.05 else 1, writes - done)
        chunk = [plan.next(writes - done - i) for i in range(size)]
        _accepted(wb, chunk)
        done += size
        operations.update(op for op, _, _ in chunk)
        _, key, _ = chunk[-1]
        if draw.random() < 0.05 and key in plan.rows and (seen := wb.get(str(key[0]), row_id(key))):
            expected.reads += 1
            expected.stale_reads += not shows(seen, plan.rows[key])
        if time.monotonic() - reported > _REPORT_S:
            report(done)
            reported = time.monotonic()
    report(done)
    expected.operations = dict(operations)
    expected.rows, expected.sums = list(plan.rows.items()), list(plan.sums.items())
    return expected


def shows(seen: Row, row: Row | None) -> bool:
    """Whether what the cache shows is so in ``row``; it need not have all columns."""
    return row is not None and all(c in row and row[c] == value for c, value in seen.items())


def read_expected(file: Path) -> Expected:
    """What the producer wrote to ``file``; numbers with a fraction are exact."""
    return msgspec.json.Decoder(Expected, float_hook=Decimal).decode(file.read_bytes())


def main(url: str, producer: str, rows: str, writes: str, file: str) -> None:
    """One producer: prints how many writes were accepted, and leaves what it expects in ``file``."""

    def report(done: int) -> None:
        sys.stdout.write(f"{done}\n")
        sys.stdout.flush()

    with WriteBehind.from_url(url, parse_float=Decimal) as wb:
        expected = produce(wb, int(producer), int(rows), int(writes), report)
    Path(file).write_bytes(msgspec.json.Encoder(decimal_format="number").encode(expected))


if __name__ == "__main__":
    main(*sys.argv[1:])
