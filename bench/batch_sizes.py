"""Hot rows by the size of a batch: how much faster a larger one is, and how long claiming it stops Redis."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

from writebehind.script import Script
from writebehind_worker.config import Config

from .drain import Course, Run, median_ratio, summary
from .errors import BenchFailed
from .live import LiveLine
from .load import hot_keys
from .sizes import Sizes
from .stage import Stage

_SIZES = Config().batch_size, 20_000
_CLAIM = Script("writebehind_worker", "claim").sha.encode()


def measure(stage: Stage, sizes: Sizes, line: LiveLine) -> dict[str, Any]:
    """By the size: `drain.summary`, how many times the default's rate it is, and ms of a claim in Redis."""
    load = hot_keys(sizes)
    course = Course(stage, load)
    runs: dict[int, list[Run]] = {size: [] for size in _SIZES}
    claims_ms: dict[int, list[float]] = {size: [] for size in _SIZES}
    for number in range(sizes.rounds):
        for size in _SIZES:
            line.show(f"{load.title}: batches of {size:,}, round {number + 1} of {sizes.rounds}")
            with stage.slow_commands() as slow:
                runs[size].append(course.run(partial(course.worker, "--batch-size", str(size)), load))
            if not (claims := [ms for command, ms in slow if _CLAIM in command]):
                raise BenchFailed("Redis' slow log shows no claim of a batch")
            claims_ms[size] += claims
    return {
        str(size): {
            **summary(own),
            "ratio_to_default": median_ratio(own, runs[_SIZES[0]]),
            "claim_ms": round(median(claims_ms[size]), 2),
            "longest_claim_ms": round(max(claims_ms[size]), 2),
        }
        for size, own in runs.items()
    }
