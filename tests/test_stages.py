"""Where batches spend their time, as the worker's metrics tell it."""

from __future__ import annotations

import time
from typing import Any, get_args

import psycopg
import pytest
from tests.support.workers import RunningWorker, Workload

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
        acknowledged = worker.metric("stage_seconds_count", stage="acknowledge")
        assert acknowledged > 1
        assert worker.metric("stage_seconds_count", stage="settle") == 0, "so few are settled on the way"
        monkeypatch.setattr("writebehind_worker.tenure.SETTLED_AT_ONCE", 0)
        load.add(20)
        load.wait_until_done()
        counts = {stage: worker.metric("stage_seconds_count", stage=stage) for stage in get_args(Stage)}
    assert counts["flush"] == worker.metric("flush_seconds_count") > 1
    assert counts["claim"] == counts["read"] >= counts["flush"]
    assert counts["wait"] == counts["flush"]
    assert 0 < counts["settle"] == counts["acknowledge"] - acknowledged
    assert counts["acknowledge"] <= counts["flush"]
