"""An operator's pause: nothing is claimed while it lasts, what was frozen goes in, producers go on."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
import redis
from click.testing import CliRunner
from tests.support.workers import RunningWorker

from writebehind.keys import QueueKeys
from writebehind_worker.cli import cli
from writebehind_worker.config import SETTINGS
from writebehind_worker.pause import Pause, copy_of, is_copy, pause, read_pause
from writebehind_worker.testing.wait import wait_until


def ask(*arguments: str, **options: Any) -> tuple[int, str]:
    given = [part for name, value in options.items() for part in (SETTINGS[name].flag, value)]
    result = CliRunner().invoke(cli, [*arguments, *given])
    return result.exit_code, result.output


def redis_options(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("redis_url", "queue")}


def count(pg: psycopg.Connection[Any]) -> int:
    row = pg.execute("SELECT count(*) FROM users").fetchone()
    assert row is not None
    return int(row[0])


def shown(client: redis.Redis, keys: QueueKeys) -> Pause:
    value = client.get(keys.paused)
    assert isinstance(value, bytes)
    return read_pause(value)


def put(client: redis.Redis, queue: str, id: int) -> None:
    client.lpush(queue, b'{"table":"users","id":%d,"data":{"name":"x"}}' % id)


def test_nothing_is_written_while_it_lasts_and_everything_after(
    users: psycopg.Connection[Any], redis_client: redis.Redis, queue: str, options: dict[str, Any]
) -> None:
    with RunningWorker(**options) as worker:
        worker.wait_for_role("owner")
        put(redis_client, queue, 1)
        wait_until(lambda: count(users) == 1)
        code, text = ask("pause", "--reason", "adding a column", **redis_options(options))
        assert (code, "until `writebehind resume`" in text) == (0, True)
        for id in range(2, 5):
            put(redis_client, queue, id)
        wait_until(lambda: worker.facts["paused"] is not None)
        assert "adding a column" in worker.facts["paused"]
        assert worker.metric("held", reason="paused") == 1
        assert worker.state.readiness()[0], "a restart would not help: it is as ready as can be"
        assert redis_client.llen(queue) == 3
        assert "adding a column" in ask("status", **options)[1]
        users.execute("ALTER TABLE users ADD COLUMN email text")
        assert count(users) == 1
        assert ask("resume", **redis_options(options)) == (0, f"Resumed: {queue}.\n")
        wait_until(lambda: count(users) == 4)
        wait_until(lambda: worker.facts["paused"] is None)
        assert worker.metric("held", reason="paused") == 0


def test_it_outlives_the_worker(
    users: psycopg.Connection[Any], redis_client: redis.Redis, queue: str, options: dict[str, Any]
) -> None:
    ask("pause", **redis_options(options))
    put(redis_client, queue, 1)
    with RunningWorker(**options) as worker:
        wait_until(lambda: worker.facts["paused"] is not None)
        assert (count(users), redis_client.llen(queue)) == (0, 1)


def test_what_was_frozen_before_is_waited_for(
    users: psycopg.Connection[Any], redis_client: redis.Redis, queue: str, options: dict[str, Any]
) -> None:
    put(redis_client, queue, 1)
    with psycopg.connect(options["postgres_url"]) as other, RunningWorker(**options):
        other.execute("LOCK TABLE users")
        wait_until(lambda: redis_client.llen(QueueKeys(queue).inflight) == 1)
        code, text = ask("pause", "--wait", "0.2", **redis_options(options))
        assert (code, "1 batch taken before" in text) == (1, True)
        other.rollback()
        assert ask("pause", **redis_options(options))[0] == 0
        assert count(users) == 1


def test_a_full_redis_can_be_paused(redis_client: redis.Redis, queue: str, options: dict[str, Any]) -> None:
    before = redis_client.config_get("maxmemory")["maxmemory"] or 0
    redis_client.config_set("maxmemory", 1)
    try:
        assert ask("pause", **redis_options(options))[0] == 0
        assert ask("resume", **redis_options(options))[0] == 0
    finally:
        redis_client.config_set("maxmemory", before)
    assert ask("resume", **redis_options(options)) == (0, f"{queue} was not paused.\n")


def test_a_second_one_keeps_the_time_of_the_first(redis_client: redis.Redis, queue: str) -> None:
    keys = QueueKeys(queue)
    pause(redis_client, keys, "one")
    first = shown(redis_client, keys)
    pause(redis_client, keys, "two")
    second = shown(redis_client, keys)
    assert (first.since_s, second.reason) == (second.since_s, "two")
    assert first.since_s > 1e9


def test_one_that_is_run_again_keeps_the_reason(
    redis_client: redis.Redis, queue: str, options: dict[str, Any]
) -> None:
    keys = QueueKeys(queue)
    ask("pause", **redis_options(options))
    assert shown(redis_client, keys).reason == "no reason given"
    for given, shows in (("one | two", "one | two"), ("", "one | two"), ("three", "three")):
        ask("pause", *(["--reason", given] if given else []), **redis_options(options))
        assert shown(redis_client, keys).reason == shows


def test_a_queue_that_nothing_has_used_is_said_to_be_one(
    redis_client: redis.Redis, queue: str, options: dict[str, Any]
) -> None:
    said = f"Nothing has used {queue} in this Redis so far"
    assert said in ask("pause", **redis_options(options))[1]
    redis_client.lpush(queue, b"x")
    assert said not in ask("pause", **redis_options(options))[1]


@pytest.mark.parametrize("value", [b"", b"yes", b"|", b"\xff|x", b"99999999999999999|x"])
def test_whatever_the_key_holds_pauses(value: bytes) -> None:
    assert read_pause(value) == Pause(0, value.decode(errors="replace"))
    assert is_copy(copy_of(value))
    assert not is_copy(value)


def test_a_copy_tells_what_the_pause_tells_and_no_reason_makes_one() -> None:
    assert read_pause(copy_of(b"1700000000000|a|b")) == Pause(1_700_000_000, "a|b")
    assert not is_copy(b"stop*")
    assert not is_copy(b"1700000000000|stop*|")


def test_without_redis_the_error_says_what_to_do(queue: str) -> None:
    for command in ("pause", "resume"):
        code, text = ask(command, redis_url="redis://127.0.0.1:1/0", queue=queue)
        assert (code, "check --redis-url" in text) == (2, True)
