"""How long a write takes from its acceptance until a receipt says it is committed, under a steady stream."""

from __future__ import annotations

import itertools
import os
import random
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

from .cpu import cpu_s
from .errors import BenchFailed
from .live import LiveLine
from .load import TABLE, every_row_updated, user
from .percentile import percentile
from .rivals import flow
from .rivals.child import GO, Child
from .rivals.flow import Accepted
from .rivals.writebehind import Flush, Spent, WorkerProcess
from .sizes import Sizes
from .stage import Stage
from .table import BenchTable

HALF_LOAD = 0, 50
"""Write delay and share of the load that is measured once more, without Redis' syncs."""

_DELAYS_MS = (0, 50)
_SHARES = (10, 50, 90)  # percent of the capacity
_BOUND = 50_000  # pending at most, while the capacity is measured
_POLL_S = 0.001
_DRAIN_S = 30.0
_FLOOD_BATCH = 100
_ROWS = 20_000  # that are written to: no batch has one of them twice


@dataclass(frozen=True, slots=True)
class Look:
    """At this time, µs, all writes up to this seq were known to be committed."""

    now_us: int
    committed: int


@dataclass(frozen=True, slots=True)
class Round:
    """What one stream showed: sorted lags, flushes, a batch's mean time by stage, busy cores by process."""

    lags_ms: list[float]
    flushes: Sequence[Flush]
    stages_ms: Mapping[str, float]
    cores: Mapping[str, float]


class Stream:
    """The generator of writes, and the workers at the other end, by write delay in ms."""

    def __init__(self, stage: Stage, child: Child, workers: dict[int, WorkerProcess]) -> None:
        self._stage, self._child, self._workers = stage, child, workers

    def play(
        self, delay_ms: int, seconds: float, calls_per_s: float, batch: int
    ) -> tuple[Sequence[Accepted], Sequence[Look]]:
        """The calls that were accepted, and the looks until the last one was committed."""
        worker = self._workers[delay_ms]
        self._child.ask(flow.Task(worker.keys.queue, seconds, calls_per_s, batch, _BOUND))
        self._child.tell(GO)
        looks: list[Look] = []
        while not self._child.has_reply():
            looks.append(self._look(worker))
        accepted: list[Accepted] = self._child.reply()
        deadline = time.monotonic() + _DRAIN_S
        while looks[-1].committed < accepted[-1].last_seq:
            if time.monotonic() > deadline:
                raise BenchFailed(f"lag: not committed within {_DRAIN_S:.0f} s")
            looks.append(self._look(worker))
        return accepted, looks

    def stages(self, delay_ms: int) -> Mapping[str, Spent]:
        """Of that worker, until now."""
        return self._workers[delay_ms].stages()

    def flushes(self, delay_ms: int) -> Sequence[Flush]:
        """Of that worker, since this was asked last."""
        return self._workers[delay_ms].flushes()

    def cpu(self, delay_ms: int) -> dict[str, float]:
        """Seconds used until now by that worker, the servers, and who writes and looks."""
        ours = cpu_s(self._child.pid) + time.process_time()
        return {**self._stage.cpu(self._workers[delay_ms].pid), "bench": ours}

    def _look(self, worker: WorkerProcess) -> Look:
        time.sleep(_POLL_S)
        committed = worker.committed()
        return Look(time.time_ns() // 1000, committed)


def measure(stage: Stage, sizes: Sizes, line: LiveLine) -> dict[str, Any]:
    """The figures of latest.json, in ms."""
    load = every_row_updated(sizes)
    table = BenchTable(stage.pg, load)
    table.reset()
    stage.empty_redis()
    chance = random.Random(9)
    ids = chance.sample(sorted(load.rows), min(_ROWS, len(load.rows)))
    rows = [(id, user(chance, 1)) for id in ids]
    with ExitStack() as stack:
        child = stack.enter_context(Child(flow.work, stage.redis_url, rows))
        workers = {d: stack.enter_context(_worker(stage, d)) for d in _DELAYS_MS}
        child.wait_until_ready()
        for worker in workers.values():
            worker.wait_until_owner()
        stream = Stream(stage, child, workers)
        _capacity(stream, sizes, line)  # the first time is slower
        return _loads(stage, stream, sizes, line)


def _worker(stage: Stage, delay_ms: int) -> WorkerProcess:
    queue, delay = f"bench:lag:{delay_ms}", f"{delay_ms / 1000}"
    urls = (stage.redis_url, stage.postgres_url)
    return WorkerProcess(stage.redis, *urls, queue, stage.folder, "--write-delay", delay, told=True)


def _capacity(stream: Stream, sizes: Sizes, line: LiveLine) -> float:
    """Writes a second that are brought to Postgres while as many as possible are accepted."""
    line.show("lag: the capacity under a stream")
    batch = min(_FLOOD_BATCH, sizes.rows)
    accepted, looks = stream.play(0, sizes.capacity_s, 1e6, batch)
    seqs = [call.last_seq for call in accepted]
    moments = [b for a, b in itertools.pairwise(looks) if b.committed > a.committed]
    # The first third is for getting under way, and at the end nothing is accepted any more.
    end_us = looks[0].now_us + sizes.capacity_s * 1e6
    inner = [m for m in moments if end_us - sizes.capacity_s * 2 / 3 * 1e6 <= m.now_us <= end_us]
    first, last = (inner[0], inner[-1]) if len(inner) > 1 else (looks[0], looks[-1])
    writes = batch * (bisect_left(seqs, last.committed + 1) - bisect_left(seqs, first.committed + 1))
    return writes / (last.now_us - first.now_us) * 1e6


def _loads(stage: Stage, stream: Stream, sizes: Sizes, line: LiveLine) -> dict[str, Any]:
    """Each round at its own capacity: what a machine can do is not the same a minute later."""
    capacities: list[float] = []
    combinations = list(itertools.product(_DELAYS_MS, _SHARES))
    found: dict[tuple[int, int], list[Round]] = {c: [] for c in combinations}
    unsynced: list[Round] = []
    for number in range(sizes.rounds):
        capacities.append(capacity := _capacity(stream, sizes, line))
        for delay_ms, share in combinations:
            line.show(f"lag: {share}% of the capacity, write delay {delay_ms} ms, round {number + 1}")
            rate = max(capacity * share / 100, 1)
            batch = max(1, round(rate / sizes.lag_calls_per_s))
            _rest(stage)
            found[delay_ms, share].append(_round(stream, delay_ms, sizes.lag_s, rate / batch, batch))
            if (delay_ms, share) == HALF_LOAD:  # at once: minutes later the machine may be another
                _rest(stage)
                with stage.redis_unsynced():
                    unsynced.append(_round(stream, delay_ms, sizes.lag_s, rate / batch, batch))
    usual = round(median(capacities))
    loads = [
        _figures(delay, share, usual, [one.lags_ms for one in rounds])
        | _flush_figures([one.flushes for one in rounds])
        | {"stages_ms": _medians([one.stages_ms for one in rounds])}
        | {"cores": _medians([one.cores for one in rounds])}
        for (delay, share), rounds in found.items()
    ]
    return {
        "capacity_writes_per_s": usual,
        "capacities": [round(c) for c in capacities],
        "loads": loads,
        "redis_unsynced": _figures(*HALF_LOAD, usual, [one.lags_ms for one in unsynced]),
    }


def _rest(stage: Stage) -> None:
    """No dead rows of before, as autovacuum is off, and nothing of before that is still to go to the disk."""
    stage.pg.execute(f"VACUUM {TABLE}")
    os.sync()


def _round(stream: Stream, delay_ms: int, seconds: float, calls_per_s: float, batch: int) -> Round:
    stream.flushes(delay_ms)
    stages, cpu, began = stream.stages(delay_ms), stream.cpu(delay_ms), time.perf_counter()
    accepted, looks = stream.play(delay_ms, seconds, calls_per_s, batch)
    took, now = time.perf_counter() - began, stream.cpu(delay_ms)
    cores = {name: (now[name] - cpu[name]) / took for name in now}
    stages_ms = _means_ms(stages, stream.stages(delay_ms))
    return Round(_lags_ms(accepted, looks), stream.flushes(delay_ms), stages_ms, cores)


def _means_ms(before: Mapping[str, Spent], after: Mapping[str, Spent]) -> Mapping[str, float]:
    """Of a batch, by stage."""
    return {
        stage: (now.seconds - before[stage].seconds) / max(1, now.batches - before[stage].batches) * 1000
        for stage, now in after.items()
    }


def _medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(median(figures[name] for figures in rounds), 2) for name in rounds[0]}


