"""A node of a cluster that goes back within a division, or long after it: the layout, or one shard alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import psycopg
import pytest
import redis
from tests.support.cluster import Cluster, client, cluster, options
from tests.support.fleets import RunningFleet
from tests.support.shard_history import check_history
from tests.support.sharded import Run, keys, killed_after, rows, run

from writebehind import RedisRefused, WriteBehind
from writebehind.keys import QueueKeys
from writebehind.shards import Layout, shard_keys
from writebehind_worker import former_shards
from writebehind_worker.lost_steps import find_lost_steps, lost_steps
from writebehind_worker.resharding import divide, divide_again, layout_of, still_draining
from writebehind_worker.shard_clocks import Clock
from writebehind_worker.testing.wait import wait_until

__all__ = ["client", "cluster", "keys", "options", "rows", "run"]  # fixtures

BEFORE, AFTER = 2, 4
ROWS = 8


class Slot:
    """That of a key. What it has now it can have again, as if a late replica had been promoted."""

    def __init__(self, cluster: Cluster, key: str) -> None:
        self._cluster, self._key = cluster, key
        self._had = {name: self._primary.dump(name) for name in self._names()}

    @property
    def _primary(self) -> Any:
        return self._cluster.clients[self._cluster.node_of(self._key)]

    def _names(self) -> list[bytes]:
        slot = self._primary.execute_command("CLUSTER KEYSLOT", self._key)
        found: list[bytes] = self._primary.execute_command(f"CLUSTER GETKEYSINSLOT {slot} 10000")
        return found

    def goes_back(self) -> None:
        for name in self._names():
            self._primary.delete(name)
        for name, content in self._had.items():
            self._primary.restore(name, 0, content)
        self._cluster.fail_over(self._cluster.node_of(self._key))


class Writer:
    """A client of its own rows, which learns of shards as any does."""

    def __init__(self, cluster: Cluster, queue: str, first: int) -> None:
        self._wb = WriteBehind.from_url(cluster.url, queue=queue, ttl=60)
        self.written = dict.fromkeys(range(first, first + ROWS), 0)

    def write(self) -> None:
        """Each of its rows. It goes on where it is refused, as an application would."""
        for row in self.written:
            wait_until(lambda row=row: self._is_accepted(row), message="refused for ever")  # type: ignore[misc]

    def write_where_accepted(self) -> None:
        """Each of its rows once, be it refused or not."""
        for row in self.written:
            self._is_accepted(row)

    def _is_accepted(self, row: int) -> bool:
        with suppress(RedisRefused), self._wb.batch() as batch:
            batch.put("rows", row, {"v": self.written[row] + 1})
            batch.increment("rows", row, {"n": 1})
        self.written[row] += len(batch.receipts) == 2
        return len(batch.receipts) == 2

    def close(self) -> None:
        self._wb.close()


@pytest.fixture
def writers(cluster: Cluster, queue: str) -> Iterator[list[Writer]]:
    """Two: what each of them knows is the test's matter."""
    writers = [Writer(cluster, queue, first) for first in (0, 100)]
    yield writers
    for writer in writers:
        writer.close()


def drain(client: redis.Redis, keys: QueueKeys) -> None:
    wait_until(lambda: still_draining(client, keys, layout_of(client, keys)) == 0)
    assert not layout_of(client, keys).draining


def divided(client: redis.Redis, keys: QueueKeys, shards: int) -> None:
    divide(client, keys, shards)
    drain(client, keys)


def shards_of_all(keys: QueueKeys) -> list[QueueKeys]:
    return [one for count in (1, 2, 3, 4) for one in shard_keys(keys.queue, count)]


def is_settled(client: redis.Redis, keys: QueueKeys) -> bool:
    """Nothing waits anywhere, and the layout and all shards say the same."""
    layout = layout_of(client, keys)
    if layout.closing or layout.draining or find_lost_steps(client, keys, layout, (1, 2, 3, 4)):
        return False
    return not any(client.llen(one.queue) + client.llen(one.inflight) for one in shards_of_all(keys))


def go_on(
    client: redis.Redis, keys: QueueKeys, options: dict[str, Any], writers: list[Writer], shards: int
) -> None:
    """Workers come, both writers write on, and all of it is in Postgres at the end."""
    with RunningFleet(**options), RunningFleet(**options):
        for _ in range(5):
            for writer in writers:
                writer.write()
        wait_until(lambda: is_settled(client, keys), 60)
        assert layout_of(client, keys).shards == shards
        divided(client, keys, 3)
        for writer in writers:
            writer.write()
        wait_until(lambda: is_settled(client, keys), 60)
    assert [client.hget(one.clock, "shard") for one in shard_keys(keys.queue, BEFORE)] == [b"closed"] * BEFORE


