"""Whether it matters to the worker how much waits, or how large the table is."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from writebehind.message import make_write

from .cpu import peak_mib
from .errors import BenchFailed
from .items import STAGED, cache_key, entry, stamped
from .live import LiveLine
from .load import TABLE, every_row_updated, user
from .rivals.writebehind import WorkerProcess
from .sizes import Sizes
from .stage import Stage
from .table import BenchTable
from .wire import lpush, send_all

_VERSION = 1_234_567_890  # stands for a version where messages are made
_TTL_S = 3600
_MILLION = 1_000_000
_PART = 50_000
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Run:
    writes_per_s: float
    peak_mib: float


class Backlog:
    """So many writes to the same rows, pass after pass: the n-th pass sets each row's version to n."""

    def __init__(self, rows: int) -> None:
        chance = random.Random(10)
        self._ids = chance.sample(range(rows), rows)
        self._writes = [(id, make_write("put", TABLE, id, user(chance, _VERSION))) for id in self._ids]
        mark = b"%d" % _VERSION
        messages = (write.message(cache_key(id), _TTL_S).split(mark) for id, write in self._writes)
        self._halves = [(head, tail) for head, tail in messages]

    def commands(self, pending: int, first_seq: int) -> Iterator[bytes]:
        """What brings them to Redis: the entry of each row shows the last write to it."""
        rows = len(self._ids)
        for at in range(max(0, pending - rows), pending):
            id, write = self._writes[at % rows]
            yield entry("put", id, first_seq + at, write)
        for start in range(0, pending, _PART):
            yield from lpush(STAGED, list(self._messages(start, min(start + _PART, pending), first_seq)))

    def _messages(self, start: int, end: int, first_seq: int) -> Iterator[bytes]:
        for at in range(start, end):
            number, place = divmod(at, len(self._halves))
            head, tail = self._halves[place]
            yield stamped(first_seq + at, b"%b%d%b" % (head, number + 1, tail))


def measure(stage: Stage, sizes: Sizes, line: LiveLine) -> dict[str, Any]:
    """The figures of latest.json, by how much waits."""
    table = BenchTable(stage.pg, every_row_updated(sizes))
    backlog = Backlog(sizes.rows)
    runs: dict[int, list[Run]] = {pending: [] for pending in sizes.backlogs}
    for number in range(sizes.rounds):
        for pending, found in runs.items():
            line.show(f"backlog: {pending:,} pending, round {number + 1} of {sizes.rounds}")
            table.reset()
            found.append(_run(stage, table, backlog, pending, min(pending, sizes.backlog_window)))
    return _figures(runs, sizes.backlog_window)


def _run(stage: Stage, table: BenchTable, backlog: Backlog, pending: int, window: int) -> Run:
    """The time of the first ``window`` writes, of which Postgres must then show every one."""
    stage.empty_redis()
    queue = f"bench:backlog:{next(_numbers)}"
    with WorkerProcess(stage.redis, stage.redis_url, stage.postgres_url, queue, stage.folder) as worker:
        first_seq = time.time_ns() // 1000 - pending
        send_all(stage.redis_url, backlog.commands(pending, first_seq))
        worker.wait_until_ready()
        before, began = table.sum_of("version"), time.perf_counter()
        worker.drain(first_seq + pending - 1, up_to=first_seq + window - 1)
        seconds = time.perf_counter() - began
        peak = peak_mib(worker.pid)
        worker.stop()
        applied, written = worker.applied() - first_seq + 1, table.sum_of("version") - before
    if applied != written:
        raise BenchFailed(f"backlog: {applied} writes acknowledged, but the rows show {written}")
    return Run(window / seconds, peak)


def _figures(runs: dict[int, list[Run]], window: int) -> dict[str, Any]:
    least, usual = min(runs), _MILLION if _MILLION in runs else max(runs)
    figures: dict[str, Any] = {
        "window": window,
        "pending": {
            str(pending): {
                "writes_per_s": round(median(run.writes_per_s for run in found)),
                "peak_mib": round(median(run.peak_mib for run in found), 1),
            }
            for pending, found in runs.items()
        },
        "ratio_1m_to_10k": _ratio([(a.writes_per_s, b.writes_per_s) for a, b in _pairs(runs, usual, least)]),
        "memory_ratio": _ratio([(a.peak_mib, b.peak_mib) for a, b in _pairs(runs, max(runs), least)]),
    }
    if max(runs) > usual:
        pairs = _pairs(runs, max(runs), least)
        figures["ratio_10m_to_10k"] = _ratio([(a.writes_per_s, b.writes_per_s) for a, b in pairs])
    return figures


def _pairs(runs: dict[int, list[Run]], one: int, other: int) -> list[tuple[Run, Run]]:
    return list(zip(runs[one], runs[other], strict=True))


def _ratio(pairs: list[tuple[float, float]]) -> float:
    return round(median(a / b for a, b in pairs), 3)
