"""The library on six real nodes: every call, and nodes, slots and shards that change under it."""

from __future__ import annotations

import asyncio
import json
import operator
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
import redis
import redis.asyncio
from redis.crc import key_slot
from tests.support.cluster import Cluster, client, cluster
from tests.support.fleets import RunningFleet
from tests.support.sharded import Run, run

from writebehind import (
    AsyncWriteBehind,
    FlushTimeout,
    RateLimit,
    RateLimited,
    RedisRefused,
    RedisUnavailable,
    SessionStore,
    WriteBehind,
    WriteRejected,
)
from writebehind import cluster as routing
from writebehind.keys import QueueKeys
from writebehind.shards import shard_keys
from writebehind.steps import Command
from writebehind_worker.resharding import divide, layout_of, still_draining
from writebehind_worker.testing.wait import wait_until

__all__ = ["client", "cluster", "run"]  # fixtures


@pytest.fixture
def url(cluster: Cluster) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes[:2])


@pytest.fixture
def options(url: str, postgres_url: str, queue: str) -> dict[str, Any]:
    return {"redis_url": url, "postgres_url": postgres_url, "queue": queue}


@pytest.fixture
def wb(url: str, queue: str) -> Iterator[WriteBehind]:
    with WriteBehind.from_url(url, queue=queue) as wb:
        yield wb


@pytest.fixture
def keys(queue: str) -> QueueKeys:
    return QueueKeys(queue)


def load_none(_: Any) -> None:
    return None


def never(_: Any) -> Any:
    raise AssertionError("it is cached")


def messages(client: redis.Redis, keys: QueueKeys) -> list[dict[str, Any]]:
    """Oldest first."""
    return [json.loads(item) for item in reversed(cast(list[bytes], client.lrange(keys.queue, 0, -1)))]


@contextmanager
def writers(
    wb: WriteBehind, client: redis.Redis, keys: QueueKeys, **how: Any
) -> Iterator[Callable[[], None]]:
    """Three threads write to a row each; in the end all that was accepted is there once, in order.

    What is yielded returns when each of them has written again.
    """
    written, stop = [0, 0, 0], threading.Event()
    failed: list[BaseException] = []

    def write(number: int) -> None:
        try:
            while not stop.is_set():
                wb.put("rows", number, {"n": written[number] + 1})
                written[number] += 1
        except BaseException as error:
            failed.append(error)

    def have_written_again() -> None:
        before = list(written)
        wait_until(
            lambda: bool(failed) or all(now > was + 1 for now, was in zip(written, before, strict=True))
        )

    threads = [threading.Thread(target=write, args=[number]) for number in range(len(written))]
    for thread in threads:
        thread.start()
    try:
        have_written_again()
        yield have_written_again
        have_written_again()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed
    found: list[list[int]] = [[] for _ in written]
    for message in messages(client, keys):
        found[message["id"]].append(message["data"]["n"])
    assert found == [list(range(1, count + 1)) for count in written]
    for number, count in enumerate(written):
        assert wb.get("rows", number) == {"n": count}


def test_all_calls_work_over_the_nodes(wb: WriteBehind, client: redis.Redis, keys: QueueKeys) -> None:
    receipt = wb.put("users", 42, {"name": "Ada", "visits": 1})
    wb.patch("users", 42, {"name": "Ada L."})
    wb.increment("users", 42, {"visits": 2})
    assert wb.get("users", 42, never) == {"name": "Ada L.", "visits": 3}
    wb.delete("users", 42)
    assert wb.get("users", 42, never) is None
    assert not receipt.is_durable()
    with wb.batch() as batch:
        for id in range(20):
            batch.put("users", id, {"n": id})
    with wb.atomic(route="r") as tx:
        tx.put("orders", 1, {"n": 1})
        tx.increment("lines", 1, {"n": 2})
    rows = wb.get_many("users", [*range(20), 99], lambda ids: [{"n": id} for id in ids])
    assert rows == [{"n": id} for id in [*range(20), 99]]
    assert wb.get("users", 99, never) == {"n": 99}
    assert wb.invalidate_many("users", [99, 1]) == [True, False]
    assert not wb.invalidate("users", 1)
    assert wb.get("users", 7777, load_none) is None
    with wb.lock("reports", timeout=10) as lock:
        assert lock.fence and lock.owned() and lock.locked()
        lock.extend(5)
    limit = wb.rate_limit("mails", 1, per=60)
    assert limit.acquire().allowed and not limit.acquire().allowed
    assert {key.split(b"}")[0] for key in client.scan_iter(f"*{keys.queue}*")} == {
        f"{{{keys.queue}".encode(), keys.queue.encode()
    }  # fmt: skip
    assert messages(client, keys)[0]["key"] == keys.entry("users:42", 0)


