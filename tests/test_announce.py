"""Receipts hear of a commit before its many cache entries are settled."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

import pytest
import redis
from tests.support.crashing_worker import CrashingWorker
from tests.support.owners import owning
from tests.support.workers import RunningWorker, Workload, flags

from writebehind import WriteRejected
from writebehind.keys import QueueKeys
from writebehind_worker.owned_queue import OwnedQueue
from writebehind_worker.tenure import MANY_ENTRIES


@pytest.fixture
def options(redis_url: str, postgres_url: str, queue: str) -> dict[str, Any]:
    return {"redis_url": redis_url, "postgres_url": postgres_url, "queue": queue}


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> Sequence[int]:
    """The highest seqs that were announced, as they come."""
    found: list[int] = []
    announce = OwnedQueue.announce

    def note(owned: OwnedQueue, applied_seq: int) -> None:
        found.append(applied_seq)
        announce(owned, applied_seq)

    monkeypatch.setattr(OwnedQueue, "announce", note)
    return found


def put_many(load: Workload, names: Sequence[str | None]) -> list[Any]:
    """By one call, a row each."""
    with load.wb.batch() as batch:
        for id, name in enumerate(names, start=1000):
            batch.put("users", id, {"name": name})
            if name is not None:
                load.users[id] = name
    return batch.receipts


def test_a_receipt_tells_it_while_the_entries_are_still_pending(
    options: dict[str, Any], load: Workload
) -> None:
    receipts = put_many(load, ["x"] * 20)
    with CrashingWorker("announce:after:1", flags(**options), signal.SIGSTOP) as stopped:
        stopped.wait_for_pause()
        assert receipts[-1].is_durable()
        receipts[-1].wait(0)
        assert len(load.pg.execute("SELECT FROM users").fetchall()) == 20
        assert load.redis.llen(load.keys.inflight) == 1
        entry = f"{load.keys.queue}:cache:users:1000"
        assert load.redis.ttl(entry) == -1
        assert load.redis.get(load.keys.applied) is None, "`verify` goes by it: what is settled"
        assert not load.wb.put("users", 1, {"name": "y"}).is_durable()
        load.users[1] = "y"
        stopped.resume()
        load.wait_until_done()
        assert load.redis.ttl(entry) > 0
    load.check()


def test_few_entries_are_settled_and_told_by_one_call(
    options: dict[str, Any], load: Workload, announced: Sequence[int]
) -> None:
    with RunningWorker(**options):
        put_many(load, ["x"] * MANY_ENTRIES)
        load.wait_until_done()
        assert not announced
        last = put_many(load, ["x"] * (MANY_ENTRIES + 1))[-1]
        load.wait_until_done()
        assert announced == [last.seq]
    load.check()


def test_with_a_rejected_write_nothing_is_told_before_the_rejection(
    options: dict[str, Any], load: Workload, announced: Sequence[int]
) -> None:
    receipts = put_many(load, ["x"] * 150 + [None] + ["x"] * 150)
    with RunningWorker(**options):
        with pytest.raises(WriteRejected):
            receipts[150].wait(20)
        receipts[-1].wait(20)
        load.wait_until_done()
    assert not announced
    load.check(dead_letters=1)


def test_where_changes_are_published_they_come_before_the_receipts(
    options: dict[str, Any], load: Workload, announced: Sequence[int]
) -> None:
    put_many(load, ["x"] * 150)
    with RunningWorker(**options, publish_changes=True):
        load.wait_until_done()
    assert not announced


def test_only_the_owner_tells_and_never_less_than_before(
    redis_url: str, redis_client: redis.Redis, queue: str
) -> None:
    keys = QueueKeys(queue)

    def committed() -> object:
        return redis_client.hget(keys.clock, "committed")

    with owning(redis_url, keys) as owned:
        owned.announce(7)
        assert committed() == b"7"
        owned.announce(5)
        assert committed() == b"7"
        redis_client.set(keys.epoch, 2)
        owned.announce(8)
        assert committed() == b"7"
        redis_client.set(keys.epoch, 1)
        redis_client.delete(keys.lease)
        owned.announce(9)
        assert committed() == b"7"
