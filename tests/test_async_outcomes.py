"""Both clients come to the same; and a call cancelled at any of its steps harms no other."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest
import redis

from writebehind import AsyncWriteBehind, RedisFull, RedisUnavailable, WriteBehind, WriteBehindError
from writebehind.steps import Load
from writebehind_worker.embedded import EmbeddedServers

OLD = {"name": "old"}

Call = Callable[[Any], Any]


def bad(_: Any) -> Any:
    raise ZeroDivisionError("the loader's")


async def batch_of_two(wb: Any) -> Any:
    batch = wb.batch()
    if isinstance(wb, AsyncWriteBehind):
        async with batch:
            batch.put("t", 1, OLD)
            batch.increment("t", 2, {"n": 1})
    else:
        with batch:
            batch.put("t", 1, OLD)
            batch.increment("t", 2, {"n": 1})
    return len(batch.receipts)


async def settled(wb: Any, receipt: Any, call: str, *args: Any) -> Any:
    return await done(getattr(await done(receipt), call)(*args))


async def rejected(wb: Any) -> Any:
    """As a worker would tell it."""
    receipt = await done(wb.put("t", 1, OLD))
    reason = json.dumps({"seq": receipt.seq, "reason": "no such column", "sqlstate": "42703"})
    await done(wb.redis.zadd(wb.keys.rejected, {reason: receipt.seq}))
    await done(wb.redis.set(wb.keys.applied, receipt.seq))
    return await done(receipt.wait(5))


async def unknown(wb: Any) -> Any:
    receipt = await done(wb.put("t", 1, OLD))
    await done(wb.redis.hset(wb.keys.clock, "generation", 7))
    return await done(receipt.is_durable())


async def allowed(wb: Any) -> Any:
    return (await done(wb.rate_limit("r", 2, per=60).acquire()))[:2]


async def done(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


SCENARIOS: dict[str, list[Call]] = {
    "put": [lambda wb: wb.put("t", 1, OLD), lambda wb: wb.get("t", 1)],
    "patch": [
        lambda wb: wb.put("t", 1, OLD),
        lambda wb: wb.patch("t", 1, {"n": 1}),
        lambda wb: wb.get("t", 1),
    ],
    "increment": [lambda wb: wb.increment("t", 1, {"n": 1}), lambda wb: wb.get("t", 1)],
    "delete": [lambda wb: wb.put("t", 1, OLD), lambda wb: wb.delete("t", 1), lambda wb: wb.get("t", 1)],
    "composite": [
        lambda wb: wb.put("t", {"b": 1, "a": "x:y"}, OLD),
        lambda wb: wb.get("t", {"a": "x:y", "b": 1}),
    ],
    "batch": [batch_of_two, lambda wb: wb.get_many("t", [2, 1, 3])],
    "load": [lambda wb: wb.get("t", 1, lambda _: OLD), lambda wb: wb.get("t", 1, bad)],
    "load nothing": [lambda wb: wb.get("t", 1, lambda _: None), lambda wb: wb.get("t", 1, bad)],
    "load many": [
        lambda wb: wb.get_many("t", [1, 2], lambda ids: {1: OLD}),
        lambda wb: wb.get_many("t", [1, 2], bad),
    ],
    "invalidate": [lambda wb: wb.get("t", 1, lambda _: OLD), lambda wb: wb.invalidate("t", 1)],
    "invalidate pending": [lambda wb: wb.put("t", 1, OLD), lambda wb: wb.invalidate("t", 1)],
    "loader raises": [lambda wb: wb.get("t", 1, bad), lambda wb: wb.get_many("t", [1, 2], bad)],
    "loader is wrong": [
        lambda wb: wb.get_many("t", [1], lambda _: [1, 2]),
        lambda wb: wb.get("t", 1, lambda _: {"a": object()}),
    ],
    "marker": [lambda wb: wb.patch("t", 1, OLD), lambda wb: wb.get("t", 1, bad, timeout=0.02)],
    "no table": [lambda wb: wb.put("", 1, OLD), lambda wb: wb.get("", 1), lambda wb: wb.invalidate("", 1)],
    "no id": [lambda wb: wb.put("t", "", OLD), lambda wb: wb.delete("t", None), lambda wb: wb.get("t", {})],
    "no value": [lambda wb: wb.patch("t", 1, {}), lambda wb: wb.increment("t", 1, {"n": "x"})],
    "too large": [lambda wb: wb.put("t", 1, {"a": "x" * 2000})],
    "full": [*[lambda wb: wb.put("t", 1, OLD)] * 4, batch_of_two],
    "refused": [
        lambda wb: wb.redis.set(wb.keys.queue, "of somebody else's"),
        lambda wb: wb.put("t", 1, OLD),
        lambda wb: wb.redis.delete(wb.keys.queue),
    ],
    "rejected": [rejected],
    "unknown": [unknown],
    "not replicated": [lambda wb: wb.put("t", 1, OLD, durability="replicated", wait=0.02)],
    "rate limit": [allowed, allowed, allowed],
    "receipt": [
        lambda wb: settled(wb, wb.put("t", 1, OLD), "is_durable"),
        lambda wb: settled(wb, wb.put("t", 1, OLD), "wait", 0.02),
    ],
}


RAISED = {
    "refused": "RedisRefused",
    "rejected": "WriteRejected",
    "unknown": "OutcomeUnknown",
    "not replicated": "DurabilityNotReached",
    "full": "QueueFull",
    "marker": "FlushTimeout",
    "no id": "InvalidWrite",
    "loader is wrong": "InvalidLoad",
}


async def outcomes(wb: Any, calls: list[Call]) -> list[Any]:
    found: list[Any] = []
    for call in calls:
        try:
            result = call(wb)
            result = await result if inspect.isawaitable(result) else result
        except (WriteBehindError, ZeroDivisionError) as error:
            found.append((type(error), str(error) if "seq" not in str(error) else ""))
        else:
            found.append(type(result).__name__.removeprefix("Async") if hasattr(result, "seq") else result)
    return found


def held(client: Any, queue: str, where: str) -> Any:
    """What Redis has, but for what differs from call to call."""
    keys = sorted(client.scan_iter(f"{where}*"))
    entries = {
        key.decode().removeprefix(where): {f: v for f, v in client.hgetall(key).items() if f != b"@seq"}
        for key in keys
    }
    fates = [client.ttl(key) > 0 for key in keys]
    items = [
        item.decode().partition(',"table"')[2].replace(where, "") for item in client.lrange(queue, 0, -1)
    ]
    return entries, fates, items


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("name", SCENARIOS)
def test_both_clients_come_to_the_same(
    redis_url: str, redis_client: redis.Redis, queue: str, name: str, protocol: int
) -> None:
    found = []
    for client in (WriteBehind, AsyncWriteBehind):
        mine = f"{queue}:{client is WriteBehind:d}"  # of one length

        async def job(client: Any = client, mine: str = mine) -> Any:
            wb = client.from_url(
                redis_url, queue=mine, prefix=f"{mine}:cache:", max_queue_length=3, max_message_bytes=1000,
                ttl_jitter=0, redis_options={"protocol": protocol},
            )  # fmt: skip
            try:
                return await outcomes(wb, SCENARIOS[name])
            finally:
                closing = wb.close()
                if inspect.isawaitable(closing):
                    await closing

        said = [str(answer).replace(mine, "") for answer in asyncio.run(job())]
        said = [text if "write " not in text else text.split("write ")[0] for text in said]
        found.append((said, held(redis_client, mine, f"{mine}:cache:")))
    assert found[0] == found[1]
    assert RAISED.get(name, "") in str(found)


@pytest.mark.parametrize("fault", ["full", "gone"])
def test_both_clients_say_the_same_of_a_server_that_is(own_servers: EmbeddedServers, fault: str) -> None:
    url = own_servers.redis.url

    async def job(client: Any) -> Any:
        wb = client.from_url(url, redis_options={"retry": None})
        try:
            return await outcomes(wb, [lambda wb: wb.put("t", 1, OLD), lambda wb: wb.get("t", 1)])
        finally:
            await done(wb.close())

    if fault == "full":
        with redis.Redis.from_url(url) as server:
            server.config_set("maxmemory", 1)
    else:
        own_servers.redis.stop()
    said = [asyncio.run(job(client)) for client in (WriteBehind, AsyncWriteBehind)]
    kinds = [[answer and answer[0] for answer in answers] for answers in said]
    expected = [RedisFull, None] if fault == "full" else [RedisUnavailable] * 2
    assert kinds == [expected, expected]


CANCELLED: dict[str, Call] = {
    "put": lambda wb: wb.put("t", 1, OLD),
    "patch": lambda wb: wb.patch("t", 1, OLD),
    "increment": lambda wb: wb.increment("t", 1, {"n": 1}),
    "delete": lambda wb: wb.delete("t", 1),
    "batch": batch_of_two,
    "get": lambda wb: wb.get("t", 1),
    "load": lambda wb: wb.get("t", 1, lambda _: OLD),
    "get_many": lambda wb: wb.get_many("t", [1, 2]),
    "load many": lambda wb: wb.get_many("t", [1, 2, 3], lambda ids: [OLD for _ in ids]),
    "invalidate": lambda wb: wb.invalidate("t", 1),
    "durable": lambda wb: settled(wb, wb.put("t", 1, OLD), "is_durable"),
}


@pytest.mark.parametrize("after", [False, True], ids=["before the step", "after the step"])
@pytest.mark.parametrize("name", CANCELLED)
def test_a_call_cancelled_at_any_step_leaves_nothing_but_its_effect(
    redis_url: str, redis_client: redis.Redis, queue: str, name: str, after: bool
) -> None:
    async def job() -> int:
        k = 0
        while True:
            prefix = f"{queue}:{k}:"
            async with AsyncWriteBehind.from_url(
                redis_url, queue=queue, prefix=prefix, fill_timeout=60, redis_options={"max_connections": 2}
            ) as wb:
                await wb.put("warm", 1, OLD)
                cancelled = await cancel_at(wb, CANCELLED[name], k, after)
                for key in redis_client.scan_iter(f"{prefix}*"):
                    assert redis_client.hget(key, "@is") != b"fill", (k, key)
                # Connections and sessions: each reply is the right call's, each write counts once.
                before = redis_client.llen(queue)
                receipts = await asyncio.gather(*(wb.put("other", i, {"i": i}) for i in range(6)))
                assert len({receipt.seq for receipt in receipts}) == 6
                assert redis_client.llen(queue) == before + 6
                assert [await wb.get("other", i) for i in range(6)] == [{"i": i} for i in range(6)]
            if not cancelled:
                return k
            k += 1

    assert asyncio.run(job()) >= 1


async def cancel_at(wb: AsyncWriteBehind, call: Call, k: int, after: bool) -> bool:
    """Cancels the call at its k-th step; whether it has as many."""
    carrier, do = wb._carrier, wb._carrier._do
    count, cancelled = 0, False

    async def counting(step: Any) -> Any:
        nonlocal count, cancelled
        count += 1
        if count != k + 1:
            return await do(step)
        cancelled = True
        task = asyncio.current_task()
        assert task is not None
        if after and not isinstance(step, Load):
            await do(step)  # Redis has done it; the reply is never seen
        task.cancel()
        await asyncio.sleep(0)
        raise AssertionError("it was not cancelled")

    carrier._do = counting  # type: ignore[method-assign]
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.create_task(_awaited(call(wb)))
    finally:
        carrier._do = do  # type: ignore[method-assign]
    return cancelled


async def _awaited(call: Any) -> Any:
    return await call


def test_two_event_loops_one_after_the_other(redis_url: str, queue: str) -> None:
    async def job(i: int) -> Any:
        async with AsyncWriteBehind.from_url(redis_url, queue=queue, prefix=f"{queue}:") as wb:
            await wb.put("t", i, {"i": i})
            return await wb.get_many("t", [0, 1])

    assert asyncio.run(job(0)) == [{"i": 0}, None]
    assert asyncio.run(job(1)) == [{"i": 0}, {"i": 1}]


def test_a_server_that_restarts_in_the_middle_harms_no_later_call(own_servers: EmbeddedServers) -> None:
    async def job() -> None:
        async with AsyncWriteBehind.from_url(own_servers.redis_url) as wb:
            stop = asyncio.Event()
            accepted: list[int] = []

            async def writes(row: int) -> None:
                while not stop.is_set():
                    with contextlib.suppress(WriteBehindError):
                        accepted.append((await wb.increment("t", row, {"n": 1})).seq)

            tasks = [asyncio.create_task(writes(i)) for i in range(8)]

            async def accept_more() -> None:
                before = len(accepted)
                async with asyncio.timeout(20):
                    while len(accepted) < before + 50:
                        await asyncio.sleep(0.01)

            await accept_more()
            await asyncio.to_thread(own_servers.redis.kill)
            await asyncio.to_thread(own_servers.redis.start)
            await accept_more()
            stop.set()
            await asyncio.gather(*tasks)
            assert len(set(accepted)) == len(accepted)
            await wb.put("u", 1, OLD)
            assert await wb.get("u", 1) == OLD

    asyncio.run(job())
