"""A table moves to another queue while it is written and read: no order is lost, and no read goes back."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import psycopg
import pytest
import redis
from tests.support.shard_history import check_history
from tests.support.sharded import Run, keys, rows, run
from tests.support.workers import RunningWorker

from writebehind import AsyncWriteBehind, InvalidWrite, RedisRefused, SessionStore, WriteBehind, WriteRejected
from writebehind.keys import QueueKeys
from writebehind_worker import moving
from writebehind_worker.errors import FatalError
from writebehind_worker.moving import Move, follow
from writebehind_worker.resharding import divide, layout_of, still_draining
from writebehind_worker.testing.wait import wait_until

__all__ = ["keys", "rows", "run"]  # fixtures

Connect = Callable[..., WriteBehind]
STEPS = ["close", "decide", "arrive", "leave"]


@pytest.fixture
def bulk(queue: str) -> QueueKeys:
    """Of the other queue."""
    return QueueKeys(f"{queue}:bulk")


@pytest.fixture
def move(redis_client: redis.Redis, keys: QueueKeys) -> Callable[..., bool]:
    """Moves the table `rows`, as seen from the first queue."""

    def move(target: QueueKeys, table: str = "rows", letters: int = 0, home: QueueKeys = keys) -> bool:
        return Move(redis_client, home, table, target, lambda *_: letters, 20, unserved=True).move()

    return move


@contextmanager
def killed_after(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever moves a table in this block is killed once it has made so many steps."""
    call, made = Move._step, []

    def until(self: Any, *args: Any) -> Any:
        done = call(self, *args)
        made.append(1)
        if len(made) == step:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patched:
        patched.setattr(Move, "_step", until)
        with pytest.raises(KeyboardInterrupt):
            yield


def both(options: dict[str, Any], bulk: QueueKeys) -> ExitStack:
    """A worker of each queue, in a block."""
    stack = ExitStack()
    for one in (options, {**options, "queue": bulk.queue, "write_delay_s": 0.0}):
        stack.enter_context(RunningWorker(**one))
    return stack


# Clients.


@pytest.mark.parametrize("from_bulk", [False, True], ids=["made with the first queue", "with the other"])
def test_a_client_follows_by_itself(
    connect: Connect, bulk: QueueKeys, keys: QueueKeys, move: Callable[..., bool], from_bulk: bool
) -> None:
    before = connect()
    assert before.put("rows", 1, {"v": 1}).queue == before.put("orders", 1, {"v": 1}).queue == keys.queue
    before.redis.delete(keys.queue)  # as a worker would
    assert move(bulk)
    assert not move(bulk)
    wb = connect(queue=bulk.queue) if from_bulk else before
    own = bulk.queue if from_bulk else keys.queue
    assert [wb.put(table, 1, {"v": 2}).queue for table in ("rows", "public.rows", "orders")] == [
        bulk.queue,
        bulk.queue,
        own,
    ]
    with wb.batch() as batch:
        for n in range(4):
            batch.put("rows" if n % 2 else "orders", n, {"v": n})
    assert [receipt.queue for receipt in batch.receipts] == [own, bulk.queue, own, bulk.queue]
    wb.redis.delete(bulk.queue)
    assert move(keys)
    assert wb.put("rows", 1, {"v": 3}).queue == keys.queue
    assert wb.get("rows", 1) == {"v": 3}


def test_an_async_client_follows(
    redis_url: str, queue: str, bulk: QueueKeys, move: Callable[..., bool]
) -> None:
    async def writes() -> None:
        async with AsyncWriteBehind.from_url(redis_url, queue=queue, prefix=f"{queue}:") as wb:
            await wb.put("orders", 1, {"v": 1})
            await wb.redis.delete(queue)  # as a worker would
            move(bulk)
            assert (await wb.increment("rows", 1, {"v": 1})).queue == bulk.queue
            assert await wb.get("orders", 1) == {"v": 1}

    asyncio.run(writes())


