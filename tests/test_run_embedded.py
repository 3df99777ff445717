"""`run --embedded`, the command itself: URLs that can be used, rows that arrive, data that stays."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import redis

from writebehind_worker.embedded import ServerNotFound, process
from writebehind_worker.embedded.postgres import EmbeddedPostgres
from writebehind_worker.embedded.redis import EmbeddedRedis
from writebehind_worker.testing.servers import missing, new_data_dir
from writebehind_worker.testing.wait import wait_until

QUEUE = "db:write:queue"


@pytest.fixture
def data_dir() -> Iterator[Path]:
    folder = new_data_dir()
    try:
        _ = EmbeddedRedis(folder).program, EmbeddedPostgres(folder).program
        yield folder
    except ServerNotFound as error:
        missing(str(error))
    finally:
        shutil.rmtree(folder)


@contextmanager
def running(data_dir: Path) -> Iterator[tuple[str, str]]:
    """The command as it is typed; its two URLs. Ended by Ctrl-C, which must leave nothing behind."""
    options = ["--embedded", "--data-dir", str(data_dir), "--metrics-port", "0"]
    with (data_dir / "stderr").open("wb") as stderr:
        command = subprocess.Popen(
            [sys.executable, "-m", "writebehind_worker", "run", *options],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    with command:
        try:
            assert command.stdout
            printed = command.stdout.readline() + command.stdout.readline()
            urls = re.fullmatch(r"Redis: +(redis://\S+)\nPostgres: (postgresql://\S+)\n", printed)
            assert urls, printed + (data_dir / "stderr").read_text()
            yield urls[1], urls[2]
            command.send_signal(signal.SIGINT)
            assert command.wait(60) == 0, (data_dir / "stderr").read_text()
        finally:
            if command.poll() is None:  # it failed: what it started ends after this
                command.terminate()
                command.wait(60)
    assert [line for _, _, line in process.processes() if str(data_dir) in line] == []


def push(redis_url: str, user: int, name: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.lpush(QUEUE, json.dumps({"table": "users", "id": user, "data": {"name": name}}))


def wait_for_rows(postgres_url: str, rows: list[tuple[int, str]]) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        query = "SELECT id, name FROM users ORDER BY id"
        wait_until(lambda: connection.execute(query).fetchall() == rows, timeout=30)


def test_raw_writes_arrive_and_the_folder_keeps_them(data_dir: Path) -> None:
    with running(data_dir) as (redis_url, postgres_url):
        with psycopg.connect(postgres_url) as connection:
            connection.execute("CREATE TABLE users (id bigint PRIMARY KEY, name text)")
        push(redis_url, 1, "Ada")
        wait_for_rows(postgres_url, [(1, "Ada")])
    with running(data_dir) as again:
        assert again == (redis_url, postgres_url)
        push(redis_url, 2, "Grace")
        wait_for_rows(postgres_url, [(1, "Ada"), (2, "Grace")])
