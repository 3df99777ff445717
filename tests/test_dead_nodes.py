"""A node of a cluster that is dead, with its replica: what is on the others is served all the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import redis
from tests.support.cluster import Cluster, client, cluster
from tests.support.fleets import RunningFleet
from tests.support.sharded import divided_in_time, rows

from writebehind import Receipt, WriteBehind
from writebehind.keys import QueueKeys
from writebehind.shards import shard_keys
from writebehind_worker.pause import pause
from writebehind_worker.resharding import divide
from writebehind_worker.testing.wait import wait_until

__all__ = ["client", "cluster", "rows"]  # fixtures

SHARDS, LATER = 3, 2
LOOKS_S = 2.5
"""Several looks of a worker."""


@pytest.fixture
def keys(cluster: Cluster, queue: str) -> QueueKeys:
    """One of its shards is on another node than the queue itself, which has the layout."""
    found = (QueueKeys(f"{queue}:{n}") for n in range(100))
    return next(keys for keys in found if any(elsewhere(cluster, keys)))


def elsewhere(cluster: Cluster, keys: QueueKeys) -> Iterator[int]:
    """Places of the shards that are not where the queue itself is."""
    home = cluster.node_of(keys.clock)
    return (place for one in shard_keys(keys.queue, SHARDS) if (place := cluster.node_of(one.clock)) != home)


@pytest.fixture
def options(cluster: Cluster, postgres_url: str, keys: QueueKeys) -> dict[str, Any]:
    return {"redis_url": cluster.url, "postgres_url": postgres_url, "queue": keys.queue, "lease_ttl_s": 1.0}


@contextmanager
def dead(cluster: Cluster, place: int) -> Iterator[None]:
    """The replica before, so that none takes over."""
    gone = cluster.replica_of(place), place
    for node in gone:
        cluster.kill(node)
    try:
        yield
    finally:
        cluster.restart(*gone)


def committed(receipts: list[Receipt]) -> None:
    for receipt in receipts:
        receipt.wait(30)


def test_workers_that_come_later_serve_the_shards_of_the_others(
    cluster: Cluster,
    client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
) -> None:
    shards = divided_in_time(client, keys, SHARDS)
    place = next(elsewhere(cluster, keys))
    there = {one.queue for one in shards if cluster.node_of(one.clock) == place}
    others = {one.queue for one in (keys, *shards)} - there
    with WriteBehind.from_url(cluster.url, queue=keys.queue, ttl=60) as wb:
        receipts = [wb.put("rows", id, {"v": 1}) for id in range(20)]
        with dead(cluster, place), RunningFleet(**options) as first:
            committed([receipt for receipt in receipts if receipt.queue in others])
            wait_until(lambda: first.owned() == others)
            wait_until(lambda: first.state.facts()["redis_up"] is False)  # it tells that not all is well
            with RunningFleet(**options) as second:
                wait_until(lambda: second.state.facts()["redis_up"] is False)
                wait_until(lambda: first.owned() | second.owned() == others)
                first.stop()
                wait_until(lambda: second.owned() == others)
        with RunningFleet(**options):
            committed(receipts)
    assert rows.execute("SELECT count(*) FROM rows WHERE v = 1").fetchone() == (20,)


@pytest.mark.parametrize("way", ["paused", "drains", "lost"])
def test_none_is_served_where_there_is_something_to_be_done_first(
    cluster: Cluster,
    client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    way: str,
) -> None:
    """What nobody can do: one of the shards cannot be asked."""
    prepare: dict[str, Callable[[], object]] = {
        "paused": lambda: pause(client, keys, "a migration"),
        "drains": lambda: divide(client, keys, LATER),
        "lost": lambda: client.hincrby(keys.layout, "number", -1),
    }
    divided_in_time(client, keys, SHARDS)
    prepare[way]()
    with dead(cluster, next(elsewhere(cluster, keys))), RunningFleet(**options) as fleet:
        time.sleep(LOOKS_S)
        assert fleet.owned() <= {keys.queue}