def test_a_group_whose_tables_are_in_two_queues_is_refused_in_words(
    connect: Connect, bulk: QueueKeys, keys: QueueKeys, move: Callable[..., bool]
) -> None:
    wb = connect()

    def group() -> Any:
        with wb.atomic(route=1) as tx:
            tx.put("rows", 1, {"v": 1})
            tx.put("lines", 1, {"v": 1})
        return tx.receipt

    move(bulk)
    with pytest.raises(InvalidWrite, match="their tables have several: rows is in"):
        group()
    move(bulk, "lines")
    assert group().queue == bulk.queue
    assert wb.redis.llen(keys.queue) == 0


def test_who_slept_through_the_move_is_not_accepted(
    connect: Connect, bulk: QueueKeys, keys: QueueKeys, move: Callable[..., bool]
) -> None:
    there = connect()
    there.put("orders", 1, {"v": 1})
    there.redis.delete(keys.queue)
    asleep = there._core.places.own.now
    move(bulk)
    move(keys)
    move(bulk)
    there._core.places.own.now = asleep  # it knows what it did before
    assert there.put("rows", 1, {"v": 1}).queue == bulk.queue
    assert there.redis.llen(keys.queue) == 0


def test_all_sessions_of_a_user_are_ended_where_they_are_now(
    connect: Connect, bulk: QueueKeys, keys: QueueKeys, move: Callable[..., bool]
) -> None:
    def store(wb: WriteBehind) -> SessionStore:
        return SessionStore(wb, load=lambda _: None, load_ids_of_user=lambda _: [])

    writer, other = connect(), connect()
    store(writer).create("grace")
    writer.redis.delete(keys.queue)
    move(bulk, "sessions")
    token = store(writer).create("ada")
    assert writer.redis.llen(bulk.queue) == 1
    assert len(store(other).revoke_all("ada")) == 1
    assert store(writer).get(token) is None


