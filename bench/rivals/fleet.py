"""The product with shards: any number of processes, as they are run in production, share a queue's shards."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Self, cast

from writebehind.keys import QueueKeys
from writebehind.shards import shard_keys
from writebehind_worker.resharding import divide, layout_of, served, still_draining

from ..errors import BenchFailed
from ..stage import Stage
from .writebehind import WorkerProcess

_POLL_S = 0.002
_PATIENCE_S = 120.0


class Fleet:
    """``processes`` of ``writebehind run`` for a new queue of ``shards``; killed at the end of the block."""

    def __init__(self, stage: Stage, queue: str, shards: int, processes: int) -> None:
        self._stage, self._keys = stage, QueueKeys(queue)
        self.shards = shard_keys(queue, shards)
        self._processes, self._running = processes, ExitStack()
        self.workers: list[WorkerProcess] = []

    def __enter__(self) -> Self:
        redis = self._stage.redis
        divide(redis, self._keys, len(self.shards))
        still_draining(redis, self._keys, layout_of(redis, self._keys))
        self.queues = served(self._keys, layout_of(redis, self._keys))
        with ExitStack() as starting:
            for number in range(self._processes):
                folder = self._stage.folder / f"fleet-{number}"  # each has its log there
                folder.mkdir(exist_ok=True)
                urls = self._stage.redis_url, self._stage.postgres_url
                worker = WorkerProcess(redis, *urls, self._keys.queue, folder)
                self.workers.append(starting.enter_context(worker))
            self._running = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def wait_until_ready(self) -> None:
        """Until each queue has an owner that waits for work, and each process its fair share."""
        self._wait(lambda: self._is_balanced() and self._waiting() >= len(self.queues))

    def busiest(self) -> int:
        """How many of the shards the process serves that serves most of them."""
        return max(Counter(self._owners(self.shards)).values())

    def wait_for(self, seqs: Sequence[int]) -> None:
        """Until each shard has acknowledged its own of ``seqs``."""
        names = [keys.applied for keys in self.shards]
        self._wait(
            lambda: all(
                int(applied or 0) >= seq for applied, seq in zip(self._mget(names), seqs, strict=True)
            )
        )

    def _is_balanced(self) -> bool:
        owners = self._owners(self.queues)
        counts = Counter(owners).values()
        is_shared = len(counts) == min(self._processes, len(self.queues))
        return "" not in owners and is_shared and max(counts) - min(counts) <= 1

    def _owners(self, queues: Sequence[QueueKeys]) -> list[str]:
        """Whose lease it is, "" where there is none: a killed process would be noticed by `_wait`."""
        leases = self._mget([keys.lease for keys in queues])
        return [(lease or b"").decode().rpartition("|")[2] for lease in leases]

    def _waiting(self) -> int:
        clients = cast(list[dict[str, str]], self._stage.redis.client_list())
        return sum(client["cmd"] == "blmove" for client in clients)

    def _mget(self, names: Sequence[str]) -> list[Any]:
        return cast(list[Any], self._stage.redis.mget(names))

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            for worker in self.workers:
                worker.check()
            if time.monotonic() > deadline:
                raise BenchFailed("the fleet did not do its work in time")
            time.sleep(_POLL_S)
