"""The lines of the tutorial, unchanged: a cache entry with SETEX and a message with LPUSH."""

from __future__ import annotations

import json

import psycopg
import pytest
import redis
from tests.support.workers import RunningWorker

from writebehind import WriteBehind
from writebehind_worker.testing.servers import Servers
from writebehind_worker.testing.wait import wait_until

QUEUE = "db:write:queue"
# The tutorial says it so; redis-py would rather have SET with EX.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


@pytest.fixture
def r(servers: Servers, redis_client: redis.Redis) -> redis.Redis:
    if not servers.ours:
        pytest.skip("the default queue of a Redis that is not ours is left alone")
    return redis_client


@pytest.fixture
def users(pg: psycopg.Connection) -> psycopg.Connection:
    pg.execute("CREATE TABLE users (id int PRIMARY KEY, name text, email text, logins int)")
    return pg


def test_the_tutorials_two_lines_bring_a_row_to_postgres(
    redis_url: str, postgres_url: str, r: redis.Redis, users: psycopg.Connection
) -> None:
    with RunningWorker(redis_url=redis_url, postgres_url=postgres_url):
        for id in range(1, 4):
            data = {"name": f"Ada {id}", "email": f"ada{id}@example.com"}
            r.setex(f"user:{id}", 3600, json.dumps(data))
            r.lpush("db:write:queue", json.dumps({"table": "users", "id": id, "data": data}))
        count = "SELECT count(*) FROM users"
        wait_until(lambda: users.execute(count).fetchone() == (3,))
    row = users.execute("SELECT * FROM users WHERE id = 2").fetchone()
    assert row == (2, "Ada 2", "ada2@example.com", None)
    assert json.loads(r.get("user:2") or b"") == {"name": "Ada 2", "email": "ada2@example.com"}
    assert 3590 < int(r.ttl("user:2")) <= 3600
    assert r.llen("db:write:queue") == 0


def test_a_cache_entry_of_the_tutorial_under_the_librarys_name_is_left_alone(
    redis_url: str, postgres_url: str, r: redis.Redis, users: psycopg.Connection
) -> None:
    """The library's key of the row is ``users:1``; after a SETEX it is a string, not our hash."""
    receipt = WriteBehind(r).put("users", 1, {"name": "library"})
    r.setex("users:1", 3600, json.dumps({"name": "tutorial"}))
    r.lpush(QUEUE, json.dumps({"table": "users", "id": 1, "data": {"name": "tutorial"}}))
    with RunningWorker(redis_url=redis_url, postgres_url=postgres_url):
        receipt.wait(timeout=10)
        wait_until(lambda: r.llen(QUEUE) == 0 and r.llen("{db:write:queue}:inflight") == 0)
    assert users.execute("SELECT name FROM users").fetchall() == [("tutorial",)]
    assert json.loads(r.get("users:1") or b"") == {"name": "tutorial"}


def test_raw_messages_and_the_librarys_are_applied_in_one_order(
    redis_url: str, postgres_url: str, r: redis.Redis, users: psycopg.Connection
) -> None:
    wb = WriteBehind(r)
    for i in range(200):
        if i % 2:
            wb.put("users", 1, {"name": f"library {i}"})
            wb.increment("users", 1, {"logins": 1})
        else:
            r.lpush(
                QUEUE, json.dumps({"table": "users", "id": 1, "data": {"name": f"raw {i}", "email": str(i)}})
            )
            r.lpush(
                QUEUE, json.dumps({"table": "users", "id": "1", "op": "increment", "data": {"logins": 1}})
            )
    wb.delete("users", 2)
    r.lpush(QUEUE, json.dumps({"table": "users", "id": 2, "data": {"name": "back"}}))
    wb.delete("users", 3)
    r.lpush(QUEUE, json.dumps({"table": "users", "id": 3, "data": {"name": "gone"}}))
    last = wb.delete("users", 3)
    with RunningWorker(redis_url=redis_url, postgres_url=postgres_url, batch_size=37):
        last.wait(timeout=20)
    assert users.execute("SELECT * FROM users ORDER BY id").fetchall() == [
        (1, "library 199", "198", 200),
        (2, "back", None, None),
    ]


def test_messages_pushed_while_the_worker_runs_keep_their_order(
    redis_url: str, postgres_url: str, r: redis.Redis, users: psycopg.Connection
) -> None:
    with RunningWorker(redis_url=redis_url, postgres_url=postgres_url, batch_size=5):
        for i in range(300):
            message = {"table": "users", "id": i % 3, "data": {"name": str(i)}}
            r.lpush("db:write:queue", json.dumps(message))
        WriteBehind(r).put("users", 9, {"name": "last"}).wait(timeout=20)
    rows = users.execute("SELECT id, name FROM users ORDER BY id").fetchall()
    assert rows == [(0, "297"), (1, "298"), (2, "299"), (9, "last")]


def test_several_messages_of_one_lpush_are_applied_in_the_order_of_their_arguments(
    redis_url: str, postgres_url: str, r: redis.Redis, users: psycopg.Connection
) -> None:
    names = ["first", "second", "third"]
    r.lpush(QUEUE, *(json.dumps({"table": "users", "id": 1, "data": {"name": name}}) for name in names))
    with RunningWorker(redis_url=redis_url, postgres_url=postgres_url):
        wait_until(lambda: users.execute("SELECT name FROM users").fetchall() == [("third",)])
