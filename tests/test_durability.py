"""How safe a write is when its call returns: each rung on real servers, with lost replies, too."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from tests.support.clients import clients_of
from tests.support.replica import RedisPair
from tests.support.workers import RunningWorker

from writebehind import (
    AsyncWriteBehind,
    Durability,
    DurabilityNotReached,
    FlushTimeout,
    Receipt,
    WriteBehind,
    WriteRejected,
)
from writebehind_worker.testing.proxy import Proxy, proxied_url
from writebehind_worker.testing.wait import wait_until

Writer = Callable[..., Any]


@pytest.fixture(scope="module")
def shared_pair() -> Iterator[RedisPair]:
    with RedisPair() as pair:
        yield pair


@pytest.fixture
def pair(shared_pair: RedisPair) -> Iterator[RedisPair]:
    shared_pair.on_primary.flushall()
    yield shared_pair
    shared_pair.link.resume()
    shared_pair.catch_up()


@pytest.fixture(params=["sync", "async"])
def writer(request: pytest.FixtureRequest) -> Writer:
    """Calls a method of either client, which is made for the call."""

    def call(url: str, method: str, *args: Any, options: dict[str, Any] | None = None, **how: Any) -> Any:
        with clients_of(request.param, url) as make:
            return getattr(make(**options or {}), method)(*args, **how)

    return call


def is_there(client: redis.Redis) -> bool:
    return client.llen("db:write:queue") == 1


# Replicated.


def test_a_replicated_write_is_on_the_replica(pair: RedisPair, writer: Writer) -> None:
    for n in range(1, 20):
        writer(pair.url, "put", "t", n, {"n": n}, durability="replicated", wait=10)
        assert pair.on_replica.llen("db:write:queue") == n


def test_a_replica_that_lags_is_told_and_the_write_stays_accepted(pair: RedisPair, writer: Writer) -> None:
    pair.lag()
    began = time.monotonic()
    with pytest.raises(DurabilityNotReached, match="0 of 1 replicas") as caught:
        writer(pair.url, "put", "t", 1, {}, durability="replicated", wait=0.3)
    assert 0.3 <= time.monotonic() - began < 10
    assert is_there(pair.on_primary)
    assert caught.value.receipt is not None
    assert caught.value.receipt.seq > 0


def test_more_replicas_than_there_are_are_never_reached(pair: RedisPair, writer: Writer) -> None:
    options = {"durability": "replicated", "replicas": 2, "durability_timeout": 0.2}
    with pytest.raises(DurabilityNotReached, match="1 of 2 replicas"):
        writer(pair.url, "put", "t", 1, {}, options=options)


def test_a_wait_may_last_longer_than_a_reply(pair: RedisPair, writer: Writer) -> None:
    pair.lag()
    options = {"redis_options": {"socket_timeout": 0.8, "retry": Retry(NoBackoff(), 0)}}
    resume = threading.Timer(1.6, pair.link.resume)
    resume.start()
    writer(pair.url, "put", "t", 1, {}, options=options, durability="replicated", wait=20)
    resume.join()
    assert is_there(pair.on_replica)
    assert is_there(pair.on_primary)


def test_a_reply_that_is_lost_is_no_proof(pair: RedisPair) -> None:
    """The call is sent again over a new connection, which has written nothing by itself."""
    options: Any = {"redis_options": {"retry": Retry(NoBackoff(), 3)}}
    with WriteBehind.from_url(pair.url, **options) as wb:
        wb.put("t", 0, {})
        pair.lag()
        pair.address.drop_reply_after(lambda chunk: b"EVALSHA" in chunk)
        with pytest.raises(DurabilityNotReached):
            wb.put("t", 1, {}, durability="replicated", wait=0.5)
        pair.address.wait_for_drops()
        assert wb.redis.llen(wb.keys.queue) == 2
        pair.link.resume()
        pair.address.drop_reply_after(lambda chunk: b"EVALSHA" in chunk)
        wb.put("t", 2, {}, durability="replicated", wait=10)
        assert wb.redis.llen(wb.keys.queue) == pair.on_replica.llen(wb.keys.queue) == 3


def test_a_server_that_has_not_seen_the_script_gets_it_whole(pair: RedisPair, writer: Writer) -> None:
    pair.on_primary.script_flush()
    writer(pair.url, "put", "t", 1, {}, durability="replicated", wait=10)
    assert is_there(pair.on_replica)


def test_a_batch_is_replicated_as_one(pair: RedisPair) -> None:
    with WriteBehind.from_url(pair.url) as wb:
        with wb.batch(durability="replicated", wait=10) as batch:
            for n in range(50):
                batch.put("t", n, {})
        assert pair.on_replica.llen(wb.keys.queue) == 50
        pair.lag()
        with pytest.raises(DurabilityNotReached), wb.batch(durability="replicated", wait=0.2) as batch:
            batch.put("t", 51, {})
        assert len(batch.receipts) == 1
        assert len(batch) == 0  # entered again, it would not write again
        assert wb.redis.llen(wb.keys.queue) == 51


def test_a_session_is_used_again_after_a_durability_was_not_reached(pair: RedisPair) -> None:
    pair.lag()
    with WriteBehind.from_url(pair.url, durability="replicated", durability_timeout=0.05) as wb:
        for n in range(5):
            with pytest.raises(DurabilityNotReached):
                wb.put("t", n, {})
        assert wb.redis.hlen(wb.keys.producers) == 1


@pytest.mark.parametrize("how", ["lost", "refused"])
def test_an_error_while_it_waits_does_not_hide_that_the_write_is_accepted(pair: RedisPair, how: str) -> None:
    """Who took it for the write's own would write a second time."""
    pair.lag()
    options: Any = {"redis_options": {"retry": Retry(NoBackoff(), 0), "socket_timeout": 0.4}}
    with WriteBehind.from_url(pair.url, **options) as wb:
        wb.put("warm", 0, {})
        asked: list[bytes] = []

        def fault(chunk: bytes) -> bool:
            if b"WAIT" not in chunk:
                return False
            asked.append(chunk)
            if len(asked) == 2 and how == "refused":
                pair.on_primary.set(wb.keys.producers, "of others")
            return len(asked) == 2 and how == "lost"

        pair.address.drop_reply_after(fault)
        match = "WRONGTYPE" if how == "refused" else "0 of 1"
        with pytest.raises(DurabilityNotReached, match=match) as caught:
            wb.put("t", 1, {}, durability="replicated", wait=1)
        assert len(asked) >= 2
        assert isinstance(caught.value.receipt, Receipt)
        assert wb.redis.llen(wb.keys.queue) == 2
        if how == "lost":
            asked.clear()
            pair.address.drop_reply_after(fault)
            with pytest.raises(DurabilityNotReached), wb.batch(durability="replicated", wait=2) as batch:
                batch.put("t", 2, {})
            assert (len(batch), len(batch.receipts)) == (0, 1)


