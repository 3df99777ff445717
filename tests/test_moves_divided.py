"""A queue is divided anew, for Redis has lost steps of a division, while a table moves away from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import redis
from tests.support.fleets import RunningFleet
from tests.support.sharded import Run, divided, keys, rows, run
from tests.test_moves import bulk, killed_after, move

from writebehind import RedisRefused, WriteBehind
from writebehind.keys import QueueKeys
from writebehind.shards import Layout, shard_keys
from writebehind_worker import moving
from writebehind_worker.errors import FatalError
from writebehind_worker.lost_steps import find_lost_steps
from writebehind_worker.moving import Move, follow
from writebehind_worker.resharding import divide, divide_again, layout_of
from writebehind_worker.testing.wait import wait_until

__all__ = ["bulk", "keys", "move", "rows", "run"]  # fixtures

Connect = Callable[..., WriteBehind]
MoveRows = Callable[..., bool]
FORMER = 4
INTO_SHARDS = pytest.mark.parametrize("shards", [FORMER], ids=[""])
"""The layout is what it was before a division: the queue has the shards of that one again."""
INTO_ANY = pytest.mark.parametrize("shards", [1, FORMER], ids=["into one", "into shards"])


@pytest.fixture
def lost(redis_client: redis.Redis, keys: QueueKeys, shards: int) -> Callable[[], Layout]:
    """Steps are lost from the beginning on, and the queue is not yet divided anew: what a call does."""
    first = shard_keys(keys.queue, FORMER)[0]
    if shards == 1:
        divided(redis_client, keys, FORMER)
        divided(redis_client, keys, 1)
        redis_client.hset(first.clock, "shard", f"1of{FORMER}")
    else:
        redis_client.hset(keys.clock, "seq", 1)
        was: Any = redis_client.hgetall(keys.clock)
        divided(redis_client, keys, FORMER)
        redis_client.delete(keys.layout, keys.clock)
        redis_client.hset(keys.clock, mapping=was)

    def again() -> Layout:
        layout = layout_of(redis_client, keys)
        found = find_lost_steps(redis_client, keys, layout, [FORMER])
        assert found is not None and found.shards == shards
        return divide_again(redis_client, keys, layout, found)

    return again


def value(rows: psycopg.Connection[Any]) -> int | None:
    found = rows.execute("SELECT v FROM rows WHERE id = 1").fetchone()
    return None if found is None else int(found[0])


@INTO_ANY
@pytest.mark.parametrize("step", [1, 2, 3], ids=["close", "decide", "arrive"])
def test_who_was_killed_half_way_before_is_followed_by_who_does_the_rest(
    connect: Connect,
    options: dict[str, Any],
    bulk: QueueKeys,
    keys: QueueKeys,
    redis_client: redis.Redis,
    rows: psycopg.Connection[Any],
    move: MoveRows,
    lost: Callable[[], Layout],
    monkeypatch: pytest.MonkeyPatch,
    shards: int,
    step: int,
) -> None:
    """Nothing is lost. What is not decided stays where it is, if the queue has shards by now."""
    wb = connect()
    with killed_after(step, monkeypatch):
        move(bulk)
    assert lost().shards == shards
    with RunningFleet(**options), RunningFleet(**options | {"queue": bulk.queue}):
        if shards == FORMER and step == 1:
            with pytest.raises(FatalError, match="divided into shards"):
                move(bulk)
            assert wb.put("rows", 1, {"v": 1}).queue.startswith(f"{keys.queue}:")
            wait_until(lambda: not layout_of(redis_client, keys).draining)
            divided_by_workers(redis_client, keys, 1)
        move(bulk)
        wait_until(lambda: not layout_of(redis_client, keys).draining)
        receipt = wb.put("rows", 1, {"v": 2})
        assert receipt.queue == bulk.queue
        receipt.wait(20)
    assert value(rows) == 2
    assert {follow(redis_client, home, "rows").keys for home in (keys, bulk)} == {bulk}
    assert not redis_client.hexists(keys.layout, "moving")


def divided_by_workers(client: redis.Redis, keys: QueueKeys, shards: int) -> None:
    divide(client, keys, shards)
    wait_until(lambda: not layout_of(client, keys).draining)


@INTO_ANY
def test_a_move_that_waits_then_says_what_is_so(
    connect: Connect,
    bulk: QueueKeys,
    keys: QueueKeys,
    redis_client: redis.Redis,
    move: MoveRows,
    lost: Callable[[], Layout],
    monkeypatch: pytest.MonkeyPatch,
    shards: int,
) -> None:
    """It stays where it is, and takes writes: at once, not when the former shards are in Postgres."""
    wb = connect()
    monkeypatch.setattr(moving, "CLOSED_FOR_S", 0.5)
    close = Move._close

    def then_lost(self: Any, *args: Any) -> Any:
        closed = close(self, *args)
        wb.redis.lpush(shard_keys(keys.queue, FORMER)[0].queue, "{}")  # what nobody brings to Postgres
        lost()
        return closed

    monkeypatch.setattr(Move, "_close", then_lost)
    with pytest.raises(FatalError, match=r"its writes go on|its tables cannot be moved"):
        move(bulk)
    assert wb.put("rows", 1, {"v": 1}).queue in [one.queue for one in shard_keys(keys.queue, shards)]


@INTO_ANY
def test_a_move_that_has_decided_goes_on_to_its_end(
    connect: Connect,
    bulk: QueueKeys,
    keys: QueueKeys,
    redis_client: redis.Redis,
    move: MoveRows,
    lost: Callable[[], Layout],
    monkeypatch: pytest.MonkeyPatch,
    shards: int,
) -> None:
    wb = connect()
    decide = Move._decide

    def then_lost(self: Any, *args: Any) -> Any:
        decided = decide(self, *args)
        lost()
        return decided

    monkeypatch.setattr(Move, "_decide", then_lost)
    assert move(bulk)
    assert wb.put("rows", 1, {"v": 1}).queue == bulk.queue


@INTO_SHARDS
def test_what_waits_is_told(
    connect: Connect,
    bulk: QueueKeys,
    keys: QueueKeys,
    move: MoveRows,
    lost: Callable[[], Layout],
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    shards: int,
) -> None:
    with killed_after(1, monkeypatch):
        move(bulk)
    lost()
    again = f"writebehind move --queue {keys.queue} rows {bulk.queue}"
    monkeypatch.setattr("writebehind.places.CLOSED_FOR_S", 0.1)
    with pytest.raises(RedisRefused, match=again):
        connect().put("rows", 1, {"v": 1})
    assert again in run("doctor", code=None)