def test_rows_are_refreshed_and_writes_limited(url: str, queue: str) -> None:
    limit = RateLimit("w", 1, 60)
    with WriteBehind.from_url(
        url, queue=queue, ttl=100, ttl_jitter=0, refresh_ahead=99.9, admit=lambda *_: limit
    ) as wb:
        assert wb.get("users", 1, lambda _: {"n": 1}) == {"n": 1}
        wait_until(lambda: wb.get("users", 1, lambda _: {"n": 2}) == {"n": 2})
        wb.put("users", 2, {"n": 1})
        with pytest.raises(RateLimited):
            wb.put("users", 2, {"n": 1})


def test_sessions_work_over_the_nodes(wb: WriteBehind) -> None:
    store = SessionStore(wb, load=load_none, load_ids_of_user=lambda _: [])
    token = store.create(7, {"theme": "dark"})
    assert store.get(token) is not None
    store.set(token, "theme", "light")
    new = store.rotate(token)
    assert store.get(token) is None
    found = store.get(new)
    assert found is not None and found.fields["theme"] == "light"
    assert store.revoke_all(7)
    assert store.get(new) is None


def test_writes_wait_for_a_replica_of_their_own_node(
    wb: WriteBehind, client: redis.Redis, keys: QueueKeys
) -> None:
    wb.put("users", 1, {"n": 1}, durability="replicated")
    wb.put("users", 1, {"n": 2}, durability="fsynced")
    assert [message["data"]["n"] for message in messages(client, keys)] == [1, 2]


def test_the_client_of_an_event_loop_does_the_same(
    url: str, cluster: Cluster, queue: str, client: redis.Redis, keys: QueueKeys
) -> None:
    async def calls(wb: AsyncWriteBehind) -> None:
        async with wb:
            receipt = await wb.put("users", 1, {"n": 1}, durability="replicated")
            assert not await receipt.is_durable()
            await wb.increment("users", 1, {"n": 1})
            assert await wb.get("users", 1, never) == {"n": 2}
            rows = await wb.get_many("users", [1, 5], lambda ids: [{"n": id} for id in ids])
            assert rows == [{"n": 2}, {"n": 5}]
            assert await wb.invalidate("users", 5)
            async with wb.lock("reports", timeout=10) as lock:
                assert await lock.owned()
            slot = cluster.slot_moves(queue, cluster.other_primary(cluster.node_of(queue)))
            slot.begin()
            slow = asyncio.create_task(wb.put("users", 1, {"n": 3}))
            await asyncio.to_thread(slot.end)
            await slow
            await asyncio.gather(*[wb.increment("users", 1, {"n": 1}) for _ in range(20)])
            assert await wb.get("users", 1, never) == {"n": 23}

    asyncio.run(calls(AsyncWriteBehind.from_url(url, queue=queue)))
    assert len(messages(client, keys)) == 23

    async def own_client() -> None:
        given: Any = redis.asyncio.RedisCluster("127.0.0.1", cluster.nodes[0].port)
        async with AsyncWriteBehind(given, queue=queue) as wb:
            assert await wb.get("users", 1, never) == {"n": 23}

    asyncio.run(own_client())


def test_a_client_that_the_application_made_will_do(cluster: Cluster, queue: str) -> None:
    own: Any = cluster.connect(socket_timeout=3)
    with WriteBehind(own, queue=queue) as wb:
        wb.put("users", 1, {"n": 1})
        assert wb.get("users", 1) == {"n": 1}
    with pytest.raises(ValueError, match="decode_responses"):
        WriteBehind(cast(Any, cluster.connect(decode_responses=True)))


