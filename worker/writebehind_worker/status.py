"""What Redis and the ledger say about a queue at this moment. Reads only; either may be down."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import redis
from psycopg import errors as pg

from writebehind.keys import QueueKeys
from writebehind.shards import Assignment

from . import connections
from .config import Config
from .frozen import stamped_seq
from .lease import read_lease
from .ledger import OPEN_BESIDE
from .nodes import REDIS_ERRORS
from .pause import read_pause
from .pending import read_frozen
from .postgres import connect
from .redis_server import RedisLink
from .resharding import layout_of, served
from .sqlstate import condition

_TIMEOUT_S = 5
_OPEN = "queue = $1 AND superseded_at IS NULL"


@dataclass(frozen=True, slots=True)
class FrozenBatchStatus:
    """A batch that was taken from the queue and is not acknowledged."""

    id: int
    items: int


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """What Redis holds. Ages and the lease are in seconds of the server's clock."""

    length: int
    frozen: tuple[FrozenBatchStatus, ...]
    oldest_age_s: float | None
    """Age of the oldest pending write; None if there is none, or it carries no ``seq``."""
    owner: str | None
    lease_remaining_s: float | None
    """Negative once it has expired; None if nobody has held it."""
    epoch: int | None
    seq: int | None
    generation: str | None
    applied: int | None
    acked: int | None
    paused: str | None
    """Why an operator has paused it."""
    held: str | None = None
    """Of a shard: until when nothing is taken from it."""
    is_used: bool = True
    """False: no worker, no producer of ours, and nothing waits."""
    tables: dict[str, str] = field(default_factory=dict)
    """Those that have been moved from here → where their writes go, or wait to go."""


@dataclass(frozen=True, slots=True)
class LedgerStatus:
    """The queue's row in Postgres; all zero before its first owner."""

    epoch: int = 0
    recent_batches: int = 0
    last_batch: int | None = None
    applied_seq: int = 0
    generation: int | None = None
    owner: str | None = None
    rollback_items: int = 0
    waiting_for: str | None = None
    """What the oldest batch waits for: somebody's lock, a table that refuses every write."""


@dataclass(frozen=True, slots=True)
class DeadLetterCount:
    """Open dead letters (superseded ones are not counted) of one kind and SQLSTATE.

    ``condition`` is what Postgres' manual calls the code.
    """

    kind: str
    sqlstate: str | None
    count: int
    condition: str | None


@dataclass(frozen=True, slots=True)
class Status:
    """A part is None if its server could not be asked; the error beside it says why."""

    queue: str
    redis: QueueStatus | None
    redis_error: str | None
    ledger: LedgerStatus | None
    dead_letters: tuple[DeadLetterCount, ...] | None
    postgres_error: str | None

    @property
    def ok(self) -> bool:
        """Both servers answered, and the ledger is there."""
        return self.redis_error is None and self.postgres_error is None


def read_status(config: Config, present: Collection[str] | None = None) -> Status:
    """Asks both servers, a few seconds at most. Raises nothing for a server that does not answer.

    With the names of the ``present`` shards, the dead letters of former ones count as the queue's own.
    """
    queue, redis_error = None, None
    try:
        queue = _read_redis(config)
    except (redis.RedisError, OSError) as error:
        redis_error = connections.redis_error(config, error)
    ledger, dead_letters, postgres_error = None, None, None
    try:
        ledger, dead_letters = _read_postgres(config, present)
    except (pg.UndefinedTable, pg.InvalidSchemaName):
        postgres_error = "the ledger's tables are missing: run `writebehind init`"
    except psycopg.Error as error:
        postgres_error = connections.postgres_error(config, error)
    return Status(config.queue, queue, redis_error, ledger, dead_letters, postgres_error)


def shards_of_queue(config: Config) -> list[Config]:
    """Of each shard, former ones too; none where it is not divided, or Redis does not answer."""
    keys = QueueKeys(config.queue)
    try:
        with RedisLink(config.redis_url) as link:
            those = served(keys, layout_of(link.client, keys))
    except (*REDIS_ERRORS, OSError):
        return []
    return [replace(config, queue=one.queue) for one in those if one.queue != config.queue]


def _read_redis(config: Config) -> QueueStatus:
    keys = QueueKeys(config.queue)
    with RedisLink(config.redis_url, config.queue) as link:
        client = link.client
        pipe: Any = client.pipeline()
        pipe.llen(keys.queue).lindex(keys.queue, -1).lrange(keys.inflight, 0, -1).get(keys.lease)
        pipe.hmget(keys.clock, "seq", "generation", "hold").mget(keys.epoch, keys.applied, keys.acked)
        pipe.get(keys.paused).time()
        length, tail, inflight, lease, clock, numbers, paused, (now_s, now_us) = pipe.execute()
        batches = [int(batch) for batch in inflight]
        lengths, head = read_frozen(client, keys, batches)
        layout = layout_of(client, keys)
    now = now_s * 1_000_000 + now_us
    owner, expiry_ms = read_lease(lease)
    seq, generation, hold = clock
    epoch, applied, acked = (None if n is None else int(n) for n in numbers)
    return QueueStatus(
        length=length,
        frozen=tuple(FrozenBatchStatus(b, n) for b, n in zip(batches, lengths, strict=True) if n),
        oldest_age_s=_age_s(head or tail, now),
        owner=owner,
        lease_remaining_s=None if expiry_ms is None else expiry_ms / 1e3 - now / 1e6,
        epoch=epoch,
        seq=None if seq is None else int(seq),
        generation=None if generation is None else generation.decode(errors="replace"),
        applied=applied,
        acked=acked,
        paused=None if paused is None else read_pause(paused).reason,
        held=None if hold is None else hold.decode(errors="replace"),
        is_used=bool(length or batches or seq or epoch is not None or layout.number),
        tables={table: _place(says) for table, says in sorted(layout.tables.items()) if says.state != "here"},
    )


