"""Accepting a write: in one step, in order, once, and never beyond a bound."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from redis.backoff import AbstractBackoff, NoBackoff
from redis.retry import Retry

from writebehind import (
    InvalidWrite,
    QueueFull,
    RedisFull,
    RedisRefused,
    RedisUnavailable,
    WriteBehind,
    session,
)
from writebehind.script import Script
from writebehind_worker.heartbeat import reap_sessions
from writebehind_worker.testing.proxy import Proxy, proxied_url
from writebehind_worker.testing.servers import Servers
from writebehind_worker.testing.wait import wait_until

ROOT = Path(__file__).parents[1]


@pytest.fixture
def connect(connect: Callable[..., WriteBehind]) -> Callable[..., WriteBehind]:
    """Producers that re-send at once after a lost reply, three times."""
    return partial(connect, retry=Retry(NoBackoff(), 3))


@pytest.fixture
def wb(connect: Callable[..., WriteBehind]) -> WriteBehind:
    return connect()


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    with Proxy.to(redis_url) as proxy:
        yield proxy


@pytest.fixture
def behind(
    proxy: Proxy, redis_url: str, connect: Callable[..., WriteBehind], wb: WriteBehind
) -> Callable[..., WriteBehind]:
    """Makes producers behind the proxy. The script is known to the server, so that a call is one EVALSHA."""
    wb.delete("t", "warm up")
    wb.redis.delete(wb.keys.queue)
    return lambda **options: connect(proxied_url(redis_url, proxy.port), **options)


def items(wb: WriteBehind) -> list[dict[str, Any]]:
    """The queue, oldest first."""
    return [json.loads(item) for item in reversed(wb.redis.lrange(wb.keys.queue, 0, -1))]


def is_enqueue(chunk: bytes) -> bool:
    return b"EVALSHA" in chunk


# The message.


def test_the_item_is_the_documented_json_with_seq_first(
    connect: Callable[..., WriteBehind], redis_client: redis.Redis, queue: str
) -> None:
    wb = connect(ttl_jitter=0)
    receipt = wb.put("users", 42, {"name": "Ada", "born": None})
    (item,) = redis_client.lrange(queue, 0, -1)
    assert item == (
        b'{"seq":%d,"table":"users","id":42,"data":{"name":"Ada","born":null},"key":"%s:users:42","ttl":3600}'
        % (receipt.seq, queue.encode())
    )
    deleted = wb.delete("users", {"a": 1, "b": "x"})
    assert items(wb)[-1] == {
        "seq": deleted.seq,
        "table": "users",
        "id": {"a": 1, "b": "x"},
        "op": "delete",
        "key": f"{queue}:users:1:x",
        "ttl": 3600,
    }


def test_a_write_is_a_cache_entry_and_an_item_with_the_same_seq(
    wb: WriteBehind, redis_client: redis.Redis
) -> None:
    receipt = wb.put("t", 1, {"a": 1})
    (item,) = items(wb)
    entry = redis_client.hgetall(item["key"])
    assert entry == {b"@seq": str(receipt.seq).encode(), b"a": b"1"}
    assert item["seq"] == receipt.seq
    assert redis_client.hget(wb.keys.clock, "generation") == str(receipt.generation).encode()


def test_the_queues_own_keys_have_no_time_to_live(wb: WriteBehind, redis_client: redis.Redis) -> None:
    wb.put("t", 1, {})
    for key in (wb.keys.queue, wb.keys.clock, wb.keys.producers):
        assert redis_client.ttl(key) == -1


# Order.


def test_seq_grows_by_one_at_least_and_is_the_time_in_microseconds(wb: WriteBehind) -> None:
    before = time.time_ns() // 1000
    seqs = [wb.put("t", 1, {"n": n}).seq for n in range(200)]
    assert all(b > a for a, b in itertools.pairwise(seqs))
    assert abs(seqs[0] - before) < 60_000_000
    assert [item["seq"] for item in items(wb)] == seqs


def test_more_writes_than_microseconds_still_have_a_seq_of_their_own(wb: WriteBehind) -> None:
    seqs = []
    for _ in range(5):
        with wb.batch() as batch:
            for n in range(5000):
                batch.put("t", n, {})
        seqs += [receipt.seq for receipt in batch.receipts]
    assert seqs == sorted(set(seqs))
    assert seqs == [item["seq"] for item in items(wb)]
    assert wb.put("t", 1, {}).seq > seqs[-1]


def test_seq_never_goes_back_behind_a_clock_that_was_ahead(
    wb: WriteBehind, redis_client: redis.Redis
) -> None:
    ahead = (time.time_ns() // 1000) + 3_600_000_000
    redis_client.hset(wb.keys.clock, "seq", ahead)
    assert [wb.put("t", 1, {}).seq for _ in range(3)] == [ahead + 1, ahead + 2, ahead + 3]
    assert redis_client.hget(wb.keys.clock, "seq") == str(ahead + 3).encode()


def test_a_seq_keeps_all_its_digits(wb: WriteBehind, redis_client: redis.Redis) -> None:
    redis_client.hset(wb.keys.clock, "seq", 8_999_999_999_999_998)
    assert wb.put("t", 1, {}).seq == 8_999_999_999_999_999
    assert items(wb)[0]["seq"] == 8_999_999_999_999_999
    assert redis_client.hget(items(wb)[0]["key"], "@seq") == b"8999999999999999"


WRITER = """
import sys, threading
from writebehind import WriteBehind
url, queue, name = sys.argv[1:]
wb = WriteBehind.from_url(url, queue=queue, prefix=f"{queue}:")
def write(thread):
    last = 0
    for n in range(100):
        seq = wb.put("t", f"{name}-{thread}", {"n": n}).seq
        assert seq > last
        last = seq
