"""Ways to write a row to Redis: the library, and what people write by hand; and how long each call takes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from redis import Redis

from writebehind import WriteBehind

from ..items import cache_key, plain_item
from ..load import TABLE, Row
from .child import READY

Call = Callable[[Sequence[tuple[int, Row]]], None]
_TTL_S = 3600


@dataclass(frozen=True, slots=True)
class Task:
    """``batch`` writes a call, from ``threads`` threads."""

    threads: int
    batch: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Done:
    """The nanoseconds of each call; the seconds that all took, and what of a core the process used."""

    times: list[int]
    seconds: float
    cpu_s: float


def library(redis_url: str, queue: str) -> Call:
    wb = WriteBehind.from_url(redis_url, queue=queue, ttl=_TTL_S, max_queue_length=100_000_000)

    def call(rows: Sequence[tuple[int, Row]]) -> None:
        if len(rows) == 1:
            wb.put(TABLE, *rows[0])
        else:
            with wb.batch() as batch:
                for id, row in rows:
                    batch.put(TABLE, id, row)

    return call


def pipelined_pair(redis_url: str, queue: str) -> Call:
    redis = Redis.from_url(redis_url)

    def call(rows: Sequence[tuple[int, Row]]) -> None:
        with redis.pipeline(transaction=False) as pipe:
            for id, row in rows:
                pipe.set(cache_key(id), json.dumps(row), ex=_TTL_S)
                pipe.lpush(queue, json.dumps(plain_item("put", id, row)))
            pipe.execute()

    return call


def naive_pair(redis_url: str, queue: str) -> Call:
    redis = Redis.from_url(redis_url)

    def call(rows: Sequence[tuple[int, Row]]) -> None:
        for id, row in rows:
            redis.set(cache_key(id), json.dumps(row), ex=_TTL_S)
            redis.lpush(queue, json.dumps(plain_item("put", id, row)))

    return call


def nothing(redis_url: str, queue: str) -> Call:
    """A round trip, and what redis-py does about it."""
    redis = Redis.from_url(redis_url)

    def call(rows: Sequence[tuple[int, Row]]) -> None:
        redis.ping()

    return call


def work(
    connection: Connection[Any, Any],
    make: Callable[[str, str], Call],
    redis_url: str,
    queue: str,
    rows: Sequence[tuple[int, Row]],
) -> None:
    """The process: for each Task a Done."""
    call = make(redis_url, queue)
    call(rows[:1])  # connected, and the script is known
    connection.send(READY)
    while True:
        connection.send(_carry_out(connection.recv(), call, rows))


def _carry_out(task: Task, call: Call, rows: Sequence[tuple[int, Row]]) -> Done:
    times: list[int] = []
    began, used = time.perf_counter(), time.process_time()

    def write() -> None:
        at, end, own = 0, began + task.seconds, []
        while (start := time.perf_counter()) < end:
            at = at + task.batch if at + 2 * task.batch <= len(rows) else 0
            call(rows[at : at + task.batch])
            own.append(round((time.perf_counter() - start) * 1e9))
        times.extend(own)

    threads = [threading.Thread(target=write) for _ in range(task.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Done(times, time.perf_counter() - began, time.process_time() - used)
