"""``kill -9`` and SIGSTOP at every named point of the worker's work: no effect comes twice."""

from __future__ import annotations

import itertools
import random
import signal
import time
from typing import Any

import pytest
from tests.support.crashing_worker import CrashingWorker
from tests.support.workers import Workload, flags

from writebehind_worker.testing.wait import wait_until

# The point, and which call of it.
FRESH = [
    "lease:{}:1", "taking:{}:1", "taking:{}:2", "own:{}:1", "adopt:{}:1",
    "own:{}:2",
    "claim:{}:1", "claim:{}:2", "copy:{}:1", "record:{}:1", "record:{}:2", "apply:{}:1", "apply:{}:2",
    "arrive:{}:1", "arrive:{}:2",
    "commit:{}:1", "commit:{}:2", "announce:{}:1", "announce:{}:2",
    "settle:{}:1", "settle:{}:2", "acknowledge:{}:1", "acknowledge:{}:2",
]  # fmt: skip
OVERTAKEN = ["announce:{}:1", "acknowledge:{}:1", "commit:{}:2", "settle:{}:2"]
MERGED = ["claim:{}:5", "record:{}:1", "apply:{}:1", "commit:{}:1", "settle:{}:1", "acknowledge:{}:1"]
RECOVERING = [
    "take:{}:1", "own:{}:1", "record:{}:1", "buried:{}:1", "announce:{}:1", "settle:{}:1", "acknowledge:{}:1",
]  # fmt: skip


def _both(points: list[str]) -> list[str]:
    return [point.format(when) for point, when in itertools.product(points, ("before", "after"))]


@pytest.fixture
def options(redis_url: str, postgres_url: str, queue: str) -> dict[str, Any]:
    """Batches of 15: a few are in flight, and some wait."""
    return {
        "redis_url": redis_url,
        "postgres_url": postgres_url,
        "queue": queue,
        "batch_size": 15,
    }


def crash(options: dict[str, Any], point: str, load: Workload) -> None:
    with CrashingWorker(point, flags(**options)) as worker:
        # A second acknowledgement, say, may need more: one takes all batches that have got so far.
        worker.wait_for_point(lambda: load.add(1))
        worker.wait_for_death()


def finish(options: dict[str, Any], load: Workload, dead_letters: int = 0) -> None:
    # The lease of the dead would run out; how long that takes is no matter here.
    load.redis.delete(load.keys.lease)
    with CrashingWorker(None, flags(**options)):
        load.wait_until_done()
    load.check(dead_letters)


@pytest.mark.parametrize("point", _both(FRESH))
def test_killed_at_a_point_the_next_worker_finishes(
    point: str, options: dict[str, Any], load: Workload
) -> None:
    load.add(50)
    crash(options, point, load)
    load.add(20)
    finish(options, load)


@pytest.mark.parametrize("point", _both(MERGED))
def test_killed_while_many_batches_are_in_one_transaction(
    point: str, options: dict[str, Any], load: Workload
) -> None:
    load.add(200)
    crash({**options, "batch_size": 30}, point, load)
    if point == "commit:after:1":
        assert len(load.ledger("recent_batches")) == 7
    load.add(20)
    finish(options, load)


@pytest.mark.parametrize("point", _both(OVERTAKEN))
def test_killed_with_entries_left_to_a_later_frozen_batch_the_next_worker_settles_them(
    point: str, options: dict[str, Any], load: Workload
) -> None:
    load.wb.put("users", 100, {"name": "early"})  # nothing later writes to it
    load.users[100] = "early"
    load.add(1200)  # more than one transaction takes, of rows that get several writes in each batch
    crash({**options, "batch_size": 30}, point, load)
    assert load.redis.llen(load.keys.inflight) > 0
    finish(options, load)


@pytest.mark.parametrize("point", _both(["apply one by one:{}:1", "bury:{}:1"]))
def test_killed_while_it_buries_a_bad_write_it_is_buried_once(
    point: str, options: dict[str, Any], load: Workload
) -> None:
    load.add(10)
    rejected = load.wb.put("users", 1000, {"name": None})
    load.add(20)
    load.redis.delete(load.keys.lease)
    crash(options, point, load)
    finish(options, load, dead_letters=1)
    assert load.redis.zcount(load.keys.rejected, rejected.seq, rejected.seq) == 1


@pytest.mark.parametrize("point", _both(RECOVERING))
def test_killed_again_while_it_recovers_a_committed_batch(
    point: str, options: dict[str, Any], load: Workload
) -> None:
    load.add(50)
    crash(options, "commit:after:1", load)
    load.add(20)
    load.redis.delete(load.keys.lease)
    crash(options, point, load)
    finish(options, load)


@pytest.mark.parametrize("point", _both(["release:{}:1"]))
def test_killed_at_the_end_of_a_clean_stop(point: str, options: dict[str, Any], load: Workload) -> None:
    load.add(50)
    with CrashingWorker(point, flags(**options)) as worker:
        load.wait_until_done()
        worker.terminate()
        worker.wait_for_death()
    load.add(20)
    finish(options, load)


@pytest.mark.parametrize("point", [p.format("before") for p in FRESH[1:]])
def test_paused_at_a_point_it_changes_nothing_any_more_when_it_is_resumed(
    point: str, options: dict[str, Any], load: Workload
) -> None:
    load.add(50)
    with CrashingWorker(point, flags(**options), signal.SIGSTOP) as zombie:
        zombie.wait_for_point(lambda: load.add(1))
        load.redis.delete(load.keys.lease)  # it has run out
        with CrashingWorker(None, flags(**options)):
            load.add(20)
            load.wait_until_done()
            zombie.resume()
            zombie.wait_for_log("standing by")
            load.add(20)
            load.check()


def test_killed_many_times_at_any_instruction(options: dict[str, Any], load: Workload) -> None:
    chance = random.Random(20)
    for _ in range(8):
        load.add(200)
        before = load.ledger("applied_seq") or 0
        load.redis.delete(load.keys.lease)
        with CrashingWorker(None, flags(**options)) as worker:
            wait_until(lambda old=before: (load.ledger("applied_seq") or 0) > old)  # type: ignore[misc]
            time.sleep(chance.random() * 0.03)  # not to synchronise: the moment of the kill is drawn
            worker.kill()
    finish(options, load)