threads = [threading.Thread(target=write, args=[i]) for i in range(4)]
for t in threads: t.start()
for t in threads: t.join()
wb.close()
"""


def test_writers_in_many_processes_and_threads_share_one_order(
    wb: WriteBehind, redis_url: str, queue: str
) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", WRITER, redis_url, queue, str(n)])
        for n in range(4)
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0] * 4
    found = items(wb)
    seqs = [item["seq"] for item in found]
    assert len(seqs) == 1600
    assert seqs == sorted(set(seqs))
    for id in {item["id"] for item in found}:
        assert [item["data"]["n"] for item in found if item["id"] == id] == list(range(100))


FORKER = """
import os, sys
from writebehind import WriteBehind
url, queue = sys.argv[1:]
wb = WriteBehind.from_url(url, queue=queue, prefix=f"{queue}:")
wb.put("t", "before", {})
child = os.fork()
name = "parent" if child else "child"
for n in range(200):
    wb.put("t", name, {"n": n})
if child:
    _, status = os.waitpid(child, 0)
    wb.put("t", "after", {})
    sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_child_and_its_parent_lose_no_write(wb: WriteBehind, redis_url: str, queue: str) -> None:
    ran = subprocess.run([sys.executable, "-c", FORKER, redis_url, queue], timeout=60, check=False)
    assert ran.returncode == 0
    found = items(wb)
    for name in ("parent", "child"):
        assert [i["data"]["n"] for i in found if i["id"] == name] == list(range(200))
    assert len(found) == 402
    assert wb.redis.hlen(wb.keys.producers) == 2, "parent and child must not share a session"


# Idle sessions keep their connections.


def pool_of(url: str, kind: type[redis.ConnectionPool], most: int) -> redis.ConnectionPool:
    return kind.from_url(url, max_connections=most)


def put_from_threads(wb: WriteBehind, threads: int, each: int) -> None:
    together = threading.Barrier(threads)

    def write(name: int) -> None:
        together.wait()
        for n in range(each):
            wb.put("t", name, {"n": n})

    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(write, range(threads)))
    assert len(items(wb)) == threads * each


def take(pool: redis.ConnectionPool, number: int) -> None:
    """They are there to be taken, all at once."""
    taken = [pool.get_connection() for _ in range(number)]
    for connection in taken:
        pool.release(connection)


@pytest.mark.parametrize("kind", [redis.ConnectionPool, redis.BlockingConnectionPool])
def test_a_small_pool_is_left_whole(redis_url: str, queue: str, kind: type[redis.ConnectionPool]) -> None:
    pool = pool_of(redis_url, kind, 2)
    with WriteBehind(redis.Redis(connection_pool=pool), queue=queue) as wb:
        put_from_threads(wb, 2, 5)
        take(pool, 2)
        for n in range(3):
            wb.put("t", n, {})
            assert wb.get("t", n) is not None
        take(pool, 2)


def test_of_a_large_pool_a_tenth_is_kept_at_most_and_given_back_in_the_end(
    redis_url: str, queue: str
) -> None:
    pool = pool_of(redis_url, redis.ConnectionPool, 100)
    with WriteBehind(redis.Redis(connection_pool=pool), queue=queue) as wb:
        for _ in range(2):
            put_from_threads(wb, 40, 5)
            take(pool, 90)
            wb.redis.delete(wb.keys.queue)
    take(pool, 100)


