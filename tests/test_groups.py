"""Atomic groups, from the call to Postgres and back."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import psycopg
import pytest
import redis
from click.testing import CliRunner
from tests.support.clients import EitherClient, clients
from tests.support.crashing_worker import CrashingWorker
from tests.support.fleets import RunningFleet
from tests.support.rows import Rows
from tests.support.sharded import all_queues, wait_until_drained
from tests.support.workers import RunningWorker, flags

from writebehind import Change, InvalidWrite, QueueFull, RedisRefused, WriteBehind, WriteRejected, core
from writebehind.group import MAX_GROUP
from writebehind.keys import QueueKeys
from writebehind.route import shard_of_route
from writebehind.shards import shard_queues
from writebehind_worker import dead_retry, received
from writebehind_worker.cli import cli
from writebehind_worker.errors import NewerVersion
from writebehind_worker.received import receive
from writebehind_worker.resharding import divide
from writebehind_worker.testing.wait import wait_until

__all__ = ["clients"]  # a fixture

Connect = Callable[..., WriteBehind]

TABLES = """
CREATE TABLE orders (id int PRIMARY KEY, name text CHECK (name <> 'bad'));
CREATE TABLE lines (id int PRIMARY KEY, order_id int NOT NULL REFERENCES orders, n int);
CREATE TABLE stock (id int PRIMARY KEY, n int);
"""


@pytest.fixture
def orders(pg: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    pg.execute(TABLES.encode())
    return pg


def order(tx: Any, id: int = 7, name: str = "x") -> None:
    """One that is good, or whose order is not."""
    tx.put("lines", id * 10, {"order_id": id, "n": 2})
    tx.put("orders", id, {"name": name})
    tx.increment("stock", 3, {"n": -2})


# Sending.


def test_a_group_is_one_message_and_the_cache_shows_all_of_it(
    clients: EitherClient, redis_client: redis.Redis, queue: str
) -> None:
    call = clients.connect()
    call("put", "stock", 3, {"n": 10})
    receipt = clients.group(order, route=7)
    item, _ = redis_client.lrange(queue, 0, -1)
    read = json.loads(item)
    assert (read["seq"], read["v"], read["route"]) == (receipt.seq, 3, "7")
    assert [m["table"] for m in read["group"]] == ["lines", "orders", "stock"]
    assert call("get_many", "orders", [7]) == [{"name": "x"}]
    assert call("get", "lines", 70) == {"order_id": 7, "n": 2}
    assert call("get", "stock", 3) == {"n": 8}
    entries = [f"{queue}:{name}" for name in ("lines:70", "orders:7", "stock:3")]
    assert {redis_client.hget(entry, "@seq") for entry in entries} == {str(receipt.seq).encode()}
    after = call("put", "stock", 4, {"n": 1})
    assert after.seq > receipt.seq


def test_an_exception_sends_nothing_and_so_does_an_empty_block(
    clients: EitherClient, redis_client: redis.Redis, queue: str
) -> None:
    clients.connect()

    def fail(tx: Any) -> None:
        tx.put("stock", 1, {"n": 1})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        clients.group(fail, route=1)
    assert clients.group(lambda tx: None, route=1) is None
    assert redis_client.llen(queue) == 0


def test_what_is_no_group_is_refused_before_it_is_sent(clients: EitherClient) -> None:
    clients.connect(max_message_bytes=500)
    for fill, says in (
        (lambda tx: tx.put("t", 1, {"n": 1}, route=2), "its route"),
        (lambda tx: tx.put("t", 1, {"n": "x" * 500}), "message of the group"),
        (lambda tx: [tx.delete("t", n) for n in range(MAX_GROUP + 1)], "at most 1000"),
        (lambda tx: tx.put("t", 1, {"n": object()}), "JSON"),
    ):
        with pytest.raises(InvalidWrite, match=says):
            clients.group(fill, route="1")
    with pytest.raises(InvalidWrite, match="route"):
        clients.group(order, route="")


def test_a_group_that_was_refused_can_be_entered_again(
    connect: Connect, redis_client: redis.Redis, queue: str
) -> None:
    wb = connect(max_queue_length=1)
    wb.put("stock", 1, {"n": 1})
    tx = wb.atomic(route=7)
    with pytest.raises(QueueFull), tx:
        order(tx)
    assert redis_client.exists(f"{queue}:orders:7") == 0
    redis_client.delete(queue)
    with tx:
        pass
    assert tx.receipt is not None and redis_client.llen(queue) == 1


def test_a_group_counts_as_the_one_message_that_it_is(
    connect: Connect, redis_client: redis.Redis, queue: str
) -> None:
    wb = connect(max_queue_length=2)
    for _ in range(2):
        with wb.atomic(route=7) as tx:
            order(tx)
    with pytest.raises(QueueFull), wb.atomic(route=7) as tx:
        order(tx)
    assert redis_client.llen(queue) == 2


def test_a_group_whose_rows_find_no_common_shard_is_refused_in_time(
    connect: Connect, redis_client: redis.Redis, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wb = connect()
    monkeypatch.setattr(core, "CLOSED_FOR_S", 0.2)
    monkeypatch.setattr(core.Core, "_way_of", lambda *_: (None, None))
    with pytest.raises(RedisRefused, match=r"orders.*nothing was written"), wb.atomic(route=7) as tx:
        order(tx)
    assert redis_client.llen(queue) == 0


def test_a_group_of_large_values_is_whole(connect: Connect, redis_client: redis.Redis, queue: str) -> None:
    wb = connect(compress_above=100)
    with wb.atomic(route=1) as tx:
        tx.put("t", 1, {"long": "x" * 1000})
        tx.put("t", 2, {"long": "y" * 1000})
    assert receive(0, cast(bytes, redis_client.lindex(queue, 0)), 1 << 60).fault is None
    assert wb.get_many("t", [1, 2]) == [{"long": "x" * 1000}, {"long": "y" * 1000}]


@dataclass
class Line:
    order_id: int
    id: int
    n: int


def test_typed_rows_go_into_a_group(connect: Connect, redis_client: redis.Redis, queue: str) -> None:
    lines = connect().table(Line, name="lines", key="id", route="order_id")
    with connect().atomic(route=7) as tx:
        lines.into(tx).put(Line(7, 70, 2))
        lines.into(tx).increment(70, n=1, route=7)
        with pytest.raises(InvalidWrite, match="its route"):
            lines.into(tx).put(Line(8, 80, 2))
    (item,) = redis_client.lrange(queue, 0, -1)
    assert len(json.loads(item)["group"]) == 2


# To Postgres.


def test_a_group_is_committed_and_its_entries_are_settled(
    clients: EitherClient, orders: psycopg.Connection[Any], redis_client: redis.Redis, options: dict[str, Any]
) -> None:
    clients.connect()
    with RunningWorker(**options) as worker:
        clients.settle(clients.group(order, route=7, wait=20))
        assert worker.metric("writes_total", table="public.lines", outcome="applied") == 1
    assert orders.execute("SELECT count(*) FROM lines JOIN orders o ON order_id = o.id").fetchone() == (1,)
    for name in redis_client.scan_iter(f"{options['queue']}:*:*[0-9]"):
        assert redis_client.ttl(name) > 0 or redis_client.hget(name, "@is") is not None, name


def test_of_a_refused_group_nothing_is_left(
    clients: EitherClient, orders: psycopg.Connection[Any], redis_client: redis.Redis, options: dict[str, Any]
) -> None:
    call = clients.connect()
    with RunningWorker(**options):
        call("put", "stock", 3, {"n": 10})
        with pytest.raises(WriteRejected, match=r'write 2 of the group, put of "orders"') as caught:
            clients.group(lambda tx: order(tx, name="bad"), route=7, wait=20)
        receipt = caught.value.receipt
        assert receipt is not None and receipt.seq == caught.value.seq
        assert call("get", "stock", 3, lambda _: {"n": 10}) == {"n": 10}
    assert [call("get", t, i) for t, i in (("orders", 7), ("lines", 70))] == [None, None]
    assert orders.execute("SELECT n FROM stock").fetchall() == [(10,)]
    assert orders.execute("SELECT count(*) FROM lines").fetchone() == (0,)
    assert orders.execute("SELECT count(*) FROM writebehind.dead_letters").fetchone() == (1,)


def test_any_language_can_produce_a_group(orders: psycopg.Connection[Any], rows: Rows) -> None:
    rows.client.lpush(
        rows.queue,
        '{"group":[{"table":"orders","id":1,"data":{"name":"x"}},{"table":"stock","id":1,"op":"increment",'
        '"data":{"n":5}},{"table":"stock","id":2,"op":"delete"}]}',
    )
    rows.flush()
    assert orders.execute("SELECT name, n FROM orders, stock").fetchall() == [("x", 5)]


def test_a_retried_group_lands_once_and_whole(
    connect: Connect, orders: psycopg.Connection[Any], rows: Rows
) -> None:
    with rows.wb.atomic(route=7) as tx:
        order(tx, name="bad")
    rows.flush()
    orders.execute("ALTER TABLE orders DROP CONSTRAINT orders_name_check")
    env = {f"WRITEBEHIND_{n.upper()}": str(v) for n, v in rows.options.items()}
    shown = CliRunner(env=env).invoke(cli, ["dead", "show", "1"])
    assert "write 2 of the group" in shown.output and '"group":' in shown.output
    for _ in range(2):
        sent = CliRunner(env=env).invoke(cli, ["dead", "retry", "1", "--wait", "0"])
        assert sent.exit_code == 0, sent.output
    assert rows.wb.get("orders", 7) == {"name": "bad"}
    rows.flush()
    assert orders.execute("SELECT n FROM stock").fetchall() == [(-2,)]
    assert orders.execute("SELECT count(*) FROM lines").fetchone() == (1,)
    assert orders.execute("SELECT count(*) FROM writebehind.dead_letters").fetchone() == (0,)


def test_many_retried_groups_are_sent_in_several_calls(
    orders: psycopg.Connection[Any], rows: Rows, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for id in range(5):
        with rows.wb.atomic(route=7) as tx:
            order(tx, id=id, name="bad")
    rows.flush()
    orders.execute("ALTER TABLE orders DROP CONSTRAINT orders_name_check")
    monkeypatch.setattr(dead_retry, "MAX_BATCH", 7)  # a group has three writes
    rows.client.delete(rows.keys.producers)
    env = {f"WRITEBEHIND_{n.upper()}": str(v) for n, v in rows.options.items()}
    sent = CliRunner(env=env).invoke(cli, ["dead", "retry", "--all", "--wait", "0"])
    assert sent.exit_code == 0, sent.output
    found: list[Any] = redis_client.hvals(rows.keys.producers)
    assert [value.split(b":")[0] for value in found] == [b"3"], "calls"
    rows.flush()
    assert orders.execute("SELECT n FROM stock").fetchall() == [(-10,)]
    assert orders.execute("SELECT count(*) FROM writebehind.dead_letters").fetchone() == (0,)


def test_a_retried_group_is_passed_over_where_one_of_its_rows_was_written_since(
    orders: psycopg.Connection[Any], rows: Rows
) -> None:
    with rows.wb.atomic(route=7) as tx:
        order(tx, name="bad")
    rows.flush()
    rows.wb.put("stock", 3, {"n": 50})
    env = {f"WRITEBEHIND_{n.upper()}": str(v) for n, v in rows.options.items()}
    CliRunner(env=env).invoke(cli, ["dead", "retry", "1", "--wait", "0"])
    rows.flush()
    assert orders.execute("SELECT n FROM stock").fetchall() == [(50,)]
    assert orders.execute("SELECT superseded_at IS NOT NULL FROM writebehind.dead_letters").fetchall() == [
        (True,)
    ]


def test_a_corrected_group_cannot_take_a_cache_entry_to_another_row(
    orders: psycopg.Connection[Any], rows: Rows
) -> None:
    with rows.wb.atomic(route=7) as tx:
        order(tx, name="bad")
    rows.flush()
    row = orders.execute("SELECT body FROM writebehind.dead_letters").fetchone()
    assert row is not None
    body = json.loads(row[0])
    body["group"][0]["id"] = 8  # its `key` is still that of the order 7
    env = {f"WRITEBEHIND_{n.upper()}": str(v) for n, v in rows.options.items()}
    command = ["dead", "retry", "1", "--wait", "0", "--body", json.dumps(body)]
    refused = CliRunner(env=env).invoke(cli, command)
    assert refused.exit_code == 2
    assert "cache entry of another row" in refused.output
    assert rows.client.llen(rows.options["queue"]) == 0


def test_a_group_is_explained_by_each_of_its_rows(orders: psycopg.Connection[Any], rows: Rows) -> None:
    with rows.wb.atomic(route=7) as tx:
        order(tx, name="bad")
    for table, id, op in (("orders", 7, "put"), ("lines", 70, "put"), ("stock", 3, "increment")):
        (write,) = rows.explain(table, str(id))["pending"]["writes"]
        assert (write["op"], write["seq"]) == (op, tx.receipt.seq if tx.receipt else None)
    assert rows.explain("stock", "4")["pending"]["writes"] == []
    rows.flush()
    for table, id in (("orders", 7), ("lines", 70), ("stock", 3)):
        assert len(rows.explain(table, str(id))["dead_letters"]) == 1


def test_each_row_of_a_group_is_told_as_a_change(
    connect: Connect, orders: psycopg.Connection[Any], options: dict[str, Any]
) -> None:
    wb = connect()
    with RunningWorker(**options, publish_changes=True) as worker, wb.changes() as changes:
        worker.wait_for_role("owner")
        with wb.atomic(route=7) as tx:
            order(tx)
        told = (change for change in changes if isinstance(change, Change))
        found = list(itertools.islice(told, 3))
    assert [(c.table, c.id) for c in found] == [("lines", 70), ("orders", 7), ("stock", 3)]
    assert {c.seq for c in found} == {tx.receipt.seq if tx.receipt else None}


def test_all_of_a_group_goes_to_one_shard(
    connect: Connect,
    orders: psycopg.Connection[Any],
    redis_client: redis.Redis,
    queue: str,
    options: dict[str, Any],
) -> None:
    divide(redis_client, QueueKeys(queue), 4)
    wb = connect()
    for n in range(20):
        with wb.atomic(route=n) as tx:
            order(tx, n, "bad" if n % 5 == 0 else "x")
        assert tx.receipt is not None
        assert tx.receipt.queue == shard_queues(queue, 4)[shard_of_route(str(n), 4)]
    with RunningFleet(**options):
        wait_until_drained(redis_client, all_queues(QueueKeys(queue), 4), 20)
    assert orders.execute("SELECT count(*) FROM lines").fetchone() == (16,)
    assert orders.execute("SELECT n FROM stock").fetchall() == [(-32,)]
    assert orders.execute("SELECT count(*) FROM writebehind.dead_letters").fetchone() == (4,)


def test_a_worker_that_knows_no_groups_stops_at_one(
    connect: Connect,
    orders: psycopg.Connection[Any],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with connect().atomic(route=7) as tx:
        order(tx)
    monkeypatch.setattr(received, "WIRE_VERSION", 2)

    def unknown(position: int, body: bytes, clock: int) -> None:
        raise received._Bad("Object contains unknown field `group`")

    monkeypatch.setattr(received, "_group", unknown)
    worker = RunningWorker(**options)
    worker.start()
    wait_until(lambda: not worker._thread.is_alive(), 10)
    with pytest.raises(NewerVersion, match="version 3"):
        worker.stop()
    assert orders.execute("SELECT count(*) FROM writebehind.dead_letters").fetchone() == (0,)


# Killed.

ACCOUNTS = """
CREATE TABLE accounts (id int PRIMARY KEY, n bigint NOT NULL);
CREATE TABLE transfers (id int PRIMARY KEY, n int CHECK (n <> 13));
"""


@contextmanager
def watched(url: str) -> Iterator[list[Any]]:
    """Looks at the sum of all accounts, as any commit leaves it; what it found but 0."""
    found: list[Any] = []
    done = threading.Event()

    def look() -> None:
        with psycopg.connect(url, autocommit=True) as conn:
            while not done.is_set():
                row = conn.execute("SELECT coalesce(sum(n), 0) FROM accounts").fetchone()
                if row != (0,):
                    found.append(row)
                time.sleep(0.001)  # whom it watches shall get on

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


POINTS = [
    f"{point}:{when}:1"
    for point in ("claim", "record", "apply one by one", "commit", "settle", "acknowledge")
    for when in ("before", "after")
]


@pytest.mark.parametrize("point", POINTS)
def test_killed_among_transfers_no_commit_has_half_of_one(
    point: str,
    connect: Connect,
    pg: psycopg.Connection[Any],
    redis_client: redis.Redis,
    postgres_url: str,
    queue: str,
    options: dict[str, Any],
) -> None:
    pg.execute(ACCOUNTS.encode())
    wb = connect()
    balances = dict.fromkeys(range(5), 0)
    options = options | {"batch_size": 11}
    good = 0

    def transfer(n: int) -> None:
        nonlocal good
        source, target, amount = n % 5, (n * 3 + 1) % 5, 13 if n % 7 == 0 else n % 12
        with wb.atomic(route="bank") as tx:
            tx.increment("accounts", source, {"n": -amount})
            tx.put("transfers", n, {"n": amount})
            tx.increment("accounts", target, {"n": amount})
        if amount != 13:
            balances[source] -= amount
            balances[target] += amount
            good += 1

    with watched(postgres_url) as found:
        for n in range(40):
            transfer(n)
        with CrashingWorker(point, flags(**options)) as worker:
            worker.wait_for_death()
        for n in range(40, 60):
            transfer(n)
        redis_client.delete(QueueKeys(queue).lease)  # it would run out
        with CrashingWorker(None, flags(**options)):
            wait_until_drained(redis_client, [QueueKeys(queue)], 30)
    assert found == []
    assert dict(pg.execute("SELECT id, n FROM accounts")) == balances
    assert pg.execute("SELECT count(*) FROM transfers").fetchone() == (good,)
    assert pg.execute("SELECT count(*) FROM writebehind.dead_letters").fetchone() == (60 - good,)
