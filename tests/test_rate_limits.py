"""Rate limits: never more than the limit in any window, whoever asks; and writes that are let in by them."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from writebehind import AsyncWriteBehind, RateLimit, RateLimited, RateResult, RedisRefused, WriteBehind
from writebehind_worker.testing.proxy import Proxy, proxied_url

Connect = Callable[..., WriteBehind]
US = 1_000_000


def assert_exact(results: list[RateResult], limit: int, per: float) -> None:
    """Never more than ``limit`` in a window, and none refused while there was room."""
    taken = sorted(result.at for result in results if result.allowed)
    for first, beyond in zip(taken, taken[limit:], strict=False):
        assert beyond - first >= per * US
    for result in results:
        if not result.allowed:
            assert sum(result.at - per * US < at <= result.at for at in taken) == limit


def test_fifty_threads_get_no_more_than_the_limit_in_any_window(connect: Connect) -> None:
    wb = connect()
    results: list[RateResult] = []
    limiter = wb.rate_limit("r", 7, per=0.3)
    end = time.monotonic() + 1.5

    def work() -> None:
        while time.monotonic() < end or sum(result.allowed for result in results) < 14:
            results.append(limiter.acquire())
            time.sleep(0.02)

    threads = [threading.Thread(target=work) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_exact(results, 7, 0.3)
    assert wb.redis.zcard(wb.keys.rate("r", 300_000)) <= 7
    assert wb.redis.pttl(wb.keys.rate("r", 300_000)) in {*range(601), -2}


def test_fifty_tasks_get_no_more_than_the_limit_in_any_window(redis_url: str, queue: str) -> None:
    results: list[RateResult] = []

    async def job() -> None:
        async with AsyncWriteBehind.from_url(redis_url, queue=queue) as wb:
            limiter = wb.rate_limit("r", 20, per=0.3)
            results.extend(await asyncio.gather(*(limiter.acquire() for _ in range(50))))
            results.extend(await asyncio.gather(*(limiter.wait(30) for _ in range(50))))

    asyncio.run(job())
    assert_exact(results, 20, 0.3)
    assert sum(result.allowed for result in results[:50]) >= 20
    assert all(result.allowed for result in results[50:])


def test_who_waits_as_long_as_told_gets_in_and_a_refusal_costs_nothing(connect: Connect) -> None:
    limiter = connect().rate_limit("r", 3, per=0.2)
    assert [limiter.acquire().remaining for _ in range(3)] == [2, 1, 0]
    for _ in range(20):
        refused = limiter.acquire()
        assert not refused.allowed and 0 < refused.retry_after <= 0.2
    time.sleep(refused.retry_after)
    assert limiter.acquire().allowed


def test_a_cost_is_taken_whole_or_not_at_all(connect: Connect) -> None:
    limiter = connect().rate_limit("r", 10, per=60)
    assert limiter.acquire(8)[:3] == (True, 2, 0.0)
    refused = limiter.acquire(3)
    assert (refused.allowed, refused.remaining) == (False, 2)
    assert 59 < refused.retry_after <= 60
    assert limiter.acquire(2)[:3] == (True, 0, 0.0)
    for cost in (0, -1, 11, True, 1.5):
        with pytest.raises(ValueError, match="cost must"):
            limiter.acquire(cost)  # type: ignore[arg-type]


def test_waiting_ends_when_it_would_take_too_long(connect: Connect) -> None:
    limiter = connect().rate_limit("r", 1, per=60)
    assert limiter.wait(0).allowed
    before = time.monotonic()
    assert not limiter.wait(5).allowed
    assert time.monotonic() - before < 5
    quick = connect().rate_limit("quick", 1, per=0.1)
    assert all(quick.wait().allowed for _ in range(3))


def test_a_call_whose_reply_was_lost_counts_once(connect: Connect, redis_url: str) -> None:
    with Proxy.to(redis_url) as proxy:
        wb = connect(proxied_url(redis_url, proxy.port), retry=Retry(NoBackoff(), 3))
        wb.rate_limit("warm", 1, per=60).acquire()
        limiter = wb.rate_limit("r", 5, per=60)
        for remaining in (3, 1):
            proxy.drop_reply_after(lambda request: b":r\r\n" in request and b"rate:" in request)
            assert limiter.acquire(2)[:3] == (True, remaining, 0.0)
        assert proxy.dropped == 2


def test_a_clock_that_went_back_lets_in_no_more_and_keeps_nobody_out_for_long(connect: Connect) -> None:
    wb = connect()
    limiter = wb.rate_limit("r", 2, per=10)
    now = limiter.acquire().at
    key = wb.keys.rate("r", 10 * US)
    wb.redis.delete(key)
    wb.redis.zadd(key, {"a": now + 5 * US, "b": now + 5 * US})
    refused = limiter.acquire()
    assert not refused.allowed and 14 < refused.retry_after <= 15
    wb.redis.delete(key)
    wb.redis.zadd(key, {"a": now + 3600 * US, "b": now + 3600 * US})
    assert limiter.acquire().allowed


def test_a_limit_that_was_lowered_holds_at_once(connect: Connect) -> None:
    wb = connect()
    assert wb.rate_limit("r", 10, per=60).acquire(10).allowed
    refused = wb.rate_limit("r", 3, per=60).acquire()
    assert (refused.allowed, refused.remaining) == (False, 0)


def test_a_window_that_was_changed_forgets_nothing_of_the_old_one(connect: Connect) -> None:
    wb = connect()
    long, short = wb.rate_limit("r", 2, per=60), wb.rate_limit("r", 2, per=0.05)
    assert long.acquire(2).allowed
    time.sleep(0.1)
    assert short.acquire().allowed
    assert not long.acquire().allowed


@pytest.mark.parametrize(
    "arguments",
    [("", 1, 1), ("a\n", 1, 1), ("a", 0, 1), ("a", 1.5, 1), ("a", True, 1), ("a", 10**7, 1), ("a", 1, 0),
     ("a", 1, math.nan), ("a", 1, math.inf), ("a", 1, "1"), (7, 1, 1)],
)  # fmt: skip
def test_odd_limits_are_refused(connect: Connect, arguments: Any) -> None:
    with pytest.raises(ValueError, match="must"):
        connect().rate_limit(*arguments)


def test_a_foreign_value_is_an_error(connect: Connect) -> None:
    wb = connect()
    wb.redis.set(wb.keys.rate("r", US), "x")
    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        wb.rate_limit("r", 1, per=1).acquire()


# Writes.


def admit(table: str, id: Any, op: str) -> RateLimit | None:
    """As an application might: per tenant, and all of the logs."""
    if table == "logs":
        return RateLimit("logs", 3, per=60)
    return RateLimit(f"tenant:{id}", 2, per=60) if op != "delete" else None


def test_a_write_that_is_refused_writes_nothing(connect: Connect) -> None:
    wb = connect(admit=admit)
    wb.put("users", 1, {"n": 1})
    wb.patch("users", 1, {"n": 2})
    with pytest.raises(RateLimited, match="'tenant:1'") as caught:
        wb.put("users", 1, {"n": 3})
    assert 59 < caught.value.retry_after <= 60
    assert wb.get("users", 1) == {"n": 2}
    assert wb.redis.llen(wb.keys.queue) == 2
    wb.put("users", 2, {"n": 1})
    wb.delete("users", 1)


def test_a_batch_is_let_in_whole_or_costs_nothing(connect: Connect) -> None:
    wb = connect(admit=admit)
    wb.put("logs", 1, {})
    for _ in range(2):
        with pytest.raises(RateLimited, match="'logs'"), wb.batch() as batch:
            batch.put("users", 1, {})
            for n in range(3):
                batch.put("logs", n, {})
    assert wb.redis.zcard(wb.keys.rate("tenant:1", 60 * US)) == 0
    with wb.batch() as batch:
        batch.put("users", 1, {})
        batch.put("logs", 1, {})
        batch.put("logs", 2, {})
    assert len(batch.receipts) == 3
    with pytest.raises(RateLimited, match="smaller") as caught, wb.batch() as batch:
        for n in range(4):
            batch.put("logs", n, {})
    assert caught.value.retry_after == math.inf


def test_threads_and_tasks_together_write_no_more_than_is_let_in(
    connect: Connect, redis_url: str, queue: str
) -> None:
    def one(table: str, id: Any, op: str) -> RateLimit:
        return RateLimit("one", 25, per=60)

    refused: list[RateLimited] = []
    wb = connect(admit=one)

    async def job() -> None:
        async with AsyncWriteBehind.from_url(redis_url, queue=queue, admit=one) as other:
            done = await asyncio.gather(*(other.put("t", n, {}) for n in range(40)), return_exceptions=True)
            refused.extend(result for result in done if isinstance(result, RateLimited))

    def work() -> None:
        for n in range(5):
            try:
                wb.put("t", n, {})
            except RateLimited as error:
                refused.append(error)

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    asyncio.run(job())
    for thread in threads:
        thread.join()
    assert len(refused) == 90 - 25
    assert wb.redis.llen(wb.keys.queue) == 25


def test_limits_of_one_name_that_differ_are_a_mistake(connect: Connect, redis_client: redis.Redis) -> None:
    wb = connect(admit=lambda table, id, op: RateLimit("same", int(id), per=1))
    with pytest.raises(ValueError, match="different limits"), wb.batch() as batch:
        batch.put("t", 1, {})
        batch.put("t", 2, {})
    assert redis_client.llen(wb.keys.queue) == 0