@pytest.mark.parametrize(
    ("killed", "shards"), [("close", BEFORE), ("open", AFTER), ("switch", AFTER), ("", AFTER)]
)
def test_a_layout_that_forgot_a_division(
    cluster: Cluster,
    client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    writers: list[Writer],
    monkeypatch: pytest.MonkeyPatch,
    killed: str,
    shards: int,
) -> None:
    divided(client, keys, BEFORE)
    old, new = writers
    layout = Slot(cluster, keys.layout)
    with ExitStack() as stack:
        if not killed:
            stack.enter_context(RunningFleet(**options))
        old.write()
        if killed:
            stack.enter_context(killed_after(killed, monkeypatch))
        divided(client, keys, AFTER)
        new.write()
        wait_until(lambda: is_settled(client, keys))
    layout.goes_back()
    go_on(client, keys, options, writers, shards)
    check_history(rows, [writer.written for writer in writers])


def test_a_layout_that_is_gone_with_the_queue_is_known_from_the_ledger(
    cluster: Cluster,
    client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    writers: list[Writer],
) -> None:
    writers[0].write()
    with RunningFleet(**options):
        wait_until(lambda: is_settled(client, keys))
        before = Slot(cluster, keys.layout)
        divided(client, keys, AFTER)
        writers[1].write()
        wait_until(lambda: is_settled(client, keys))
    before.goes_back()
    writers[1].write()
    with RunningFleet(**options), RunningFleet(**options):
        writers[0].write()
        wait_until(lambda: layout_of(client, keys).shards == AFTER)
        for writer in writers:
            writer.write()
        wait_until(lambda: is_settled(client, keys), 60)
    check_history(rows, [writer.written for writer in writers])


@pytest.mark.parametrize(
    ("lost", "is_watched"),
    [("a former shard", True), ("a former shard", False), ("a present shard", True), ("both", False)],
    ids=["former", "former, found by workers who come later", "present", "both"],
)
def test_a_shard_that_forgot_a_division_that_is_long_over(
    cluster: Cluster,
    client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    writers: list[Writer],
    lost: str,
    is_watched: bool,
) -> None:
    old, new = writers
    divided(client, keys, BEFORE)
    with RunningFleet(**options):
        old.write()
        wait_until(lambda: is_settled(client, keys))
        former = [Slot(cluster, shard_keys(keys.queue, BEFORE)[0].clock)]
        present = [Slot(cluster, shard_keys(keys.queue, AFTER)[0].clock)]
        divided(client, keys, AFTER)
        new.write()
        wait_until(lambda: is_settled(client, keys))
    with ExitStack() as stack:
        if is_watched:
            stack.enter_context(RunningFleet(**options))
        for slot in {"a former shard": former, "a present shard": present, "both": former + present}[lost]:
            slot.goes_back()
        if is_watched:  # what is written until they see it has no order between old shards and new ones
            wait_until(lambda: is_settled(client, keys))
        if lost != "a present shard" and not is_watched:
            old.write_where_accepted()  # it has heard of nothing
            assert sum(client.llen(one.queue) for one in shard_keys(keys.queue, BEFORE)) > 0
        go_on(client, keys, options, writers, AFTER)
    check_history(rows, [writer.written for writer in writers])


def test_former_shards_that_drain_are_waited_for_also_where_others_have_forgotten_a_division(
    client: redis.Redis, keys: QueueKeys, options: dict[str, Any], rows: psycopg.Connection[Any]
) -> None:
    for shards in (3, BEFORE):
        divided(client, keys, shards)
    with WriteBehind.from_url(options["redis_url"], queue=keys.queue, ttl=60) as wb:
        older = [wb.put("rows", row, {"v": 1}) for row in range(ROWS)]
        layout = divide(client, keys, AFTER)
        assert layout.draining == (BEFORE,)
        client.hset(shard_keys(keys.queue, 3)[0].clock, "shard", "1of3")
        lost = find_lost_steps(client, keys, layout, [3])
        assert lost is not None
        assert divide_again(client, keys, layout, lost).draining == (1, BEFORE, 3)
        newer = [wb.put("rows", row, {"v": 2}) for row in range(ROWS)]
        with RunningFleet(**options):
            for receipt in older + newer:
                receipt.wait(30)
    assert rows.execute("SELECT count(*) FROM rows WHERE v = 2").fetchone() == (ROWS,)


