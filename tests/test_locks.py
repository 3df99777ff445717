"""Locks: one holder at a time, and a fence by which a holder that lost its lock is refused."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from writebehind import AsyncWriteBehind, LockLost, LockNotAcquired, RedisRefused, WriteBehind
from writebehind.lock_steps import LockSteps
from writebehind_worker.testing.proxy import Proxy, proxied_url

Connect = Callable[..., WriteBehind]


def test_one_holder_at_a_time_and_each_has_a_higher_fence(connect: Connect) -> None:
    wb, held, fences, most = connect(), 0, [], 0

    def work() -> None:
        nonlocal held, most
        for _ in range(5):
            with wb.lock("job", timeout=20, sleep=0.001) as lock:
                held += 1
                most = max(most, held)
                fences.append(lock.fence)
                time.sleep(0.001)
                held -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, len(fences)) == (1, 40)
    assert fences == sorted(set(fences))


def test_tasks_take_turns(redis_url: str, queue: str) -> None:
    fences: list[int] = []

    async def job() -> None:
        async with AsyncWriteBehind.from_url(redis_url, queue=queue) as wb:

            async def work() -> None:
                async with wb.lock("job", timeout=20, sleep=0.001) as lock:
                    await lock.extend(20)
                    assert await lock.owned() and await lock.locked()
                    fences.append(lock.fence)

            await asyncio.gather(*(work() for _ in range(20)))

    asyncio.run(job())
    assert fences == sorted(set(fences)) and len(fences) == 20


def test_a_paused_holder_writes_nothing_over_its_successor(
    connect: Connect, pg: psycopg.Connection[Any]
) -> None:
    pg.execute("CREATE TABLE report (id int PRIMARY KEY, body text, fence bigint NOT NULL)")
    pg.execute("INSERT INTO report VALUES (1, '', 0)")
    write = "UPDATE report SET body = %s, fence = %s WHERE id = 1 AND fence < %s"
    wb = connect()
    paused, successor = wb.lock("report", timeout=0.05), wb.lock("report", timeout=20)
    assert paused.acquire()
    time.sleep(0.1)
    with successor as lock:
        assert pg.execute(write, ("new", lock.fence, lock.fence)).rowcount == 1
        assert pg.execute(write, ("old", paused.fence, paused.fence)).rowcount == 0
        with pytest.raises(LockLost, match="'report' ran out"):
            paused.extend(10)
        with pytest.raises(LockLost):
            paused.release()
        assert lock.owned()
    assert pg.execute("SELECT body FROM report").fetchone() == ("new",)


def test_leaving_with_a_lock_that_ran_out_is_an_error(connect: Connect) -> None:
    with pytest.raises(redis.exceptions.LockNotOwnedError), connect().lock("a", timeout=0.01):
        time.sleep(0.05)


def test_who_waited_long_enough_is_told(connect: Connect) -> None:
    wb = connect()
    with wb.lock("a", timeout=20):
        assert not wb.lock("a", timeout=20).acquire(blocking=False)
        with (
            pytest.raises(LockNotAcquired, match="'a' is held"),
            wb.lock("a", timeout=20, blocking_timeout=0.05),
        ):
            pass
        with wb.lock("b", timeout=20):
            pass


def test_the_fence_grows_when_redis_was_emptied_and_when_its_clock_went_back(
    connect: Connect, redis_client: redis.Redis
) -> None:
    wb = connect()
    with wb.lock("a", timeout=20) as lock:
        before = lock.fence
    redis_client.delete(wb.keys.fence, wb.keys.lock("a"))
    with wb.lock("a", timeout=20) as lock:
        assert lock.fence > before
        ahead = lock.fence + 10**12
    redis_client.set(wb.keys.fence, ahead)
    with wb.lock("a", timeout=20) as lock:
        assert lock.fence == ahead + 1


def test_a_call_whose_reply_was_lost_gets_the_first_answer(
    connect: Connect, redis_url: str, redis_client: redis.Redis
) -> None:
    with Proxy.to(redis_url) as proxy:
        wb = connect(proxied_url(redis_url, proxy.port), retry=Retry(NoBackoff(), 3))
        with wb.lock("warm", timeout=20):  # Redis has the scripts
            pass
        proxy.drop_reply_after(lambda request: b"lock:a" in request)
        with wb.lock("a", timeout=20, blocking=False) as lock:
            assert proxy.dropped == 1
            assert int(redis_client.get(wb.keys.fence) or 0) == lock.fence
            proxy.drop_reply_after(lambda request: b"lock:a" in request)
        assert proxy.dropped == 2
        assert not lock.locked()
        with wb.lock("a", timeout=20, blocking=False):
            pass


def test_an_acquire_without_answer_leaves_no_lock(connect: Connect, redis_url: str) -> None:
    with Proxy.to(redis_url) as proxy:
        wb = connect(proxied_url(redis_url, proxy.port), socket_timeout=5, retry=Retry(NoBackoff(), 0))
        other = connect()
        with wb.lock("warm", timeout=20), other.lock("warm2", timeout=20):
            pass
        proxy.drop_reply_after(lambda request: b"lock:a" in request)
        with pytest.raises(ConnectionError):
            wb.lock("a", timeout=20).acquire()
        assert other.lock("a", timeout=20).acquire(blocking=False)


def test_a_cancelled_acquire_leaves_no_lock(redis_url: str, queue: str) -> None:
    async def job() -> None:
        with Proxy.to(redis_url) as proxy:
            async with AsyncWriteBehind.from_url(proxied_url(redis_url, proxy.port), queue=queue) as wb:
                async with wb.lock("warm", timeout=20):
                    pass
                proxy.pause_at(lambda request: b"lock:a" in request)
                task = asyncio.create_task(wb.lock("a", timeout=20).acquire())
                await asyncio.to_thread(proxy.wait_for_pause)
                await asyncio.sleep(0.05)
                task.cancel()
                await asyncio.sleep(0.05)
                proxy.resume()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await wb.lock("a", timeout=20).acquire(blocking=False)

    asyncio.run(job())


def test_extend_and_reacquire_set_the_time_that_is_left(connect: Connect, redis_client: redis.Redis) -> None:
    wb = connect()
    with wb.lock("a", timeout=20) as lock:
        lock.extend(30)
        assert 40_000 < redis_client.pttl(wb.keys.lock("a")) <= 50_000
        lock.reacquire()
        assert 10_000 < redis_client.pttl(wb.keys.lock("a")) <= 20_000
        lock.extend(5, replace_ttl=True)
        assert 1_000 < redis_client.pttl(wb.keys.lock("a")) <= 5_000


def test_a_lock_that_is_not_held_has_no_fence_in_any_thread(connect: Connect) -> None:
    lock, errors = connect().lock("a", timeout=20), []

    def look() -> None:
        for call in (lambda: lock.fence, lock.release, lambda: lock.extend(1)):
            try:
                call()
            except redis.exceptions.LockError as error:
                errors.append(error)

    with lock:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    look()
    assert len(errors) == 6


@pytest.mark.parametrize("name", ["", "x" * 257, "é" * 129, "a\nb", "\x00", "\ud800", 7, None, b"a"])
def test_odd_names_are_refused(connect: Connect, name: Any) -> None:
    with pytest.raises(ValueError, match="name must"):
        connect().lock(name, timeout=1)


@pytest.mark.parametrize("timeout", [0, -1, None, True, float("nan"), float("inf"), "1"])
def test_a_lock_must_run_out_some_time(connect: Connect, timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout must"):
        connect().lock("a", timeout=timeout)


def test_a_name_is_no_pattern_and_a_foreign_value_is_an_error(
    connect: Connect, redis_client: redis.Redis
) -> None:
    wb = connect()
    token = b"a:1:%d+"  # a token may be anything
    steps = LockSteps(wb._core, "{x}:%*é", 20)
    fence = wb._carrier.run(steps.acquire(token))
    assert fence is not None and wb._carrier.run(steps.acquire(token)) == fence
    assert wb._carrier.run(steps.acquire(b"a")) is None
    assert wb._carrier.run(steps.release(token))
    redis_client.lpush(wb.keys.lock("list"), "x")
    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        wb.lock("list", timeout=1).acquire()
