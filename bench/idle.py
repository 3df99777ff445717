"""What shards cost that nobody writes to: what Redis and Postgres are asked by a fleet of one process."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from typing import Any, cast

from redis import Redis

from .live import LiveLine
from .rivals.fleet import Fleet
from .sizes import Sizes
from .stage import Stage

_numbers = itertools.count(1)


def measure(stage: Stage, sizes: Sizes, line: LiveLine) -> dict[str, Any]:
    """By number of shards: commands by name, bytes and CPU a second, and the connections that are held."""
    found = {}
    for shards in sizes.idle_shards:
        line.show(f"idle, shards: {shards}")
        stage.empty_redis()
        with Fleet(stage, f"bench:idle:{next(_numbers)}", shards, 1) as fleet:
            fleet.wait_until_ready()
            found[str(shards)] = _figures(stage, fleet, sizes.idle_s)
    return found


def _figures(stage: Stage, fleet: Fleet, seconds: float) -> dict[str, Any]:
    pid = fleet.workers[0].pid
    cpu, calls, traffic = stage.cpu(pid), calls_of(stage.redis), _bytes(stage.redis)
    began = time.perf_counter()
    time.sleep(seconds)  # the measure itself: what happens in that time
    took = time.perf_counter() - began
    calls_after, traffic_after, cpu_after = calls_of(stage.redis), _bytes(stage.redis), stage.cpu(pid)
    rates = {name: (count - calls.get(name, 0)) / took for name, count in calls_after.items()}
    row = stage.pg.execute(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    ).fetchone()
    assert row is not None
    return {
        "queues": len(fleet.queues),
        "redis_commands_per_s": round(sum(rates.values()), 1),
        "by_command": {name: round(rate, 1) for name, rate in sorted(rates.items()) if rate >= 0.05},
        "redis_bytes_per_s": round((traffic_after - traffic) / took),
        "redis_connections": len(cast(list[Any], stage.redis.client_list())) - 1,  # without our own
        "postgres_connections": int(row[0]),
        "cpu_ms_per_s": {name: round((cpu_after[name] - cpu[name]) / took * 1000, 1) for name in cpu},
    }


def calls_of(redis: Redis) -> dict[str, int]:
    """How often each command was called, those of scripts too; not what asks this."""
    stats = cast(Mapping[str, Mapping[str, int]], redis.info("commandstats"))
    names = {name.removeprefix("cmdstat_"): int(stat["calls"]) for name, stat in stats.items()}
    return {name: calls for name, calls in names.items() if name != "info"}


def _bytes(redis: Redis) -> int:
    stats = redis.info("stats")
    return int(stats["total_net_input_bytes"]) + int(stats["total_net_output_bytes"])
