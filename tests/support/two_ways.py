"""Copies of the same tables, a schema each, for what should come to the same by another way."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg

from writebehind_worker.apply import Patience
from writebehind_worker.breaker import Breaker
from writebehind_worker.digest import Digest, digest
from writebehind_worker.flush import Flushed, Flusher
from writebehind_worker.frozen import FrozenBatch
from writebehind_worker.ledger import Ledger
from writebehind_worker.postgres import connect
from writebehind_worker.prepared import prepare
from writebehind_worker.unit import Unit

CLOCK = 10**15
SCHEMA = "alone"
"""What messages call it; each copy puts its own name there, as long: reasons give the place of a byte."""

Items = Sequence[bytes]
_BATCHES = itertools.count(1)


@dataclass(frozen=True)
class Letter:
    """A dead letter, but for its batch and its place there."""

    kind: str
    seq: int | None
    body: str
    table: str | None
    key: str | None
    sqlstate: str | None
    reason: str
    is_superseded: bool


@dataclass
class Heard:
    """What Redis and the metrics have heard.

    ``entries``: cache key → ttl, applied seq, rejected seq, whether the applied one is a put.
    """

    entries: dict[str, list[int]] = field(default_factory=dict)
    writes: Counter[tuple[str, str]] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)


class Copy:
    """The tables in one schema, and a worker's Postgres side for them, over ``conn``."""

    def __init__(self, schema: str, conn: psycopg.Connection[Any], queue: str, pg: psycopg.Connection[Any]):
        self._schema, self.conn, self._queue, self._pg = schema, conn, queue, pg
        self._ledger = Ledger(conn, queue)
        self.begin()

    def begin(self) -> None:
        """Begins as an owner who finds no dead letters."""
        self._pg.execute("DELETE FROM writebehind.dead_letters WHERE queue = %s", [self._queue])
        self.conn.execute("DISCARD TEMP")
        self.flusher = Flusher(
            self.conn,
            self._ledger,
            self._ledger.take("test", 0),
            tables=(),
            lock_timeout_s=5,
            statement_timeout_s=30,
            breaker=Breaker(),
            publish=lambda _: None,
            refuse_newer=True,  # a later version is a dead letter, as any odd message is
        )
        self.heard = Heard()
        self.at_once: list[int] = []

    def run(self, *statements: str) -> None:
        """Of SQL, by the owner's connection."""
        for statement in statements:
            self.conn.execute(self._own(statement).encode())

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Of any query."""
        return self._pg.execute(self._own(query).encode()).fetchall()

    def freeze(self, items: Items) -> FrozenBatch:
        """The next batch."""
        return FrozenBatch(
            next(_BATCHES), [self._own(i.decode("latin1")).encode("latin1") for i in items], CLOCK
        )

    def digest(self, items: Items) -> Digest:
        """What they come to; they have to be such as can be read at once."""
        return self.digest_of(self.freeze(items))

    def digest_of(self, batch: FrozenBatch) -> Digest:
        """The same of a batch."""
        found = digest(batch, self.flusher.catalog)
        assert found is not None
        return found

    def flush(self, *batches: Items) -> None:
        """Each by itself, message by message."""
        for items in batches:
            self._flush_carefully(Unit([self.freeze(items)]))

    def flush_at_once(self, *batches: Items) -> list[list[bytes]]:
        """As the worker does it where each batch joins those before it if it can; what went in together.

        ``at_once`` is told of each how many batches that were, 0 if it was read message by message.
        """
        units: list[Unit] = []
        for items in batches:
            unit = self._read(self.freeze(items))
            if not (units and units[-1].add(unit)):
                units.append(unit)
        return [together for unit in units for together in self._flush_unit(unit)]

    def _read(self, batch: FrozenBatch) -> Unit:
        catalog = self.flusher.catalog
        found = digest(batch, catalog)
        if found is None:
            return Unit([batch], prepared=prepare(batch, catalog))
        return Unit([batch], found)

    def _flush_unit(self, unit: Unit) -> Iterator[list[bytes]]:
        if unit.digest is not None:
            before = self.recent_batches
            unit.close(self.flusher.may_copy)
            flushed = self.flusher.flush_at_once(unit.ids, unit.digest, unit.statements)
            if flushed is not None:
                self.at_once.append(len(unit.batches))
                self._hear(unit, flushed)
                yield [self._shared(item) for batch in unit.batches for item in batch.items]
                return
            assert self.recent_batches == before
        for part in unit.split() if unit.digest is not None else [unit]:
            self.at_once.append(0)
            self._flush_carefully(part)
            yield list(map(self._shared, part.batches[0].items))

    def _flush_carefully(self, unit: Unit) -> None:
        self._hear(unit, self.flusher.flush(unit.batches[0], Patience(), unit.prepared))

    def _hear(self, unit: Unit, flushed: Flushed) -> None:
        assert flushed.last_batch == unit.ids[-1] == self.recent_batches[-1]
        for s in unit.settlements({b.position for b in flushed.buried}):
            ttl_s, applied, rejected, was_put = self.heard.entries.get(s.cache_key, (0, 0, 0, 0))
            self.heard.entries[s.cache_key] = [
                s.ttl_s if s.applied_seq or not ttl_s else ttl_s,
                max(applied, s.applied_seq),
                max(rejected, s.rejected_seq),
                s.is_put if s.applied_seq else was_put,
            ]
        for (table, outcome), number in flushed.writes.items():
            self.heard.writes[self._neutral(table), outcome] += number
        for table, number in flushed.rows.items():
            self.heard.rows[self._neutral(table)] += number

    @property
    def recent_batches(self) -> list[int]:
        """Those that the ledger has."""
        query = "SELECT unnest(recent_batches) FROM writebehind.ledger WHERE queue = %s"
        return [id for (id,) in self._pg.execute(query, [self._queue])]

    def contents(self, *tables: str) -> dict[str, list[str]]:
        """Each row as text: 1.0 is not 1.00 here."""
        return {
            table: [row for (row,) in self.rows(f"SELECT w::text FROM {SCHEMA}.{table} AS w ORDER BY 1")]
            for table in tables
        }

    def letters(self) -> list[Letter]:
        """The dead letters, oldest first."""
        found = self._pg.execute(
            "SELECT kind, seq, body, table_name, key, sqlstate, reason, superseded_at IS NOT NULL "
            "FROM writebehind.dead_letters WHERE queue = %s ORDER BY id",
            [self._queue],
        )
        return [
            Letter(
                kind,
                seq,
                self._neutral(body.decode("latin1")),
                table and self._neutral(table),
                key,
                state,
                self._neutral(reason),
                is_superseded,
            )
            for kind, seq, body, table, key, state, reason, is_superseded in found
        ]

    def _own(self, text: str) -> str:
        return text.replace(SCHEMA, self._schema)

    def _neutral(self, text: str) -> str:
        return text.replace(self._schema, SCHEMA)

    def _shared(self, item: bytes) -> bytes:
        return self._neutral(item.decode("latin1")).encode("latin1")


@contextmanager
def copies(url: str, pg: psycopg.Connection[Any], queue: str, *schemas: str) -> Iterator[list[Copy]]:
    """One for each schema, which is made; their tables are the caller's matter."""
    with ExitStack() as stack:
        for schema in schemas:
            assert len(schema) == len(SCHEMA)
            pg.execute(f"CREATE SCHEMA {schema}".encode())
        conns = [stack.enter_context(connect(url)) for _ in schemas]
        yield [Copy(s, conn, f"{queue}:{s}", pg) for s, conn in zip(schemas, conns, strict=True)]
