"""`writebehind status` against real servers, and with either of them down."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo

from writebehind.keys import QueueKeys
from writebehind_worker.cli import cli
from writebehind_worker.config import Config
from writebehind_worker.ledger_schema import apply_schema
from writebehind_worker.status import DeadLetterCount, FrozenBatchStatus, LedgerStatus, read_status, render

DOWN_REDIS = "redis://:hunter2@127.0.0.1:1/0"
DOWN_POSTGRES = "postgresql://ada:hunter2@127.0.0.1:1/app"


@pytest.fixture
def ledger(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        apply_schema(conn)
        yield conn


@pytest.fixture
def config(redis_url: str, postgres_url: str, queue: str) -> Config:
    return Config(redis_url=redis_url, postgres_url=postgres_url, queue=queue)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as connected:
        yield connected


def server_time_us(client: redis.Redis) -> int:
    answer: Any = client.time()
    seconds, microseconds = answer
    return int(seconds) * 1_000_000 + int(microseconds)


def message(seq: int | None) -> str:
    """As our script stamps it: the seq in front, nothing between."""
    stamp = {"seq": seq} if seq else {}
    return json.dumps(
        stamp | {"table": "users", "id": 1, "data": {}, "key": "users:1"}, separators=(",", ":")
    )


def own_queue(client: redis.Redis, keys: QueueKeys, lease_s: float) -> None:
    expiry_ms = server_time_us(client) // 1000 + round(lease_s * 1000)
    client.set(keys.lease, f"token|{expiry_ms}|host:42")
    client.set(keys.epoch, 7)


@pytest.mark.usefixtures("ledger")
def test_a_queue_that_nobody_used_yet(config: Config) -> None:
    status = read_status(config)
    assert status.ok
    assert status.redis is not None
    assert (status.redis.length, status.redis.frozen, status.redis.oldest_age_s) == (0, (), None)
    assert (status.redis.owner, status.redis.lease_remaining_s, status.redis.epoch) == (None, None, None)
    assert (status.ledger, status.dead_letters) == (LedgerStatus(), ())
    assert "none: no worker runs" in render(status)
    assert "nothing is pending" in render(status)


@pytest.mark.usefixtures("ledger")
def test_what_redis_holds_is_shown(config: Config, client: redis.Redis) -> None:
    keys, now = QueueKeys(config.queue), server_time_us(client)
    own_queue(client, keys, lease_s=30)
    client.hset(keys.clock, mapping={"seq": now, "generation": "123"})
    client.mset({keys.applied: now - 60_000_000, keys.acked: 5})
    client.rpush(keys.inflight, 8, 9)
    client.rpush(keys.processing(8), message(now - 50_000_000), message(now))
    client.rpush(keys.processing(9), message(now))
    client.lpush(config.queue, message(now))
    status = read_status(config)
    found = status.redis
    assert found is not None
    assert (found.length, found.frozen) == (1, (FrozenBatchStatus(8, 2), FrozenBatchStatus(9, 1)))
    assert found.oldest_age_s == pytest.approx(50, abs=5)
    assert found.lease_remaining_s == pytest.approx(30, abs=5)
    assert (found.owner, found.epoch, found.generation) == ("host:42", 7, "123")
    assert (found.seq, found.applied, found.acked) == (now, now - 60_000_000, 5)
    shown = render(status)
    assert "3 writes in 2 batches" in shown
    assert "batch 8: 2 writes" in shown
    assert "host:42, lease for" in shown


@pytest.mark.usefixtures("ledger")
def test_without_frozen_batches_the_tail_of_the_queue_is_the_oldest(
    config: Config, client: redis.Redis
) -> None:
    now = server_time_us(client)
    client.lpush(config.queue, message(now - 20_000_000), message(now))
    found = read_status(config).redis
    assert found is not None
    assert found.oldest_age_s == pytest.approx(20, abs=5)


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize("item", [message(None), "not json", '{"seq": "x"}', "\udcff"])
def test_the_age_of_an_item_without_seq_is_unknown(config: Config, client: redis.Redis, item: str) -> None:
    client.lpush(config.queue, item.encode(errors="surrogateescape"))
    status = read_status(config)
    assert status.redis is not None
    assert status.redis.oldest_age_s is None
    assert "unknown: it carries no seq" in render(status)


@pytest.mark.usefixtures("ledger")
def test_an_expired_lease_owns_nothing(config: Config, client: redis.Redis) -> None:
    own_queue(client, QueueKeys(config.queue), lease_s=-20)
    assert "none: the lease of host:42 ended" in render(read_status(config))


def test_the_ledger_and_the_dead_letters_are_shown(config: Config, ledger: psycopg.Connection[Any]) -> None:
    ledger.execute(
        "INSERT INTO writebehind.ledger (queue, epoch, recent_batches, applied_seq, generations, owner)"
        " VALUES (%s, 7, '{3,4,5}', 99, '{1,2}', 'host:42')",
        [config.queue],
    )
    ledger.cursor().executemany(
        "INSERT INTO writebehind.dead_letters (queue, batch, position, kind, body, sqlstate, reason,"
        " superseded_at) VALUES (%s, 5, %s, %s, '', %s, 'because', %s)",
        [
            (config.queue, 0, "rejected", "23505", None),
            (config.queue, 1, "rejected", "23505", None),
            (config.queue, 2, "rejected", None, None),
            (config.queue, 3, "rollback", "", None),
            (config.queue, 4, "rejected", "23505", "2026-01-01"),
        ],
    )
    status = read_status(config)
    assert status.ledger == LedgerStatus(7, 3, 5, 99, 2, "host:42", 0)
    assert status.dead_letters == (
        DeadLetterCount("rejected", "23505", 2, "unique_violation"),
        DeadLetterCount("rejected", None, 1, None),
        DeadLetterCount("rollback", "", 1, None),
    )
    shown = render(status)
    assert "epoch 7, generation 2, applied 99, last batch 5 (3 kept)" in shown
    assert "dead letters 4\n" in shown
    assert "2 rejected, 23505 unique_violation\n" in shown
    assert "1 rejected, refused by the worker\n" in shown
    assert "1 rollback, applied before Redis went back" in shown


@pytest.mark.usefixtures("ledger")
def test_json_holds_the_same(config: Config) -> None:
    args = ["--json", "--redis-url", config.redis_url, "--postgres-url", config.postgres_url]
    result = CliRunner().invoke(cli, ["status", *args, "--queue", config.queue])
    assert result.exit_code == 0
    found = json.loads(result.output)
    assert found["verdict"].startswith("Nothing has used ")
    assert found["redis"]["is_used"] is False
    assert found["queue"] == config.queue
    assert found["redis"]["length"] == 0
    assert found["ledger"]["epoch"] == 0
    assert found["dead_letters"] == []


@pytest.mark.usefixtures("ledger")
def test_it_opens_with_the_verdict(config: Config, client: redis.Redis) -> None:
    args = ["--redis-url", config.redis_url, "--postgres-url", config.postgres_url]

    def opening() -> list[str]:
        result = CliRunner().invoke(cli, ["status", *args, "--queue", config.queue])
        return result.output.splitlines()[:2]

    unused = f"Nothing has used {config.queue} in this Redis so far."
    assert opening()[0].startswith(unused)
    client.hset(QueueKeys(config.queue).clock, "seq", 1)
    assert opening() == ["Every accepted write is settled, but no worker brings any to Postgres.", ""]


@pytest.mark.usefixtures("ledger")
def test_a_queue_that_was_divided_is_one_that_is_used(config: Config, client: redis.Redis) -> None:
    keys = QueueKeys(config.queue)
    for name, value in (("seq", keys.clock), ("number", keys.layout)):
        found = read_status(config).redis
        assert found is not None and not found.is_used
        client.hset(value, name, 1)
        found = read_status(config).redis
        assert found is not None and found.is_used
        client.delete(value)


@pytest.mark.usefixtures("ledger")
def test_with_redis_down_the_ledger_is_still_shown(postgres_url: str, queue: str) -> None:
    args = ["--redis-url", DOWN_REDIS, "--postgres-url", postgres_url, "--queue", queue]
    result = CliRunner().invoke(cli, ["status", *args])
    assert result.exit_code == 1
    assert "DOWN: Redis at redis://:***@127.0.0.1:1/0" in result.output
    assert "in postgres" in result.output
    assert "hunter2" not in result.output


def test_with_postgres_down_the_queue_is_still_shown(redis_url: str, queue: str) -> None:
    args = ["--redis-url", redis_url, "--postgres-url", DOWN_POSTGRES, "--queue", queue]
    result = CliRunner().invoke(cli, ["status", *args])
    assert result.exit_code == 1
    assert "DOWN: Postgres at postgresql://ada:***@127.0.0.1:1/app" in result.output
    assert "waiting" in result.output
    assert "hunter2" not in result.output


def test_without_the_ledger_it_says_to_run_init(config: Config) -> None:
    name = f"empty_{uuid.uuid4().hex}"
    with psycopg.connect(config.postgres_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        try:
            empty = make_conninfo(config.postgres_url, dbname=name)
            status = read_status(Config(redis_url=config.redis_url, postgres_url=empty))
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    assert not status.ok
    assert "run `writebehind init`" in render(status)


@pytest.mark.usefixtures("ledger")
def test_status_writes_nothing(config: Config, client: redis.Redis) -> None:
    read_status(config)
    assert list(client.scan_iter(f"*{config.queue}*")) == []
