"""A fleet of worker processes: killed, paused, added and removed, and nothing is wrong after."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import psycopg
import pytest
import redis
from tests.support.part import WHOLE, sampled
from tests.support.shard_history import HISTORY, check_history
from tests.support.sharded import all_queues, wait_until_drained
from tests.support.workers import WorkerProcess

from writebehind import RedisRefused, WriteBehind
from writebehind.keys import QueueKeys
from writebehind_worker.resharding import divide, layout_of
from writebehind_worker.testing.wait import wait_until

_SHARDS, _WORKERS = 16, 4
# On a busy machine shorter leases run out by themselves. Among all other tests it takes seconds to connect to
# both servers: of two short periods, one of which is the lease of who is gone, too little is left.
_LEASE_S = 4.0 if WHOLE else 8.0
_TWO_LEASES = int(2 * _LEASE_S)  # in rounds of a worker: it looks around once a second
_LOOK_S = 0.1  # to look more often costs as much as the workers do
_WRITE_S = 0.02 if WHOLE else 0.1
_SECONDS = float(os.environ.get("WRITEBEHIND_TEST_FLEET_SECONDS", "60" if WHOLE else "1"))


def owners(client: redis.Redis, queues: list[QueueKeys]) -> list[str]:
    """Who holds the leases that have not run out."""
    seconds, micros = client.time()
    now = seconds * 1000 + micros // 1000
    values: Any = client.mget([keys.lease for keys in queues])
    leases: list[list[bytes]] = [(value or b"").split(b"|") for value in values]
    return [lease[2].decode() for lease in leases if len(lease) == 3 and int(lease[1]) > now]


def are_balanced(client: redis.Redis, queues: list[QueueKeys], workers: int) -> bool:
    """Each serves as many shards as any other, or one less; and somebody the queue itself, the first."""
    held, shards = owners(client, queues), owners(client, queues[1:])
    sizes = [shards.count(owner) for owner in set(held)]
    return len(held) == len(queues) and len(sizes) == workers and max(sizes) - min(sizes) <= 1


class Rounds:
    """How often each worker of a fleet has looked around since: it renews its word in Redis each time.

    That is its own measure of time: where the machine is slow there are fewer of them.
    """

    def __init__(self, client: redis.Redis, whole: QueueKeys) -> None:
        self._client, self._fleet = client, whole.fleet
        self._words: dict[bytes, float] = {}
        self._count: Counter[bytes] = Counter()

    def fewest(self) -> int:
        """Of those whose word holds."""
        seconds, micros = self._client.time()
        now_ms = seconds * 1000 + micros // 1000
        found: Any = self._client.zrange(self._fleet, 0, -1, withscores=True)
        words = {name: until for name, until in found if until > now_ms}
        self._count.update(n for n, until in words.items() if self._words.get(n, until) != until)
        self._words.update(words)
        return min((self._count[name] for name in words), default=0)


def check_balance(
    client: redis.Redis, whole: QueueKeys, queues: list[QueueKeys], workers: Sequence[WorkerProcess]
) -> None:
    """It comes to be within two lease periods, from when the machine has last been too slow for leases."""

    is_balanced = False  # as the last look found it: who waited for one may get it just when it gives that up

    def is_over(rounds: Rounds) -> bool:
        nonlocal is_balanced
        is_balanced = are_balanced(client, queues, len(workers))
        return is_balanced or rounds.fewest() > _TWO_LEASES

    slow = -1
    while slow != (slow := sum(map(run_out, workers))):
        wait_until(partial(is_over, Rounds(client, whole)), 60, _LOOK_S)
        if is_balanced:
            return
    raise AssertionError(f"unbalanced after {_TWO_LEASES} rounds, two lease periods")


def run_out(worker: WorkerProcess) -> int:
    """How many leases it has lost by itself."""
    return sum("not renewed in time" in event["reason"] for event in worker.events("ownership lost"))


@sampled
@pytest.mark.timeout(_SECONDS + 240)
def test_sixteen_shards_and_four_workers_that_come_go_hang_and_die(
    connect: Callable[..., WriteBehind],
    redis_client: redis.Redis,
    queue: str,
    options: dict[str, Any],
    pg: psycopg.Connection[Any],
) -> None:
    pg.execute(HISTORY)
    whole, done, chance = QueueKeys(queue), threading.Event(), random.Random(7)
    divide(redis_client, whole, _SHARDS)
    queues = all_queues(whole, _SHARDS)
    written: list[dict[int, int]] = []

    def write(number: int) -> None:
        wb, luck = connect(), random.Random(number)
        count: dict[int, int] = {}
        written.append(count)
        while not done.is_set():
            with wb.batch() as batch:
                for id in {number * 1000 + luck.randrange(200) for _ in range(20)}:
                    count[id] = count.get(id, 0) + 1
                    batch.increment("rows", id, {"n": 1})
                    batch.put("rows", id, {"v": count[id]})
            time.sleep(_WRITE_S)

    with ExitStack() as stack:
        stack.callback(done.set)  # also where it fails: who writes on disturbs the tests that come after
        workers: list[WorkerProcess] = []

        def begin() -> None:
            given = {**options, "lease_ttl_s": _LEASE_S, "log_level": "warning"}
            workers.append(stack.enter_context(WorkerProcess(**given)))

        def begin_and_come() -> None:
            """How long it takes to start is no matter of the fleet."""
            before = set(redis_client.zrange(whole.fleet, 0, -1))
            begin()
            wait_until(lambda: set(redis_client.zrange(whole.fleet, 0, -1)) - before, timeout=60)

        for _ in range(_WORKERS):
            begin()
        wait_until(lambda: are_balanced(redis_client, queues, _WORKERS), 60, _LOOK_S)
        threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()

        def cause(fault: str, is_calm: bool) -> None:
            """Where it ``is_calm`` one fault is over, and its shards are shared again, before the next."""
            worker = chance.choice(workers)

            def balanced_again() -> None:
                if is_calm:
                    check_balance(redis_client, whole, queues, workers)

            if fault == "add":
                begin_and_come()
            elif fault == "pause":  # past its lease
                worker.pause()
                workers.remove(worker)
                balanced_again()
                workers.append(worker)
                if not is_calm:
                    time.sleep(_LEASE_S * chance.uniform(0.5, 1.5))
                worker.resume()
            else:
                workers.remove(worker)
                worker.kill() if fault == "kill" else worker.terminate()
            balanced_again()
            while len(workers) < _WORKERS - 1:
                begin_and_come()

        faults = ["kill", "stop", "pause", "add"]
        for fault in faults:
            cause(fault, is_calm=True)
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            cause(chance.choice(faults if len(workers) < _WORKERS + 2 else faults[:3]), chance.random() < 0.3)
            time.sleep(chance.uniform(0.1, 1.5))
        done.set()
        for thread in threads:
            thread.join()
        while len(workers) > _WORKERS:
            workers.pop().terminate()
        while len(workers) < _WORKERS:
            begin()
        wait_until(lambda: are_balanced(redis_client, queues, _WORKERS), 60, _LOOK_S)
        wait_until_drained(redis_client, queues, timeout=60)
        check_history(pg, written)


@pytest.mark.timeout(200)
def test_a_reshard_goes_on_while_workers_are_killed(
    connect: Callable[..., WriteBehind],
    redis_client: redis.Redis,
    queue: str,
    options: dict[str, Any],
    pg: psycopg.Connection[Any],
) -> None:
    pg.execute(HISTORY)
    whole, done, chance = QueueKeys(queue), threading.Event(), random.Random(3)
    count: dict[int, int] = {}

    def write() -> None:
        wb, luck = connect(), random.Random(1)
        while not done.is_set():
            with suppress(RedisRefused), wb.batch() as batch:
                id = luck.randrange(40)
                batch.increment("rows", id, {"n": 1})
                batch.put("rows", id, {"v": count.get(id, 0) + 1})
            if batch.receipts:
                count[id] = count.get(id, 0) + 1

    with ExitStack() as stack:
        given = {**options, "lease_ttl_s": 1.0, "log_level": "warning"}
        workers = [stack.enter_context(WorkerProcess(**given)) for _ in range(2)]
        thread = threading.Thread(target=write)
        thread.start()
        for shards in (3, 1, 5):
            divide(redis_client, whole, shards)
            for _ in range(3):
                time.sleep(chance.uniform(0.2, 0.8))
                workers.pop(chance.randrange(2)).kill()
                workers.append(stack.enter_context(WorkerProcess(**given)))
            wait_until(lambda: not layout_of(redis_client, whole).draining, timeout=60)
        done.set()
        thread.join()
        wait_until_drained(redis_client, all_queues(whole, 5), timeout=60)
    check_history(pg, [count])