def test_a_connection_that_was_closed_while_idle_costs_no_write(
    connect: Callable[..., WriteBehind],
    redis_client: redis.Redis,
    queue: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ours() -> list[str]:
        return [client["id"] for client in redis_client.client_list() if client["name"] == queue]

    monkeypatch.setattr(session, "_LOOK_AFTER_S", 0.0)  # as if it had been idle for so long
    wb = connect(retry=Retry(NoBackoff(), 0), client_name=queue)
    wb.put("t", 1, {"n": 0})
    for n in (1, 2):
        (id,) = ours()
        redis_client.client_kill_filter(_id=id)
        wait_until(lambda: not ours())
        wb.put("t", 1, {"n": n})
    assert [item["data"]["n"] for item in items(wb)] == [0, 1, 2]
    assert redis_client.hlen(wb.keys.producers) == 1


def test_a_call_that_raises_gives_its_connection_back(
    behind: Callable[..., WriteBehind], proxy: Proxy
) -> None:
    wb = behind(retry=Retry(NoBackoff(), 0), max_connections=100)
    kept = []
    for n in range(110):
        proxy.drop_reply_after(is_enqueue)
        with pytest.raises(RedisUnavailable) as caught:
            wb.put("t", n, {})
        kept.append(caught.value)
    wb.put("t", "last", {})
    assert len(items(wb)) == 111


# Bounds.


def test_at_its_bound_the_queue_refuses_a_write_and_nothing_is_written(
    connect: Callable[..., WriteBehind], redis_client: redis.Redis, queue: str
) -> None:
    wb = connect(max_queue_length=2)
    wb.put("t", 1, {"a": 1})
    wb.put("t", 2, {"a": 1})
    clock = redis_client.hgetall(wb.keys.clock)
    writes: list[Callable[[], object]] = [
        lambda: wb.put("t", 3, {"a": 1}),
        lambda: wb.patch("t", 1, {"a": 2}),
        lambda: wb.increment("t", 1, {"a": 1}),
        lambda: wb.delete("t", 1),
    ]
    for write in writes:
        with pytest.raises(QueueFull) as caught:
            write()
        assert (caught.value.queue, caught.value.length, caught.value.limit) == (queue, 2, 2)
    assert len(items(wb)) == 2
    assert wb.get("t", 1) == {"a": 1}
    assert not redis_client.exists(f"{queue}:t:3")
    assert redis_client.hgetall(wb.keys.clock) == clock
    redis_client.rpop(queue)
    wb.put("t", 3, {"a": 1})


def test_a_batch_that_does_not_fit_is_refused_as_a_whole(connect: Callable[..., WriteBehind]) -> None:
    wb = connect(max_queue_length=3)
    wb.put("t", 1, {})
    with pytest.raises(QueueFull), wb.batch() as batch:
        for n in range(3):
            batch.put("t", n, {})
    assert batch.receipts == []
    assert len(items(wb)) == 1
    with wb.batch() as batch:
        batch.put("t", 2, {})
        batch.put("t", 3, {})
    assert len(items(wb)) == 3


def test_writers_at_once_do_not_pass_the_bound(connect: Callable[..., WriteBehind]) -> None:
    wb = connect(max_queue_length=50)

    def write(n: int) -> bool:
        try:
            wb.put("t", n, {})
        except QueueFull:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(write, range(200))) == 50
    assert len(items(wb)) == 50


# Batches.


def test_a_batch_is_one_step_with_a_receipt_a_write_in_order(wb: WriteBehind, queue: str) -> None:
    with wb.batch() as batch:
        batch.put("t", 1, {"n": 1})
        batch.increment("t", 1, {"n": 5})
        batch.patch("t", 1, {"s": "x"})
        batch.delete("t", 2)
        assert len(batch) == 4
        assert batch.receipts == []
        assert items(wb) == []
    found = items(wb)
    assert [item.get("op", "put") for item in found] == ["put", "increment", "patch", "delete"]
    seqs = [receipt.seq for receipt in batch.receipts]
    assert seqs == [item["seq"] for item in found]
    assert seqs == list(range(seqs[0], seqs[0] + 4))
    assert {(r.generation, r.queue) for r in batch.receipts} == {(batch.receipts[0].generation, queue)}
    assert wb.get("t", 1) == {"n": 6, "s": "x"}
    assert wb.put("t", 1, {}).seq > seqs[-1]


