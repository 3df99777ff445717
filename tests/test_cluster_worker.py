"""A worker on a Redis Cluster: what it does where a slot's node dies, or the slot goes elsewhere."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import psycopg
import pytest
import redis
from click.testing import CliRunner
from redis.exceptions import ClusterDownError
from tests.support.cluster import Cluster, client, cluster, one_node, options
from tests.support.fleets import RunningFleet
from tests.support.sharded import Run, divided_in_time, killed_after, run
from tests.support.workers import ROOT, RunningWorker, WorkerProcess

from writebehind import RedisRefused, RedisUnavailable, WriteBehind
from writebehind.address import read_address
from writebehind.keys import QueueKeys
from writebehind.shards import shard_keys
from writebehind_worker import former_shards, resharding, whole_pause
from writebehind_worker.answers import ask_nodes
from writebehind_worker.cli import cli
from writebehind_worker.config import Config
from writebehind_worker.doctor_redis import examine_redis
from writebehind_worker.nodes import all_nodes, has_moved, identity, look_up, slot_of
from writebehind_worker.owned_queue import OwnedQueue
from writebehind_worker.pause import Pause, change_copy, copy_of, resume
from writebehind_worker.resharding import divide, layout_of, still_draining
from writebehind_worker.testing.wait import wait_until
from writebehind_worker.whole_pause import pause_all, resume_all

__all__ = ["client", "cluster", "options", "run"]  # fixtures
Applied = Callable[[], int]


@pytest.fixture
def keys(queue: str) -> QueueKeys:
    return QueueKeys(queue)


def generation_of(cluster: Cluster, keys: QueueKeys) -> object:
    """The generation of the queue's history."""
    return cluster.clients[cluster.node_of(keys.clock)].hget(keys.clock, "generation")


class Sender:
    """Raw writes, each an increment by one: what Postgres shows at the end is how many took effect."""

    def __init__(self, cluster: Cluster, queue: str) -> None:
        self._client, self._queue, self.sent = cluster.connect(), queue, 0

    def send(self, writes: int, queue: str = "") -> None:
        for _ in range(writes):
            message = {"table": "counts", "id": self.sent % 7, "op": "increment", "data": {"n": 1}}
            self._client.lpush(queue or self._queue, json.dumps(message))
            self.sent += 1

    def send_stamped(self) -> None:
        """As the library sends it: the worker knows when it was accepted."""
        keys, seq = QueueKeys(self._queue), time.time_ns() // 1000
        self._client.hset(keys.clock, "seq", seq)
        shown = f'"data":{{"n":1}},"key":"{{{self._queue}}}/0/counts:1","ttl":9'
        body = f'{{"seq":{seq},"table":"counts","id":1,"op":"increment",{shown}}}'
        self._client.lpush(self._queue, body)
        self.sent += 1

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def sender(cluster: Cluster, queue: str) -> Iterator[Sender]:
    sender = Sender(cluster, queue)
    yield sender
    sender.close()


@pytest.fixture
def applied(pg: psycopg.Connection[Any]) -> Applied:
    pg.execute("CREATE TABLE counts (id int PRIMARY KEY, n int NOT NULL DEFAULT 0)")

    def applied() -> int:
        (found,) = pg.execute("SELECT coalesce(sum(n), 0) FROM counts").fetchone() or (0,)
        return int(found)

    return applied


def test_workers_find_the_queue_again_whose_slot_was_nobodys_for_a_while(
    cluster: Cluster,
    client: redis.Redis,
    options: dict[str, Any],
    keys: QueueKeys,
    sender: Sender,
    applied: Applied,
) -> None:
    divided_in_time(client, keys, 2)
    with RunningFleet(**options) as fleet:
        wait_until(lambda: len(fleet.owned()) == 3)
        with cluster.slot_of_nobody(keys.clock):
            wait_until(lambda: fleet.fleet._failed_looks > 3)
            assert fleet.state.facts()["redis_up"] is False
        wait_until(lambda: fleet.state.facts()["redis_up"] is True)
        sender.send(10)
        wait_until(lambda: applied() == 10)


