"""Other caches hear of a change once it is durable, of every one, or that they may have missed some."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from redis.asyncio import Redis as AsyncRedis
from tests.support.crashing_worker import CrashingWorker
from tests.support.workers import RunningWorker, flags

from writebehind import AsyncChanges, AsyncWriteBehind, Change, Changes, Missed, RedisRefused, WriteBehind
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
    assert one.missed == 2  # as it began, and as the worker did


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
        missed = listener.missed
        for client in wb.redis.client_list(_type="pubsub"):
            wb.redis.client_kill_filter(_id=client["id"])
        wait_until(lambda: listener.missed == missed + 1)
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


def test_only_the_tables_that_were_asked_for_and_that_something_cannot_be_read(connect: Any) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    wb = connect()
    with wb.changes(["a"]) as changes:
        assert next(changes) == Missed()
        for text in (
            b"",
            b"[]",
            b"\xff",
            b'{"changes":[{"id":1}]}',
            b'{"changes":1}',
            b'{"changes":[{"table":"a","id":1},{"table":"b","id":[1]}]}',
            b'{"changes":[{"table":"a","id":%s}]}' % deep,
            b"x" * (2 << 20),
        ):
            wb.redis.publish(wb.keys.changes, text)
            assert next(changes) == Missed()
        wb.redis.publish(
            wb.keys.changes, b'{"changes":[{"table":"b","id":1},{"table":"a","id":"x"}],"new":1}'
        )
        assert next(changes) == Change("a", "x")
    with pytest.raises(StopIteration):
        next(changes)
    with pytest.raises(TypeError, match="several names"):
        wb.changes("a")


def test_a_write_whose_id_is_deep_costs_nobody_a_change(
    connect: Any, publishing: dict[str, Any], users: psycopg.Connection[Any], queue: str
) -> None:
    """It is read deeper down the stack by who listens than by the worker."""
    wb = connect()
    deep = b'{"table":"users","id":%s,"data":{"name":"x"}}' % (b"[" * 980 + b"]" * 980)
    wb.redis.lpush(queue, deep, b'{"table":"users","id":1,"data":{"name":"y"}}')

    def listen(changes: Changes, depth: int) -> Change | Missed:
        return listen(changes, depth - 1) if depth else next(changes)

    with wb.changes() as changes:
        assert next(changes) == Missed()
        with RunningWorker(**publishing):
            heard = [listen(changes, 100) for _ in range(3)]
    assert heard == [Missed(), Change("users"), Change("users", 1)]


def test_ids_can_be_keys_of_a_cache(
    connect: Any, publishing: dict[str, Any], pg: psycopg.Connection[Any]
) -> None:
    pg.execute("CREATE TABLE lines (tenant int, line uuid, v text, PRIMARY KEY (tenant, line))")
    id = {"tenant": 1, "line": uuid.uuid4()}
    wb = connect()
    with wb.changes() as changes:
        assert next(changes) == Missed()
        with RunningWorker(**publishing):
            wb.put("lines", id, {"v": "x"}).wait(10)
            assert next(changes) == Missed()
            change = next(changes)
            assert isinstance(change, Change)
            assert wb.get("lines", change.id)["v"] == "x"
    assert change.id == {"line": str(id["line"]), "tenant": 1}
    pages = {change.id: "page", 7: "another"}
    again = read_changes(
        b'{"changes":[{"table":"lines","id":{"line":"%s","tenant":1}}]}' % str(id["line"]).encode(), None
    )
    assert [pages.pop(c.id, None) for c in again if isinstance(c, Change)] == ["page"]
    assert hash(change) == hash(Change(change.table, change.id, change.key, change.seq))


def in_child(work: Callable[[], Any]) -> Callable[[], Any]:
    """Runs it in a forked child; what is returned waits for its result."""
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of others
        pid = os.fork()
    if pid == 0:
        try:
            os.write(write_end, json.dumps(work()).encode())
        except BaseException as error:
            os.write(write_end, json.dumps(repr(error)).encode())
        finally:
            os._exit(0)
    os.close(write_end)

    def result() -> Any:
        with os.fdopen(read_end, "rb") as pipe:
            text = pipe.read()
        os.waitpid(pid, 0)
        return json.loads(text)

    return result


def ids_until(last: int, changes: Iterator[Any]) -> list[Any]:
    heard: list[Any] = []
    while last not in heard:
        change = next(changes)
        heard.append(change.id if isinstance(change, Change) else "missed")
    return heard


def told(i: int) -> bytes:
    return b'{"changes":[{"table":"t","id":%d}]}' % i


def test_after_a_fork_both_hear_all(connect: Any, redis_url: str, queue: str) -> None:
    wb = connect()
    with wb.changes() as changes, redis.Redis.from_url(redis_url) as other:
        assert next(changes) == Missed()
        with changes._turn:  # as if a thread that is not in the child were waiting
            child = in_child(lambda: ids_until(19, changes))
        wait_until(lambda: subscribers(other, queue) == 2)
        for i in range(20):
            other.publish(wb.keys.changes, told(i))
        assert ids_until(19, changes) == list(range(20))
        assert child() == ["missed", *range(20)]
        other.publish(wb.keys.changes, told(20))
        assert next(changes) == Change("t", 20)  # the child's end did not end the connection


def test_after_a_fork_both_event_loops_hear_all(redis_url: str, queue: str) -> None:
    async def ids(changes: AsyncChanges, last: int) -> list[Any]:
        heard: list[Any] = []
        while last not in heard:
            change = await asyncio.wait_for(anext(changes), 10)
            heard.append(change.id if isinstance(change, Change) else "missed")
        return heard

    async def main() -> None:
        async with AsyncWriteBehind.from_url(redis_url, queue=queue) as wb, wb.changes() as changes:
            assert await anext(changes) == Missed()
            child = in_child(lambda: asyncio.run(ids(changes, 19)))
            with redis.Redis.from_url(redis_url) as other:
                wait_until(lambda: subscribers(other, queue) == 2)
                for i in range(20):
                    other.publish(wb.keys.changes, told(i))
            assert await ids(changes, 19) == list(range(20))
            assert await asyncio.to_thread(child) == ["missed", *range(20)]
            await wb.redis.publish(wb.keys.changes, told(20))
            assert await anext(changes) == Change("t", 20)

    asyncio.run(main())


@pytest.fixture
def stands_still() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_close_waits_no_longer_than_it_says_though_redis_stands_still(
    stands_still: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("writebehind.hearing.SILENCE_S", 1.0)
    with redis.Redis(port=stands_still, socket_timeout=None, socket_connect_timeout=None) as client:
        changes = WriteBehind(client).changes()
        thread = threading.Thread(target=lambda: list(changes), daemon=True)
        thread.start()
        time.sleep(0.3)
        changes.close()
        thread.join(3)
        assert not thread.is_alive()


@pytest.mark.parametrize("waits_s", [0.3, 1.8])  # for an answer, and before the next attempt
def test_close_of_a_task_is_soon_though_redis_stands_still(
    waits_s: float, stands_still: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if waits_s > 1:
        monkeypatch.setattr("writebehind.hearing.SILENCE_S", 0.1)
        monkeypatch.setattr("writebehind.hearing._reconnect_pauses", lambda: itertools.repeat(30.0))

    async def main() -> None:
        async with AsyncRedis(port=stands_still, socket_timeout=None) as client:
            changes = AsyncWriteBehind(client).changes()
            task = asyncio.create_task(anext(changes, None))
            await asyncio.sleep(waits_s)
            began = time.monotonic()
            await changes.close()
            assert await asyncio.wait_for(task, 5) is None
            assert time.monotonic() - began < 0.5

    asyncio.run(main())


def test_an_error_that_nobody_expects_costs_the_connection_and_is_told_of(
    connect: Any, redis_url: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wb = connect()

    def fails(*_: Any) -> None:
        raise ValueError("x")

    with wb.changes() as changes:
        assert next(changes) == Missed()
        with monkeypatch.context() as patch:
            patch.setattr("writebehind.hearing.read_changes", fails)
            wb.redis.publish(wb.keys.changes, told(1))
            with pytest.raises(ValueError, match="x"):
                next(changes)
        assert next(changes) == Missed()

    async def main() -> None:
        async with AsyncWriteBehind.from_url(redis_url, queue=queue) as wb, wb.changes() as changes:
            assert await anext(changes) == Missed()
            with monkeypatch.context() as patch:
                patch.setattr("writebehind.hearing.read_changes", fails)
                await wb.redis.publish(wb.keys.changes, told(1))
                with pytest.raises(ValueError, match="x"):
                    await anext(changes)
            assert await asyncio.wait_for(anext(changes), 5) == Missed()

    asyncio.run(main())


def test_a_script_that_runs_for_too_long_is_waited_for(connect: Any) -> None:
    with private_servers({"busy-reply-threshold": "10"}) as servers:
        wb = connect(servers.redis_url)

        def run_for_ever() -> None:
            with pytest.raises(redis.ResponseError):
                wb.redis.eval("while true do end", 0)

        script = threading.Thread(target=run_for_ever)
        script.start()
        with redis.Redis.from_url(servers.redis_url) as other:
            wait_until(lambda: is_busy(other))
            with wb.changes() as changes:
                heard: Heard = []
                listener = threading.Thread(target=lambda: heard.append(next(changes)))
                listener.start()
                time.sleep(0.5)
                other.script_kill()
                listener.join(10)
                script.join(10)
                assert heard == [Missed()]


def is_busy(client: redis.Redis) -> bool:
    try:
        return not client.ping()
    except redis.ResponseError:
        return True


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
        listener.changes._hearing.asked_at = time.monotonic() - 2  # as if its answer were lost
        wait_until(lambda: listener.missed == 2)


def test_who_takes_long_over_a_change_does_not_miss_others(
    connect: Any, redis_url: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who makes all anew at a `Missed`, and needs long for it, would never come to an end."""
    monkeypatch.setattr("writebehind.hearing.SILENCE_S", 0.2)
    wb = connect()

    def tell() -> None:
        time.sleep(0.4)
        wb.redis.publish(wb.keys.changes, told(1))

    async def main() -> None:
        async with AsyncWriteBehind.from_url(redis_url, queue=queue) as other, other.changes() as changes:
            assert await anext(changes) == Missed()
            await asyncio.sleep(0.6)
            _, heard = await asyncio.gather(asyncio.to_thread(tell), anext(changes))
            assert heard == Change("t", 1)

    with wb.changes() as changes:
        assert next(changes) == Missed()
        time.sleep(0.6)
        teller = threading.Thread(target=tell)
        teller.start()
        assert next(changes) == Change("t", 1)
        teller.join()
    asyncio.run(main())


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
            assert listener.heard[:-1] == [Missed(), Missed()]  # for those that were refused
            admin.execute_command("ACL", "SETUSER", "writebehind-worker", "-publish")
            wb.put("users", 10, {"name": "a"}).wait(10)
            wait_until(lambda: worker.metric("changes_refused_total") == 4)
            admin.execute_command("ACL", "SETUSER", "writebehind-worker", "+publish")
            for i in (11, 12):
                wb.put("users", i, {"name": "a"}).wait(10)
            wait_until(lambda: listener.ids == [9, 11, 12])
            assert [type(c) for c in listener.heard[3:]] == [Missed, Change, Change]
        assert worker.facts["role"] == "owner"
    assert users.execute("SELECT count(*) FROM users").fetchone() == (7,)


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
        (b'{"table":"t","id":{"a":1e999}}', [Missed()]),
        (b'{"table":"t","id":' + b"1" * 5000 + b"}", [Missed()]),
        (b'{"table":"t","id":[1],"key":"k"}', [Change("t", None, "k")]),  # rejected: it means no row
        (b'{"table":"t","id":{"a":{"b":1}}}', [Change("t")]),
        (b'{"table":"t","id":' + b"[" * 500 + b"]" * 500 + b"}", [Change("t")]),
        (b'{"table":"t","seq":"x","id":' + b"[" * 500 + b"]" * 500 + b"}", [Change("t")]),
        (b'{"table":"t","id":1,"data":' + b"[" * 10**6 + b"]" * 10**6 + b"}", [Missed()]),
        (b'{"table":7,"id":1}', []),
        (b'["t"]', []),
        (b'{"table":"t\xff","id":1}', []),
        (b"[" * 100_000, []),
    ],
    ids=range(17),
)  # fmt: skip
def test_what_is_odd_is_told_in_a_way_that_can_be_read(item: bytes, heard: Heard) -> None:
    assert [c for m in change_messages([item]) for c in read_changes(m, None)] == heard
