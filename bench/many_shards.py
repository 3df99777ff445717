"""What many shards would need, from what was measured with few: arithmetic, with its assumptions. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

SHARDS = (10, 100, 1000)
LOADS = (0, 100_000, 1_000_000)
"""Writes a second, of all shards together."""

BUSY = 0.7  # of a core, at most
MAX_CONNECTIONS = 100  # of Postgres, unless it is told otherwise
POSTGRES_CORES = 32  # of the one primary
MESSAGE_BYTES = 200
CROSSINGS = 3  # to Redis, to the worker, to Postgres
ACCEPT_US = 8  # of Redis' one thread, for a write in a batch of 1,000; a call of its own costs six times that
LOOKS_PER_S, LOOK_BYTES = 6, 100  # of each process at each queue, whoever serves it


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one more queue that is idle, by the difference of two fleets; and CPU µs of a unique update."""

    commands_per_s: float
    bytes_per_s: float
    redis_connections: float
    idle_redis_s: float
    idle_worker_s: float
    worker_us: float
    redis_us: float
    postgres_us: float


@dataclass(frozen=True, slots=True)
class Need:
    """Of so many shards and writes a second; cores at `BUSY` of each. ``stops``: what is not enough.

    A process keeps one core busy: there are as many as ``worker_cores``.
    """

    shards: int
    writes_per_s: int
    idle_commands_per_s: float
    megabytes_per_s: float
    redis_connections: int
    redis_cores: int
    worker_cores: int
    postgres_cores: int
    postgres_connections: int

    @property
    def stops(self) -> str:
        limits = {
            "one Redis": self.redis_cores > 1,
            "Postgres' connections": self.postgres_connections > MAX_CONNECTIONS,
            "one Postgres": self.postgres_cores > POSTGRES_CORES,
        }
        return ", ".join(name for name, is_reached in limits.items() if is_reached) or "-"


def measured(found: Mapping[str, Any]) -> Measured | None:
    """From latest.json; ``None`` where a part of it is missing."""
    idle, load = found.get("idle", {}), found.get("unique_updates")
    if load is None or len(idle) < 2:
        return None
    few, many = (idle[name] for name in (min(idle, key=int), max(idle, key=int)))
    queues: int = many["queues"] - few["queues"]

    def each(name: str) -> float:
        return float(many[name] - few[name]) / queues

    def cpu(name: str) -> float:
        return float(many["cpu_ms_per_s"][name] - few["cpu_ms_per_s"][name]) / queues / 1000

    us = load["rivals"]["writebehind"]["cpu_us_per_write"]
    return Measured(
        each("redis_commands_per_s"),
        each("redis_bytes_per_s"),
        each("redis_connections"),
        max(0.0, cpu("redis")),
        max(0.0, cpu("process")),
        us["process"],
        us["redis"],
        us["postgres"],
    )


def needs(one: Measured) -> Iterator[Need]:
    """For each number of shards and each load."""
    for shards in SHARDS:
        for writes in LOADS:
            yield need(one, shards, writes)


def need(one: Measured, shards: int, writes_per_s: int) -> Need:
    """All that grows with the queues that are served, and what grows with the writes."""
    queues = shards + 1  # the queue itself is served, too
    worker_cores = _cores(one.idle_worker_s * queues + writes_per_s * one.worker_us / 1e6)
    looks = LOOKS_PER_S * queues * (worker_cores - 1)  # those of one are in what was measured
    commands = one.commands_per_s * queues + looks
    bytes_per_s = one.bytes_per_s * queues + looks * LOOK_BYTES + writes_per_s * MESSAGE_BYTES * CROSSINGS
    idle_redis_s = one.idle_redis_s * commands / one.commands_per_s
    return Need(
        shards,
        writes_per_s,
        commands,
        bytes_per_s / 1e6,
        ceil(one.redis_connections * queues),
        _cores(idle_redis_s + writes_per_s * (ACCEPT_US + one.redis_us) / 1e6),
        worker_cores,
        _cores(writes_per_s * one.postgres_us / 1e6),
        queues,
    )


def _cores(seconds_per_s: float) -> int:
    return max(1, ceil(seconds_per_s / BUSY))