def test_what_cannot_be_had_is_refused_in_words(cluster: Cluster, url: str, wb: WriteBehind) -> None:
    with pytest.raises(ValueError, match="near_cache is not for a Redis Cluster"):
        WriteBehind.from_url(url, near_cache=10)
    with pytest.raises(ValueError, match="near_cache is not for a Redis Cluster"):
        AsyncWriteBehind.from_url(url, near_cache=10)
    with pytest.raises(ValueError, match=r"changes\(\) is not for a Redis Cluster"):
        wb.changes()
    with pytest.raises(RedisUnavailable, match="no node of the cluster answers"):
        WriteBehind.from_url("redis+cluster://127.0.0.1:1")
    with (
        WriteBehind.from_url(cluster.nodes[0].url) as plain,
        pytest.raises(RedisRefused, match=r"URL is redis\+cluster://"),
    ):
        plain.put("users", 1, {"n": 1})


def test_the_rights_that_a_producer_is_given_suffice(cluster: Cluster, queue: str) -> None:
    text = (Path(__file__).parents[1] / "deploy" / "redis-acl.conf").read_text()
    (line,) = re.findall(r"^user writebehind-producer (.*)$", text, re.MULTILINE)
    (more,) = re.findall(r"^#   cluster  (.*)$", text, re.MULTILINE)
    rules = f"{line} {more} +cluster|slots +command +asking +wait".replace("cache:*", "{db:write:queue}/*")
    rules = rules.replace("db:write:queue", queue)
    admins: list[Any] = cluster.clients
    for node in admins:
        node.execute_command("ACL", "SETUSER", queue, "reset", *re.findall(r"\([^)]*\)|\S+", rules))
    own = f"redis+cluster://{queue.replace(':', '%3A')}:change-me-producer@127.0.0.1:{cluster.nodes[0].port}"
    with WriteBehind.from_url(own, queue=queue) as wb:
        slot = cluster.slot_moves(queue, cluster.other_primary(cluster.node_of(queue)))
        slot.begin()
        assert wb.get("users", 1) is None, "asked of the other node"
        slot.end()
        receipt = wb.put("users", 1, {"n": 1}, durability="replicated")
        wb.increment("users", 1, {"n": 1})
        assert wb.get_many("users", [1, 2], lambda ids: [None] * len(ids)) == [{"n": 2}, None]
        assert not receipt.is_durable()
        assert not wb.invalidate("users", 1)


@pytest.mark.parametrize("moved", ["entry", "clock"])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_pending_row_is_read_wherever_its_slot_s_keys_are(
    cluster: Cluster, client: Any, queue: str, moved: str, shards: int
) -> None:
    with WriteBehind.from_url(cluster.url, queue=queue) as wb:
        divide(client, QueueKeys(queue), shards)
        keys = QueueKeys(wb.put("users", 1, {"name": "Ada"}).queue)
        (entry,) = (key.decode() for key in client.scan_iter("*users:1") if keys.queue.encode() in key)
        move = cluster.slot_moves(keys.queue, cluster.other_primary(cluster.node_of(keys.queue)))
        move.begin()
        move.move_key(entry if moved == "entry" else keys.clock)
        try:
            assert wb.get("users", 1) == {"name": "Ada"}
            assert wb.get_many("users", [1]) == [{"name": "Ada"}]
        finally:
            move.end()
        assert wb.get("users", 1) == {"name": "Ada"}


def test_no_session_outlives_its_user_s_in_a_slot_that_moves(cluster: Cluster, queue: str) -> None:
    with WriteBehind.from_url(cluster.url, queue=queue) as wb:
        store = SessionStore(wb, load=load_none, load_ids_of_user=lambda _: [])
        token = store.create(7)
        move = cluster.slot_moves(queue, cluster.other_primary(cluster.node_of(queue)))
        move.begin()
        revoked: list[Any] = []
        thread = threading.Thread(target=lambda: revoked.extend(store.revoke_all(7)))
        thread.start()
        thread.join(0.5)  # its first looks are made while the slot has two homes
        move.end()
        thread.join(20)
        assert len(revoked) == 1
        assert store.get(token) is None