def test_a_server_that_has_lost_the_write_does_not_get_it_again(pair: RedisPair) -> None:
    """By then it can be in Postgres; and a full queue would be told as if nothing had been written."""
    pair.lag()
    options: Any = {"redis_options": {"retry": Retry(NoBackoff(), 0), "socket_timeout": 0.4}}
    with WriteBehind.from_url(pair.url, max_queue_length=1, **options) as wb:
        with ThreadPoolExecutor(1) as thread:
            call = thread.submit(wb.increment, "t", 1, {"n": 1}, durability="replicated", wait=20)
            wait_until(lambda: is_there(pair.on_primary))
            pair.on_primary.flushall()
            pair.on_primary.lpush("db:write:queue", "of others")
            with pytest.raises(DurabilityNotReached, match="lost its history") as caught:
                call.result(30)
        assert isinstance(caught.value.receipt, Receipt)
        assert pair.on_primary.lrange("db:write:queue", 0, -1) == [b"of others"]


# Fsynced.


@pytest.mark.parametrize("policy", ["always", "everysec"])
def test_a_write_is_on_the_disk(pair: RedisPair, writer: Writer, policy: str) -> None:
    pair.on_primary.config_set("appendonly", "yes")
    wait_until(lambda: pair.on_primary.info("persistence")["aof_rewrite_in_progress"] == 0)
    pair.on_primary.config_set("appendfsync", policy)
    writer(pair.url, "put", "t", 1, {}, durability="fsynced", wait=10)
    assert is_there(pair.on_primary)


