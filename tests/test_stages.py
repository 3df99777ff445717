"""Where batches spend their time, as the worker's metrics tell it."""

from __future__ import annotations

import threading
import time
from typing import Any, get_args

import psycopg
import pytest
from tests.support.workers import RunningWorker, Workload

from writebehind_worker.digest import digest
from writebehind_worker.errors import OwnershipLost
from writebehind_worker.stages import Stage
from writebehind_worker.testing.wait import wait_until

_HELD_S = 0.2


def test_each_stage_is_told_and_what_holds_postgres_shows_as_its_own(
    redis_url: str, postgres_url: str, queue: str, load: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"redis_url": redis_url, "postgres_url": postgres_url, "queue": queue}
    with RunningWorker(**options) as worker:
        worker.wait_for_role("owner")
        load.add(20)
        load.wait_until_done()
        before = worker.metric("stage_seconds_sum", stage="flush")
        with psycopg.connect(postgres_url) as other:
            other.execute("LOCK TABLE users")
            load.add(20)
            wait_until(
                lambda: load.pg.execute("SELECT FROM pg_locks WHERE NOT granted").fetchone() is not None
            )
            time.sleep(_HELD_S)  # it is what is measured
        load.wait_until_done()
        assert worker.metric("stage_seconds_sum", stage="flush") - before >= _HELD_S
    # The worker counts what it has done a moment after Redis has it: so all is read once it has ended.
    counts = stage_counts(worker)
    assert counts["flush"] == worker.metric("flush_seconds_count") > 1
    assert counts["claim"] == counts["read"] >= counts["flush"]
    assert counts["wait"] == counts["flush"]
    assert 1 < counts["acknowledge"] <= counts["flush"]
    assert counts["settle"] == 0, "so few are settled on the way"

    monkeypatch.setattr("writebehind_worker.tenure.SETTLED_AT_ONCE", 0)
    with RunningWorker(**options) as worker:
        load.add(20)
        load.wait_until_done()
    counts = stage_counts(worker)
    assert 0 < counts["settle"] == counts["acknowledge"]


def stage_counts(worker: RunningWorker) -> dict[str, float]:
    return {stage: worker.metric("stage_seconds_count", stage=stage) for stage in get_args(Stage)}


def test_what_fails_while_a_batch_is_read_where_it_was_claimed_ends_the_tenure_and_nothing_else(
    redis_url: str, postgres_url: str, queue: str, load: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: list[str] = []

    def digest_later(*given: Any) -> Any:
        readers.append(threading.current_thread().name)
        if len(readers) == 1:
            raise OwnershipLost("by this test")
        return digest(*given)

    monkeypatch.setattr("writebehind_worker.tenure.digest", digest_later)
    with RunningWorker(redis_url=redis_url, postgres_url=postgres_url, queue=queue) as worker:
        worker.wait_for_role("owner")
        load.add(20)
        load.wait_until_done()
        epoch = worker.facts["epoch"]
        assert epoch > 1
        load.add(20)
        load.check()
        assert worker.facts["epoch"] == epoch
    assert set(readers) == {"claim"}
