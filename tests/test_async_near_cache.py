"""The near cache on an event loop: own writes at once, others' within a bound, and no call harms another."""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme
from tests.support.tls import TlsFront

from writebehind import AsyncWriteBehind, RedisRefused, RedisUnavailable, WriteBehind
from writebehind.async_near_carrier import AsyncNearCarrier
from writebehind_worker.testing.proxy import Proxy, proxied_url
from writebehind_worker.testing.servers import Servers

OLD = {"name": "old"}
NEW = {"name": "new"}
Test = Callable[..., Coroutine[Any, Any, None]]
Near = Callable[..., AbstractAsyncContextManager[AsyncWriteBehind]]


def on_a_loop(test: Test) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**given: Any) -> None:
        asyncio.run(test(**given))

    return run


@pytest.fixture
def near(redis_url: str, queue: str) -> Near:
    @asynccontextmanager
    async def connect(url: str = redis_url, **options: Any) -> AsyncIterator[AsyncWriteBehind]:
        options = {"near_cache": 100, **options}
        async with AsyncWriteBehind.from_url(url, queue=queue, prefix=f"{queue}:", **options) as wb:
            yield wb

    return connect


@pytest.fixture
def other(connect: Callable[..., WriteBehind]) -> WriteBehind:
    """As another process has it."""
    return connect()


def unexpected(_: Any) -> None:
    raise AssertionError("the loader was called")


async def keep(wb: AsyncWriteBehind, row: dict[str, Any] = OLD, id: int = 1) -> None:
    """The row is cached in Redis and near."""
    assert await wb.get("t", id, lambda _: row) == row
    assert await wb.get("t", id, unexpected) == row


def cache(wb: AsyncWriteBehind) -> Any:
    assert isinstance(wb._carrier, AsyncNearCarrier)
    return wb._carrier._near


async def cost(client: redis.Redis, call: Callable[[], Awaitable[Any]]) -> int:
    """How often the server reads from a socket meanwhile."""

    def packets() -> int:
        stats: dict[str, Any] = client.info("stats")
        return int(stats["total_reads_processed"])

    before = packets()
    await call()
    return packets() - before - 1


async def is_near(wb: AsyncWriteBehind, client: redis.Redis, id: int = 1) -> bool:
    return await cost(client, lambda: wb.get("t", id)) == 0


async def until(passes: Callable[[], Awaitable[bool]], timeout: float = 5.0) -> None:
    async with asyncio.timeout(timeout):
        while not await passes():
            await asyncio.sleep(0.005)


@on_a_loop
async def test_rows_that_are_near_take_no_round_trip(near: Near, redis_client: redis.Redis) -> None:
    async with near() as wb:
        rows = await wb.get_many("t", [1, 2, 3], lambda ids: [{"id": id} for id in ids])
        await wb.get_many("t", [1, 2], unexpected)

        async def often() -> None:
            for _ in range(50):
                assert await wb.get_many("t", [1, 2], unexpected) == rows[:2]
                assert await wb.get("t", 1, unexpected) == rows[0]

        assert await cost(redis_client, often) == 0
        assert await cost(redis_client, lambda: wb.get_many("t", [1, 2, 3], unexpected)) == 1
        assert await wb.get_many("t", [1, 2, 3], unexpected) == rows


@pytest.mark.parametrize("op", ["put", "patch", "increment", "delete", "invalidate", "batch"])
@on_a_loop
async def test_own_writes_are_seen_at_once(near: Near, op: str) -> None:
    async with near() as wb:
        await keep(wb, {"name": "old", "n": 1})
        if op == "batch":
            async with wb.batch() as batch:
                batch.put("t", 1, {"name": "new", "n": 1})
        elif op in ("delete", "invalidate"):
            await getattr(wb, op)("t", 1)
        else:
            await getattr(wb, op)("t", 1, {"n": 2} if op == "increment" else {"name": "new"})
        expected = {
            "put": NEW, "patch": {"name": "new", "n": 1}, "increment": {"name": "old", "n": 3},
            "batch": {"name": "new", "n": 1},
        }  # fmt: skip
        assert await wb.get("t", 1) == expected.get(op)


