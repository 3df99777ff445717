"""What each rung of the durability ladder costs a put: with a replica, an AOF on disk, and a worker."""

from __future__ import annotations

import itertools
import time
from contextlib import ExitStack
from statistics import median
from typing import Any

from redis import Redis

from writebehind import Durability, WriteBehind
from writebehind_worker.embedded import EmbeddedRedis

from .errors import BenchFailed
from .live import LiveLine
from .load import TABLE, unique_updates
from .percentile import percentile
from .rivals.writebehind import WorkerProcess
from .sizes import Sizes
from .stage import Stage
from .table import BenchTable

_RUNGS: tuple[tuple[Durability, str], ...] = (
    ("accepted", "everysec"),
    ("replicated", "everysec"),
    ("fsynced", "always"),
    ("fsynced", "everysec"),
    ("committed", "everysec"),
)
_QUEUE = "bench:ladder"
_PATIENCE_S = 30.0


def measure(stage: Stage, sizes: Sizes, line: LiveLine) -> dict[str, Any]:
    """The microseconds of a put by one thread, one after the other, by rung and ``appendfsync``."""
    stage.empty_redis()
    load = unique_updates(sizes)
    BenchTable(stage.pg, load).reset()
    runs: dict[tuple[str, str], list[list[float]]] = {rung: [] for rung in _RUNGS}
    numbers = itertools.count(1)
    with ExitStack() as stack:
        replica = EmbeddedRedis(stage.folder / "replica")
        stack.callback(replica.kill)
        replica.start()
        follower = stack.enter_context(Redis.from_url(replica.url))
        follower.replicaof("127.0.0.1", stage.redis.connection_pool.connection_kwargs.get("port", 6379))
        _wait_for(follower)
        stack.enter_context(
            WorkerProcess(stage.redis, stage.redis_url, stage.postgres_url, _QUEUE, stage.folder)
        ).wait_until_ready()
        wb = stack.enter_context(WriteBehind.from_url(stage.redis_url, queue=_QUEUE))
        for number in range(sizes.rounds):
            for durability, policy in _RUNGS:
                line.show(f"ladder: {durability}, appendfsync {policy}, round {number + 1} of {sizes.rounds}")
                stage.redis.config_set("appendfsync", policy)
                runs[durability, policy].append(_times(wb, durability, numbers, sizes.put_s))
        stage.redis.config_set("appendfsync", "everysec")
    return {
        f"{durability}, appendfsync {policy}": {
            "p50_us": round(median(percentile(run, 50) for run in found)),
            "p99_us": round(median(percentile(run, 99) for run in found)),
        }
        for (durability, policy), found in runs.items()
    }


def _wait_for(follower: Redis) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while _link(follower) != "up":
        if time.monotonic() > deadline:
            raise BenchFailed("ladder: the replica does not reach its primary")
        time.sleep(0.01)


def _link(follower: Redis) -> str:
    found: dict[str, Any] = follower.info("replication")
    return str(found["master_link_status"])


def _times(
    wb: WriteBehind, durability: Durability, numbers: itertools.count[int], seconds: float
) -> list[float]:
    wait = None if durability == "accepted" else _PATIENCE_S
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end or len(times) < 3:
        wb.put(TABLE, next(numbers) % 1000, {"version": 1}, durability=durability, wait=wait)
        times.append((time.perf_counter() - began) * 1e6)
    return sorted(times)