def _place(says: Assignment) -> str:
    waits = " (being moved: its writes wait; run `writebehind move` again if it has ended)"
    return says.queue + (waits if says.waits else "")


def _age_s(item: bytes | None, now_us: int) -> float | None:
    seq = stamped_seq(item or b"")
    return None if seq is None else max(0, now_us - seq) / 1e6


def _read_postgres(
    config: Config, present: Collection[str] | None
) -> tuple[LedgerStatus, tuple[DeadLetterCount, ...]]:
    with connect(config.postgres_url) as conn, conn.transaction():
        conn.execute("SET TRANSACTION READ ONLY")
        conn.execute(f"SET LOCAL statement_timeout = '{_TIMEOUT_S}s'")
        row = conn.execute(
            "SELECT epoch, cardinality(recent_batches), recent_batches[cardinality(recent_batches)],"
            " applied_seq, generations[cardinality(generations)], owner, rollback_items, waiting_for"
            " FROM writebehind.ledger WHERE queue = $1",
            [config.queue],
        ).fetchone()
        counts = conn.execute(
            "SELECT kind, sqlstate, count(*) FROM writebehind.dead_letters"
            f" WHERE {OPEN_BESIDE if present is not None else _OPEN} GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2",
            [config.queue] if present is None else [config.queue, list(present)],
        ).fetchall()
    found = tuple(DeadLetterCount(kind, code, n, condition(code)) for kind, code, n in counts)
    return LedgerStatus(*row or ()), found


def render(status: Status) -> str:
    """For a terminal: one fact a line, what is down in its place."""
    lines = [("queue", status.queue)]
    lines += [("redis", f"DOWN: {status.redis_error}")] if status.redis_error else []
    lines += _redis_lines(status.redis) if status.redis else []
    lines += [("postgres", f"DOWN: {status.postgres_error}")] if status.postgres_error else []
    lines += _ledger_lines(status.ledger) if status.ledger else []
    lines += _dead_lines(status.dead_letters) if status.dead_letters is not None else []
    return "\n".join(f"{label:<13}{text}".rstrip() for label, text in lines)


def _redis_lines(queue: QueueStatus) -> Iterator[tuple[str, str]]:
    yield "waiting", counted(queue.length)
    yield "frozen", f"{sum(b.items for b in queue.frozen)} writes in {len(queue.frozen)} batches"
    for batch in queue.frozen:
        yield "", f"batch {batch.id}: {counted(batch.items)}"
    pending = queue.length or queue.frozen
    unknown = "unknown: it carries no seq" if pending else "nothing is pending"
    yield "oldest", unknown if queue.oldest_age_s is None else f"{queue.oldest_age_s:.1f} s old"
    yield "owner", _owner(queue)
    if queue.paused is not None:
        yield "paused", f"{queue.paused} (writebehind resume ends it)"
    if queue.held is not None:
        yield "held", queue.held
    for table, place in queue.tables.items():
        yield "elsewhere", f"{table}: {place}"
    yield (
        "in redis",
        (
            f"epoch {_or_none(queue.epoch)}, generation {_or_none(queue.generation)}, "
            f"seq {_or_none(queue.seq)}, applied {_or_none(queue.applied)}, acked {_or_none(queue.acked)}"
        ),
    )


def counted(writes: int) -> str:
    return f"{writes} write" if writes == 1 else f"{writes} writes"


def _owner(queue: QueueStatus) -> str:
    if queue.lease_remaining_s is None:
        return "none: no worker runs"
    if queue.lease_remaining_s <= 0:
        return f"none: the lease of {queue.owner} ended {-queue.lease_remaining_s:.1f} s ago"
    return f"{queue.owner}, lease for {queue.lease_remaining_s:.1f} s"


def _ledger_lines(ledger: LedgerStatus) -> Iterator[tuple[str, str]]:
    yield (
        "in postgres",
        (
            f"epoch {ledger.epoch}, generation {_or_none(ledger.generation)}, "
            f"applied {ledger.applied_seq}, last batch {_or_none(ledger.last_batch)} "
            f"({ledger.recent_batches} kept)"
        ),
    )
    if ledger.waiting_for:
        yield "waiting for", ledger.waiting_for
    if ledger.rollback_items:
        yield "rollback", f"Redis went back: the next {ledger.rollback_items} items are checked"


def _dead_lines(counts: tuple[DeadLetterCount, ...]) -> Iterator[tuple[str, str]]:
    yield "dead letters", str(sum(count.count for count in counts))
    for count in counts:
        yield "", f"{count.count} {count.kind}, {_why(count)}"


def _why(count: DeadLetterCount) -> str:
    if count.kind == "rollback":
        return "applied before Redis went back"
    return f"{count.sqlstate} {count.condition or ''}".strip() if count.sqlstate else "refused by the worker"


def _or_none(value: object) -> object:
    return "none" if value is None else value