def test_a_write_that_waits_is_not_said_to_be_committed_by_what_a_former_shard_had(
    cluster: Cluster,
    client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
) -> None:
    """The present shards have writes of their own then, older than the last one of the former shard."""
    divided(client, keys, BEFORE)
    former = Slot(cluster, shard_keys(keys.queue, BEFORE)[0].clock)
    with WriteBehind.from_url(cluster.url, queue=keys.queue, ttl=60) as old:
        old.put("rows", 1, {"v": 0})
        client.delete(*(one.queue for one in shard_keys(keys.queue, BEFORE)))
        divided(client, keys, AFTER)
        former.goes_back()
        with WriteBehind.from_url(cluster.url, queue=keys.queue, ttl=60) as new:
            waiting = [new.put("rows", row, {"v": 1}) for row in range(20)]
            stale = [old.put("rows", row, {"v": 0}) for row in range(20, 40)]
            layout = layout_of(client, keys)
            lost = find_lost_steps(client, keys, layout, [BEFORE])
            assert lost is not None and max(r.seq for r in stale) <= lost.since
            for one in shard_keys(keys.queue, BEFORE):
                client.delete(one.queue)  # as if they were in Postgres
            divide_again(client, keys, layout, lost)
            drain(client, keys)
            assert not any(receipt.is_durable() for receipt in waiting)
            with RunningFleet(**options):
                for receipt in waiting:
                    receipt.wait(30)


def test_a_write_that_was_lost_is_not_said_to_be_committed_as_its_shard_is_let_go(
    cluster: Cluster, client: redis.Redis, keys: QueueKeys, rows: psycopg.Connection[Any]
) -> None:
    divided(client, keys, BEFORE)
    first = shard_keys(keys.queue, AFTER)[0]
    divided(client, keys, AFTER)
    present = Slot(cluster, first.clock)
    with WriteBehind.from_url(cluster.url, queue=keys.queue, ttl=60) as wb:
        mine = [
            one for one in (wb.put("rows", row, {"v": 1}) for row in range(20)) if one.queue == first.queue
        ]
        assert mine
        present.goes_back()
        client.hset(shard_keys(keys.queue, BEFORE)[1].clock, "shard", "2of2")  # which had lost a step, too
        layout = layout_of(client, keys)
        lost = find_lost_steps(client, keys, layout, [BEFORE])
        assert lost is not None and lost.since >= mine[0].seq
        divide_again(client, keys, layout, lost)
        drain(client, keys)
        assert not any(receipt.is_durable() for receipt in mine)


