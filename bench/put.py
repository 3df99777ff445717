"""What a write costs its caller, beside what people write by hand."""

from __future__ import annotations

import random
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

import msgspec

from writebehind.identity import TableKey
from writebehind.keys import QueueKeys

from .errors import BenchFailed
from .live import LiveLine
from .load import TABLE, user
from .percentile import percentile
from .rivals import put
from .rivals.child import Child
from .sizes import Sizes
from .stage import Stage

_THREADS = (1, 8)
_NOTHING = "nothing"
_QUEUE = "bench:put"
_KEY = TableKey(TABLE, (("id", "int"),))


@dataclass(frozen=True, slots=True)
class Run:
    """``application_us`` and ``redis_us``: CPU time a call, Redis' as it tells of commands."""

    writes_per_s: float
    p50_us: float
    p99_us: float
    application_us: float
    redis_us: float


def measure(stage: Stage, sizes: Sizes, batch: int, line: LiveLine) -> dict[str, Any]:
    """The figures of latest.json: those of one thread, and beneath ``threads`` those of all."""
    ways = {"writebehind": put.library, "pipeline": put.pipelined_pair}
    if batch == 1:
        ways |= {"naive": put.naive_pair, _NOTHING: put.nothing}
    chance = random.Random(8)
    rows = [(id, user(chance, 1)) for id in range(max(2000, 2 * batch))]
    runs: dict[int, dict[str, list[Run]]] = {n: {name: [] for name in ways} for n in _THREADS}
    stage.redis.hset(QueueKeys(_QUEUE).tables, TABLE, msgspec.json.encode(_KEY))  # as a worker does
    with ExitStack() as stack:
        children: dict[str, Child] = {}
        for name, way in ways.items():
            children[name] = stack.enter_context(Child(put.work, way, stage.redis_url, _QUEUE, rows))
            children[name].wait_until_ready()
        for number in range(sizes.put_rounds):
            for threads in _THREADS:
                for name, child in children.items():
                    line.show(f"put, {batch} a call, {threads} threads: {name}, round {number + 1}")
                    task = put.Task(threads, batch, sizes.put_s)
                    runs[threads][name].append(_run(stage, child, task, writes=name != _NOTHING))
    made_of = {name: _parts(found) for name, found in runs[1].items()} if batch == 1 else {}
    for found in runs.values():
        found.pop(_NOTHING, None)
    result = {str(n): _figures(batch, found) for n, found in runs.items()}
    return {"batch": batch, **result["1"], "threads": result} | ({"made_of": made_of} if made_of else {})


def _run(stage: Stage, child: Child, task: put.Task, *, writes: bool) -> Run:
    stage.empty_redis()
    stage.redis.config_resetstat()
    done: put.Done = child.ask(task)
    commands = stage.redis.info("commandstats")
    calls = len(done.times)
    expected = calls * task.batch if writes else 0
    if stage.redis.llen(_QUEUE) != expected:
        raise BenchFailed(f"put: {expected} writes, but {stage.redis.llen(_QUEUE)} items in the queue")
    done.times.sort()
    # What a script calls is in the script's time, too.
    sent = ("evalsha",) if "cmdstat_evalsha" in commands else ("set", "lpush", "ping")
    spent = sum(commands[f"cmdstat_{name}"]["usec"] for name in sent if f"cmdstat_{name}" in commands)
    return Run(
        calls * task.batch / done.seconds,
        percentile(done.times, 50) / 1000,
        percentile(done.times, 99) / 1000,
        done.cpu_s / calls * 1e6,
        spent / calls,
    )


def _parts(runs: list[Run]) -> dict[str, float]:
    """What a call is made of, µs."""
    names = ("p50_us", "application_us", "redis_us")
    return {name: round(median(getattr(run, name) for run in runs), 1) for name in names}


def _figures(batch: int, runs: dict[str, list[Run]]) -> dict[str, Any]:
    against = "ratio_to_pipelined_pair" if batch == 1 else "ratio_to_pipeline"
    figures: dict[str, Any] = {against: _ratio(runs["writebehind"], runs["pipeline"])}
    if "naive" in runs:
        figures["ratio_to_naive_pair"] = _ratio(runs["writebehind"], runs["naive"])
    figures["rivals"] = {
        name: {
            "writes_per_s": round(median(run.writes_per_s for run in found)),
            "p50_us": round(median(run.p50_us for run in found)),
            "p99_us": round(median(run.p99_us for run in found)),
        }
        for name, found in runs.items()
    }
    return figures


def _ratio(ours: list[Run], theirs: list[Run]) -> float:
    return round(median(a.writes_per_s / b.writes_per_s for a, b in zip(ours, theirs, strict=True)), 3)
