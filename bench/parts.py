"""What can be measured, each part by its name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from . import backlog, batch_sizes, drain, idle, ladder, lag, patterns, peers, put, scale
from .live import LiveLine
from .load import LOADS, scattered_updates
from .sizes import Sizes
from .stage import Stage

Part = Callable[[Stage, Sizes, LiveLine], dict[str, Any]]
"""Measures, and gives the members of latest.json."""


def _load(name: str, stage: Stage, sizes: Sizes, line: LiveLine) -> dict[str, Any]:
    slow = sizes.one_by_one if name == "unique_updates" else 0
    return {name: drain.measure(stage, LOADS[name](sizes), sizes.rounds, line, slow=slow)}


def _put(name: str, batch: int, stage: Stage, sizes: Sizes, line: LiveLine) -> dict[str, Any]:
    return {name: put.measure(stage, sizes, batch, line)}


def _lag(stage: Stage, sizes: Sizes, line: LiveLine) -> dict[str, Any]:
    found = lag.measure(stage, sizes, line)
    half = next(f for f in found["loads"] if (f["write_delay_ms"], f["load_percent"]) == lag.HALF_LOAD)
    return {"lag": found, "lag_half_load": {name: half[name] for name in ("p50_ms", "p99_ms", "p999_ms")}}


def _backlog(stage: Stage, sizes: Sizes, line: LiveLine) -> dict[str, Any]:
    return {"backlog": backlog.measure(stage, sizes, line)}


def _batch_sizes(stage: Stage, sizes: Sizes, line: LiveLine) -> dict[str, Any]:
    return {"batch_sizes": batch_sizes.measure(stage, sizes, line)}


def _ladder(stage: Stage, sizes: Sizes, line: LiveLine) -> dict[str, Any]:
    return {"ladder": ladder.measure(stage, sizes, line)}


def _patterns(stage: Stage, sizes: Sizes, line: LiveLine) -> dict[str, Any]:
    return {"patterns": patterns.measure(stage, sizes, line)}


def _scale(stage: Stage, sizes: Sizes, line: LiveLine) -> dict[str, Any]:
    return {"scale": scale.measure(stage, sizes, line)}


def _idle(stage: Stage, sizes: Sizes, line: LiveLine) -> dict[str, Any]:
    return {"idle": idle.measure(stage, sizes, line)}


def _table_size(stage: Stage, sizes: Sizes, line: LiveLine) -> dict[str, Any]:
    loads = {rows: scattered_updates(sizes, rows) for rows in sizes.tables}
    rows = {str(n): drain.measure(stage, load, sizes.rounds, line) for n, load in loads.items()}
    return {"table_size": {"rows": rows}}


def _task_queues(stage: Stage, sizes: Sizes, line: LiveLine) -> dict[str, Any]:
    return {"task_queues": peers.measure(stage, sizes, line)}


PARTS: dict[str, Part] = {
    **{name: partial(_load, name) for name in LOADS},
    "batch_sizes": _batch_sizes,
    "put": partial(_put, "put", 1),
    "put_batch_100": partial(_put, "put_batch_100", 100),
    "put_batch_1000": partial(_put, "put_batch_1000", 1000),
    "lag": _lag,
    "backlog": _backlog,
    "ladder": _ladder,
    "patterns": _patterns,
    "scale": _scale,
    "idle": _idle,
    "table_size": _table_size,
    "task_queues": _task_queues,
}

FULL_ONLY = frozenset({"table_size", "task_queues"})
"""Too slow to be measured each time."""