def test_what_is_pushed_to_a_former_shard_is_written_and_divides_nothing(
    cluster: Cluster,
    client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(former_shards, "_EVERY_S", 0.1)
    divided(client, keys, BEFORE)
    divided(client, keys, 1)
    before = layout_of(client, keys)
    with RunningFleet(**options) as fleet:
        fleet.fleet._former._add([BEFORE])
        for row, one in enumerate(2 * [keys, *shard_keys(keys.queue, BEFORE)]):
            client.lpush(one.queue, json.dumps({"table": "rows", "id": row, "data": {"v": 1}}))
            wait_until(lambda row=row: rows.execute("SELECT max(id) FROM rows").fetchone() == (row,))  # type: ignore[misc]
    assert layout_of(client, keys) == before


def test_a_dead_node_of_former_shards_alone_stops_nothing(
    cluster: Cluster, client: redis.Redis, options: dict[str, Any], rows: psycopg.Connection[Any]
) -> None:
    keys, place = next(
        (keys, place)
        for keys in (QueueKeys(f"{options['queue']}:{n}") for n in range(1000))
        for place in places(cluster, keys, 3) - places(cluster, keys, BEFORE)
    )
    divided(client, keys, 3)
    divided(client, keys, BEFORE)
    nodes = (cluster.replica_of(place), place)
    for node in nodes:
        cluster.kill(node)
    try:
        with (
            WriteBehind.from_url(cluster.url, queue=keys.queue, ttl=60) as wb,
            RunningFleet(**options | {"queue": keys.queue}) as fleet,
        ):
            fleet.fleet._former._add([3])
            for row in range(10):
                wb.put("rows", row, {"v": 1})
            wait_until(lambda: rows.execute("SELECT count(*) FROM rows").fetchone() == (10,))
    finally:
        cluster.restart(*nodes)


def places(cluster: Cluster, keys: QueueKeys, shards: int) -> set[int]:
    """The primaries that the queue and so many shards are on."""
    return {cluster.node_of(one.clock) for one in (keys, *shard_keys(keys.queue, shards))}


def test_the_command_divides_again_what_the_layout_forgot(
    cluster: Cluster,
    client: redis.Redis,
    keys: QueueKeys,
    run: Run,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    writers: list[Writer],
) -> None:
    with RunningFleet(**options):
        run("reshard", str(BEFORE))
        before = Slot(cluster, keys.layout)
        run("reshard", str(AFTER))
        for writer in writers:
            writer.write()
        wait_until(lambda: is_settled(client, keys))
        assert finding(run("doctor", "--json", code=None)) == (
            "ok",
            "4 shards; the layout and all shards say the same",
        )
    before.goes_back()
    assert finding(run("doctor", "--json", code=2))[0] == "fatal"
    divide(client, keys, 3)  # as many as there never were
    go_on(client, keys, options, writers, 3)
    check_history(rows, [writer.written for writer in writers])


def test_a_division_is_known_to_the_replica_before_any_shard_is_closed(
    cluster: Cluster, client: redis.Redis, keys: QueueKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = cluster.node_of(keys.layout)
    replica: Any = cluster.clients[cluster.replica_of(place)]
    before = waits(cluster.clients[place])
    with killed_after("begin", monkeypatch):
        divide(client, keys, AFTER)
    assert waits(cluster.clients[place]) == before, "the step itself does not wait"
    divide(client, keys, AFTER)
    assert waits(cluster.clients[place]) == before + 1
    assert replica.execute_command("READONLY")
    assert int(replica.hget(keys.layout, "number")) == layout_of(client, keys).number


def finding(report: str) -> tuple[str, str]:
    """What doctor says of the division."""
    (found,) = (f for f in json.loads(report)["findings"] if f["check"] == "redis.division")
    return found["severity"], found["what"]


def waits(node: Any) -> int:
    """How often it was told to WAIT."""
    found: dict[str, Any] = node.info("commandstats").get("cmdstat_wait", {"calls": 0})
    return int(found["calls"])


# The rule alone.


def clocks(**counts: Clock | None) -> dict[int, list[Clock]]:
    """``n4=clock``: of four shards each says that; ``None``: nothing."""
    nothing = Clock(0, False, False, 0, False)
    return {int(name[1:]): [one or nothing] * int(name[1:]) for name, one in counts.items()}


def opened(division: int, holds: bool = False) -> Clock:
    return Clock(division, is_closed=False, is_open=True, seq=division * 10, holds=holds)


def closed(division: int, holds: bool = False) -> Clock:
    return Clock(division, is_closed=True, is_open=False, seq=division * 10, holds=holds)


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        (Layout(), clocks(n1=opened(0))),
        (Layout(), clocks(n1=opened(0), n4=None)),
        (Layout(1, closing=4, number=5), clocks(n1=opened(0), n4=None)),
        (Layout(1, closing=4, number=5), clocks(n1=closed(5), n4=opened(5))),
        (Layout(4, draining=(1,), number=5), clocks(n1=closed(5), n4=opened(5))),
        (Layout(4, draining=(1, 2), number=5), clocks(n1=closed(5), n2=opened(3, True), n4=opened(5))),
        (Layout(4, number=5), clocks(n1=closed(5), n4=opened(5))),
        (Layout(4, number=5), clocks(n1=closed(5), n2=closed(5, True), n4=opened(5))),
        (Layout(4, number=5), clocks(n1=closed(5), n4=opened(3))),  # opened again elsewhere
        (Layout(1, number=9), clocks(n1=opened(9), n4=closed(9))),
    ],
)
def test_what_a_division_leaves_at_any_moment_is_no_loss(layout: Layout, told: Any) -> None:
    assert lost_steps(layout, told) is None


@pytest.mark.parametrize(
    ("layout", "told", "shards", "former"),
    [
        (Layout(), clocks(n1=opened(0), n4=opened(5)), 4, (1,)),
        (Layout(), clocks(n1=closed(5), n4=None), 1, ()),
        (Layout(2, number=3), clocks(n1=closed(3), n2=closed(5), n4=opened(5)), 4, (1, 2)),
        (Layout(2, number=3), clocks(n1=closed(3), n2=closed(5), n4=None), 2, (1,)),
        (Layout(2, closing=8, number=3), clocks(n1=closed(3), n2=closed(5), n8=None), 8, (1, 2)),
        (Layout(2, draining=(1,), number=3), clocks(n1=closed(9), n2=opened(3)), 2, (1,)),
        (Layout(4, number=5), clocks(n1=closed(5), n2=opened(3), n4=opened(5)), 4, (1, 2)),
        (Layout(4, number=5), clocks(n1=opened(0), n4=opened(5)), 4, (1,)),
        (Layout(1, number=9), clocks(n1=opened(9), n2=opened(5), n4=closed(9)), 1, (2, 4)),
    ],
)
def test_what_is_lost_is_found_and_all_that_were_shards_are_waited_for(
    layout: Layout, told: Any, shards: int, former: tuple[int, ...]
) -> None:
    found = lost_steps(layout, told)
    assert found is not None
    assert (found.shards, found.former) == (shards, former)
    assert found.known == max(one.division for those in told.values() for one in those)
