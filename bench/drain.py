"""A load waits in Redis, or ready-made; how long does each rival take to bring it to Postgres?"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from .errors import BenchFailed
from .items import STAGED, make_items, plain_items
from .live import LiveLine
from .load import Load
from .rivals import afternoon, limit, one_by_one
from .rivals.child import GO, Child
from .rivals.writebehind import WorkerProcess
from .stage import Stage
from .table import BenchTable
from .wire import lpush, send_all

_numbers = itertools.count(1)
_PLAIN_QUEUE = "bench:plain"


@dataclass(frozen=True, slots=True)
class Run:
    """``cpu_us``: CPU µs a write, by process."""

    writes_per_s: float
    cpu_us: dict[str, float]


@dataclass(frozen=True, slots=True)
class Ready:
    """A rival that has everything it needs: its process, and what lets it run to its end."""

    pid: int
    drain: Callable[[], object]


Rival = Callable[[], Any]
"""A context manager that gives a `Ready` one."""


class Course:
    """One load on the stage, and those who can run it."""

    def __init__(self, stage: Stage, load: Load) -> None:
        self._stage, self._load, self._items = stage, load, make_items(load)
        self._plain = plain_items(load)
        self._batches = limit.make_batches(load, self._items)
        self._table = BenchTable(stage.pg, load)

    def rivals(self, *, slow: int = 0) -> dict[str, tuple[Rival, Load]]:
        """By name, each with what it has to do; ``slow``: how many writes are enough for one by one."""
        head = self._load.head(slow)
        found: dict[str, tuple[Rival, Load]] = {
            "writebehind": (self.worker, self._load),
            "limit": (self._limit, self._load),
            "afternoon": (partial(self._consumer, afternoon.work, len(self._plain)), self._load),
        }
        if slow:
            found["one_by_one"] = (partial(self._consumer, one_by_one.work, slow), head)
        return found

    def reset(self) -> None:
        """The table is as it was before all writes."""
        self._table.reset()

    def run(self, rival: Rival, load: Load) -> Run:
        """From the same state as every other run. BenchFailed if a row is not as it must be after it."""
        self._stage.empty_redis()
        with rival() as ready:
            self.reset()
            before, began = self._stage.cpu(ready.pid), time.perf_counter()
            ready.drain()
            seconds = time.perf_counter() - began
            after = self._stage.cpu(ready.pid)
        if load is not self._load:
            self._table.expect(load)
        wrong = self._table.wrong_rows()
        if load is not self._load:
            self._table.expect(self._load)
        if wrong:
            raise BenchFailed(f"{load.title}: {wrong} rows are not as they must be")
        writes = len(load.writes)
        return Run(writes / seconds, {name: (after[name] - before[name]) / writes * 1e6 for name in after})

    @contextmanager
    def worker(self, *options: str) -> Iterator[Ready]:
        stage = self._stage
        queue = f"bench:{next(_numbers)}"
        urls = stage.redis_url, stage.postgres_url
        with WorkerProcess(stage.redis, *urls, queue, stage.folder, *options) as worker:
            send_all(stage.redis_url, self._items.commands())
            worker.wait_until_ready()
            yield Ready(worker.pid, partial(worker.drain, self._items.last_seq))

    @contextmanager
    def _limit(self) -> Iterator[Ready]:
        with Child(limit.work, self._stage.postgres_url, self._load, self._batches) as child:
            child.wait_until_ready()
            yield Ready(child.pid, partial(child.ask, GO))

    @contextmanager
    def _consumer(self, work: Callable[..., None], writes: int) -> Iterator[Ready]:
        stage = self._stage
        with Child(work, stage.redis_url, stage.postgres_url, _PLAIN_QUEUE) as child:
            send_all(stage.redis_url, lpush(STAGED, self._plain[:writes]))
            child.wait_until_ready()

            def drain() -> None:
                stage.redis.rename(STAGED, _PLAIN_QUEUE)
                child.ask(GO)

            yield Ready(child.pid, drain)


def measure(stage: Stage, load: Load, rounds: int, line: LiveLine, *, slow: int = 0) -> dict[str, Any]:
    """All rivals in turn, again and again; the figures of latest.json."""
    course = Course(stage, load)
    rivals = course.rivals(slow=slow)
    runs: dict[str, list[Run]] = {name: [] for name in rivals}
    for number in range(rounds):
        for name, (rival, own) in rivals.items():
            line.show(f"{load.title}: {name}, round {number + 1} of {rounds}")
            runs[name].append(course.run(rival, own))
    return {
        "title": load.title,
        "writes": len(load.writes),
        "writes_per_s": median_rate(runs["writebehind"]),
        "ratio_to_limit": median_ratio(runs["writebehind"], runs["limit"]),
        "ratio_to_afternoon": median_ratio(runs["writebehind"], runs["afternoon"]),
        "rivals": {name: summary(found) for name, found in runs.items()},
    }


def summary(runs: list[Run]) -> dict[str, Any]:
    """Median and all runs of one rival."""
    return {
        "writes_per_s": median_rate(runs),
        "runs": [round(run.writes_per_s) for run in runs],
        "cpu_us_per_write": {
            name: round(median(run.cpu_us[name] for run in runs), 2) for name in runs[0].cpu_us
        },
    }


def median_rate(runs: list[Run]) -> int:
    return round(median(run.writes_per_s for run in runs))


def median_ratio(ours: list[Run], theirs: list[Run]) -> float:
    """Of the ratios within each round: what slows the machine for a while slows both."""
    ratios = (a.writes_per_s / b.writes_per_s for a, b in zip(ours, theirs, strict=True))
    return round(median(ratios), 3)