def test_a_disk_that_is_never_written_is_told(pair: RedisPair, writer: Writer) -> None:
    pair.on_primary.config_set("appendonly", "yes")
    wait_until(lambda: pair.on_primary.info("persistence")["aof_rewrite_in_progress"] == 0)
    pair.on_primary.config_set("appendfsync", "no")
    with pytest.raises(DurabilityNotReached, match="disk"):
        writer(pair.url, "put", "t", 1, {}, durability="fsynced", wait=0.3)
    assert is_there(pair.on_primary)


def test_without_an_aof_the_error_says_what_is_needed(pair: RedisPair, writer: Writer) -> None:
    pair.on_primary.config_set("appendonly", "no")
    with pytest.raises(DurabilityNotReached, match="appendonly yes") as caught:
        writer(pair.url, "put", "t", 1, {}, durability="fsynced")
    assert caught.value.receipt is not None
    assert is_there(pair.on_primary)


@pytest.mark.parametrize(("durability", "right"), [("replicated", "-wait"), ("fsynced", "-waitaof")])
def test_without_the_right_the_write_is_accepted_and_the_error_says_so(
    pair: RedisPair, writer: Writer, durability: str, right: str
) -> None:
    pair.on_primary.execute_command("ACL", "SETUSER", "few", "on", ">secret", "~*", "+@all", right)
    options = {"redis_options": {"username": "few", "password": "secret"}}
    with pytest.raises(DurabilityNotReached, match="accepted and queued, but Redis cannot tell"):
        writer(pair.url, "put", "t", 1, {}, options=options, durability=durability)
    assert is_there(pair.on_primary)


# Committed.


def test_write_through_returns_when_the_row_is_in_postgres(
    redis_url: str,
    queue: str,
    writer: Writer,
    options: dict[str, Any],
    users: psycopg.Connection[Any],
) -> None:
    made = {"queue": queue, "prefix": f"{queue}:"}
    with RunningWorker(**options):
        for n in range(10):
            writer(redis_url, "put", "users", n, {"name": "x"}, options=made, wait=10)
            assert users.execute("SELECT name FROM users WHERE id = %s", [n]).fetchone() == ("x",)
        made["durability"] = "committed"
        writer(redis_url, "delete", "users", 1, options=made)
        assert users.execute("SELECT 1 FROM users WHERE id = 1").fetchone() is None


def test_write_through_neither_overtakes_nor_is_overtaken(
    connect: Callable[..., WriteBehind], options: dict[str, Any], users: psycopg.Connection[Any]
) -> None:
    """Each caller finds in Postgres its own write, or one that Redis accepted later."""
    users.execute("ALTER TABLE users ADD seen bigint")
    clients = [connect() for _ in range(4)]
    accepted: list[int] = []
    lock = threading.Lock()

    def work(wb: WriteBehind) -> None:
        for n in range(25):
            with lock:  # the order in which Redis accepts them
                number = len(accepted)
                receipt = wb.put("users", 1, {"seen": number})
                accepted.append(receipt.seq)
            if n % 5 == 0:
                again = wb.put("users", 2, {"seen": number}, wait=20)
                assert again.seq > receipt.seq
                found = users.execute("SELECT seen FROM users WHERE id = 1").fetchone()
                assert found is not None
                assert found[0] >= number

    with RunningWorker(**options), ThreadPoolExecutor(4) as pool:
        list(pool.map(work, clients))
        clients[0].put("users", 3, {"seen": 0}, wait=20)
    assert users.execute("SELECT seen FROM users WHERE id = 1").fetchone() == (99,)
    assert accepted == sorted(accepted)


def test_a_rejected_write_through_raises_and_the_cache_shows_the_database_again(
    connect: Callable[..., WriteBehind], options: dict[str, Any], users: psycopg.Connection[Any]
) -> None:
    users.execute("ALTER TABLE users ADD CHECK (name <> 'bad')")
    wb = connect()
    with RunningWorker(**options):
        wb.put("users", 1, {"name": "good"}, wait=10)
        with pytest.raises(WriteRejected) as caught:
            wb.put("users", 1, {"name": "bad"}, wait=10)
        assert isinstance(caught.value.receipt, Receipt)
        assert caught.value.receipt.seq == caught.value.seq
        assert wb.get("users", 1, lambda _: {"name": "good"}) == {"name": "good"}


