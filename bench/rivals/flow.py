"""A steady stream of writes through the script that accepts them.

The calls are made as bytes before, so that a stream of tens of thousands of writes a second leaves the
cores to those who are measured.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any

from redis import Redis

from writebehind.enqueue import pack_write
from writebehind.keys import QueueKeys
from writebehind.message import make_write
from writebehind.script import Script

from ..items import cache_key
from ..load import TABLE, Row
from ..wire import pack
from .child import READY

_ENQUEUE = Script("writebehind", "enqueue")
_TTL_S = 3600
_PAUSE_S = 0.002


@dataclass(frozen=True, slots=True)
class Task:
    """``calls_per_s`` calls of ``batch`` writes; what is refused, as the queue has ``bound``, comes again."""

    queue: str
    seconds: float
    calls_per_s: float
    batch: int
    bound: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """One call: the seqs of its first and last write, µs of Redis' clock."""

    first_seq: int
    last_seq: int


def work(connection: Connection[Any, Any], redis_url: str, rows: Sequence[tuple[int, Row]]) -> None:
    """The process: for each Task READY, and once told to go the calls that were accepted."""
    redis: Any = Redis.from_url(redis_url).connection_pool.get_connection()
    connection.send(READY)
    redis.send_command("SCRIPT LOAD", _ENQUEUE.source)
    redis.read_response()
    session, counters = f"flow{time.time_ns()}", itertools.count(1)
    calls = lru_cache(lambda queue, batch, bound: _calls(queue, batch, bound, rows, session))
    while True:
        task: Task = connection.recv()
        made = calls(task.queue, task.batch, task.bound)
        connection.send(READY)
        connection.recv()
        connection.send(_flow(redis, task, made, counters))


def _flow(
    redis: Any,  # a bare connection, which redis-py leaves untyped
    task: Task,
    calls: Sequence[tuple[bytes, bytes]],
    counters: Iterator[int],
) -> list[Accepted]:
    accepted: list[Accepted] = []
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < task.seconds:
        due = len(accepted) / task.calls_per_s
        if elapsed < due:
            time.sleep(due - elapsed)
        head, tail = calls[len(accepted) % len(calls)]
        number = b"%d" % next(counters)
        redis.send_packed_command([b"%b$%d\r\n%b\r\n%b" % (head, len(number), number, tail)])
        first, _ = redis.read_response()
        if first == b"full":
            time.sleep(_PAUSE_S)
        else:
            accepted.append(Accepted(int(first), int(first) + task.batch - 1))
    return accepted


def _calls(
    queue: str, batch: int, bound: int, rows: Sequence[tuple[int, Row]], session: str
) -> list[tuple[bytes, bytes]]:
    """What stands before and after the counter of each call."""
    keys = QueueKeys(queue)
    found = []
    for at in range(0, len(rows) - batch + 1, batch):
        some = rows[at : at + batch]
        own = [keys.queue, keys.clock, keys.producers, *(cache_key(id) for id, _ in some)]
        before = [b"EVALSHA", _ENQUEUE.sha.encode(), b"%d" % len(own), *(k.encode() for k in own)]
        after = [b"%d" % bound, b"put", b""]  # the only shard
        for id, row in some:
            write = make_write("put", TABLE, id, row)
            after.append(pack_write("put", write.message(cache_key(id), _TTL_S), write.cache_fields()))
        whole = pack(*before, session.encode(), b"?", *after)
        head, tail = whole.split(b"$1\r\n?\r\n", 1)
        found.append((head, tail))
    return found
