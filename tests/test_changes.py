"""Other caches hear of a change once it is durable, of every one, or that they may have missed some."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from tests.support.crashing_worker import CrashingWorker
from tests.support.workers import RunningWorker, flags

from writebehind import AsyncWriteBehind, Change, Changes, Missed, RedisRefused, WriteBehind
from writebehind.change import read_changes
from writebehind.keys import QueueKeys
from writebehind_worker.change_messages import MOST_BYTES, change_messages
from writebehind_worker.testing.servers import private_servers
from writebehind_worker.testing.wait import wait_until

ACL = Path(__file__).parents[1] / "deploy" / "redis-acl.conf"
Heard = list[Change | Missed]


@pytest.fixture
def publishing(options: dict[str, Any]) -> dict[str, Any]:
    return {**options, "publish_changes": True}


class Listener:
    """Hears of changes in a thread of its own."""

    def __init__(self, changes: Changes, look: Callable[[Change], None] | None = None) -> None:
        self.changes, self.heard, self._look = changes, Heard(), look
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            for change in self.changes:
                if self._look is not None and isinstance(change, Change):
                    self._look(change)
                self.heard.append(change)
        except BaseException as error:
            self.error = error

    @property
    def ids(self) -> list[Any]:
        return [change.id for change in self.heard if isinstance(change, Change)]

    @property
    def missed(self) -> int:
        return self.heard.count(Missed())

    def __enter__(self) -> Listener:
        self._thread.start()
        wait_until(lambda: self.heard or self.error)
        return self

    def __exit__(self, *_: object) -> None:
        self.changes.close()
        self._thread.join(5)
        assert not self._thread.is_alive(), "close did not end the iteration"
        if self.error is not None:
            raise self.error


def subscribers(client: redis.Redis, queue: str) -> int:
    return int(client.pubsub_numsub(QueueKeys(queue).changes)[0][1])


def test_a_change_is_heard_only_once_it_is_in_postgres(
    connect: Any, publishing: dict[str, Any], users: psycopg.Connection[Any], postgres_url: str
) -> None:
    """Rows are written again and again, in batches of which several go at once."""
    wb = connect()
    seen: list[tuple[int | None, tuple[str] | None]] = []
    written: dict[int, int] = {}
    with psycopg.connect(postgres_url, autocommit=True) as reader:

        def look(change: Change) -> None:
            row = reader.execute("SELECT name FROM users WHERE id = %s", [change.id]).fetchone()
            seen.append((change.seq, row))

        def write(turn: int) -> None:
            with wb.batch() as batch:
                for i in range(25):
                    batch.put("users", turn % 4 * 5 + i, {"name": str(turn)})
            written.update((receipt.seq, turn) for receipt in batch.receipts)

        with Listener(wb.changes(), look) as one, Listener(wb.changes()) as two:
            for turn in range(20):
                write(turn)
            with RunningWorker(**publishing, batch_size=20):
                for turn in range(20, 60):
                    write(turn)
                last = max(written)
                for listener in (one, two):
                    wait_until(lambda listener=listener: Change in map(type, listener.heard))  # type: ignore[misc]
                    wait_until(lambda listener=listener: listener.heard[-1].seq == last)  # type: ignore[misc]
    assert [seq for seq, row in seen if row is None or int(row[0]) < written[seq or 0]] == []
    assert set(one.ids) == set(range(40))
    assert one.heard == two.heard
    assert one.heard.index(Missed()) == 0
    assert one.missed == 1


def test_what_a_cache_must_drop_is_named(
    connect: Any, publishing: dict[str, Any], users: psycopg.Connection[Any], queue: str
) -> None:
    wb = connect()
    cached: dict[Any, int] = {}

    def look(change: Change) -> None:
        cached[change.id if isinstance(change.id, int) else 3] = wb.redis.exists(change.key or "")

    with Listener(wb.changes(), look) as listener, RunningWorker(**publishing):
        accepted = wb.put("users", 1, {"name": "a"})
        accepted.wait(10)
        rejected = wb.put("users", 2, {"nosuch": "a"})
        wb.redis.lpush(queue, json.dumps({"table": "users", "id": {"id": 3}, "data": {"name": "raw"}}))
        wb.redis.lpush(queue, json.dumps({"table": "users", "id": 4, "op": "none", "key": "k"}))
        wb.redis.lpush(queue, "no message")
        wb.put("users", 5, {"name": "b"}).wait(10)
        wait_until(lambda: 5 in listener.ids)
    changes = [change for change in listener.heard if isinstance(change, Change)]
    assert changes[0] == Change("users", 1, f"{queue}:users:1", accepted.seq)
    assert changes[1] == Change("users", 2, f"{queue}:users:2", rejected.seq)
    assert changes[2] == Change("users", {"id": 3})
    assert changes[3] == Change("users", 4, "k")
    assert len(changes) == 5
    assert cached == {1: 1, 2: 0, 3: 0, 4: 0, 5: 1}  # the rejected one is no longer cached when it is told


@pytest.mark.parametrize("point", ["commit:after", "settle:after", "acknowledge:before", "acknowledge:after"])
def test_a_batch_that_was_committed_by_a_worker_that_died_is_heard_of(
    point: str, connect: Any, publishing: dict[str, Any], users: psycopg.Connection[Any]
) -> None:
    wb = connect()
    with Listener(wb.changes()) as listener:
        for i in range(3):
            wb.put("users", i, {"name": "a"})
        with CrashingWorker(f"{point}:1", flags(**publishing)) as worker:
            worker.wait_for_death()
        assert users.execute("SELECT count(*) FROM users").fetchone() == (3,)
        wb.redis.delete(wb.keys.lease)
        with RunningWorker(**publishing):
            wait_until(lambda: set(listener.ids) == {0, 1, 2})


@pytest.mark.parametrize("point", ["commit:before:1", "settle:before:1"])
def test_nothing_is_heard_before_the_commit_and_before_the_entries_are_settled(
    point: str, connect: Any, publishing: dict[str, Any], users: psycopg.Connection[Any]
) -> None:
    wb = connect()
    with Listener(wb.changes()) as listener:
        wb.put("users", 1, {"name": "a"})
        with CrashingWorker(point, flags(**publishing), signal.SIGSTOP) as worker:
            worker.wait_for_pause()
            wb.redis.publish(wb.keys.changes, b'{"changes":[{"table":"end"}]}')
            wait_until(lambda: Change("end") in listener.heard)
            assert listener.heard == [Missed(), Change("end")]
            worker.resume()
            wait_until(lambda: 1 in listener.ids)


def test_who_was_disconnected_is_told_and_goes_on(
    connect: Any, publishing: dict[str, Any], users: psycopg.Connection[Any], queue: str
) -> None:
    wb = connect()
    with Listener(wb.changes()) as listener, RunningWorker(**publishing):
        wb.put("users", 1, {"name": "a"})
        wait_until(lambda: listener.ids == [1])
        for client in wb.redis.client_list(_type="pubsub"):
            wb.redis.client_kill_filter(_id=client["id"])
        wait_until(lambda: listener.missed == 2)
        wb.put("users", 2, {"name": "a"})
        wait_until(lambda: listener.ids == [1, 2])
    wait_until(lambda: subscribers(wb.redis, queue) == 0)


def test_who_reads_too_slowly_is_told(connect: Any, queue: str) -> None:
    with private_servers({"client-output-buffer-limit": "pubsub 100kb 0 0"}) as servers:
        wb = connect(servers.redis_url)
        channel, message = QueueKeys(queue).changes, change_messages([b'{"table":"t","id":1}'] * 500)
        assert len(message) == 1
        with wb.changes() as changes:
            assert next(changes) == Missed()
            large = b'{"changes":[],"padding":"' + b"x" * 60_000 + b'"}'
            wait_until(lambda: [wb.redis.publish(channel, large) for _ in range(50)][-1] == 0)
            assert next(changes) == Missed()
            wb.redis.publish(channel, message[0])
            assert next(changes) == Change("t", 1)


def test_only_the_tables_that_were_asked_for_and_what_is_no_message_is_skipped(
    connect: Any, queue: str
) -> None:
    wb = connect()
    with wb.changes(["a"]) as changes:
        assert next(changes) == Missed()
        for text in (b"", b"[]", b"\xff", b'{"changes":[{"id":1}]}', b'{"changes":1}', b"x" * (2 << 20)):
            wb.redis.publish(wb.keys.changes, text)
        wb.redis.publish(
            wb.keys.changes, b'{"changes":[{"table":"b","id":1},{"table":"a","id":"x"}],"new":1}'
        )
        assert next(changes) == Change("a", "x")
    with pytest.raises(StopIteration):
        next(changes)
    with pytest.raises(TypeError, match="several names"):
        wb.changes("a")


def test_close_from_another_thread_ends_it_though_redis_is_away(connect: Any) -> None:
    wb = connect("redis://127.0.0.1:1")
    changes = wb.changes()
    thread = threading.Thread(target=lambda: list(changes), daemon=True)
    thread.start()
    time.sleep(0.3)
    changes.close()
    thread.join(5)
    assert not thread.is_alive()


def test_nothing_is_published_by_default(
    connect: Any, options: dict[str, Any], users: psycopg.Connection[Any]
) -> None:
    wb = connect()
    with Listener(wb.changes()) as listener, RunningWorker(**options):
        wb.put("users", 1, {"name": "a"}).wait(10)
        wb.redis.publish(wb.keys.changes, b'{"changes":[{"table":"end"}]}')
        wait_until(lambda: Change("end") in listener.heard)
    assert listener.heard == [Missed(), Change("end")]


@pytest.mark.parametrize("protocol", [2, 3])
def test_silence_is_not_taken_for_life(
    protocol: int, connect: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("writebehind.hearing.SILENCE_S", 0.8)
    with Listener(connect(f"{redis_url}?protocol={protocol}").changes()) as listener:
        time.sleep(2)
        assert listener.missed == 1  # the server has answered
        listener.changes._hearing.asked = True  # as if its answers were lost
        listener.changes._hearing.heard_at = time.monotonic() - 2
        wait_until(lambda: listener.missed == 2)


def test_async_goes_on_after_a_cancelled_wait_and_is_closed_by_another_task(
    redis_url: str, queue: str
) -> None:
    async def main() -> None:
        async with AsyncWriteBehind.from_url(redis_url, queue=queue) as wb, wb.changes(["t"]) as changes:
            assert await anext(changes) == Missed()
            for i in range(20):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(changes), 0.01)
                await wb.redis.publish(wb.keys.changes, b'{"changes":[{"table":"t","id":%d}]}' % i)
                assert await anext(changes) == Change("t", i)
            for client in await wb.redis.client_list(_type="pubsub"):
                await wb.redis.client_kill_filter(_id=client["id"])
            assert await asyncio.wait_for(anext(changes), 5) == Missed()

            async def all() -> list[Any]:
                return [change async for change in changes]

            task = asyncio.create_task(all())
            await asyncio.sleep(0.1)
            await changes.close()
            assert await asyncio.wait_for(task, 5) == []

    asyncio.run(main())


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    with private_servers({"include": str(ACL)}) as servers:
        yield servers.redis_url


def optional(name: str) -> str:
    line = next(line for line in ACL.read_text().splitlines() if line.startswith(f"#   {name} "))
    return line.removeprefix(f"#   {name}").strip()


def test_an_application_needs_just_the_rights_that_are_listed(guarded: str) -> None:
    rights = optional("changes").split()
    with redis.Redis.from_url(guarded) as admin:
        for left_out in (None, "+subscribe", "&{db:write:queue}:changes"):
            admin.execute_command(
                "ACL",
                "SETUSER",
                "app",
                "reset",
                "on",
                ">x",
                "resetchannels",
                *[r for r in rights if r != left_out],
            )
            with WriteBehind.from_url(guarded.replace("//", "//app:x@")) as wb, wb.changes() as changes:
                if left_out is None:
                    assert next(changes) == Missed()
                    changes._pubsub.ping()
                    assert changes._pubsub.get_message(timeout=2)["type"] == "pong"
                else:
                    with pytest.raises(RedisRefused, match=r"changes: .*deploy/redis-acl\.conf"):
                        next(changes)


def test_a_worker_without_the_right_goes_on_and_with_it_publishes(
    guarded: str, postgres_url: str, users: psycopg.Connection[Any]
) -> None:
    url = guarded.replace("//", "//writebehind-worker:change-me-worker@")
    with (
        redis.Redis.from_url(guarded) as admin,
        WriteBehind.from_url(guarded, prefix="cache:") as wb,
        RunningWorker(redis_url=url, postgres_url=postgres_url, publish_changes=True) as worker,
    ):
        for i in range(3):
            wb.put("users", i, {"name": "a"}).wait(10)
        wait_until(lambda: worker.metric("changes_refused_total") == 3)
        with Listener(wb.changes()) as listener:
            admin.execute_command(
                "ACL", "SETUSER", "writebehind-worker", *optional("publish_changes").split()
            )
            wb.put("users", 9, {"name": "a"}).wait(10)
            wait_until(lambda: listener.ids == [9])
        assert worker.facts["role"] == "owner"
    assert users.execute("SELECT count(*) FROM users").fetchone() == (4,)


def test_messages_are_bounded_and_name_each_row_once() -> None:
    items = [
        json.dumps({"table": "t", "id": i % 1200, "seq": i + 1, "key": f"k{i % 1200}"}).encode()
        for i in range(2400)
    ]
    messages = change_messages(items)
    assert [len(json.loads(m)["changes"]) for m in messages] == [500, 500, 200]
    found = [change for m in messages for change in read_changes(m, None)]
    assert found == [Change("t", i, f"k{i}", 1201 + i) for i in range(1200)]
    long = [json.dumps({"table": "t", "id": f"{i}" + "x" * 5000}).encode() for i in range(100)]
    messages = change_messages(long)
    assert max(map(len, messages)) < MOST_BYTES + 100
    assert [c.id for m in messages for c in read_changes(m, None)] == [json.loads(i)["id"] for i in long]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("item", "heard"),
    [
        (b'{"table":"t","id":"' + b"x" * 100_000 + b'"}', [Missed()]),
        (b'{"table":"t","id":1e999}', [Missed()]),
        (b'{"table":"t","id":"\\ud800"}', []),  # Postgres never gets it
        (b'{"table":"t","id":12345678901234567890123}', [Change("t", 12345678901234567890123)]),
        (b'{"table":"t","id":1,"seq":"x","key":7}', [Change("t", 1)]),
        (b'{"table":"t","id":1,"seq":999999999999999999999999}', [Change("t", 1, None, 10**24 - 1)]),
        (b'{"table":7,"id":1}', []),
        (b'["t"]', []),
        (b'{"table":"t\xff","id":1}', []),
        (b"[" * 100_000, []),
    ],
    ids=range(10),
)  # fmt: skip
def test_what_is_odd_is_told_in_a_way_that_can_be_read(item: bytes, heard: Heard) -> None:
    assert [c for m in change_messages([item]) for c in read_changes(m, None)] == heard