def test_without_a_worker_the_receipt_of_the_error_still_waits(
    connect: Callable[..., WriteBehind], options: dict[str, Any], users: psycopg.Connection[Any]
) -> None:
    wb = connect()
    with pytest.raises(FlushTimeout) as caught:
        wb.put("users", 1, {"name": "Ada"}, wait=0.1)
    receipt = caught.value.receipt
    assert isinstance(receipt, Receipt)
    with pytest.raises(FlushTimeout), wb.batch(wait=0.1) as batch:
        batch.put("users", 2, {"name": "Bob"})
    with RunningWorker(**options):
        receipt.wait(10)
        batch.wait(10)
    assert users.execute("SELECT count(*) FROM users").fetchone() == (2,)


def test_an_error_of_asking_whether_it_is_committed_tells_the_receipt(
    connect: Callable[..., WriteBehind],
    redis_url: str,
    options: dict[str, Any],
    users: psycopg.Connection[Any],
) -> None:
    with Proxy.to(redis_url) as proxy:
        wb = connect(proxied_url(redis_url, proxy.port), retry=Retry(NoBackoff(), 0))
        proxy.drop_reply_after(lambda chunk: b":applied" in chunk, times=2)
        with pytest.raises(DurabilityNotReached, match="whether it is committed is not known") as caught:
            wb.put("users", 1, {"name": "Ada"}, wait=5)
        receipt = caught.value.receipt
        assert isinstance(receipt, Receipt)
        with pytest.raises(DurabilityNotReached), wb.batch(wait=5) as batch:
            batch.put("users", 2, {"name": "Bob"})
        assert (len(batch), len(batch.receipts)) == (0, 1)
        with RunningWorker(**options):
            receipt.wait(10)
            batch.wait(10)
    assert users.execute("SELECT count(*) FROM users").fetchone() == (2,)


def test_a_cancelled_wait_leaves_the_connections_in_order(
    redis_url: str, queue: str, users: psycopg.Connection[Any], options: dict[str, Any]
) -> None:
    async def job() -> None:
        async with AsyncWriteBehind.from_url(redis_url, queue=queue, prefix=f"{queue}:") as wb:
            for durability in ("replicated", "committed"):
                for n in range(10):
                    call = wb.put("users", n, {"name": "x"}, wait=30, durability=durability)
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.01 * n):
                            await call
                    receipts = [await wb.put("users", 100 + i, {"name": str(i)}) for i in range(5)]
                    assert len({receipt.seq for receipt in receipts}) == 5
                    assert await wb.get("users", 100) == {"name": "0"}

    asyncio.run(job())
    with RunningWorker(**options):
        wait_until(lambda: users.execute("SELECT count(*) FROM users WHERE id >= 100").fetchone() == (5,))


# What is asked.


@pytest.mark.parametrize(
    "how",
    [
        {"wait": 0},
        {"wait": -1},
        {"wait": float("nan")},
        {"wait": True},
        {"wait": "2"},
        {"durability": "safe"},
        {"wait": 1, "durability": "accepted"},
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    connect: Callable[..., WriteBehind], how: dict[str, Any]
) -> None:
    wb = connect()
    with pytest.raises(ValueError, match=r"wait|durability"):
        wb.put("t", 1, {}, **how)
    with pytest.raises(ValueError, match=r"wait|durability"):
        wb.batch(**how)
    assert wb.redis.llen(wb.keys.queue) == 0


@pytest.mark.parametrize(
    "settings", [{"durability": "x"}, {"replicas": 0}, {"replicas": True}, {"durability_timeout": 0}]
)
def test_settings_are_checked(connect: Callable[..., WriteBehind], settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"durability|replicas|wait"):
        connect(**settings)


def test_a_call_can_ask_for_less_than_the_client(connect: Callable[..., WriteBehind]) -> None:
    wb = connect(durability="committed", durability_timeout=0.05)
    with pytest.raises(FlushTimeout):
        wb.put("t", 1, {})
    level: Durability = "accepted"
    assert wb.put("t", 1, {}, durability=level).seq > 0
