"""The task queues beside the product, on one load that is small enough for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from .drain import Course, Ready, Rival, Run, median_rate, median_ratio
from .errors import BenchFailed
from .items import plain_items
from .live import LiveLine
from .load import unique_updates
from .rivals.task_queue import KINDS, Kind, TaskQueue
from .sizes import Sizes
from .stage import Stage


def measure(stage: Stage, sizes: Sizes, line: LiveLine) -> dict[str, Any]:
    """The figures of latest.json: for each queue its rate and ours in its rounds, or why there is none."""
    load = unique_updates(replace(sizes, rows=sizes.tasks, updates=sizes.tasks))
    course, messages = Course(stage, load), plain_items(load)
    queues: dict[str, Any] = {}
    rivals: dict[str, Rival] = {"writebehind": course.worker}
    for kind in KINDS:
        line.show(f"task queues: {kind.name} is being installed")
        if complaint := kind.install():
            queues[kind.name] = {"remark": f"does not install: {complaint}"}
        else:
            rivals[kind.name] = partial(_queue, stage, course, kind, messages)
    runs: dict[str, list[Run]] = {name: [] for name in rivals}
    for number in range(sizes.rounds):
        for name in list(rivals):
            line.show(f"task queues: {name}, round {number + 1} of {sizes.rounds}")
            try:
                runs[name].append(course.run(rivals[name], load))
            except BenchFailed as error:
                del rivals[name]
                queues[name] = {"remark": " ".join(str(error).split())[:200]}
    versions = {kind.name: kind for kind in KINDS}
    for name in rivals:
        version = versions[name].version() if name in versions else ""
        queues[name] = {"version": version, "writes_per_s": median_rate(runs[name]), "remark": ""}
        queues[name]["writebehind_is"] = median_ratio(runs["writebehind"], runs[name])
    return {"writes": sizes.tasks, "queues": queues}


@contextmanager
def _queue(stage: Stage, course: Course, kind: Kind, messages: list[bytes]) -> Iterator[Ready]:
    course.reset()
    with TaskQueue(stage, kind, messages) as queue:
        queue.wait_until_written(1)
        yield Ready(queue.pid, queue.drain)