@on_a_loop
async def test_what_is_pending_and_a_fill_token_are_not_kept(
    near: Near, redis_client: redis.Redis, settle: Callable[[int], None], key: str
) -> None:
    async with near() as wb:
        redis_client.hset(key, mapping={"@is": "fill", "@token": "another's"})
        redis_client.expire(key, 60)
        assert await wb.get("t", 1) is None
        assert not await is_near(wb, redis_client)
        receipt = await wb.put("t", 1, NEW)
        assert await wb.get("t", 1) == NEW
        assert not await is_near(wb, redis_client)
        settle(receipt.seq)
        assert await wb.get("t", 1) == NEW
        assert await is_near(wb, redis_client)


@pytest.mark.parametrize("how", ["put", "patch", "delete", "invalidate", "DEL", "FLUSHDB", "replaced"])
@on_a_loop
async def test_anothers_change_is_seen_as_soon_as_word_has_come(
    near: Near, other: WriteBehind, redis_client: redis.Redis, key: str, servers: Servers, how: str
) -> None:
    if how == "FLUSHDB" and not servers.ours:
        pytest.skip("the server is the user's")
    async with near(near_cache_ttl=600) as wb:  # nothing but the server's word ends it
        await keep(wb)
        before = await wb.get("t", 1)
        if how in ("put", "patch"):
            getattr(other, how)("t", 1, NEW)
        elif how in ("delete", "invalidate"):
            getattr(other, how)("t", 1)
        elif how == "replaced":
            redis_client.set(key, "a string")
        else:
            redis_client.flushdb() if how == "FLUSHDB" else redis_client.delete(key)
        # Nothing else lets the event loop look at its sockets.
        deadline = time.monotonic() + 2
        while await wb.get("t", 1) == before:
            assert time.monotonic() < deadline
        assert await wb.get("t", 1) == (NEW if how in ("put", "patch") else None)


@on_a_loop
async def test_word_is_heard_through_tls(
    near: Near, other: WriteBehind, redis_url: str, tmp_path: Path
) -> None:
    authority, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("localhost").configure_cert(context)
    with TlsFront(redis_url, context) as front:
        url = f"rediss://localhost:{front.port}/0?ssl_ca_certs={tmp_path / 'ca.pem'}"
        async with near(url, near_cache_ttl=600) as wb:
            await keep(wb)
            other.put("t", 1, NEW)
            deadline = time.monotonic() + 2
            while await wb.get("t", 1) == OLD:
                assert time.monotonic() < deadline
            assert await wb.get("t", 1) == NEW


@on_a_loop
async def test_a_row_is_not_used_after_it_has_expired(
    near: Near, redis_client: redis.Redis, key: str
) -> None:
    async with near() as wb:
        await keep(wb)
        redis_client.pexpire(key, 300)
        ends = time.monotonic() + 0.302  # of a clock of whole milliseconds
        await until(lambda: is_near(wb, redis_client))
        wire = cache(wb)._wire
        wire._has_word = lambda: False  # the server tells of it when it comes by: that may be late
        hits, asked_at = 0, time.monotonic()
        while await wb.get("t", 1) is not None:
            assert asked_at <= ends
            hits, asked_at = hits + 1, time.monotonic()
        assert hits > 10
        assert await wb.get("t", 1, lambda _: NEW) == NEW


@on_a_loop
async def test_a_connection_that_is_half_open_hides_a_change_for_near_cache_ttl_at_most(
    redis_url: str, near: Near, other: WriteBehind
) -> None:
    with Proxy.to(redis_url) as proxy:
        options = {"near_cache_ttl": 0.5, "redis_options": {"socket_timeout": 0.5}}
        async with near(proxied_url(redis_url, proxy.port), **options) as wb:
            await keep(wb)
            read_at = asked_at = time.monotonic()
            proxy.pause()
            other.put("t", 1, NEW)
            hits = 0
            try:
                while await wb.get("t", 1) == OLD:
                    assert asked_at - read_at <= 0.5
                    hits, asked_at = hits + 1, time.monotonic()
                    await asyncio.sleep(0)
            except RedisUnavailable:
                pass
            finally:
                proxy.resume()
            assert hits > 10

            async def has_it() -> bool:
                return await wb.get("t", 1) == NEW

            await until(has_it)