def test_nothing_is_half_written_in_a_slot_that_moves(
    cluster: Cluster, wb: WriteBehind, client: redis.Redis, keys: QueueKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script deletes the entry before it writes it anew: where the slot moves, that fails half-way."""
    wb.put("users", 1, {"n": 1})
    place = cluster.node_of(keys.queue)
    known = cluster.clients[place].hgetall(keys.producers)
    slot = cluster.slot_moves(keys.queue, cluster.other_primary(place))
    slot.begin()
    monkeypatch.setattr(routing, "TRIED_FOR_S", 0.3)
    for part in (0, 2):
        slot.move_keys(part)
        for id in (1, 2):
            with pytest.raises(RedisUnavailable, match="no node of the cluster has taken it"):
                wb.put("users", id, {"n": 2})
        assert wb.get("users", 1) == {"n": 1}, "what only reads finds it in either place"
    monkeypatch.undo()
    slot.end()
    assert cluster.node_of(keys.queue) != place
    assert client.hgetall(keys.producers) == known
    wb.put("users", 1, {"n": 3})
    assert [message["data"]["n"] for message in messages(client, keys)] == [1, 3]
    assert wb.get("users", 1) == {"n": 3}


def test_a_slot_moves_there_and_back_key_by_key_under_load(
    cluster: Cluster, wb: WriteBehind, client: redis.Redis, keys: QueueKeys
) -> None:
    home = cluster.node_of(keys.queue)
    with writers(wb, client, keys) as have_written_again:
        for target in (cluster.other_primary(home), home):
            slot = cluster.slot_moves(keys.queue, target)
            slot.begin()
            slot.move_keys(2)
            slot.end()
            have_written_again()


def test_a_slot_moves_there_and_back_at_once_under_load(
    cluster: Cluster, wb: WriteBehind, client: redis.Redis, keys: QueueKeys
) -> None:
    home = cluster.node_of(keys.queue)
    with writers(wb, client, keys) as have_written_again:
        for target in (cluster.other_primary(home), home):
            try:
                cluster.move_at_once(keys.queue, target)
            except redis.ResponseError as error:
                assert "nknown subcommand" in str(error)  # before Valkey 9
            have_written_again()


def test_primaries_change_under_load(
    cluster: Cluster, wb: WriteBehind, client: redis.Redis, keys: QueueKeys
) -> None:
    with writers(wb, client, keys) as have_written_again:
        for _ in range(2):
            cluster.fail_over(cluster.node_of(keys.queue))
            have_written_again()


def test_a_primary_dies_under_load_and_what_was_replicated_is_kept(
    cluster: Cluster, url: str, queue: str, client: redis.Redis, keys: QueueKeys
) -> None:
    place = cluster.node_of(keys.queue)
    with (
        WriteBehind.from_url(url, queue=queue, durability="replicated", durability_timeout=60) as wb,
        writers(wb, client, keys) as have_written_again,
    ):
        cluster.kill(place)
        wait_until(lambda: can_be_asked(cluster, keys))
        cluster.restart(place)
        have_written_again()


def can_be_asked(cluster: Cluster, keys: QueueKeys) -> bool:
    try:
        return cluster.node_of(keys.queue) >= 0
    except AssertionError:
        return False


def test_who_finds_nobody_is_told_so_in_time(
    cluster: Cluster, wb: WriteBehind, keys: QueueKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    wb.put("users", 1, {"n": 1})
    monkeypatch.setattr(routing, "TRIED_FOR_S", 0.5)
    place = cluster.node_of(keys.queue)
    replica = cluster.replica_of(place)
    cluster.kill(replica)
    cluster.kill(place)
    calls: list[Callable[[], object]] = [lambda: wb.put("users", 1, {"n": 2}), lambda: wb.get("users", 1)]
    for call in calls:
        with pytest.raises(RedisUnavailable, match="no node of the cluster has taken it"):
            call()
    cluster.restart(place, replica)
    assert wb.get("users", 1) == {"n": 1}


def test_a_reader_that_slept_through_divisions_sees_what_was_written_since(
    url: str, queue: str, wb: WriteBehind, client: redis.Redis, keys: QueueKeys
) -> None:
    ids = range(12)
    for id in ids:
        wb.put("users", id, {"n": 0})
    with WriteBehind.from_url(url, queue=queue) as sleeper:
        for round, shards in enumerate((4, 1, 4), 1):
            assert sleeper.get("users", 1, never) == {"n": round - 1}
            divide(client, keys, shards)
            for one in shard_keys(queue, 5 - shards):
                client.delete(one.queue)
            with wb.batch() as batch:
                for id in ids:
                    batch.put("users", id, {"n": round})
            assert still_draining(client, keys, layout_of(client, keys)) == 0
            assert sleeper.get("users", 1, never) == {"n": round}
            divide_seen = sleeper.get_many("users", list(ids), never)
            assert divide_seen == [{"n": round}] * len(ids)
        assert not any(sleeper.invalidate_many("users", list(ids)))


def test_a_row_is_not_loaded_while_former_shards_may_hold_a_write_to_it(
    wb: WriteBehind, client: redis.Redis, keys: QueueKeys
) -> None:
    wb.put("users", 1, {"n": 1})
    divide(client, keys, 3)
    with pytest.raises(FlushTimeout, match="divided anew"):
        wb.get("users", 1, never, timeout=0.05)
    with pytest.raises(FlushTimeout, match="divided anew"):
        wb.get_many("users", [1, 2], never, timeout=0.05)
    assert wb.get("users", 1) is None
    assert not wb.invalidate("users", 1)
    assert wb.invalidate_many("users", [1, 2]) == [False, False]
    wb.put("users", 2, {"n": 2})
    assert wb.get("users", 2, never) == {"n": 2}
    client.delete(keys.queue)  # as if a worker had brought it to Postgres
    assert still_draining(client, keys, layout_of(client, keys)) == 0
    assert wb.get("users", 1, lambda _: {"n": 1}) == {"n": 1}
    assert wb.get("users", 1, never) == {"n": 1}


def test_counters_are_exact_and_no_read_goes_back_whatever_the_cluster_does(
    cluster: Cluster,
    url: str,
    queue: str,
    client: redis.Redis,
    keys: QueueKeys,
    postgres_url: str,
    pg: psycopg.Connection[Any],
) -> None:
    """A worker, a writer of each of some rows and a reader, while shards, slots and nodes change."""
    pg.execute("CREATE TABLE counts (id int PRIMARY KEY, n int NOT NULL)")
    rows, stop, failed = range(4), threading.Event(), list[BaseException]()
    accepted, seen = [0] * len(rows), [0] * len(rows)

    def until_stopped(step: Callable[[WriteBehind, int], None], id: int) -> None:
        try:
            with WriteBehind.from_url(url, queue=queue) as wb:
                while not stop.is_set():
                    step(wb, id)
        except BaseException as error:
            failed.append(error)

    def add(wb: WriteBehind, id: int) -> None:
        wb.increment("counts", id, {"n": 1})
        accepted[id] += 1

    def look(wb: WriteBehind, _: int) -> None:
        for id in rows:
            at_least = max(accepted[id], seen[id])
            row = wb.get("counts", id, lambda id: load(postgres_url, id), timeout=30)
            seen[id] = 0 if row is None else row["n"]
            assert seen[id] >= at_least, f"{id}: {seen[id]} after {at_least}"

    def have_gone_on() -> None:
        before = accepted + seen
        wait_until(lambda: bool(failed) or all(map(operator.lt, before, accepted + seen)), 60)

    threads = [threading.Thread(target=until_stopped, args=(add, id)) for id in rows]
    threads.append(threading.Thread(target=until_stopped, args=(look, 0)))
    with RunningFleet(redis_url=url, postgres_url=postgres_url, queue=queue):
        for thread in threads:
            thread.start()
        try:
            have_gone_on()
            divide(client, keys, 3)
            have_gone_on()
            shard = shard_keys(queue, 3)[1].clock
            for move in (key_by_key, Cluster.move_at_once):
                move(cluster, shard, cluster.other_primary(cluster.node_of(shard)))
                have_gone_on()
            cluster.fail_over(cluster.node_of(shard))
            have_gone_on()
            wait_until(lambda: not layout_of(client, keys).draining)
            divide(client, keys, 1)
            have_gone_on()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not failed
        query = "SELECT n FROM counts ORDER BY id"
        wait_until(lambda: [n for (n,) in pg.execute(query).fetchall()] == accepted)


def test_a_dead_letter_is_sent_again_to_where_its_rows_are_now(
    wb: WriteBehind,
    options: dict[str, Any],
    client: redis.Redis,
    keys: QueueKeys,
    pg: psycopg.Connection[Any],
    run: Run,
) -> None:
    pg.execute("CREATE TABLE counts (id int PRIMARY KEY, n int NOT NULL CHECK (n < 10))")
    with RunningFleet(**options):
        alone = wb.put("counts", 1, {"n": 10})
        with wb.atomic(route="r") as tx:
            tx.put("counts", 2, {"n": 1})
            tx.put("counts", 3, {"n": 10})
        for receipt in (alone, tx.receipt):
            assert receipt is not None
            with pytest.raises(WriteRejected):
                receipt.wait(30)
        divide(client, keys, 3)
        wait_until(lambda: not layout_of(client, keys).draining)
        pg.execute("ALTER TABLE counts DROP CONSTRAINT counts_n_check")
        assert "2" in run("dead", "retry", "--all")
        query = "SELECT id, n FROM counts ORDER BY id"
        wait_until(lambda: pg.execute(query).fetchall() == [(1, 10), (2, 1), (3, 10)])
        wait_until(lambda: not list(client.scan_iter(f"*{keys.queue}*/counts:*")))  # as of every retry


def key_by_key(cluster: Cluster, key: str, target: int) -> None:
    slot = cluster.slot_moves(key, target)
    slot.begin()
    slot.move_keys(2)
    slot.end()


def load(postgres_url: str, id: int) -> dict[str, Any] | None:
    with psycopg.connect(postgres_url) as connection:
        found = connection.execute("SELECT n FROM counts WHERE id = %s", [id]).fetchone()
    return None if found is None else {"id": id, "n": found[0]}


def test_an_entry_s_name_is_taken_apart_as_it_was_made() -> None:
    for queue in ("db:write:queue", "{a}q"):
        keys = QueueKeys(queue)
        for one in (keys, *shard_keys(queue, 4)):
            entry = one.entry("v1:users:a/b", 12)
            assert keys.plain_of(entry) == one.plain_of(entry) == (12, "v1:users:a/b")
            assert keys.home_of(entry) == one.home_of(entry) == (one.queue, 12)
            assert key_slot(entry.encode()) == key_slot(one.clock.encode()) == key_slot(one.queue.encode())
        for other in (
            "users:1",
            f"{queue}/0/users:1",
            "{other}/0/users:1",
            keys.clock,
            f"{{{queue}}}/x/users:1",
        ):
            assert keys.plain_of(other) is None or "{" in queue


def test_silent_nodes_are_not_all_asked_once_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = routing.Slots([("a", 1), ("b", 2), ("c", 3)])
    monkeypatch.setattr(routing, "TRIED_FOR_S", 0.0)
    asks = routing.carry(slots, Command(("GET", "x")))
    assert next(asks) == routing.Ask(("a", 1), [("GET", "x")])
    with pytest.raises(redis.ConnectionError, match="no node of the cluster has taken it"):
        asks.throw(redis.TimeoutError())


def test_who_was_silent_is_asked_last_by_the_next_call() -> None:
    slots = routing.Slots([("a", 1), ("b", 2), ("c", 3)])
    asks = routing.carry(slots, Command(("GET", "x")))
    assert next(asks) == routing.Ask(("a", 1), [("CLUSTER", "SLOTS")])
    assert asks.throw(redis.TimeoutError()) == routing.Ask(("b", 2), [("CLUSTER", "SLOTS")])
    assert next(routing.carry(slots, Command(("GET", "x")))) == routing.Ask(("b", 2), [("CLUSTER", "SLOTS")])
    slots.learn([], ("a", 1))
    assert next(routing.carry(slots, Command(("GET", "x")))) == routing.Ask(("a", 1), [("CLUSTER", "SLOTS")])
