"""A node of a cluster that says nothing: where it has former shards only, it holds up nothing elsewhere."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from structlog.testing import capture_logs
from tests.support.cluster import Cluster, client, cluster
from tests.support.fleets import RunningFleet
from tests.support.sharded import Run, divided_in_time, rows, run

from writebehind import WriteBehind
from writebehind.keys import QueueKeys
from writebehind.shards import shard_keys
from writebehind_worker import fleet
from writebehind_worker.redis_server import RedisLink
from writebehind_worker.resharding import copy_to_shards, divide, layout_of
from writebehind_worker.shard_clocks import NODE_TIMEOUT_S, hear_clocks
from writebehind_worker.testing.wait import wait_until
from writebehind_worker.whole_pause import pause_all

__all__ = ["client", "cluster", "rows", "run"]  # fixtures

SOON_S = 45
"""The node would otherwise be waited for again and again: minutes."""
TIMEOUT_S, A_FEW = 2, 12
"""Of a socket, and how many of it may pass: fewer than where a node is asked eight times."""
FORMER, LOST = 3, 2
"""Numbers of shards: one of the first is on the node that falls silent, none of the second."""


def places(cluster: Cluster, queues: list[QueueKeys]) -> list[int]:
    """The primary that each is on."""
    return [cluster.node_of(one.clock) for one in queues]


@pytest.fixture
def keys(cluster: Cluster, queue: str) -> QueueKeys:
    """The first former shard alone is on its node."""
    return next(
        keys
        for keys in (QueueKeys(f"{queue}:{n}") for n in range(1000))
        for first, *others in [
            places(cluster, [*shard_keys(keys.queue, FORMER), *shard_keys(keys.queue, LOST)])
        ]
        if first not in (*others, cluster.node_of(keys.clock))
    )


@pytest.fixture
def options(cluster: Cluster, postgres_url: str, keys: QueueKeys) -> dict[str, Any]:
    """The URL does not name the silent nodes: who does not know yet who is there asks those that it names.

    The silent one has slot 0: redis-py asks that node what is no matter of a key, and whoever makes a client.
    """
    place = cluster.node_of(shard_keys(keys.queue, FORMER)[0].clock)
    if cluster.node_of("") != place:  # slot 0
        cluster.move_at_once("", place)
    silent = (place, cluster.replica_of(place))
    hosts = [f"127.0.0.1:{node.port}" for n, node in enumerate(cluster.nodes) if n not in silent]
    url = "redis+cluster://" + ",".join(hosts)
    return {"redis_url": url, "postgres_url": postgres_url, "queue": keys.queue, "lease_ttl_s": 1.0}


@pytest.fixture
def quick(options: dict[str, Any]) -> dict[str, Any]:
    """Waits less for each reply."""
    return options | {"redis_url": f"{options['redis_url']}?socket_timeout={TIMEOUT_S}"}


@contextmanager
def silent(cluster: Cluster, place: int) -> Iterator[None]:
    """A node and its replica, which are there and do nothing."""
    with hushable(cluster, place) as hush:
        hush()
        yield


@contextmanager
def hushable(cluster: Cluster, place: int) -> Iterator[Callable[[], None]]:
    """As `silent`, from when it is called."""
    pids = [cast(int, cluster.nodes[n].pid) for n in (place, cluster.replica_of(place))]

    def hush() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)

    try:
        yield hush
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        wait_until(cluster.is_whole, 60)


def value(rows: psycopg.Connection[Any], id: int) -> int:
    (found,) = rows.execute("SELECT v FROM rows WHERE id = %s", [id]).fetchone() or (0,)
    return int(found)


def counted_in(client: redis.Redis, keys: QueueKeys, workers: int) -> float:
    """The part of the next two seconds in which the words of so many workers hold."""
    seen = []
    for _ in range(40):
        seen.append(client.zcount(keys.fleet, time.time() * 1000, "inf") == workers)
        time.sleep(0.05)
    return sum(seen) / len(seen)


def test_workers_that_come_later_or_take_over_soon_serve_the_shards_of_the_others(
    cluster: Cluster,
    client: redis.Redis,
    keys: QueueKeys,
    quick: dict[str, Any],
    rows: psycopg.Connection[Any],
) -> None:
    there, *elsewhere = divided_in_time(client, keys, FORMER)
    others = {keys.queue, *(one.queue for one in elsewhere)}
    with RunningFleet(**quick) as first:
        wait_until(lambda: first.owned() == {there.queue, *others})
        with silent(cluster, cluster.node_of(there.clock)), RunningFleet(**quick) as later:
            wait_until(lambda: bool(later.owned()), A_FEW * TIMEOUT_S)
            wait_until(lambda: later.state.facts()["redis_up"] is False)  # it tells that not all is well
            assert counted_in(client, keys, 2) > 0.7
            first.stop()
            wait_until(lambda: later.owned() == others, A_FEW * TIMEOUT_S)


@pytest.mark.parametrize("comes_later", [False, True], ids=["", "by a worker that comes later"])
def test_lost_steps_elsewhere_are_found_soon(
    cluster: Cluster,
    client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    comes_later: bool,
) -> None:
    with ExitStack() as stack:
        old, new = (
            stack.enter_context(WriteBehind.from_url(cluster.url, queue=keys.queue, ttl=60)) for _ in range(2)
        )
        fleet = stack.enter_context(RunningFleet(**options))
        for shards, wb in ((FORMER, new), (LOST, old), (1, new)):
            divided_in_time(client, keys, shards)
            receipt = wb.put("rows", shards, {"v": 1})
            receipt.wait(30)  # the ledger knows of these shards from then on
            if shards == LOST:
                place, was = receipt.queue, cast(Any, client.hgetall(QueueKeys(receipt.queue).clock))
        wait_until(lambda: fleet.owned() == {keys.queue})
        if comes_later:
            fleet.stop()
        stack.enter_context(silent(cluster, cluster.node_of(shard_keys(keys.queue, FORMER)[0].clock)))
        if comes_later:
            stack.enter_context(RunningFleet(**options))
        number = layout_of(client, keys).number
        client.hset(QueueKeys(place).clock, mapping=was)  # as if a late replica had been promoted
        assert old.put("rows", LOST, {"v": 2}).queue == place
        wait_until(lambda: layout_of(client, keys).number > number, SOON_S)
        wait_until(lambda: value(rows, LOST) == 2, SOON_S)
        new.put("rows", 1, {"v": 2}).wait(SOON_S)


def test_that_a_pause_is_over_comes_to_the_other_shards(
    cluster: Cluster,
    client: redis.Redis,
    keys: QueueKeys,
    quick: dict[str, Any],
    rows: psycopg.Connection[Any],
) -> None:
    there, *elsewhere = divided_in_time(client, keys, FORMER)
    with RunningFleet(**quick) as fleet:
        wait_until(lambda: fleet.owned() == {one.queue for one in (keys, there, *elsewhere)})
        pause_all(client, keys, "a migration")
        for id, one in enumerate(elsewhere):
            client.lpush(one.queue, json.dumps({"table": "rows", "id": id, "data": {"v": 1}}))
        with silent(cluster, cluster.node_of(there.clock)):
            client.delete(keys.paused)  # whoever resumed was killed before it came to the shards
            wait_until(lambda: value(rows, 0) == value(rows, 1) == 1, SOON_S)


def test_a_node_that_falls_silent_within_a_look_holds_up_none_of_the_next_ones(
    cluster: Cluster,
    client: redis.Redis,
    keys: QueueKeys,
    quick: dict[str, Any],
    rows: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there, *elsewhere = divided_in_time(client, keys, FORMER)
    others = {keys.queue, *(one.queue for one in elsewhere)}
    with (
        RunningFleet(**quick) as first,
        hushable(cluster, cluster.node_of(there.clock)) as hush,
    ):
        wait_until(lambda: first.owned() == {there.queue, *others})
        looks = 0

        def heard(*args: Any, **named: Any) -> Any:
            nonlocal looks
            found = hear_clocks(*args, **named)
            if not looks:
                hush()
            looks += 1
            return found

        monkeypatch.setattr(fleet, "hear_clocks", heard)
        wait_until(lambda: looks > 1, A_FEW * TIMEOUT_S)


def test_a_silent_node_is_not_waited_for_by_each_of_its_shards(
    cluster: Cluster, keys: QueueKeys, options: dict[str, Any]
) -> None:
    place = cluster.node_of(shard_keys(keys.queue, FORMER)[0].clock)
    there = [one for one in shard_keys(keys.queue, 96) if cluster.node_of(one.clock) == place]
    assert len(there) > A_FEW * TIMEOUT_S
    with RedisLink(options["redis_url"], at_most_s=NODE_TIMEOUT_S) as link:
        client = link.client
        with silent(cluster, place):
            began = time.monotonic()
            with pytest.raises((redis.TimeoutError, redis.ConnectionError)):
                copy_to_shards(client, keys, there)
            assert time.monotonic() - began < A_FEW * TIMEOUT_S * NODE_TIMEOUT_S


def test_raw_writes_to_a_former_shard_there_hold_up_no_other_work_of_the_workers(
    cluster: Cluster,
    client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
) -> None:
    divided_in_time(client, keys, FORMER)
    divided_in_time(client, keys, 1)
    first, second, _ = shard_keys(keys.queue, FORMER)
    with (
        RunningFleet(**options) as fleet,
        WriteBehind.from_url(cluster.url, queue=keys.queue, ttl=60) as wb,
    ):
        fleet.fleet._former._add([FORMER])
        for id, one in ((1, first), (2, second)):
            client.lpush(one.queue, json.dumps({"table": "rows", "id": id, "data": {"v": 1}}))
        wait_until(lambda: value(rows, 1) == value(rows, 2) == 1)
        wb.put("rows", 0, {"v": 1})  # it knows the nodes from then on
        with silent(cluster, cluster.node_of(first.clock)):
            client.lpush(second.queue, json.dumps({"table": "rows", "id": 2, "data": {"v": 2}}))
            divide(client, keys, LOST)
            wait_until(lambda: not layout_of(client, keys).draining, SOON_S)
            wait_until(lambda: value(rows, 2) == 2, SOON_S)
            for receipt in [wb.put("rows", id, {"v": 3}) for id in range(9)]:
                receipt.wait(SOON_S)


def test_lost_steps_beside_a_shard_there_are_told_and_mended_when_it_answers(
    cluster: Cluster,
    client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
) -> None:
    first, sibling, _ = divided_in_time(client, keys, FORMER)
    with capture_logs() as logged, RunningFleet(**options) as fleet:
        divide(client, keys, 1)
        wait_until(lambda: not layout_of(client, keys).draining)
        number = layout_of(client, keys).number
        with silent(cluster, cluster.node_of(first.clock)):
            client.hset(sibling.clock, "shard", "2of3")
            client.lpush(sibling.queue, json.dumps({"table": "rows", "id": 1, "data": {"v": 1}}))
            wait_until(lambda: any("once all shards" in line["event"] for line in logged))
            client.lpush(keys.queue, json.dumps({"table": "rows", "id": 2, "data": {"v": 1}}))
            wait_until(lambda: value(rows, 2) == 1)
            assert (layout_of(client, keys).number, fleet.fleet._former.suspects) == (number, frozenset())
        wait_until(lambda: layout_of(client, keys).number > number, SOON_S)
        wait_until(lambda: value(rows, 1) == 1, SOON_S)


def test_the_queue_goes_on_without_a_break_while_its_worker_leaves_a_former_shard_there(
    cluster: Cluster,
    client: redis.Redis,
    keys: QueueKeys,
    quick: dict[str, Any],
    rows: psycopg.Connection[Any],
) -> None:
    first, *_ = divided_in_time(client, keys, FORMER)
    divided_in_time(client, keys, 1)
    with RunningFleet(**quick) as fleet:
        fleet.fleet._former._add([FORMER])
        client.lpush(first.queue, json.dumps({"table": "rows", "id": 1, "data": {"v": 1}}))
        wait_until(lambda: fleet.owned() == {keys.queue, first.queue})
        epoch = client.get(keys.epoch)
        with silent(cluster, cluster.node_of(first.clock)):
            wait_until(lambda: first.queue not in fleet.fleet._serving, SOON_S)
            client.lpush(keys.queue, json.dumps({"table": "rows", "id": 2, "data": {"v": 1}}))
            wait_until(lambda: value(rows, 2) == 1)
            assert client.get(keys.epoch) == epoch
        wait_until(lambda: fleet.owned() == {keys.queue, first.queue}, SOON_S)


def test_doctor_says_soon_what_it_could_not_ask(
    cluster: Cluster, client: redis.Redis, keys: QueueKeys, rows: psycopg.Connection[Any], run: Run
) -> None:
    for shards in (FORMER, LOST, 1):
        divided_in_time(client, keys, shards)
        for one in shard_keys(keys.queue, shards):
            rows.execute("INSERT INTO writebehind.ledger (queue) VALUES (%s)", [one.queue])
    lost = shard_keys(keys.queue, LOST)[0]
    with silent(cluster, cluster.node_of(shard_keys(keys.queue, FORMER)[0].clock)):
        began = time.monotonic()
        found = findings(run("doctor", "--json", code=None))
        assert time.monotonic() - began < SOON_S
        assert found["redis.connection"][0] == "ok"
        assert found["redis.cluster"][0] == "fatal" and "cannot be asked" in found["redis.cluster"][1]
        assert found["redis.division"] == (
            "note",
            "1 shard; the layout and all shards say the same, but for 1 former shard that cannot be asked",
        )
        sibling = shard_keys(keys.queue, FORMER)[1]
        client.hset(sibling.clock, "shard", "2of3")
        severity, what = findings(run("doctor", "--json", code=2))["redis.division"]
        assert severity == "fatal" and "3 former shards do not fit" in what
        client.hset(sibling.clock, "shard", "closed")
        client.hset(lost.clock, "shard", "1of2")
        assert findings(run("doctor", "--json", code=2))["redis.division"][0] == "fatal"
    client.hset(lost.clock, "shard", "closed")
    assert findings(run("doctor", "--json", code=None))["redis.division"][0] == "ok"


def test_doctor_looks_at_the_others_where_a_present_shard_is_silent(
    cluster: Cluster, client: redis.Redis, keys: QueueKeys, rows: psycopg.Connection[Any], run: Run
) -> None:
    first, *_ = divided_in_time(client, keys, FORMER)
    with silent(cluster, place := cluster.node_of(first.clock)):
        found = findings(run("doctor", "--json", code=2))
    severity, what = found["redis.cluster"]
    assert severity == "fatal" and f":{cluster.nodes[place].port} cannot be asked" in what
    assert found["redis.connection"][0] == "ok"
    assert found["redis.division"][0] == "note" and "could not be looked at" in found["redis.division"][1]


def test_an_application_s_client_is_made_that_sends_nothing_again(
    cluster: Cluster, keys: QueueKeys, options: dict[str, Any]
) -> None:
    never = Retry(NoBackoff(), 0)
    given = {"retry": never, "socket_timeout": 2.0}
    with (
        silent(cluster, cluster.node_of(shard_keys(keys.queue, FORMER)[0].clock)),
        WriteBehind.from_url(options["redis_url"], queue=keys.queue, redis_options=given) as wb,
    ):
        assert wb.get("rows", 1) is None
        assert cast(Any, wb.redis).retry is never


def findings(report: str) -> dict[str, tuple[str, str]]:
    """What doctor finds, by check."""
    return {f["check"]: (f["severity"], f["what"]) for f in json.loads(report)["findings"]}