def test_a_node_that_serves_a_slot_no_more_is_not_believed_to_have_it(keys: QueueKeys) -> None:
    with one_node() as node:
        address = read_address(f"redis+cluster://127.0.0.1:{node.connection_pool.connection_kwargs['port']}")
        clustered = all_nodes(address, {}, attempts=0)
        client, manager = cast(redis.Redis, clustered), clustered.nodes_manager
        ask: Any = node.execute_command
        ask("CLUSTER DELSLOTS", slot_of(keys.clock))
        assert slot_of(keys.clock) in manager.slots_cache
        (reply,) = ask_nodes(client, [keys], lambda pipe, one: pipe.get(one.epoch)).replies[keys]
        assert isinstance(reply, ClusterDownError)
        assert slot_of(keys.clock) not in manager.slots_cache  # it has asked
        ask("CLUSTER FLUSHSLOTS")
        look_up(client)
        with pytest.raises(redis.ConnectionError, match="no node of the cluster has slots"):
            all_nodes(address, {})
        clustered.close()


@pytest.mark.parametrize("way", ["at once", "key by key"])
def test_a_worker_follows_the_slot_and_knows_that_nothing_is_lost(
    way: str,
    cluster: Cluster,
    options: dict[str, Any],
    keys: QueueKeys,
    sender: Sender,
    applied: Applied,
) -> None:
    with RunningWorker(**options) as worker:
        sender.send_stamped()
        sender.send(49)
        wait_until(lambda: applied() == 50)
        before, generation = cluster.node_of(keys.clock), generation_of(cluster, keys)
        if way == "at once":
            cluster.move_at_once(keys.clock, cluster.other_primary(before))
            sender.send(50)
        else:
            move = cluster.slot_moves(keys.clock, cluster.other_primary(before))
            move.begin()
            sender.send(25)
            move.end()
            sender.send(25)
        wait_until(lambda: applied() == 100)
        assert cluster.node_of(keys.clock) != before
        assert worker.facts["role"] == "owner"
    assert generation_of(cluster, keys) == generation