def test_sessions_are_not_said_to_be_ended_while_their_table_moves(
    connect: Connect, bulk: QueueKeys, move: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    wb = connect()
    store = SessionStore(wb, load=lambda _: None, load_ids_of_user=lambda _: [])
    with killed_after(1, monkeypatch):
        move(bulk, "sessions")
    monkeypatch.setattr("writebehind.places.CLOSED_FOR_S", 0.1)
    with pytest.raises(RedisRefused, match="call again"):
        store.revoke_all("nobody")
    move(bulk, "sessions")
    assert store.revoke_all("nobody") == []


# Readers.


def test_a_reader_does_not_take_the_former_queue_s_word_for_a_write_of_the_other(
    connect: Connect,
    bulk: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    move: Callable[..., bool],
) -> None:
    wb, reader = connect(), connect()
    rows.execute("INSERT INTO rows VALUES (1, 1, 1)")
    rows.execute("CREATE TABLE orders (id int PRIMARY KEY, v int)")
    reader.get("rows", 1)
    move(bulk)
    wb.increment("rows", 1, {"n": 1})  # the cache cannot show it

    def load(id: Any) -> Any:
        return {"n": rows.execute("SELECT n FROM rows WHERE id = %s", [id]).fetchone()[0]}  # type: ignore[index]

    with RunningWorker(**options):
        wb.put("orders", 1, {"v": 1}, wait=20)  # of the former queue more is applied than the marker's seq
        with RunningWorker(**{**options, "queue": bulk.queue}):
            assert reader.get("rows", 1, load, timeout=20) == {"n": 2}
            assert reader.get_many("rows", [1], lambda ids: [load(id) for id in ids], timeout=20) == [
                {"n": 2}
            ]


# Under load.


def test_a_table_moves_there_and_back_under_load(
    connect: Connect,
    bulk: QueueKeys,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    postgres_url: str,
    run: Run,
    move: Callable[..., bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each second time somebody is killed on the way, and somebody else does the rest."""
    rows.execute("CREATE TABLE orders (id int PRIMARY KEY, n int)")
    done = threading.Event()
    written: list[dict[int, int]] = []
    errors: list[BaseException] = []

    def write(number: int) -> None:
        wb = connect(queue=bulk.queue if number == 2 else keys.queue)
        if number == 2:
            wb.put("orders", 0, {"n": 1})  # it knows of no move yet
        count: dict[int, int] = {}
        written.append(count)
        turn = 0
        while not done.is_set():
            turn += 1
            id = number * 100 + turn % 7
            count[id] = count.get(id, 0) + 1
            with wb.batch() as batch:
                batch.put("orders", id, {"n": turn})
                batch.put("rows", id, {"v": count[id]})
                batch.increment("rows", id, {"n": 1})  # a marker: who reads waits for the queue's `applied`
            if turn % 3 == 0:
                wb.invalidate("rows", id)

    def read() -> None:
        """Of each row, never an older count than was seen before."""
        wb, seen = connect(), dict[int, int]()
        with psycopg.connect(postgres_url, autocommit=True) as pg:

            def load(id: Any) -> Any:
                found = pg.execute("SELECT v FROM rows WHERE id = %s", [id]).fetchone()
                return None if found is None else {"v": found[0]}

            turn = 0
            while not done.is_set():
                turn += 1
                id = turn % 2 * 100 + turn % 7
                row = wb.get("rows", id, load, timeout=30)
                v = (row or {}).get("v") or 0
                assert v >= seen.get(id, 0), "a read went back"
                seen[id] = v

    def has_gone_on(begun: int) -> bool:
        return sum(sum(count.values()) for count in list(written)) > begun + 20 or bool(errors)

    def guarded(call: Callable[..., None], *args: Any) -> None:
        try:
            call(*args)
        except BaseException as error:
            errors.append(error)

    run("move", "rows", bulk.queue, "--unserved")
    run("move", "rows", "--back", "--unserved")
    threads = [threading.Thread(target=guarded, args=(write, n)) for n in range(3)]
    threads += [threading.Thread(target=guarded, args=(read,)) for _ in range(2)]
    # What the first queue has waits longer than the other: a move that did not wait would be overtaken.
    with both({**options, "write_delay_s": 0.2}, bulk):
        for thread in threads:
            thread.start()
        wait_until(lambda: len(written) == 3 and all(written))
        try:
            for n in range(10):
                begun = sum(map(sum, (count.values() for count in list(written))))
                if n % 4 > 1:
                    with killed_after(n % 3 + 1, monkeypatch):
                        move(keys if n % 2 else bulk)
                run("move", "rows", *(["--back"] if n % 2 else [bulk.queue]))
                wait_until(partial(has_gone_on, begun), 30)
        finally:
            done.set()
            for thread in threads:
                thread.join(40)
        assert not errors, errors
        client = connect().redis
        wait_until(lambda: not any(client.llen(k.queue) + client.llen(k.inflight) for k in (keys, bulk)), 40)
    check_history(rows, written)


@pytest.mark.parametrize("step", range(1, 5), ids=STEPS)
@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
def test_who_is_killed_half_way_is_followed_by_who_does_the_rest(
    connect: Connect,
    bulk: QueueKeys,
    keys: QueueKeys,
    redis_client: redis.Redis,
    move: Callable[..., bool],
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    back: bool,
) -> None:
    clients = [connect(), connect(queue=bulk.queue)]
    if back:
        move(bulk)
    source, target = (bulk, keys) if back else (keys, bulk)
    accepted = [source.queue] if back else []
    with killed_after(step, monkeypatch):
        move(target)
    monkeypatch.setattr("writebehind.places.CLOSED_FOR_S", 0.1)
    clients[0].put("orders", 1, {"v": 1})  # another table does not wait
    redis_client.delete(keys.queue)
    if step < 3:
        with pytest.raises(RedisRefused, match=r"run `writebehind move --queue \S+ rows"):
            clients[0].put("rows", 1, {"v": 1})
        with pytest.raises(FatalError, match="is being moved from") as refused:
            move(QueueKeys(f"{keys.queue}:third"))
        assert f"writebehind move --queue {source.queue} rows {target.queue}`" in str(refused.value.hint)
        with pytest.raises(FatalError, match="is being moved to") as refused:
            divide(redis_client, source, 2)
        assert f"writebehind move --queue {source.queue} rows {target.queue}`" in str(refused.value.hint)
    assert move(target) == (step < 4)
    receipts = [client.put("rows", 1, {"v": 2}) for client in clients]
    assert {receipt.queue for receipt in receipts} == {target.queue}, accepted
    for home in (keys, bulk):
        assert follow(redis_client, home, "rows").keys == target
        assert not redis_client.hexists(home.layout, "moving")


def test_who_slept_before_the_other_queue_was_opened_does_not_open_it_again(
    redis_client: redis.Redis,
    bulk: QueueKeys,
    keys: QueueKeys,
    move: Callable[..., bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrive = Move._arrive

    def later(self: Any, stop: Any) -> None:
        monkeypatch.setattr(Move, "_arrive", arrive)
        assert move(bulk)
        assert move(keys)
        arrive(self, stop)

    monkeypatch.setattr(Move, "_arrive", later)
    with pytest.raises(FatalError, match="not as it was read"):
        move(bulk)
    assert follow(redis_client, keys, "rows").keys == follow(redis_client, bulk, "rows").keys == keys


@pytest.mark.parametrize("step", range(4), ids=STEPS)
def test_who_sleeps_after_a_step_takes_nobody_else_s_for_its_own(
    redis_client: redis.Redis,
    bulk: QueueKeys,
    keys: QueueKeys,
    move: Callable[..., bool],
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    script, calls = moving._TABLES, itertools.count()

    def asleep(*args: Any) -> Any:
        done = script(*args)
        if next(calls) == step:
            monkeypatch.setattr(moving, "_TABLES", script)
            for target in (bulk, keys, bulk, keys):
                move(target)
        return done

    monkeypatch.setattr(moving, "_TABLES", asleep)
    with suppress(FatalError):
        move(bulk)
    assert follow(redis_client, keys, "rows").keys == follow(redis_client, bulk, "rows").keys == keys
    assert {say.state for say in layout_of(redis_client, bulk).tables.values()} <= {"away"}
    assert {say.state for say in layout_of(redis_client, keys).tables.values()} == {"here"}


def test_clients_of_a_history_that_redis_has_lost_are_not_accepted(
    connect: Connect,
    bulk: QueueKeys,
    keys: QueueKeys,
    redis_client: redis.Redis,
    move: Callable[..., bool],
) -> None:
    heard, read = connect(), connect()
    for wb in (heard, read):
        wb.put("orders", 1, {"v": 1})
    redis_client.delete(keys.queue)
    move(bulk)
    heard.put("orders", 2, {"v": 1})  # knows that `rows` is elsewhere, and nothing of that queue
    read.put("rows", 1, {"v": 1})
    redis_client.delete(keys.layout, bulk.layout, keys.queue, bulk.queue)
    for one in (keys, bulk):
        redis_client.hdel(one.clock, "shard")  # as before the move
    assert heard.put("rows", 1, {"v": 2}).queue == keys.queue
    assert read.put("rows", 1, {"v": 3}).queue == keys.queue
    redis_client.delete(keys.queue)
    move(bulk, "orders")
    assert read.put("rows", 1, {"v": 4}).queue == keys.queue
    assert read.put("orders", 1, {"v": 4}).queue == bulk.queue


def test_raw_writes_that_were_there_before_are_waited_for(
    connect: Connect,
    bulk: QueueKeys,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    redis_client: redis.Redis,
    move: Callable[..., bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    redis_client.lpush(keys.queue, '{"table":"rows","id":1,"data":{"v":1}}')
    with monkeypatch.context() as patched:
        patched.setattr(moving, "CLOSED_FOR_S", 0.3)
        with pytest.raises(FatalError, match="its writes go on"):
            move(bulk)
    wb = connect()
    assert wb.put("rows", 2, {"v": 1}).queue == keys.queue
    with both(options, bulk):
        assert move(bulk)
        assert rows.execute("SELECT v FROM rows WHERE id = 1").fetchone() == (1,)
        wb.put("rows", 1, {"v": 2}, wait=20)
    assert rows.execute("SELECT v FROM rows WHERE id = 1").fetchone() == (2,)


def test_the_other_tables_of_a_batch_do_not_wait(
    connect: Connect,
    bulk: QueueKeys,
    keys: QueueKeys,
    redis_client: redis.Redis,
    move: Callable[..., bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clients = [connect(), connect()]
    with killed_after(1, monkeypatch):
        move(bulk)
    monkeypatch.setattr("writebehind.places.CLOSED_FOR_S", 0.1)
    clients[0].put("orders", 1, {"v": 1})  # it knows, the other does not
    redis_client.delete(keys.queue)
    for wb in clients:
        with pytest.raises(RedisRefused, match="is being moved"), wb.batch() as batch:
            batch.put("rows", 1, {"v": 1})
            batch.put("orders", 1, {"v": 1})
        assert redis_client.llen(keys.queue) == 1
        redis_client.delete(keys.queue)
    assert move(keys)  # back: it stays
    assert clients[0].put("rows", 1, {"v": 1}).queue == keys.queue
    assert not move(keys)


# What is refused.


def test_open_dead_letters_are_refused_and_those_that_come_meanwhile_undo_it(
    connect: Connect,
    bulk: QueueKeys,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    redis_client: redis.Redis,
    run: Run,
) -> None:
    rows.execute("ALTER TABLE rows ADD CONSTRAINT small CHECK (n < 100)")
    wb = connect()
    asked: list[int] = []

    def letters(*_: Any) -> int:
        asked.append(1)
        return len(asked) - 1

    with both(options, bulk):
        with pytest.raises(FatalError, match="1 open dead letter in"):
            Move(redis_client, keys, "rows", bulk, letters, 20).move()
        with pytest.raises(WriteRejected):
            wb.put("rows", 1, {"n": 100}, wait=20)  # it was where it is
        assert "open dead letter" in run("move", "rows", bulk.queue, code=2)
        rows.execute("ALTER TABLE rows DROP CONSTRAINT small")
        run("dead", "retry", "--all")
        run("drain", "--timeout", "20")
        assert "is in" in run("move", "rows", bulk.queue)
        wb.put("rows", 1, {"n": 7}, wait=20)
        assert f"rows: {bulk.queue}" in run("status")
        assert bulk.queue in run("explain", "rows", "1")
        rows.execute("ALTER TABLE rows ADD CONSTRAINT small CHECK (n < 100)")
        with pytest.raises(WriteRejected):
            wb.put("rows", 1, {"n": 100}, wait=20)
        assert json.loads(run("dead", "list", "--json", queue=bulk.queue))[0]["queue"] == bulk.queue
        rows.execute("ALTER TABLE rows DROP CONSTRAINT small")
        run("dead", "retry", "--all", queue=bulk.queue)
        run("drain", "--timeout", "20", queue=bulk.queue)
        assert rows.execute("SELECT n FROM rows").fetchall() == [(100,)]
        run("verify", "--prefix", f"{keys.queue}:")


def test_a_queue_with_shards_is_refused_and_one_with_moved_tables_can_be_divided(
    connect: Connect, bulk: QueueKeys, keys: QueueKeys, redis_client: redis.Redis, move: Callable[..., bool]
) -> None:
    wb = connect()
    move(bulk)
    divide(redis_client, bulk, 3)
    assert still_draining(redis_client, bulk, layout_of(redis_client, bulk)) == 0
    assert {wb.put("rows", n, {"v": 1}).queue for n in range(20)} == {
        f"{bulk.queue}:{n}of3" for n in (1, 2, 3)
    }
    with pytest.raises(FatalError, match="divided into shards"):
        move(keys)


def test_of_a_divided_queue_too_status_names_the_tables_that_are_elsewhere(
    bulk: QueueKeys, keys: QueueKeys, redis_client: redis.Redis, move: Callable[..., bool], run: Run
) -> None:
    move(bulk)
    assert f"elsewhere    rows: {bulk.queue}\n" in run("status")
    divide(redis_client, keys, 3)
    assert run("status").endswith(f"\nelsewhere: rows: {bulk.queue}\n")


def test_a_move_is_refused_where_what_waits_is_not_brought_to_postgres(
    connect: Connect, bulk: QueueKeys, keys: QueueKeys, redis_client: redis.Redis
) -> None:
    wb = connect()
    wb.put("rows", 1, {"v": 1})
    with pytest.raises(FatalError, match="does a worker serve it"):
        try:
            Move(redis_client, keys, "rows", bulk, lambda *_: 0, 0.2, unserved=True).move()
        except FatalError as error:
            raise FatalError(f"{error} {error.hint}", "") from error
    assert wb.put("rows", 1, {"v": 2}).queue == keys.queue
