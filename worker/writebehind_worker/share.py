"""Which shards a worker of a fleet should serve: each a fair share, with little moving. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def fair_share(workers: Collection[str], worker: str, queues: int) -> int:
    """How many of the queues are this worker's: those of all add up, and differ by one at most."""
    everyone = sorted({*workers, worker})
    rank = everyone.index(worker)
    return queues // len(everyone) + (rank < queues % len(everyone))


def is_last(workers: Collection[str], worker: str) -> bool:
    """Whether this is the worker to serve one queue more: where the shares differ, its own is the smaller."""
    return worker == max({*workers, worker})


def to_begin(
    queues: Sequence[str], free: Collection[str], workers: Collection[str], worker: str
) -> list[str]:
    """The free queues, in the order in which this worker should try them: others begin elsewhere."""
    everyone = sorted({*workers, worker})
    start = everyone.index(worker) * len(queues) // len(everyone)
    return [queue for queue in (*queues[start:], *queues[:start]) if queue in free]
