"""A producer as a process: writes down each call before it makes it, and what came of it afterwards."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Mapping, MutableSequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from redis import Redis, RedisError
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

from writebehind import (
    FlushTimeout,
    InvalidWrite,
    OutcomeUnknown,
    QueueFull,
    RedisRefused,
    RedisUnavailable,
    WriteBehind,
)
from writebehind.address import connect, read_address
from writebehind_worker.nodes import node_of

from .history import Kind, Line, Write, encode, file_name
from .sabotage import SABOTAGES
from .stream import PLAIN_ROWS, Stream, route_of

CACHE_PREFIX = "c:"
_LONGEST_QUEUE = 20_000
_TIMEOUT_S = 1.0
_REFUSED_PAUSE_S = 0.02
_OWN_PAUSE_S = 0.005
_PLAIN_S = 2.0
_PLAIN_READS = 0.2  # after so many batches
_READ_TIMEOUT_S = 0.3  # a row that the cache cannot show yet
_COLUMNS = ("a", "b", "n", "s")


@dataclass(frozen=True)
class Orders:
    """What a producer process is told. ``progress``: writes accepted, and whether it is within a call."""

    who: int
    seed: int
    is_raw: bool
    redis_url: str
    postgres_url: str
    queue: str
    folder: Path
    writes_per_s: float
    sabotage: str | None
    progress: MutableSequence[int]


def produce(orders: Orders) -> None:
    """Until SIGTERM, which lets the call at hand come to its end."""
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the harness, which ends us
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if orders.sabotage is not None:
        SABOTAGES[orders.sabotage].spoil_producer()
    (_RawProducer if orders.is_raw else _LibraryProducer)(orders).run(stop)


def client_of(url: str, queue: str, timeout_s: float) -> Redis:
    """One that never sends again; of a cluster, of the node that has the queue now. Raises ``RedisError``."""
    timeouts = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), timeout_s)
    options = {**timeouts, "retry": Retry(NoBackoff(), 0)}
    address = read_address(url)
    return node_of(address, queue, options, options) if address.kind == "cluster" else connect(url, options)


class _Producer:
    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._stream = Stream(orders.seed, orders.who)
        self._calls = 0
        path = orders.folder / file_name(orders.who)
        self._history = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def _note(self, line: Line) -> None:
        os.write(self._history, encode(line) + b"\n")

    def _began(self) -> None:
        self._orders.progress[1] = 1

    def _ended(self, line: Line, writes: int) -> None:
        self._note(line)
        self._orders.progress[1] = 0
        if line.ok is not None:
            self._orders.progress[0] += writes


class _LibraryProducer(_Producer):
    """Uses the library: batches to rows of all, single writes and groups to own rows, and reads of those."""

    def __init__(self, orders: Orders) -> None:
        super().__init__(orders)
        self._wb = WriteBehind.from_url(
            orders.redis_url,
            queue=orders.queue,
            prefix=CACHE_PREFIX,
            max_queue_length=_LONGEST_QUEUE,
            fill_timeout=1.0,
            redis_options={
                "socket_timeout": _TIMEOUT_S,
                "socket_connect_timeout": _TIMEOUT_S,
                "retry": Retry(ExponentialBackoff(cap=0.3, base=0.02), 6),
            },
        )
        self._tainted: set[str] = set()  # own rows whose cache entry may show a bad write
        self._postgres: psycopg.Connection[Any] | None = None

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            call = self._next_call()
            if is_plain_time():
                self._plain(call)
                stop.wait(PLAIN_ROWS / 2 / self._orders.writes_per_s)
                continue
            writes = self._stream.batch(call)
            self._send(call, "batch", writes, route_of(call))
            next_batch = time.monotonic() + len(writes) / self._orders.writes_per_s
            while time.monotonic() < next_batch and not stop.wait(_OWN_PAUSE_S):
                self._use_own_row()

    def _plain(self, call: int) -> None:
        writes = self._stream.plain(call)
        if self._send(call, "batch", writes).unknown is not None:
            self._stream.abandon_plain(write.id for write in writes)
        elif self._stream.chance.random() < _PLAIN_READS:
            self._read("plain", self._stream.plain_row())

    def _use_own_row(self) -> None:
        draw = self._stream.chance.random()
        if draw < 0.2:
            self._group()
            return
        if draw < 0.5:
            self._single()
            return
        row = self._stream.own_row()
        if draw < 0.6:
            self._invalidate(row)
        self._read("own", row)

    def _group(self) -> None:
        call = self._next_call()
        writes = self._stream.group(call)
        if self._send(call, "group", writes, self._orders.who).unknown is not None:
            self._stream.abandon_group(writes)

    def _next_call(self) -> int:
        self._calls += 1
        return self._calls

    def _single(self) -> None:
        call = self._next_call()
        write = self._stream.single(call)
        outcome = self._send(call, "single", [write])
        if outcome.unknown is not None:
            self._stream.abandon(write.id)
        elif outcome.ok is not None and _is_bad(write):
            self._tainted.add(write.id)
        elif outcome.ok is not None and write.op in ("put", "delete"):
            self._tainted.discard(write.id)

    def _send(self, call: int, kind: Kind, writes: list[Write], route: int | None = None) -> Line:
        self._began()
        self._note(Line(call, kind, writes, route))
        outcome = self._outcome(call, kind, writes, route)
        self._ended(outcome, len(writes))
        if outcome.refused is not None:
            time.sleep(_REFUSED_PAUSE_S)
        return outcome

    def _outcome(self, call: int, kind: Kind, writes: list[Write], route: int | None) -> Line:
        batch = self._wb.batch()
        how: dict[str, Any] = {} if route is None else {"route": route}
        try:
            if kind == "single":
                return Line(call, ok=self._ask(self._wb, writes[0]).seq)
            if kind == "group":
                with self._wb.atomic(**how) as group:
                    for write in writes:
                        self._ask(group, write)
                assert group.receipt is not None
                return Line(call, ok=group.receipt.seq)
            with batch:
                for write in writes:
                    self._ask(batch, write, **how)
            return Line(call, ok=batch.receipts[0].seq)
        except (QueueFull, RedisRefused, InvalidWrite) as error:
            # Without a route they are of several shards, and some have accepted theirs.
            return Line(call, unknown=str(error)) if batch.receipts else Line(call, refused=str(error))
        except (RedisUnavailable, OutcomeUnknown) as error:
            return Line(call, unknown=str(error))

    def _ask(self, target: Any, write: Write, **how: Any) -> Any:
        arguments: list[Any] = [] if write.op == "delete" else [write.data]
        return getattr(target, write.op)(write.table, self._id(write.table, write.id), *arguments, **how)

    def _id(self, table: str, row: str) -> Any:
        if table == "own":
            return {"owner": self._orders.who, "id": int(row)}
        return row if table in ("events", "marks") else int(row)

    def _read(self, table: str, row: str) -> None:
        if row in self._tainted:
            return
        load = self._load if table == "own" else self._load_plain
        try:
            found = self._wb.get(table, self._id(table, row), load=load, timeout=_READ_TIMEOUT_S)
        except (RedisUnavailable, RedisRefused, FlushTimeout, psycopg.Error):
            return
        self._note(Line(read=row, table=table, row=found))

    def _invalidate(self, row: str) -> None:
        try:
            self._wb.invalidate("own", self._id("own", row))
        except (RedisUnavailable, RedisRefused):
            return

    def _load(self, id: Mapping[str, int]) -> dict[str, Any] | None:
        return self._select("own WHERE owner = %s AND id = %s", id["owner"], id["id"])

    def _load_plain(self, id: int) -> dict[str, Any] | None:
        return self._select("plain WHERE id = %s", id)

    def _select(self, which: LiteralString, *values: int) -> dict[str, Any] | None:
        if self._postgres is None or self._postgres.closed:
            self._postgres = psycopg.connect(
                self._orders.postgres_url, autocommit=True, connect_timeout=2, application_name="loader"
            )
        row = self._postgres.execute("SELECT a, b, n, s FROM " + which, values).fetchone()
        return None if row is None else dict(zip(_COLUMNS, row, strict=True))


def is_plain_time() -> bool:
    """Whether all producers send good writes only: else a mark is in every batch of the worker."""
    return time.time() % (2 * _PLAIN_S) < _PLAIN_S


def _is_bad(write: Write) -> bool:
    return str(write.data.get("a", "")).startswith("bad")


class _RawProducer(_Producer):
    """Pushes as any language can. It never sends again: an outcome that it does not know stays unknown."""

    def __init__(self, orders: Orders) -> None:
        super().__init__(orders)
        self._redis: Redis | None = None

    def _client(self) -> Redis:
        if self._redis is None:
            self._redis = client_of(self._orders.redis_url, self._orders.queue, _TIMEOUT_S)
        return self._redis

    def _ask_anew(self) -> None:
        if self._redis is not None:
            self._redis.close()
        self._redis = None

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            if is_plain_time() or not self._has_room():
                stop.wait(_REFUSED_PAUSE_S)
                continue
            self._calls += 1
            writes = self._stream.raw(self._calls)
            self._began()
            self._note(Line(self._calls, "raw", writes))
            self._ended(self._push(writes), len(writes))
            stop.wait(len(writes) / self._orders.writes_per_s)

    def _has_room(self) -> bool:
        try:
            return int(self._client().llen(self._orders.queue)) < _LONGEST_QUEUE
        except RedisError:
            self._ask_anew()
            return False

    def _push(self, writes: list[Write]) -> Line:
        try:
            self._client().lpush(self._orders.queue, *map(wire, writes))
        except ResponseError as error:  # full, or of a node that does not have the slot
            self._ask_anew()
            return Line(self._calls, refused=str(error))
        except RedisError as error:
            self._ask_anew()
            return Line(self._calls, unknown=str(error))
        return Line(self._calls, ok=0)


def wire(write: Write) -> str:
    """The item of docs/wire-format.md."""
    if write.op == "broken":
        return '{"table": ' + str(write.data["a"])
    message: dict[str, Any] = {"table": write.table, "id": write.id}
    if write.op != "put":
        message["op"] = write.op
    if write.op != "delete":
        message["data"] = write.data
    return json.dumps(message)