@on_a_loop
async def test_a_lost_connection_forgets_what_was_read_over_it_and_comes_back(
    near: Near, other: WriteBehind, redis_client: redis.Redis
) -> None:
    async with near(near_cache_ttl=600) as wb:
        await keep(wb)
        assert await is_near(wb, redis_client)
        for connection in redis_client.client_list():
            if "t" in connection["flags"]:
                redis_client.client_kill_filter(_id=connection["id"])
        other.invalidate("t", 1)
        deadline = time.monotonic() + 5
        while await wb.get("t", 1) == OLD:
            assert time.monotonic() < deadline
        assert await wb.get("t", 1, lambda _: NEW) == NEW
        assert not await is_near(wb, redis_client), "not yet"
        await until(lambda: is_near(wb, redis_client))


@on_a_loop
async def test_it_comes_back_after_an_outage(redis_url: str, near: Near, redis_client: redis.Redis) -> None:
    with Proxy.to(redis_url) as proxy:
        async with near(proxied_url(redis_url, proxy.port)) as wb:
            await keep(wb)
            proxy.drop_connections()

            async def is_back() -> bool:
                try:
                    return await is_near(wb, redis_client)
                except RedisUnavailable:  # a connection of the pool that has not been found lost yet
                    return False

            await until(is_back)
            assert await wb.get("t", 1, unexpected) == OLD


@on_a_loop
async def test_the_row_that_was_not_used_for_longest_goes_first(
    near: Near, redis_client: redis.Redis
) -> None:
    async with near(near_cache=2) as wb:
        for id in (1, 2):
            await keep(wb, id=id)
        await wb.get("t", 1)
        await keep(wb, id=3)
        assert await is_near(wb, redis_client, 1)
        assert await is_near(wb, redis_client, 3)
        assert not await is_near(wb, redis_client, 2)


@pytest.mark.parametrize("again", [False, True])
@on_a_loop
async def test_a_read_that_a_write_overtakes_is_not_kept(near: Near, key: str, again: bool) -> None:
    """Not even where another reads the row after the write, and its answer is still to come."""
    async with near() as wb:
        await keep(wb)
        near_cache, rows = cache(wb), cache(wb)._rows
        near_cache.drop([key])
        reading = asyncio.create_task(wb.get("t", 1))
        await asyncio.sleep(0)
        while key not in rows._reading:
            await asyncio.sleep(0)
        first = rows._reading[key]
        near_cache.drop([key])  # as an own write does as its answer comes
        if again:
            rows.begin([key])
        assert await reading == OLD
        assert key not in rows._kept
        assert rows._reading.get(key) is not first


