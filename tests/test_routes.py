"""Routing values: what has one in common is in one shard, whatever its table and id."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from tests.support.clients import EitherClient, clients
from tests.support.fleets import RunningFleet
from tests.support.sharded import Run, all_queues, keys, run, wait_until_drained

from writebehind import InvalidWrite, WriteBehind
from writebehind.keys import QueueKeys
from writebehind.message import make_write, route_text
from writebehind.packing import Packing
from writebehind.route import shard_of, shard_of_route
from writebehind.shards import shard_queues
from writebehind_worker.received import receive
from writebehind_worker.resharding import divide, layout_of, still_draining

__all__ = ["clients", "keys", "run"]  # fixtures

Connect = Callable[..., WriteBehind]
SHARDS = 4


@pytest.fixture
def shards(redis_client: redis.Redis, keys: QueueKeys) -> list[str]:
    """The queues of the shards."""
    divide(redis_client, keys, SHARDS)
    assert still_draining(redis_client, keys, layout_of(redis_client, keys)) == 0
    return shard_queues(keys.queue, SHARDS)


def taken(client: redis.Redis, shards: list[str]) -> list[int]:
    """The numbers of the shards in which something waits."""
    return [number for number, name in enumerate(shards) if client.llen(name)]


@given(st.integers())
def test_a_number_and_its_text_are_one_route(number: int) -> None:
    assert route_text(number) == route_text(str(number)) == str(number)


@pytest.mark.parametrize("route", ["", True, 1.5, b"a", "\ud800", "x" * 1001, ("a",)])
def test_what_is_no_route_is_refused(route: Any, connect: Connect, redis_client: redis.Redis) -> None:
    wb = connect()
    for call in (
        lambda: wb.put("t", 1, {}, route=route),
        lambda: wb.get("t", 1, route=route),
        lambda: wb.get_many("t", [1], route=route),
        lambda: wb.invalidate("t", 1, route=route),
    ):
        with pytest.raises(InvalidWrite, match="route"):
            call()
    assert redis_client.llen(wb.keys.queue) == 0


def test_all_of_one_route_is_in_one_shard(
    clients: EitherClient, redis_client: redis.Redis, shards: list[str]
) -> None:
    call = clients.connect()
    expected = shard_of_route("5", SHARDS)
    tables = [f"t{n}" for n in range(20)]
    assert {shard_of(table, "1", SHARDS) for table in tables} == set(range(SHARDS))
    for table in tables:
        call("put", table, 1, {"n": 1}, route=5)
        call("patch", table, 1, {"n": 2}, route="5")
        call("increment", table, 1, {"n": 3}, route=5)
        call("delete", table, 2, route="5")
    clients.batch(lambda batch: [batch.put(table, 3, {"n": 1}, route=5) for table in tables])
    assert taken(redis_client, shards) == [expected]
    assert redis_client.llen(shards[expected]) == 100
    assert call("get", "t0", 1, route=5) == {"n": 5}
    assert call("get_many", "t0", [1, 2, 3], route=5) == [{"n": 5}, None, {"n": 1}]
    assert call("invalidate", "t0", 1, route=5) is False
    assert call("invalidate_many", "t0", [1, 9], route=5) == [False, True]


def test_a_queue_that_is_not_divided_takes_routes(connect: Connect, redis_client: redis.Redis) -> None:
    wb = connect()
    wb.put("t", 1, {"n": 1}, route="a")
    (item,) = redis_client.lrange(wb.keys.queue, 0, -1)
    assert json.loads(item)["route"] == "a"
    assert json.loads(item)["v"] == 3
    assert wb.get("t", 1) == {"n": 1}


@pytest.mark.parametrize("packing", [None, Packing(10, "zlib")])
def test_a_message_says_its_version_once(packing: Packing | None) -> None:
    write = make_write("put", "t", 1, {"long": "x" * 100}, route="é")
    message = (write if packing is None else packing.write(write)).message("t:1", 60)
    assert message.count(b'"v":') == 1
    found = receive(0, message, 1)
    assert (found.fault, found.route) == (None, "é")


def test_a_message_without_a_route_is_what_it_was() -> None:
    assert make_write("put", "t", 1, {"n": 1}).message("t:1", 60) == (
        b'{"table":"t","id":1,"data":{"n":1},"key":"t:1","ttl":60}'
    )


@pytest.mark.parametrize(("route", "is_good"), [('"a"', True), ("7", True), ("[1]", False), ("true", False)])
def test_routes_are_read_alike_many_at_once_and_one_by_one(
    route: str, is_good: bool, rows: Any, users: psycopg.Connection[Any]
) -> None:
    bodies = [f'{{"table":"users","id":{n},"data":{{"name":"x"}},"route":{route}}}' for n in range(3)]
    assert all((receive(0, body.encode(), 1).fault is None) is is_good for body in bodies)
    rows.client.lpush(rows.queue, *bodies)
    rows.flush()
    assert users.execute("SELECT count(*) FROM users").fetchone() == (3 if is_good else 0,)


FAMILIES = """
CREATE TABLE orders (id int PRIMARY KEY, name text CHECK (name <> 'bad'));
CREATE TABLE lines (id int PRIMARY KEY, order_id int NOT NULL REFERENCES orders, n int);
"""


def test_rows_that_refer_to_each_other_arrive_in_order(
    connect: Connect,
    pg: psycopg.Connection[Any],
    redis_client: redis.Redis,
    keys: QueueKeys,
    shards: list[str],
    options: dict[str, Any],
) -> None:
    pg.execute(FAMILIES)
    wb = connect()
    for n in range(40):
        wb.put("orders", n, {"name": "x"}, route=n)
        wb.put("lines", 1000 + n, {"order_id": n, "n": 1}, route=n)
    assert len(taken(redis_client, shards)) == SHARDS
    with RunningFleet(**options):
        wait_until_drained(redis_client, all_queues(keys, SHARDS), 20)
    assert pg.execute("SELECT count(*) FROM lines").fetchone() == (40,)
    assert pg.execute("SELECT count(*) FROM writebehind.dead_letters").fetchone() == (0,)


def test_a_retry_goes_where_its_route_leads(
    connect: Connect,
    pg: psycopg.Connection[Any],
    redis_client: redis.Redis,
    keys: QueueKeys,
    shards: list[str],
    options: dict[str, Any],
    run: Run,
) -> None:
    pg.execute(FAMILIES)
    wb = connect()
    route = next(r for r in range(99) if shard_of_route(str(r), SHARDS) != shard_of("orders", "1", SHARDS))
    wb.put("orders", 1, {"name": "bad"}, route=route)
    with RunningFleet(**options):
        wait_until_drained(redis_client, all_queues(keys, SHARDS), 20)
    (letter,) = pg.execute("SELECT id FROM writebehind.dead_letters").fetchone() or (0,)
    mended = '{"table":"orders","id":1,"data":{"name":"good"}}'
    run("dead", "retry", str(letter), "--body", mended, "--wait", "0")
    assert taken(redis_client, shards) == [shard_of_route(str(route), SHARDS)]
    with RunningFleet(**options):
        wait_until_drained(redis_client, all_queues(keys, SHARDS), 20)
    assert pg.execute("SELECT name FROM orders").fetchall() == [("good",)]


@dataclass
class Note:
    tenant: int
    id: int
    n: int


def test_a_typed_table_takes_the_route_from_its_field(
    connect: Connect, redis_client: redis.Redis, shards: list[str]
) -> None:
    wb = connect()
    notes = wb.table(Note, name="notes", key=("tenant", "id"), route="tenant")
    for n in range(10):
        notes.put(Note(7, n, 1))
        notes.increment((7, n), n=1)
    with wb.batch() as batch:
        notes.into(batch).put(Note(7, 10, 1))
        notes.into(batch).delete((7, 0))
    assert taken(redis_client, shards) == [shard_of_route("7", SHARDS)]
    assert notes.get((7, 1)) == Note(7, 1, 2)
    assert notes.get_many([(7, 1), (7, 0)]) == [Note(7, 1, 2), None]
    assert notes.invalidate_many([(7, 1)]) == [False]


def test_a_typed_table_asks_for_the_route_where_an_id_does_not_tell(connect: Connect) -> None:
    wb = connect()
    notes = wb.table(Note, name="notes", key="id", route="tenant")
    notes.put(Note(7, 1, 1))
    for call in (
        lambda: notes.get(1),
        lambda: notes.patch(1, n=2),
        lambda: notes.delete(1),
        lambda: notes.invalidate(1),
    ):
        with pytest.raises(InvalidWrite, match="give route="):
            call()
    notes.patch(1, n=2, route=7)
    assert notes.get(1, route=7) == Note(7, 1, 2)
    with pytest.raises(InvalidWrite, match="cannot be changed"):
        notes.patch(1, tenant=8, route=7)
    with pytest.raises(TypeError, match="no field 'team'"):
        wb.table(Note, name="notes", route="team")