def _lags_ms(accepted: Sequence[Accepted], looks: Sequence[Look]) -> list[float]:
    """Sorted; one for each call, whose writes are accepted together."""
    committed = [look.committed for look in looks]
    return sorted(
        max(0, looks[bisect_left(committed, call.last_seq)].now_us - call.last_seq) / 1000
        for call in accepted
    )


def _figures(delay_ms: int, share: int, capacity: float, rounds: list[list[float]]) -> dict[str, Any]:
    return {
        "write_delay_ms": delay_ms,
        "load_percent": share,
        "writes_per_s": round(capacity * share / 100),
        "p50_ms": _median(rounds, 50),
        "p99_ms": _median(rounds, 99),
        "p999_ms": _median(rounds, 99.9),
    }


def _flush_figures(rounds: Sequence[Sequence[Flush]]) -> dict[str, Any]:
    """Medians, as the worker tells: of a flush, BEGIN to COMMIT, and from one's end to the next one's."""
    took = [flush.seconds for flushes in rounds for flush in flushes]
    between = [b.ended_s - a.ended_s for flushes in rounds for a, b in itertools.pairwise(flushes)]
    return {
        "flush_ms": round(median(took or [0.0]) * 1000, 2),
        "between_flushes_ms": round(median(between or [0.0]) * 1000, 2),
    }


def _median(rounds: list[list[float]], percent: float) -> float:
    return round(median(percentile(lags, percent) for lags in rounds), 2)
