"""A queue that is divided on a cluster: its shards are on different nodes, and no step looks at two."""

from __future__ import annotations

from typing import Any, cast

import pytest
import redis
from redis.connection import AbstractConnection
from tests.support.cluster import Cluster, client, cluster

from writebehind.keys import QueueKeys
from writebehind.shards import shard_keys, stamp
from writebehind_worker import resharding
from writebehind_worker.resharding import divide, layout_of, still_draining, waiting_of
from writebehind_worker.shard_clocks import hear_clocks

__all__ = ["client", "cluster"]  # fixtures

SHARDS = 8


@pytest.fixture
def keys(queue: str) -> QueueKeys:
    return QueueKeys(queue)


def drain(client: redis.Redis, keys: QueueKeys) -> None:
    assert still_draining(client, keys, layout_of(client, keys)) == 0
    assert not layout_of(client, keys).draining


def shards_say(client: redis.Redis, keys: QueueKeys, shards: int) -> list[Any]:
    return [client.hmget(one.clock, "shard", "hold") for one in shard_keys(keys.queue, shards)]


def test_a_queue_is_divided_over_the_nodes_and_made_one_again(
    cluster: Cluster, client: redis.Redis, keys: QueueKeys
) -> None:
    assert divide(client, keys, SHARDS).shards == SHARDS
    opened = shard_keys(keys.queue, SHARDS)
    assert len({cluster.node_of(one.clock) for one in opened}) > 1, "or the test shows nothing"
    assert all(hold for _, hold in shards_say(client, keys, SHARDS))
    drain(client, keys)
    assert shards_say(client, keys, SHARDS) == [[stamp(n, SHARDS).encode(), None] for n in range(SHARDS)]
    assert divide(client, keys, 1).shards == 1
    assert shards_say(client, keys, SHARDS) == [[b"closed", None]] * SHARDS
    drain(client, keys)
    assert shards_say(client, keys, 1) == [[b"", None]]


def test_a_shard_whose_slot_moves_key_by_key_is_not_silent(
    cluster: Cluster, client: redis.Redis, keys: QueueKeys
) -> None:
    divide(client, keys, SHARDS)
    drain(client, keys)
    first = shard_keys(keys.queue, SHARDS)[0]
    move = cluster.slot_moves(first.clock, cluster.other_primary(cluster.node_of(first.clock)))
    move.begin()
    move.move_key(first.clock)
    heard = hear_clocks(client, keys, [SHARDS], contents=True)
    move.end()
    assert heard.whole == {SHARDS} and not heard.errors
    assert heard.clocks[SHARDS][0].division == layout_of(client, keys).number
    assert hear_clocks(client, keys, [SHARDS]).whole == {SHARDS}  # by MOVED


@pytest.mark.parametrize("moves_after", ["begin", "close", "open", "switch"])
def test_nodes_that_change_places_within_a_division_are_found(
    cluster: Cluster,
    client: redis.Redis,
    keys: QueueKeys,
    moves_after: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    divide(client, keys, 2)
    drain(client, keys)
    call = resharding._Steps.__call__
    moved: list[int] = []

    def then_move(self: Any, step: str, *args: Any, **named: Any) -> Any:
        done = call(self, step, *args, **named)
        if step == moves_after and not moved:
            places = {cluster.node_of(one.clock) for one in (keys, *shard_keys(keys.queue, 3))}
            moved.extend(cluster.fail_over(place) for place in places)
        return done

    monkeypatch.setattr(resharding._Steps, "__call__", then_move)
    assert divide(client, keys, 3).shards == 3
    drain(client, keys)
    assert moved
    assert shards_say(client, keys, 3) == [[stamp(n, 3).encode(), None] for n in range(3)]
    assert shards_say(client, keys, 2) == [[b"closed", None]] * 2


def test_a_write_that_is_claimed_while_its_slot_moves_is_not_missed(
    cluster: Cluster, client: redis.Redis, keys: QueueKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.rpush(keys.inflight, 1)
    client.lpush(keys.queue, "a write")
    client.hset(keys.clock, "seq", 1)
    move = cluster.slot_moves(keys.queue, cluster.other_primary(cluster.node_of(keys.queue)))
    move.begin()
    move.move_key(keys.queue)
    send = AbstractConnection.send_command

    def claimed_before(self: Any, *args: Any, **options: Any) -> None:
        if args[0] == "ASKING":
            monkeypatch.undo()
            move.end()
            with cluster.connect() as worker:
                worker.lmove(keys.queue, keys.processing(2))
                worker.rpush(keys.inflight, 2)
        cast(Any, send)(self, *args, **options)

    monkeypatch.setattr(AbstractConnection, "send_command", claimed_before)
    assert waiting_of(client, keys, "1") == 2
