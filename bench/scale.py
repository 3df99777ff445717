"""A queue of several shards and the processes that serve it, beside as many bare connections to Postgres."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from writebehind.route import shard_of

from .cpu import cpu_s
from .errors import BenchFailed
from .items import Items, make_items
from .live import LiveLine
from .load import TABLE, Load, unique_updates
from .rivals import limit
from .rivals.child import GO, Child
from .rivals.fleet import Fleet
from .sizes import Sizes
from .stage import Stage
from .table import BenchTable
from .wire import lpush, send_all

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Run:
    """``cores``: how many the process kept busy that used most CPU; ``most``: the shards of one process."""

    writes_per_s: float
    cores: float
    most: int


@dataclass(frozen=True, slots=True)
class _Ready:
    pids: Sequence[int]
    drain: Callable[[], object]
    most: int = 1


class _Course:
    """One load, divided among ``shards`` as the library divides it."""

    def __init__(self, stage: Stage, load: Load, table: BenchTable, shards: int) -> None:
        self._stage, self._load, self._table, self._shards = stage, load, table, shards
        self._parts = divided(load, shards)
        self._items = [make_items(part) for part in self._parts]
        parts = zip(self._parts, self._items, strict=True)
        self._batches = [limit.make_batches(part, items) for part, items in parts]

    def run(self, processes: int) -> Run:
        """By a fleet of so many processes; by bare connections if there are none.

        BenchFailed if a row is not as it must be after it.
        """
        self._stage.empty_redis()
        with self._fleet(processes) if processes else self._limit() as ready:
            self._table.reset()
            before, began = [cpu_s(pid) for pid in ready.pids], time.perf_counter()
            ready.drain()
            seconds = time.perf_counter() - began
            used = [cpu_s(pid) - was for pid, was in zip(ready.pids, before, strict=True)]
        if wrong := self._table.wrong_rows():
            raise BenchFailed(f"{self._shards} shards: {wrong} rows are not as they must be")
        return Run(len(self._load.writes) / seconds, max(used) / seconds, ready.most)

    @contextmanager
    def _limit(self) -> Iterator[_Ready]:
        with ExitStack() as running:
            children = [
                running.enter_context(Child(limit.work, self._stage.postgres_url, part, batches))
                for part, batches in zip(self._parts, self._batches, strict=True)
            ]
            for child in children:
                child.wait_until_ready()

            def drain() -> None:
                for child in children:
                    child.tell(GO)
                for child in children:
                    child.reply()

            yield _Ready([child.pid for child in children], drain)

    @contextmanager
    def _fleet(self, processes: int) -> Iterator[_Ready]:
        with Fleet(self._stage, f"bench:scale:{next(_numbers)}", self._shards, processes) as fleet:
            for number, items in enumerate(self._items):
                send_all(self._stage.redis_url, [items.entries, *lpush(_staged(number), items.messages)])
            fleet.wait_until_ready()
            pids = [worker.pid for worker in fleet.workers]
            yield _Ready(pids, lambda: self._drain(fleet), fleet.busiest())

    def _drain(self, fleet: Fleet) -> None:
        """All shards' writes become visible at once."""
        filled = [one for one in enumerate(zip(fleet.shards, self._items, strict=True)) if one[1][1].messages]
        with self._stage.redis.pipeline(transaction=True) as pipe:
            for number, (keys, items) in filled:
                pipe.hset(keys.clock, "seq", items.last_seq)
                pipe.rename(_staged(number), keys.queue)
            pipe.execute()
        fleet.wait_for([_last(items) for items in self._items])


def divided(load: Load, shards: int) -> list[Load]:
    """The writes of each shard, in their order."""
    parts: list[list[Any]] = [[] for _ in range(shards)]
    for write in load.writes:
        parts[shard_of(TABLE, str(write[0]), shards)].append(write)
    return [replace(load, writes=part) for part in parts]


def _staged(number: int) -> bytes:
    return b"bench:staged:%d" % number


def _last(items: Items) -> int:
    return items.last_seq if items.messages else 0


def measure(stage: Stage, sizes: Sizes, line: LiveLine) -> dict[str, Any]:
    """All in turn, again and again; the figures of latest.json."""
    load = unique_updates(sizes)
    table = BenchTable(stage.pg, load)
    found = {}
    for shards in sizes.shards:
        course = _Course(stage, load, table, shards)
        runs: dict[int, list[Run]] = {processes: [] for processes in (0, 1, shards)}
        for number in range(sizes.rounds):
            for processes, of_one in runs.items():
                line.show(f"shards: {shards}, processes: {processes}, round {number + 1} of {sizes.rounds}")
                of_one.append(course.run(processes))
        found[str(shards)] = _figures(runs, shards)
    ratios = {f"ratio_to_limit_{n}": figures["n_processes"]["ratio_to_limit"] for n, figures in found.items()}
    return {"writes": len(load.writes), **ratios, "shards": found}


def _figures(runs: dict[int, list[Run]], shards: int) -> dict[str, Any]:
    bare = runs[0]
    return {
        "limit": {"writes_per_s": _rate(bare), "runs": [round(run.writes_per_s) for run in bare]},
        "one_process": _of_fleet(1, runs[1], bare),
        "n_processes": _of_fleet(shards, runs[shards], bare),
    }


def _of_fleet(processes: int, ours: list[Run], bare: list[Run]) -> dict[str, Any]:
    ratios = (a.writes_per_s / b.writes_per_s for a, b in zip(ours, bare, strict=True))
    return {
        "processes": processes,
        "writes_per_s": _rate(ours),
        "ratio_to_limit": round(median(ratios), 3),
        "busiest_process_cores": round(median(run.cores for run in ours), 2),
        "most_shards_of_a_process": max(run.most for run in ours),
        "runs": [round(run.writes_per_s) for run in ours],
    }


def _rate(runs: list[Run]) -> int:
    return round(median(run.writes_per_s for run in runs))
