"""Who meets what a later version has written stops, says so, and has touched nothing."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
import redis
from click.testing import CliRunner
from tests.support.workers import RunningWorker

from writebehind import WriteBehind
from writebehind.keys import QueueKeys
from writebehind.message import WIRE_VERSION
from writebehind_worker.cli import cli
from writebehind_worker.errors import LedgerOutdated, NewerVersion
from writebehind_worker.testing.wait import wait_until


def item(id: int, **more: Any) -> bytes:
    return json.dumps({"table": "users", "id": id, "data": {"name": "x"}} | more).encode()


def names(pg: psycopg.Connection[Any]) -> list[Any]:
    return [row[0] for row in pg.execute("SELECT id FROM users ORDER BY id")]


def ended(options: dict[str, Any]) -> BaseException:
    """What a worker ends with."""
    worker = RunningWorker(**options)
    worker.start()
    wait_until(lambda: not worker._thread.is_alive(), 10)
    with pytest.raises((NewerVersion, LedgerOutdated)) as caught:
        worker.stop()
    return caught.value


def test_a_later_message_stops_the_worker_and_is_kept(
    users: psycopg.Connection[Any],
    redis_client: redis.Redis,
    queue: str,
    options: dict[str, Any],
) -> None:
    redis_client.lpush(queue, item(1), item(2, v=WIRE_VERSION + 1, shard=7), item(3))
    error = ended(options)
    assert "wire format" in str(error)
    assert f"version {WIRE_VERSION + 1}" in str(error)
    (batch,) = redis_client.lrange(QueueKeys(queue).inflight, 0, -1)
    assert redis_client.llen(QueueKeys(queue).processing(int(batch))) == 3
    assert names(users) == []
    # Who runs the later version again would go on; who has none says so.
    with RunningWorker(**options, refuse_newer=True):
        wait_until(lambda: names(users) == [1, 3])
    (reason, body) = users.execute("SELECT reason, body FROM writebehind.dead_letters").fetchone() or (
        "",
        b"",
    )
    assert bytes(body) == item(2, v=WIRE_VERSION + 1, shard=7)
    assert "wire format" in reason


def test_batches_before_a_later_message_are_in(
    users: psycopg.Connection[Any], redis_client: redis.Redis, queue: str, options: dict[str, Any]
) -> None:
    redis_client.lpush(queue, *(item(id) for id in range(1, 11)), item(11, v=WIRE_VERSION + 1))
    ended(options | {"batch_size": 5})
    assert names(users) == list(range(1, 11))


@pytest.mark.parametrize("text", [b'{"v":9}', b'{"v":9,"table":"users"}', b'{"v":9,"id":1}', b'[{"v":9}]'])
def test_what_no_version_could_have_written_is_a_bad_message(
    users: psycopg.Connection[Any],
    redis_client: redis.Redis,
    queue: str,
    options: dict[str, Any],
    text: bytes,
) -> None:
    redis_client.lpush(queue, text, item(2))
    with RunningWorker(**options):
        wait_until(lambda: names(users) == [2])


@pytest.mark.parametrize("version", [0, -1, 1001, 1.5, "2", True, 10**30])
def test_what_is_no_version_is_a_bad_message(
    users: psycopg.Connection[Any],
    redis_client: redis.Redis,
    queue: str,
    options: dict[str, Any],
    version: object,
) -> None:
    redis_client.lpush(queue, item(1, v=version), item(2))
    with RunningWorker(**options):
        wait_until(lambda: names(users) == [2])
    assert users.execute("SELECT count(*) FROM writebehind.dead_letters").fetchone() == (1,)


def test_a_message_may_say_any_version_so_far(
    users: psycopg.Connection[Any], redis_client: redis.Redis, queue: str, options: dict[str, Any]
) -> None:
    redis_client.lpush(queue, item(1, v=1), item(2), item(3, v=2), item(4, v=3, route="a"))
    with RunningWorker(**options):
        wait_until(lambda: names(users) == [1, 2, 3, 4])


def test_a_later_ledger_stops_the_worker_and_init(
    users: psycopg.Connection[Any], connect: Any, options: dict[str, Any]
) -> None:
    wb: WriteBehind = connect()
    wb.put("users", 1, {"name": "x"})
    users.execute("UPDATE writebehind.schema_version SET version = 2")
    assert "ledger's tables" in str(ended(options))
    result = CliRunner().invoke(cli, ["init", "--postgres-url", options["postgres_url"]])
    assert (result.exit_code, "knows 1 at most" in result.output) == (2, True)
    assert users.execute("SELECT version FROM writebehind.schema_version").fetchone() == (2,)
    users.execute("UPDATE writebehind.schema_version SET version = 1")
    with RunningWorker(**options):
        wait_until(lambda: names(users) == [1])


def test_init_brings_an_earlier_ledger_forwards(
    users: psycopg.Connection[Any], options: dict[str, Any]
) -> None:
    users.execute("INSERT INTO writebehind.ledger (queue, epoch) VALUES ('kept', 7)")
    users.execute("DROP TABLE writebehind.schema_version")
    users.execute("ALTER TABLE writebehind.dead_letters DROP COLUMN history, DROP COLUMN retried_at")
    assert isinstance(ended(options), LedgerOutdated)
    result = CliRunner().invoke(cli, ["init", "--postgres-url", options["postgres_url"]])
    assert result.exit_code == 0
    assert users.execute("SELECT epoch FROM writebehind.ledger WHERE queue = 'kept'").fetchone() == (7,)
    with RunningWorker(**options) as worker:
        worker.wait_for_role("owner")


def test_later_keys_in_redis_stop_the_worker(
    users: psycopg.Connection[Any], redis_client: redis.Redis, queue: str, options: dict[str, Any]
) -> None:
    redis_client.hset(QueueKeys(queue).clock, "version", 3)
    redis_client.lpush(queue, item(1))
    assert "keys of" in str(ended(options))
    assert redis_client.llen(queue) == 1
    redis_client.hset(QueueKeys(queue).clock, "version", 1)
    with RunningWorker(**options):
        wait_until(lambda: names(users) == [1])
    assert redis_client.hget(QueueKeys(queue).clock, "version") == b"1"
