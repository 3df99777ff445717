"""The async client: the same outcome as the sync one's, and a cancelled call harms no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
import redis
from tests.support.workers import RunningWorker

from writebehind import AsyncWriteBehind, WriteBehind, WriteRejected

Connect = Callable[..., Any]


@pytest.fixture
def client(redis_url: str, queue: str) -> Connect:
    @asynccontextmanager
    async def connect(**options: Any) -> AsyncIterator[AsyncWriteBehind]:
        async with AsyncWriteBehind.from_url(redis_url, queue=queue, prefix=f"{queue}:", **options) as wb:
            yield wb

    return connect


def run(job: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(job())


def test_writes_reach_postgres(
    client: Connect, users: psycopg.Connection[Any], options: dict[str, Any]
) -> None:
    async def job() -> None:
        async with client() as wb:
            await wb.put("users", 1, {"name": "Ada"})
            await (await wb.patch("users", 1, {"name": "Ada L."})).wait(10)
            async with wb.batch() as batch:
                batch.put("users", 2, {"name": "Bob"})
                batch.delete("users", 1)
            await batch.wait(10)
            assert await batch.receipts[0].is_durable()
            with pytest.raises(WriteRejected):
                await (await wb.patch("users", 9, {"name": "x"})).wait(10)

    with RunningWorker(**options):
        run(job)
    assert users.execute("SELECT * FROM users").fetchall() == [(2, "Bob")]


def test_readers_of_one_missing_row_load_it_once(client: Connect) -> None:
    loads = []

    async def load(id: int) -> dict[str, Any]:
        loads.append(id)
        await asyncio.sleep(0.05)
        return {"id": id}

    async def job() -> None:
        async with client() as wb:
            rows = await asyncio.gather(*(wb.get("t", 1, load) for _ in range(200)))
            assert rows == [{"id": 1}] * 200

    run(job)
    assert loads == [1]


def test_a_plain_function_loads_as_well(client: Connect) -> None:
    async def job() -> None:
        async with client() as wb:
            assert await wb.get("t", 1, lambda id: {"id": id}) == {"id": 1}
            assert await wb.get_many("t", [1, 2], lambda ids: [{"id": i} for i in ids]) == [
                {"id": 1},
                {"id": 2},
            ]

    run(job)


def test_a_cancelled_reader_gives_up_its_token(
    client: Connect, redis_client: redis.Redis, queue: str
) -> None:
    async def never(_: int) -> None:
        await asyncio.sleep(60)

    async def job() -> None:
        async with client() as wb:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await wb.get("t", 1, never)

    run(job)
    assert not redis_client.exists(f"{queue}:t:1")


def test_a_cancelled_call_never_gives_its_reply_to_another(client: Connect, connect: Any) -> None:
    async def job() -> None:
        async with client(redis_options={"max_connections": 3}) as wb:
            for i in range(20):
                await wb.put("t", i, {"i": i})
            for round_ in range(300):
                calls = [asyncio.create_task(wb.get("t", i)) for i in range(3)]
                for _ in range(round_ % 7):
                    await asyncio.sleep(0)
                calls[round_ % 3].cancel()
                await asyncio.gather(*calls, return_exceptions=True)
                assert await asyncio.gather(*(wb.get("t", i) for i in range(3))) == [
                    {"i": i} for i in range(3)
                ]
                writes = [asyncio.create_task(wb.increment("n", i, {"n": 1})) for i in range(3)]
                for _ in range(round_ % 7):
                    await asyncio.sleep(0)
                writes[round_ % 3].cancel()
                done = await asyncio.gather(*writes, return_exceptions=True)
                seqs = [receipt.seq for receipt in done if not isinstance(receipt, BaseException)]
                assert len(set(seqs)) == len(seqs) >= 2

    run(job)
    wb: WriteBehind = connect()
    assert wb.get("t", 1) == {"i": 1}
