"""A table is not moved to a queue that no worker serves, unless it is told so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import redis
from tests.support.sharded import Run, keys, rows, run
from tests.support.workers import RunningWorker

from writebehind import WriteBehind
from writebehind.keys import QueueKeys
from writebehind_worker.moving import Move, is_served

__all__ = ["keys", "rows", "run"]  # fixtures

Connect = Callable[..., WriteBehind]


@pytest.fixture
def bulk(queue: str) -> QueueKeys:
    """Of the other queue."""
    return QueueKeys(f"{queue}:bulk")


def test_a_move_to_a_queue_that_no_worker_serves_is_refused_and_says_what_to_do(
    connect: Connect, bulk: QueueKeys, keys: QueueKeys, rows: psycopg.Connection[Any], run: Run
) -> None:
    wb = connect()
    said = run("move", "rows", bulk.queue, "--timeout", "0.2", code=2)
    assert f"no worker serves '{bulk.queue}'" in said
    assert f"`writebehind run --queue {bulk.queue}`" in said and "--unserved" in said
    assert wb.put("rows", 1, {"v": 1}).queue == keys.queue
    wb.redis.delete(keys.queue)  # as a worker would
    said = run("move", "rows", bulk.queue, "--unserved")
    assert f"No worker serves it now: writebehind run --queue {bulk.queue}" in said
    assert wb.put("rows", 1, {"v": 1}).queue == bulk.queue


def test_one_whose_worker_has_gone_is_waited_for(
    connect: Connect,
    bulk: QueueKeys,
    keys: QueueKeys,
    rows: psycopg.Connection[Any],
    options: dict[str, Any],
    redis_client: redis.Redis,
    run: Run,
) -> None:
    """For a moment it may have no owner while another takes over."""
    wb = connect()
    with RunningWorker(**options) as first:
        first.wait_for_role("owner")
        with RunningWorker(**{**options, "queue": bulk.queue}) as second:
            second.wait_for_role("owner")
            assert is_served(redis_client, bulk)
            said = run("move", "rows", bulk.queue)
            assert "No worker" not in said
            wb.put("rows", 1, {"v": 1}, wait=20)
        assert not is_served(redis_client, bulk)
        run("move", "rows", "--back")
        assert "no worker serves" in run("move", "rows", bulk.queue, "--timeout", "0.2", code=2)
        with RunningWorker(**{**options, "queue": bulk.queue}):
            run("move", "rows", bulk.queue)
            assert wb.put("rows", 1, {"v": 2}).queue == bulk.queue


def test_a_move_that_was_killed_goes_to_its_end_without_a_worker(
    connect: Connect,
    bulk: QueueKeys,
    keys: QueueKeys,
    rows: psycopg.Connection[Any],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its writes wait: that must end."""
    wb = connect()
    with monkeypatch.context() as patched:
        patched.setattr("writebehind_worker.moving.Move._arrive", _killed)
        with pytest.raises(KeyboardInterrupt):
            Move(wb.redis, keys, "rows", bulk, lambda *_: 0, 20, unserved=True).move()
    run("move", "rows", bulk.queue)
    assert wb.put("rows", 1, {"v": 1}).queue == bulk.queue


def _killed(*_: object) -> None:
    raise KeyboardInterrupt