def test_nobody_sees_half_a_batch(wb: WriteBehind, connect: Callable[..., WriteBehind]) -> None:
    reader, done = connect(), threading.Event()

    def lengths() -> set[int]:
        seen = set()
        while not done.is_set():
            seen.add(reader.redis.llen(reader.keys.queue))
        return seen

    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(lengths)
        for _ in range(20):
            with wb.batch() as batch:
                for n in range(100):
                    batch.put("t", n, {"n": n})
        done.set()
        assert {length % 100 for length in seen.result()} == {0}


def test_a_block_that_raises_sends_nothing(wb: WriteBehind, redis_client: redis.Redis, queue: str) -> None:
    with pytest.raises(ZeroDivisionError), wb.batch() as batch:
        batch.put("t", 1, {"n": 1})
        batch.put("t", 2, {"n": 1 // 0})
    with pytest.raises(InvalidWrite), wb.batch() as batch:
        batch.put("t", 1, {"n": 1})
        batch.put("t", "", {"n": 1})
    assert batch.receipts == []
    assert redis_client.keys(f"*{queue}*") == []


def test_an_empty_batch_sends_nothing(wb: WriteBehind, redis_client: redis.Redis, queue: str) -> None:
    with wb.batch() as batch:
        pass
    batch.wait(0)
    assert batch.receipts == []
    assert redis_client.keys(f"*{queue}*") == []


def test_a_batch_entered_again_sends_only_what_is_new(wb: WriteBehind) -> None:
    batch = wb.batch()
    with batch:
        batch.increment("t", 1, {"n": 1})
    with batch:
        batch.increment("t", 2, {"n": 1})
    assert [item["id"] for item in items(wb)] == [1, 2]


def test_a_batch_has_a_bound(wb: WriteBehind) -> None:
    with pytest.raises(InvalidWrite, match="10000"), wb.batch() as batch:
        for n in range(10_001):
            batch.delete("t", n)
    assert items(wb) == []


def test_the_largest_batch_is_accepted(wb: WriteBehind) -> None:
    with wb.batch() as batch:
        for n in range(10_000):
            batch.put("t", n, {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5})
    assert len(batch.receipts) == len(items(wb)) == 10_000


# Re-sent calls.


def test_a_call_whose_reply_was_lost_takes_effect_once(
    behind: Callable[..., WriteBehind], proxy: Proxy
) -> None:
    wb = behind()
    first = wb.put("t", 1, {"n": 0})
    proxy.drop_reply_after(is_enqueue, times=2)
    receipt = wb.increment("t", 1, {"n": 1})
    assert proxy.dropped == 2
    assert [item["seq"] for item in items(wb)] == [first.seq, receipt.seq]
    assert wb.get("t", 1) == {"n": 1}


def test_a_call_whose_request_was_lost_takes_effect_once(
    behind: Callable[..., WriteBehind], proxy: Proxy
) -> None:
    wb = behind()
    proxy.drop_request_matching(is_enqueue)
    receipt = wb.put("t", 1, {"n": 0})
    assert proxy.dropped == 1
    assert [item["seq"] for item in items(wb)] == [receipt.seq]


def test_a_batch_whose_reply_was_lost_takes_effect_once_with_the_same_receipts(
    behind: Callable[..., WriteBehind], proxy: Proxy
) -> None:
    wb = behind()
    proxy.drop_reply_after(is_enqueue)
    with wb.batch() as batch:
        for n in range(10):
            batch.increment("t", n, {"n": 1})
    assert proxy.dropped == 1
    assert [item["seq"] for item in items(wb)] == [receipt.seq for receipt in batch.receipts]


def test_a_whole_script_that_is_re_sent_takes_effect_once(
    behind: Callable[..., WriteBehind], proxy: Proxy, redis_client: redis.Redis
) -> None:
    wb = behind()
    redis_client.script_flush()
    proxy.drop_reply_after(lambda chunk: b"#!lua" in chunk)
    receipt = wb.put("t", 1, {"n": 0})
    assert proxy.dropped == 1
    assert [item["seq"] for item in items(wb)] == [receipt.seq]


class Meanwhile(AbstractBackoff):
    """What others do between a lost reply and the call's being sent again."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act

    def compute(self, failures: int) -> float:
        self._act()
        return 0.0


OPS: dict[str, Callable[[WriteBehind], Any]] = {
    "put": lambda wb: wb.put("t", 1, {"n": 10}),
    "patch": lambda wb: wb.patch("t", 1, {"n": 20}),
    "increment": lambda wb: wb.increment("t", 1, {"n": 5}),
    "delete": lambda wb: wb.delete("t", 1),
}


@pytest.mark.parametrize("op", OPS)
def test_a_re_sent_call_does_not_undo_what_somebody_else_wrote_meanwhile(
    wb: WriteBehind, behind: Callable[..., WriteBehind], proxy: Proxy, op: str
) -> None:
    theirs: list[Any] = []
    mine = behind(retry=Retry(Meanwhile(lambda: theirs.append(wb.put("t", 1, {"n": 1}))), 3))
    proxy.drop_reply_after(is_enqueue)
    receipt = OPS[op](mine)
    assert proxy.dropped == 1
    assert [item["seq"] for item in items(wb)] == [receipt.seq, theirs[0].seq]
    assert receipt.seq < theirs[0].seq
    assert wb.get("t", 1) == {"n": 1}


def test_a_re_sent_call_gets_the_first_answer_although_the_queue_is_full_by_now(
    wb: WriteBehind, behind: Callable[..., WriteBehind], proxy: Proxy
) -> None:
    mine = behind(max_queue_length=2, retry=Retry(Meanwhile(lambda: wb.put("t", 2, {})), 3))
    wb.put("t", 3, {})
    proxy.drop_reply_after(is_enqueue)
    receipt = mine.put("t", 1, {})
    assert receipt.seq == items(wb)[1]["seq"]
    assert len(items(wb)) == 3
    with pytest.raises(QueueFull):
        mine.put("t", 1, {})


@pytest.mark.usefixtures("ours")
def test_a_re_sent_call_to_a_redis_that_is_full_by_now_is_not_said_to_have_written_nothing(
    behind: Callable[..., WriteBehind], proxy: Proxy, redis_client: redis.Redis
) -> None:
    """The first was accepted: RedisFull promises that nothing was written."""
    wb = behind(retry=Retry(Meanwhile(lambda: redis_client.config_set("maxmemory", 1)), 3))
    proxy.drop_reply_after(is_enqueue)
    try:
        receipt = wb.put("t", 1, {})
    except RedisUnavailable:
        pass
    else:
        assert [item["seq"] for item in items(wb)] == [receipt.seq]
    finally:
        redis_client.config_set("maxmemory", 0)
    assert proxy.dropped == 1


def test_a_refused_call_whose_reply_was_lost_is_judged_again(
    wb: WriteBehind, behind: Callable[..., WriteBehind], proxy: Proxy
) -> None:
    wb.put("t", 1, {})
    mine = behind(max_queue_length=1, retry=Retry(Meanwhile(lambda: wb.redis.delete(wb.keys.queue)), 3))
    proxy.drop_reply_after(is_enqueue)
    receipt = mine.put("t", 2, {})
    assert [item["seq"] for item in items(wb)] == [receipt.seq]


def test_writes_go_on_after_one_whose_outcome_is_unknown(
    behind: Callable[..., WriteBehind], proxy: Proxy
) -> None:
    wb = behind(retry=Retry(NoBackoff(), 0))
    wb.put("t", 1, {"n": 0})
    sessions_before = wb.redis.hlen(wb.keys.producers)
    proxy.drop_reply_after(is_enqueue)
    with pytest.raises(RedisUnavailable):
        wb.put("t", 1, {"n": 1})
    wb.put("t", 1, {"n": 2})
    assert [item["data"]["n"] for item in items(wb)] == [0, 1, 2]
    assert wb.redis.hlen(wb.keys.producers) == sessions_before + 1, "the session was not dropped"


def test_a_call_that_arrives_late_is_neither_lost_nor_in_the_way_of_the_next(
    behind: Callable[..., WriteBehind], proxy: Proxy, wb: WriteBehind
) -> None:
    mine = behind(retry=Retry(NoBackoff(), 0), socket_timeout=0.7)
    mine.put("t", 1, {"n": 0})
    proxy.pause()
    with pytest.raises(RedisUnavailable):
        mine.put("t", 1, {"n": 1})
    proxy.resume()
    mine.put("t", 1, {"n": 2})
    wait_until(lambda: len(items(wb)) == 3)
    assert sorted(item["data"]["n"] for item in items(wb)) == [0, 1, 2]


def test_a_session_is_used_again_by_the_next_call(wb: WriteBehind, redis_client: redis.Redis) -> None:
    for n in range(20):
        wb.put("t", n, {})
    assert redis_client.hlen(wb.keys.producers) == 1
    ((_, value),) = redis_client.hgetall(wb.keys.producers).items()
    assert cast(bytes, value).startswith(b"20:")


def test_a_refused_write_keeps_its_session(
    connect: Callable[..., WriteBehind], redis_client: redis.Redis
) -> None:
    wb = connect(max_queue_length=1)
    wb.put("t", 1, {})
    for _ in range(3):
        with pytest.raises(QueueFull):
            wb.put("t", 2, {})
    redis_client.delete(wb.keys.queue)
    wb.put("t", 2, {})
    assert redis_client.hlen(wb.keys.producers) == 1


def test_idle_sessions_are_forgotten_and_busy_ones_kept(
    connect: Callable[..., WriteBehind], redis_client: redis.Redis
) -> None:
    idle, busy = connect(), connect()
    day_us = 86_400_000_000
    idle.put("t", 1, {})
    ((session, value),) = redis_client.hgetall(idle.keys.producers).items()
    counter, seq, generation = cast(bytes, value).decode().split(":")
    redis_client.hset(idle.keys.producers, session, f"{counter}:{int(seq) - 2 * day_us}:{generation}")
    busy.put("t", 2, {})
    assert reap_sessions(redis_client, idle.keys, 86_400) == 1
    assert session not in redis_client.hgetall(idle.keys.producers)
    assert redis_client.hlen(idle.keys.producers) == 1
    assert reap_sessions(redis_client, idle.keys, 86_400) == 0
    idle.put("t", 1, {})
    busy.put("t", 2, {})
    assert len(items(idle)) == 4


def test_many_idle_sessions_are_forgotten(wb: WriteBehind, redis_client: redis.Redis) -> None:
    redis_client.hset(wb.keys.producers, mapping={f"session {n}": "1:1:1" for n in range(3000)})
    wb.put("t", 1, {})
    assert reap_sessions(redis_client, wb.keys, 86_400) == 3000
    assert redis_client.hlen(wb.keys.producers) == 1


def test_a_session_that_writes_while_it_is_reaped_is_kept(wb: WriteBehind, redis_client: redis.Redis) -> None:
    wb.put("t", 1, {})
    ((session, seen),) = redis_client.hgetall(wb.keys.producers).items()
    wb.put("t", 1, {})
    reap = Script("writebehind_worker", "reap")
    assert reap(redis_client, [wb.keys.producers], [session, seen]) == 0
    assert redis_client.hexists(wb.keys.producers, session)


# Scripts and the server.


def test_a_server_that_forgets_its_scripts_is_no_problem(wb: WriteBehind, redis_client: redis.Redis) -> None:
    for n in range(3):
        redis_client.script_flush()
        wb.put("t", n, {"n": n})
        redis_client.script_flush()
        assert wb.get("t", f"missing {n}", lambda _: {"a": 1}) == {"a": 1}
        redis_client.script_flush()
        assert wb.invalidate("t", f"missing {n}") is True
    assert len(items(wb)) == 3


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_protocols_of_redis_will_do(connect: Callable[..., WriteBehind], protocol: int) -> None:
    wb = connect(protocol=protocol)
    receipt = wb.put("t", 1, {"n": 1})
    assert wb.get("t", 1) == {"n": 1}
    assert wb.get("t", 2, lambda _: {"n": 2}) == {"n": 2}
    assert wb.get("t", 2) == {"n": 2}
    assert receipt.is_durable() is False
    assert wb.invalidate("t", 2) is True


def test_every_call_says_that_redis_is_down_chained_to_the_reason(
    behind: Callable[..., WriteBehind], proxy: Proxy
) -> None:
    wb = behind(retry=Retry(NoBackoff(), 1))
    receipt = wb.put("t", 1, {})
    proxy.refuse()
    proxy.drop_connections()
    for call in (
        lambda: wb.put("t", 1, {}),
        lambda: wb.delete("new table", 1),
        lambda: wb.get("t", 1),
        lambda: wb.get("t", 1, lambda _: {"a": 1}),
        lambda: wb.invalidate("t", 1),
        lambda: receipt.wait(1),
        lambda: receipt.is_durable(),
    ):
        with pytest.raises(RedisUnavailable) as caught:
            call()
        assert isinstance(caught.value, ConnectionError)
        assert isinstance(caught.value.__cause__, redis.RedisError | OSError)
    proxy.accept()
    wb.put("t", 1, {})


def test_a_silent_redis_is_given_up_after_the_timeout(
    behind: Callable[..., WriteBehind], proxy: Proxy
) -> None:
    wb = behind(retry=Retry(NoBackoff(), 0), socket_timeout=0.7)
    wb.put("t", 1, {})
    proxy.pause()
    started = time.monotonic()
    with pytest.raises(RedisUnavailable):
        wb.put("t", 1, {})
    assert time.monotonic() - started < 5
    proxy.resume()


def test_a_user_without_the_right_to_write_is_refused(
    connect: Callable[..., WriteBehind], redis_client: redis.Redis, redis_url: str, queue: str
) -> None:
    user = f"reader-{queue}"
    redis_client.acl_setuser(user, enabled=True, passwords=["+secret"], keys=["*"], categories=["+@read"])
    try:
        wb = connect(redis_url, username=user, password="secret")
        for call in (lambda: wb.put("t", 1, {}), lambda: wb.invalidate("t", 1)):
            with pytest.raises(RedisRefused) as caught:
                call()
            assert not isinstance(caught.value, RedisFull)
            assert isinstance(caught.value.__cause__, redis.exceptions.NoPermissionError)
        assert wb.get("t", 1) is None
    finally:
        redis_client.acl_deluser(user)
    assert redis_client.keys(f"*{queue}:t:1") == []


def test_a_user_who_may_not_push_to_the_queue_writes_nothing(
    connect: Callable[..., WriteBehind], redis_client: redis.Redis, redis_url: str, queue: str
) -> None:
    """Found out in the middle of the script, whose first writes would stay."""
    user = f"writer-{queue}"
    commands = ["+@all", "-lpush"]
    redis_client.acl_setuser(user, enabled=True, passwords=["+secret"], keys=["*"], commands=commands)
    try:
        wb = connect(redis_url, username=user, password="secret")
        with pytest.raises(RedisRefused):
            wb.put("t", 1, {"a": 1})
    finally:
        redis_client.acl_deluser(user)
    assert not redis_client.exists(f"{queue}:t:1"), "the cache shows a write that was never accepted"


def test_a_wrong_password_is_a_refusal(
    connect: Callable[..., WriteBehind], redis_url: str, queue: str
) -> None:
    with pytest.raises(RedisRefused):
        connect(redis_url, username=f"nobody-{queue}", password="wrong").put("t", 1, {})


@pytest.fixture
def ours(servers: Servers) -> None:
    """The server's settings may be changed."""
    if not servers.ours:
        pytest.skip("the server is the user's")


@pytest.mark.usefixtures("ours")
def test_a_full_redis_is_a_refusal_of_its_own(wb: WriteBehind, redis_client: redis.Redis, queue: str) -> None:
    redis_client.config_set("maxmemory", 1)
    try:
        with pytest.raises(RedisFull, match="maxmemory"):
            wb.put("t", 1, {})
        with pytest.raises(RedisFull), wb.batch() as batch:
            batch.put("t", 1, {})
    finally:
        redis_client.config_set("maxmemory", 0)
    assert redis_client.keys(f"*{queue}*") == []


@pytest.mark.usefixtures("ours")
def test_a_replica_is_a_refusal(wb: WriteBehind, redis_client: redis.Redis, queue: str) -> None:
    redis_client.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(RedisRefused) as caught:
            wb.put("t", 1, {"a": 1})
        assert isinstance(caught.value.__cause__, redis.exceptions.ReadOnlyError)
        assert wb.get("t", 1) is None
    finally:
        redis_client.replicaof("NO", "ONE")
    wb.put("t", 1, {"a": 1})
    assert len(items(wb)) == 1


@pytest.mark.parametrize("wrong", ["queue", "clock", "producers"])
def test_a_key_of_ours_that_holds_something_else_is_a_refusal_that_writes_nothing(
    wb: WriteBehind, redis_client: redis.Redis, queue: str, wrong: str
) -> None:
    redis_client.set(getattr(wb.keys, wrong), "something else")
    with pytest.raises(RedisRefused):
        wb.put("t", 1, {"a": 1})
    assert not redis_client.exists(f"{queue}:t:1")
    assert redis_client.get(getattr(wb.keys, wrong)) == b"something else"


@pytest.mark.parametrize("own", ["queue", "clock", "producers", "applied", "inflight", "rejected"])
def test_a_row_whose_cache_key_would_be_a_key_of_the_queue_cannot_harm_it(
    redis_url: str, redis_client: redis.Redis, queue: str, own: str
) -> None:
    """Ids come from an application's users; ``db`` / ``write:queue`` is the default queue's own name."""
    with WriteBehind.from_url(redis_url, queue=queue) as wb:
        keys = wb.keys
        wb.put("harmless", queue, {"a": 1})
        redis_client.set(keys.applied, 7)
        redis_client.rpush(keys.inflight, 1)
        redis_client.zadd(keys.rejected, {"{}": 1})
        before = {k: redis_client.type(k) for k in (keys.queue, keys.clock, keys.producers, keys.applied)}
        (item,) = redis_client.lrange(queue, 0, -1)
        clock = set(redis_client.hkeys(keys.clock))
        table, _, id = getattr(keys, own).partition(":")
        for call in (
            lambda: wb.put(table, id, {"a": 1}),
            lambda: wb.delete(table, id),
            lambda: wb.invalidate(table, id),
            lambda: wb.get(table, id, lambda _: {"a": 1}),
        ):
            with contextlib.suppress(InvalidWrite):
                call()
        assert {k: redis_client.type(k) for k in before} == before
        assert redis_client.lindex(queue, -1) == item, "accepted writes are lost"
        assert redis_client.get(keys.applied) == b"7"
        assert redis_client.lrange(keys.inflight, 0, -1) == [b"1"]
        assert redis_client.zcard(keys.rejected) == 1
        assert set(redis_client.hkeys(keys.clock)) == clock
        assert not redis_client.hexists(keys.producers, "@seq")


# Settings.


def test_a_client_that_decodes_responses_is_refused(redis_url: str) -> None:
    with (
        redis.Redis.from_url(redis_url, decode_responses=True) as client,
        pytest.raises(ValueError, match="decode_responses"),
    ):
        WriteBehind(client)


@pytest.mark.parametrize("ttl", [0, -1, 1.5, True, "60", None, float("nan"), 10**16, 2**63], ids=repr)
@pytest.mark.parametrize("name", ["ttl", "negative_ttl"])
def test_a_time_to_live_that_redis_would_refuse_is_refused(
    redis_client: redis.Redis, name: str, ttl: Any
) -> None:
    with pytest.raises(ValueError, match=name):
        WriteBehind(redis_client, **{name: ttl})


@pytest.mark.parametrize("seconds", [0, -1, 0.0001, float("nan"), float("inf"), 1e16])
def test_a_fill_timeout_that_redis_would_refuse_is_refused(redis_client: redis.Redis, seconds: float) -> None:
    with pytest.raises(ValueError, match="fill_timeout"):
        WriteBehind(redis_client, fill_timeout=seconds)


def test_a_queue_with_a_hash_tag_of_its_own_works(
    redis_url: str, redis_client: redis.Redis, queue: str
) -> None:
    tagged = "{" + queue + "}:writes"
    with WriteBehind.from_url(redis_url, queue=tagged, prefix=f"{queue}:") as wb:
        wb.put("t", 1, {"a": 1})
        assert wb.get("t", 1) == {"a": 1}
        assert wb.keys.clock == f"{tagged}:of:clock"
        assert redis_client.llen(tagged) == 1


def test_closing_twice_is_harmless_and_a_closed_client_connects_again(wb: WriteBehind) -> None:
    wb.put("t", 1, {})
    wb.close()
    wb.close()
    wb.put("t", 1, {})
    assert len(items(wb)) == 2


def test_the_bare_push_of_any_language_is_an_item_like_ours(
    wb: WriteBehind, redis_client: redis.Redis, queue: str
) -> None:
    redis_client.lpush(queue, '{"table":"users","id":42,"data":{"name":"Ada"}}')
    wb.put("users", 42, {"name": "Ada"})
    raw, ours = items(wb)
    assert raw == {k: v for k, v in ours.items() if k not in ("seq", "key", "ttl")}


def test_pooling_timeouts_and_tls_are_passed_through_to_redis_py() -> None:
    with WriteBehind.from_url(
        "rediss://localhost:6379/3",
        redis_options={"max_connections": 7, "socket_timeout": 1.5, "ssl_ca_certs": "/etc/ca.pem"},
    ) as wb:
        pool = wb.redis.connection_pool
        assert pool.connection_class is redis.SSLConnection
        assert pool.max_connections == 7
        given = pool.connection_kwargs
        assert (given["db"], given["socket_timeout"], given["socket_connect_timeout"]) == (3, 1.5, 5.0)
        assert given["ssl_ca_certs"] == "/etc/ca.pem"