@on_a_loop
async def test_a_call_that_is_cancelled_anywhere_harms_no_other(near: Near, key: str, queue: str) -> None:
    for steps in range(40):
        async with near() as wb:
            if steps % 2:
                await keep(wb, OLD, 1)
                await keep(wb, NEW, 2)
                cache(wb).drop([key, f"{queue}:t:2"])
            else:  # it has to connect first
                async with AsyncWriteBehind(wb.redis, queue=queue, prefix=f"{queue}:") as far:
                    await far.get("t", 1, lambda _: OLD)
                    await far.get("t", 2, lambda _: NEW)
            call = asyncio.create_task(wb.get("t", 1))
            for _ in range(steps // 2):
                await asyncio.sleep(0)
            call.cancel()
            rows = await asyncio.gather(wb.get("t", 2), wb.get("t", 1), call, return_exceptions=True)
            assert list(rows[:2]) == [NEW, OLD]
            assert rows[2] == OLD or isinstance(rows[2], asyncio.CancelledError)
            assert cache(wb)._wire.is_open, "it is the connection of the others, too"
            assert not cache(wb)._wire._asked


@on_a_loop
async def test_many_tasks_share_the_connection(near: Near, redis_client: redis.Redis) -> None:
    async with near(near_cache=1000) as wb:
        await wb.get_many("t", list(range(300)), lambda ids: [{"id": id} for id in ids])
        for _ in range(3):
            rows = await asyncio.gather(*(wb.get("t", id, unexpected) for id in range(300)))
            assert rows == [{"id": id} for id in range(300)]
        assert sum("t" in connection["flags"] for connection in redis_client.client_list()) == 1


@on_a_loop
async def test_who_would_wait_for_long_goes_another_way(near: Near, redis_url: str) -> None:
    with Proxy.to(redis_url) as proxy:
        async with near() as wb:
            await keep(wb)
            await keep(wb, NEW, 2)
            near_cache = cache(wb)
            await near_cache.close()
            direct, near_cache._pool = near_cache._pool, None
            async with near(proxied_url(redis_url, proxy.port)) as slow:
                near_cache._pool = slow.redis.connection_pool
                await keep(wb)
                near_cache.drop([wb.settings.prefix + "t:1"])
                proxy.pause()
                first = asyncio.create_task(wb.get("t", 1))
                await asyncio.sleep(0.01)
                started = time.monotonic()
                assert await wb.get("t", 2) == NEW
                assert await wb.get("t", 2) == NEW
                assert time.monotonic() - started < 2
                proxy.resume()
                assert await first == OLD
                near_cache._pool = direct


@on_a_loop
async def test_readers_and_writers_never_see_a_row_go_back(
    near: Near, other: WriteBehind, settle: Callable[[int], None]
) -> None:
    """A number grows, raised by this client and by another; what this one has seen it never unsees."""
    newest, done = 0, False

    async def read(wb: AsyncWriteBehind) -> int:
        seen = reads = 0
        while not done:
            at_least = newest
            row = await wb.get("t", 1)
            assert row is not None
            assert row["n"] >= max(seen, at_least), f"{row['n']} after {seen}, written {at_least}"
            seen, reads = row["n"], reads + 1
            await asyncio.sleep(0)
        return reads

    async with near() as wb:
        await wb.get("t", 1, lambda _: {"n": 0})
        readers = [asyncio.create_task(read(wb)) for _ in range(4)]
        for n in range(1, 120):
            if n % 3:
                receipt_seq = (await wb.put("t", 1, {"n": n})).seq
                newest = n
            else:
                receipt_seq = (await asyncio.to_thread(other.put, "t", 1, {"n": n})).seq
            await asyncio.to_thread(settle, receipt_seq)
            await asyncio.sleep(0.001)
        done = True
        assert min(await asyncio.gather(*readers)) > 0


@on_a_loop
async def test_a_user_without_the_right_to_track_is_told_what_lacks(
    near: Near, redis_client: redis.Redis, servers: Servers
) -> None:
    if not servers.ours:
        pytest.skip("the server is the user's")
    rights = ["on", ">secret", "~*", "+@all", "-client|tracking"]
    command: Any = redis_client.execute_command
    command("ACL", "SETUSER", "untold", *rights)
    try:
        async with near(redis_options={"username": "untold", "password": "secret"}) as wb:
            for _ in range(2):
                with pytest.raises(RedisRefused, match="client"):
                    await wb.get("t", 1)
    finally:
        command("ACL", "DELUSER", "untold")


@on_a_loop
async def test_close_ends_the_task_and_the_connection(near: Near, redis_client: redis.Redis) -> None:
    async with near() as wb:
        await keep(wb)
        assert any("t" in connection["flags"] for connection in redis_client.client_list())
    assert asyncio.all_tasks() == {asyncio.current_task()}
    deadline = time.monotonic() + 5
    while any("t" in connection["flags"] for connection in redis_client.client_list()):
        assert time.monotonic() < deadline


def test_another_event_loop_starts_anew(near: Near, redis_url: str, queue: str) -> None:
    wb = AsyncWriteBehind.from_url(redis_url, queue=queue, prefix=f"{queue}:", near_cache=10)

    async def job() -> None:
        await keep(wb)
        await wb.redis.connection_pool.disconnect()  # redis-py's own are of one loop, too

    asyncio.run(job())
    asyncio.run(job())
    asyncio.run(wb.close())


def test_a_forked_child_has_a_near_cache_of_its_own(redis_url: str, queue: str, other: WriteBehind) -> None:
    wb = AsyncWriteBehind.from_url(redis_url, queue=queue, prefix=f"{queue}:", near_cache=10)

    async def parent() -> None:
        await keep(wb)
        child = os.fork()
        if child == 0:
            empty = not cache(wb)._rows._kept and cache(wb)._wire is None
            os._exit(0 if empty else 1)
        assert os.waitpid(child, 0)[1] == 0
        other.put("t", 1, NEW)
        deadline = time.monotonic() + 5
        while await wb.get("t", 1) != NEW:
            assert time.monotonic() < deadline
        await wb.close()

    asyncio.run(parent())


@pytest.mark.parametrize("protocol", [2, 3])
@on_a_loop
async def test_any_client_will_do(near: Near, redis_client: redis.Redis, protocol: int) -> None:
    async with near(redis_options={"protocol": protocol}) as wb:
        await keep(wb)
        assert await is_near(wb, redis_client)
