"""A queue that is divided into shards, and commands about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import redis
from click.testing import CliRunner

from writebehind.keys import QueueKeys
from writebehind.shards import shard_keys, shard_queues
from writebehind_worker import resharding
from writebehind_worker.cli import cli
from writebehind_worker.resharding import divide, layout_of, still_draining
from writebehind_worker.testing.wait import wait_until

from .shard_history import HISTORY

Run = Callable[..., str]


@pytest.fixture
def rows(pg: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """A database with the tables of `HISTORY`."""
    pg.execute(HISTORY)
    return pg


@pytest.fixture
def keys(queue: str) -> QueueKeys:
    """Of the whole queue."""
    return QueueKeys(queue)


@pytest.fixture
def run(options: dict[str, Any]) -> Run:
    """A command about this test's queue, or another: what it prints. It has to end with ``code``."""

    def run(*arguments: str, queue: str = "", code: int | None = 0) -> str:
        given = {f"WRITEBEHIND_{n.upper()}": options[n] for n in ("redis_url", "postgres_url", "queue")}
        found = CliRunner(env=given | ({"WRITEBEHIND_QUEUE": queue} if queue else {})).invoke(cli, arguments)
        assert code in (None, found.exit_code), found.output
        return found.output

    return run


def divided(client: redis.Redis, keys: QueueKeys, shards: int) -> None:
    """To its end: nothing waits."""
    divide(client, keys, shards)
    assert still_draining(client, keys, layout_of(client, keys)) == 0


def divided_in_time(client: redis.Redis, keys: QueueKeys, shards: int) -> list[QueueKeys]:
    """To its end, also where something waits that others bring to Postgres; the shards."""
    divide(client, keys, shards)
    wait_until(lambda: still_draining(client, keys, layout_of(client, keys)) == 0)
    return shard_keys(keys.queue, shards)


@contextmanager
def killed_after(step: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever divides a queue in this block is killed once it has made this step."""
    call = resharding._Steps.__call__

    def until(self: Any, made: str, *args: Any, **named: Any) -> Any:
        done = call(self, made, *args, **named)
        if made == step:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patched:
        patched.setattr(resharding._Steps, "__call__", until)
        with pytest.raises(KeyboardInterrupt):
            yield


def all_queues(keys: QueueKeys, shards: int) -> list[QueueKeys]:
    """The queue itself, and its shards."""
    return [keys, *map(QueueKeys, shard_queues(keys.queue, shards))]


def wait_until_drained(client: redis.Redis, queues: Sequence[QueueKeys], timeout: float) -> None:
    """Until nothing waits in any, and nothing is frozen."""
    wait_until(lambda: not any(client.llen(k.queue) + client.llen(k.inflight) for k in queues), timeout)