def test_a_node_whose_clock_is_wrong_does_not_put_a_moved_slot_in_doubt(
    cluster: Cluster,
    options: dict[str, Any],
    keys: QueueKeys,
    sender: Sender,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sender.send_stamped()
    place = cluster.node_of(keys.clock)
    former, target = cluster.nodes[place], cluster.other_primary(place)
    name = identity(cluster.clients[place].info())
    assert name is not None
    cluster.move_at_once(keys.clock, target)
    time_of = redis.Redis.time

    def wrong_elsewhere(self: Any, **given: Any) -> Any:
        seconds, micros = time_of(self, **given)
        is_former = self.connection_pool.connection_kwargs["port"] == former.port
        return seconds + (0 if is_former else 3600), micros

    monkeypatch.setattr(redis.Redis, "time", wrong_elsewhere)
    address = read_address(options["redis_url"])
    now_us = time.time_ns() // 1000
    for since_us, expected in ((now_us, True), (now_us - 3600 * 1_000_000, False)):
        assert has_moved(address, keys.clock, cluster.clients[target], {}, name, since_us) is expected


def test_a_slot_that_leaves_a_node_which_was_promoted_before_is_not_in_doubt(options: dict[str, Any]) -> None:
    clock = QueueKeys(options["queue"]).clock
    with Cluster() as cluster:
        address = read_address(cluster.url)
        unpromoted = identity(cluster.clients[cluster.node_of(clock)].info())
        place = cluster.fail_over(cluster.node_of(clock))
        name, now_us = identity(cluster.clients[place].info()), time.time_ns() // 1000
        assert name is not None and unpromoted is not None
        target = cluster.other_primary(place)
        cluster.move_at_once(clock, target)
        assert has_moved(address, clock, cluster.clients[target], {}, name, now_us)
        for earlier in (name.partition(" ")[0], unpromoted):
            assert not has_moved(address, clock, cluster.clients[target], {}, earlier, now_us)
        cluster.move_at_once(clock, place)
        other = identity(cluster.clients[target].info())
        assert other is not None
        assert not has_moved(address, clock, cluster.clients[place], {}, other, now_us)


def test_a_worker_goes_on_with_the_successor_of_its_node(
    cluster: Cluster, options: dict[str, Any], keys: QueueKeys, sender: Sender, applied: Applied
) -> None:
    with RunningWorker(**options) as worker:
        sender.send(50)
        wait_until(lambda: applied() == 50)
        cluster.fail_over(cluster.node_of(keys.clock))
        sender.send(50)
        wait_until(lambda: applied() == 100)
        assert worker.facts["role"] == "owner"


def test_a_worker_goes_on_where_its_node_has_died(
    cluster: Cluster, options: dict[str, Any], keys: QueueKeys, sender: Sender, applied: Applied
) -> None:
    with RunningWorker(**options):
        sender.send(50)
        wait_until(lambda: applied() == 50)
        sender.send(50)
        place = cluster.node_of(keys.clock)
        cluster.lose(place)
        sender.send(50)
        wait_until(lambda: applied() == 150)
    cluster.restart(place)


def test_a_worker_that_was_paused_on_the_former_node_is_fenced(
    cluster: Cluster, options: dict[str, Any], keys: QueueKeys, sender: Sender, applied: Applied
) -> None:
    with WorkerProcess(**options, metrics_port=0) as paused:
        sender.send(50)
        wait_until(lambda: applied() == 50)
        paused.pause()
        cluster.move_at_once(keys.clock, cluster.other_primary(cluster.node_of(keys.clock)))
        with RunningWorker(**options) as worker:
            sender.send(50)
            wait_until(lambda: applied() == 100)
            paused.resume()
            sender.send(50)
            wait_until(lambda: applied() == 150)
            assert worker.facts["role"] == "owner"
        sender.send(50)
        wait_until(lambda: applied() == 200)


def test_workers_finish_what_a_killed_reshard_has_begun(
    client: redis.Redis,
    options: dict[str, Any],
    keys: QueueKeys,
    sender: Sender,
    applied: Applied,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sender.send(50)
    with killed_after("close", monkeypatch):
        divide(client, keys, 4)
    with RunningFleet(**options), RunningFleet(**options):
        wait_until(lambda: layout_of(client, keys).shards == 4 and not layout_of(client, keys).draining)
        assert applied() == 50
        for one in shard_keys(keys.queue, 4):
            sender.send(10, one.queue)
        wait_until(lambda: applied() == 90)


def test_a_shard_whose_slot_alone_went_back_is_closed_or_opened_again(
    client: redis.Redis, options: dict[str, Any], keys: QueueKeys, sender: Sender, applied: Applied
) -> None:
    divide(client, keys, 2)
    assert still_draining(client, keys, layout_of(client, keys)) == 0
    former, _ = shard_keys(keys.queue, 2)
    before = client.hgetall(former.clock)
    divide(client, keys, 3)
    client.delete(former.clock)
    client.hset(former.clock, mapping=dict(before.items()))
    sender.send(10, former.queue)
    lost, *_ = shard_keys(keys.queue, 3)
    client.delete(lost.clock)
    with RunningFleet(**options):
        wait_until(lambda: not layout_of(client, keys).draining)
        assert applied() == 10, (
            "what a former shard has accepted is in Postgres before anything of the new ones"
        )
        assert client.hget(former.clock, "shard") == b"closed"
        wait_until(lambda: client.hmget(lost.clock, "shard", "hold") == [b"1of3", None])
        client.delete(lost.clock)
        wait_until(lambda: client.hmget(lost.clock, "shard", "hold") == [b"1of3", None])


def test_commands_about_a_queue_with_shards(
    client: redis.Redis, options: dict[str, Any], keys: QueueKeys, sender: Sender, applied: Applied, run: Run
) -> None:
    with RunningFleet(**options):
        sender.send(10)
        assert "Empty" in run("drain")
        assert "3 shards" in run("reshard", "3")
        assert "Paused" in run("pause", "--reason", "a migration")
        shard = shard_keys(keys.queue, 3)[1]
        sender.send(10, shard.queue)
        assert "the queue is paused" in run("status")
        assert "a migration" in run("drain", code=1)
        assert "5 shards" in run("reshard", "5", "--timeout", "0", code=1)
        assert "Resumed" in run("resume")
        assert "Empty" in run("drain")
        wait_until(lambda: not layout_of(client, keys).draining)
        assert "2 shards" in run("reshard", "2")
    assert applied() == 20


def test_a_divided_queue_goes_on_on_a_cluster_where_it_is_divided_again(
    redis_url: str,
    options: dict[str, Any],
    queue: str,
    applied: Applied,
    run: Run,
    pg: psycopg.Connection[Any],
) -> None:
    """As the document says: drained, and another URL. Shards of the same names begin there from nothing."""

    def served_and_written(url: str) -> None:
        with RunningFleet(**{**options, "redis_url": url}), WriteBehind.from_url(url, queue=queue) as wb:
            assert {wb.increment("counts", id, {"n": 1}).queue for id in range(20)} == {queue}
            run("reshard", "3", "--redis-url", url)
            shards = {wb.increment("counts", id, {"n": 1}).queue for id in range(20)}
            assert shards == {one.queue for one in shard_keys(queue, 3)}
            assert "Empty" in run("drain", "--redis-url", url)

    served_and_written(redis_url)
    served_and_written(options["redis_url"])
    assert applied() == 80
    assert pg.execute("SELECT count(*) FROM writebehind.dead_letters").fetchone() == (0,)


def test_a_pause_that_is_over_holds_no_shard_up_though_a_worker_writes_it_to_one_late(
    client: redis.Redis, options: dict[str, Any], keys: QueueKeys, sender: Sender, applied: Applied, run: Run
) -> None:
    with RunningFleet(**options):
        run("reshard", "3")
        first, second, third = shard_keys(keys.queue, 3)
        run("pause", "--reason", "a migration")
        whole = client.get(keys.paused)
        assert isinstance(whole, bytes)
        run("resume")
        change_copy(client, first, None, copy_of(whole))  # it slept between asking and writing
        run("pause", "--reason", "of this one", queue=third.queue)
        for one in (first, second, third):
            sender.send(10, one.queue)
        wait_until(lambda: applied() == 20)
        wait_until(lambda: client.llen(third.queue) == 10)
        assert "of this one" in run("status", queue=third.queue)
        run("pause", "--reason", "all")
        client.delete(second.paused)  # whoever paused was killed before
        wait_until(lambda: client.get(second.paused) is not None)
        run("resume")
        wait_until(lambda: applied() == 30)


def test_a_pause_and_its_end_come_to_a_closed_shard_that_gets_raw_writes(
    client: redis.Redis,
    options: dict[str, Any],
    keys: QueueKeys,
    sender: Sender,
    applied: Applied,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    former, answers = shard_keys(keys.queue, 3)[0], list[object]()
    ask = OwnedQueue.claim

    def claim(owned: OwnedQueue, *given: Any) -> Any:
        answer = ask(owned, *given)
        if owned._keys == former:
            answers.append(answer)
        return answer

    monkeypatch.setattr(OwnedQueue, "claim", claim)
    monkeypatch.setattr(former_shards, "_EVERY_S", 0.1)
    with RunningFleet(**options) as fleet:
        divided_in_time(client, keys, 3)
        divided_in_time(client, keys, 1)
        wait_until(lambda: {*fleet.fleet._serving} == fleet.owned() == {keys.queue})  # no former one
        fleet.fleet._former._add([3])
        sender.send(10, former.queue)
        wait_until(lambda: applied() == 10 and former.queue in fleet.owned())
        run("pause", "--reason", "a migration")
        wait_until(lambda: client.get(former.paused) is not None)
        sender.send(10, former.queue)
        answers.clear()
        wait_until(lambda: len(answers) > 2)
        assert {type(answer) for answer in answers} == {Pause} and applied() == 10
        assert "a migration" in run("status", queue=former.queue)
        run("resume")
        wait_until(lambda: applied() == 20)


def test_no_copy_of_an_earlier_pause_ends_a_later_one(
    client: redis.Redis, keys: QueueKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker reads and then writes, and may sleep in between: through the end of a pause, and the next."""
    first, second = shards = shard_keys(keys.queue, 2)
    divide(client, keys, 2)
    assert still_draining(client, keys, layout_of(client, keys)) == 0

    def paused(reason: str) -> bytes:
        pause_all(client, keys, reason)
        whole = client.get(keys.paused)
        assert isinstance(whole, bytes)
        return copy_of(whole)

    earlier = paused("earlier")
    resume(client, keys)  # whoever did is killed before it comes to the shards
    later = paused("later")
    change_copy(client, first, earlier, None)  # it had seen the end
    change_copy(client, second, None, earlier)  # it had seen the beginning
    assert [client.get(one.paused) for one in shards] == [later, later]

    sleepers = [first]

    def overtaken(client: redis.Redis, shard: QueueKeys, read: bytes | None, wanted: bytes | None) -> None:
        if sleepers:
            change_copy(client, sleepers.pop(), None, later)
        change_copy(client, shard, read, wanted)

    resume_all(client, keys)
    monkeypatch.setattr(resharding, "change_copy", overtaken)
    last = paused("last")
    assert [client.get(one.paused) for one in shards] == [last, last]


def test_a_resume_comes_to_the_shards_behind_one_that_is_away(
    client: redis.Redis, keys: QueueKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = shard_keys(keys.queue, 2)
    divide(client, keys, 2)
    pause_all(client, keys, "a migration")

    def is_away(client: redis.Redis, one: QueueKeys) -> bool:
        if one == first:
            raise redis.ConnectionError("it is away")
        return resume(client, one)

    monkeypatch.setattr(whole_pause, "resume", is_away)
    with pytest.raises(redis.ConnectionError, match="it is away"):
        resume_all(client, keys)
    assert [client.exists(one.paused) for one in (keys, first, second)] == [0, 1, 0]


def test_the_wrong_kind_of_url_is_told_with_the_right_one(
    cluster: Cluster, redis_url: str, options: dict[str, Any], keys: QueueKeys
) -> None:
    other = cluster.nodes[cluster.other_primary(cluster.node_of(keys.queue))]
    status = ["status", "--queue", keys.queue, "--postgres-url", options["postgres_url"], "--redis-url"]
    told = CliRunner().invoke(cli, [*status, other.url]).output
    assert "redis+cluster://host:port" in told and "MOVED" not in told and "pipeline" not in told
    single = "redis+cluster://" + redis_url.partition("://")[2]
    assert "a single server's URL is redis://host:port" in CliRunner().invoke(cli, [*status, single]).output
    with pytest.raises(RedisRefused, match=r"Redis is a node of a cluster, whose URL is redis\+cluster"):
        WriteBehind.from_url(other.url, queue=keys.queue).put("users", 1, {"name": "x"})
    with pytest.raises(RedisUnavailable, match="a single server's URL is redis://host:port"):
        WriteBehind.from_url(single, queue=keys.queue)


def cluster_severity(options: dict[str, Any]) -> str:
    found = examine_redis(Config(**options))[0]
    return next(one.severity for one in found if one.check == "redis.cluster")


def test_doctor_looks_at_all_nodes(cluster: Cluster, options: dict[str, Any]) -> None:
    assert cluster_severity(options) in ("ok", "note")
    place = cluster.other_primary(cluster.node_of(options["queue"]))
    cluster.clients[place].config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert cluster_severity(options) == "fatal"
    finally:
        cluster.clients[place].config_set("maxmemory-policy", "noeviction")


def test_doctor_names_the_node_that_does_not_know_the_user(cluster: Cluster, options: dict[str, Any]) -> None:
    """Each node has users of its own. That of slot 0 tells redis-py what commands there are."""
    known = cluster.node_of(options["queue"]), cluster.node_of("")
    place = next(node for slot in ("a", "b", "c", "d") if (node := cluster.node_of(slot)) not in known)
    others = [n for n in range(len(cluster.nodes)) if n != place]
    for n in others:
        cluster.clients[n].acl_setuser("one", True, passwords=["+secret"], keys=["*"], categories=["+@all"])
    hosts = ",".join(f"127.0.0.1:{cluster.nodes[n].port}" for n in others)
    try:
        config = Config(**options | {"redis_url": f"redis+cluster://one:secret@{hosts}"})
        (found,) = (one for one in examine_redis(config)[0] if one.check == "redis.cluster")
    finally:
        for n in others:
            cluster.clients[n].acl_deluser("one")
    assert found.severity == "fatal"
    assert f":{cluster.nodes[place].port} cannot be asked" in found.what and "password" in found.what


@pytest.fixture
def wb(cluster: Cluster, queue: str) -> Iterator[WriteBehind]:
    with WriteBehind.from_url(cluster.url, queue=queue, prefix="c:") as wb:
        yield wb


def test_the_cache_is_compared_and_a_row_explained_where_its_shard_is(
    options: dict[str, Any],
    keys: QueueKeys,
    client: redis.Redis,
    wb: WriteBehind,
    applied: Applied,
    pg: psycopg.Connection[Any],
    run: Run,
) -> None:
    with RunningFleet(**options):
        run("reshard", "3")
        for id in range(20):
            wb.put("counts", id, {"n": 1})
        run("drain")
        assert applied() == 20
        assert "20 agree" in run("verify", "--all", "--prefix", "c:")
        pg.execute("UPDATE counts SET n = 2 WHERE id = 7")
        run("verify", "--all", "--prefix", "c:", code=1)
        assert f"/{layout_of(client, keys).number}/c:counts:7" in run(
            "explain", "counts", "7", "--prefix", "c:", code=1
        )
        run("verify", "--all", "--prefix", "c:", "--repair")
        run("verify", "--all", "--prefix", "c:")
        wb.put("counts", 8, {"n": 5}, route="elsewhere")
        run("drain")
        assert "c:counts:8" in run("explain", "counts", "8", "--prefix", "c:", code=None)


def test_a_dead_letter_that_is_sent_again_shows_its_entry_where_the_row_is_by_then(
    options: dict[str, Any],
    keys: QueueKeys,
    client: redis.Redis,
    wb: WriteBehind,
    applied: Applied,
    pg: psycopg.Connection[Any],
    run: Run,
) -> None:
    pg.execute("ALTER TABLE counts ADD CHECK (n < 10)")
    with RunningFleet(**options):
        for id in range(8):
            wb.put("counts", id, {"n": 20})
        run("drain")
        run("reshard", "4")
        pg.execute("ALTER TABLE counts DROP CONSTRAINT counts_n_check")
        assert [wb.get("counts", id, load=lambda _: None) for id in range(8)] == [None] * 8
        assert "Sent 8" in run("dead", "retry", "--all")
        run("drain")
        assert applied() == 160
        run("verify", "--all", "--prefix", "c:")
        assert [wb.get("counts", id, load=lambda _: {"n": 20}) for id in range(8)] == [{"n": 20}] * 8


@contextmanager
def user(cluster: Cluster, name: str, queue: str, *more: str) -> Iterator[str]:
    """A user as deploy/redis-acl.conf has it, on all nodes; the URL by which it comes."""
    text = (ROOT / "deploy" / "redis-acl.conf").read_text()
    line = next(line for line in text.splitlines() if line.startswith(f"user writebehind-{name} "))
    rules = line.split(maxsplit=2)[2].replace("db:write:queue", queue).replace("cache:*", f"{{{queue}}}/*")
    rights = [*re.findall(r"\([^)]*\)|\S+", rules), "+cluster|slots", "+command", "+asking", *more]
    nodes: list[Any] = cluster.clients
    for node in nodes:
        node.execute_command("ACL", "SETUSER", f"{queue}-{name}", "reset", *rights)
    yield cluster.url.replace("://", f"://{queue.replace(':', '%3A')}-{name}:change-me-{name}@")
    for node in nodes:
        node.execute_command("ACL", "DELUSER", f"{queue}-{name}")


def test_users_may_do_their_job_on_a_cluster(
    cluster: Cluster,
    options: dict[str, Any],
    queue: str,
    client: redis.Redis,
    wb: WriteBehind,
    applied: Applied,
    run: Run,
) -> None:
    wb.put("counts", 1, {"n": 1})
    # A key of the queue's slot that is not the worker's: to name it to a script is refused as a whole.
    forged = {"table": "counts", "id": 2, "data": {"n": 1}, "seq": 1, "key": f"{{{queue}}}none of ours"}
    client.lpush(queue, json.dumps(forged))
    with (
        user(cluster, "worker", queue, "+cluster|nodes", f"~{{{queue}}}/*") as worker,
        user(cluster, "operator", queue) as operator,
        user(cluster, "mender", queue) as mender,
        RunningFleet(**options | {"redis_url": worker}),
    ):
        wait_until(lambda: applied() == 2)
        options["redis_url"] = operator
        run("drain")
        assert "0 wait for a write" in run("verify", "--all", "--prefix", "c:")
        assert "/0/c:counts:1" in run("explain", "counts", "1", "--prefix", "c:")
        assert "settled" in run("status")
        options["redis_url"] = mender
        run("pause")
        run("resume")


def test_a_node_that_was_promoted_again_is_another_one() -> None:
    first: dict[str, Any] = {"run_id": "a", "master_replid": "1", "master_replid2": 0}
    with_a_new_replica = first | {"master_replid": "2"}
    promoted_again = first | {"master_replid": "3", "master_replid2": "2"}
    assert identity(with_a_new_replica) == identity(first) != identity(promoted_again)
    assert identity({}) is None
