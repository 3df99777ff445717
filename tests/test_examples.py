"""The examples, run as they are against real servers and a worker; every row is compared."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from tests.support.workers import RunningWorker

from writebehind.keys import QueueKeys
from writebehind_worker.testing.servers import missing
from writebehind_worker.testing.wait import wait_until

EXAMPLES = Path(__file__).parents[1] / "examples"
ADA = (1, "Ada", "ada@lovelace.org", Decimal("12.75"))


@pytest.fixture
def tables(pg: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    pg.execute((EXAMPLES / "tables.sql").read_bytes())
    return pg


@pytest.fixture
def environment(redis_url: str, queue: str) -> dict[str, str]:
    return {**os.environ, "REDIS_URL": redis_url, "QUEUE": queue}


def run(command: list[str | Path], environment: dict[str, str], folder: Path = EXAMPLES) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def work_off(redis_client: redis.Redis, queue: str, options: dict[str, Any]) -> Callable[[], None]:
    """Runs a worker until the queue is empty."""

    def until_empty() -> None:
        with RunningWorker(**options):
            wait_until(
                lambda: redis_client.llen(queue) + redis_client.llen(QueueKeys(queue).inflight) == 0,
                timeout=20,
            )

    return until_empty


@pytest.fixture
def redis_cli() -> str:
    """Its name; where it is not here the test is skipped."""
    cli = next((name for name in ("redis-cli", "valkey-cli") if shutil.which(name)), None)
    if cli is None:
        missing("redis-cli is not here; on Debian: apt install redis-tools")
    return str(cli)


def rows(pg: psycopg.Connection[Any], table: str) -> list[tuple[Any, ...]]:
    return pg.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()


def dead(pg: psycopg.Connection[Any]) -> list[Any]:
    return [sqlstate for (sqlstate,) in pg.execute("SELECT sqlstate FROM writebehind.dead_letters")]


def test_the_library(
    tables: psycopg.Connection[Any],
    redis_url: str,
    postgres_url: str,
    queue: str,
    environment: dict[str, str],
) -> None:
    with RunningWorker(redis_url=redis_url, postgres_url=postgres_url, queue=queue):
        said = run([sys.executable, EXAMPLES / "producer.py"], environment)
    assert said.splitlines() == [
        "cached: {'name': 'Ada', 'email': 'ada@lovelace.org', 'balance': 10.5}",
        "rejected: 22P02",
        "committed",
    ]
    many = [(id, f"user {id}", None, None) for id in range(100, 200)]
    assert rows(tables, "users") == [ADA, *many]
    assert rows(tables, "pages") == [("/home", 2)]
    assert dead(tables) == ["22P02"]


def test_node(
    tables: psycopg.Connection[Any], environment: dict[str, str], work_off: Callable[[], None]
) -> None:
    folder = node_folder()
    shutil.copy2(EXAMPLES / "produce.mjs", folder)
    assert run(["node", "produce.mjs"], environment, folder) == "accepted\n"
    work_off()
    assert rows(tables, "users") == [ADA, (2**53 + 1, "beyond 2^53", None, None)]
    assert rows(tables, "pages") == [("/home", 2)]
    assert dead(tables) == []


def test_redis_cli(
    tables: psycopg.Connection[Any],
    environment: dict[str, str],
    redis_cli: str,
    work_off: Callable[[], None],
) -> None:
    assert run(["sh", "produce.sh"], {**environment, "CLI": redis_cli}) == "accepted\n"
    work_off()
    assert rows(tables, "users") == [ADA]
    assert rows(tables, "pages") == [("/home", 2)]
    assert dead(tables) == []


def test_redis_cli_says_when_it_was_refused(environment: dict[str, str], redis_cli: str) -> None:
    wrong = {**environment, "CLI": redis_cli, "REDIS_URL": "redis://127.0.0.1:1/0"}
    done = subprocess.run(
        ["sh", EXAMPLES / "produce.sh"], env=wrong, capture_output=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert b"accepted" not in done.stdout


def node_folder() -> Path:
    """A folder with npm's `redis`, installed once and kept in a cache."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        missing("node and npm are not here; on Debian: apt install nodejs npm")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "writebehind-tests" / "node"
    if not (cache / "node_modules" / "redis" / "package.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        shutil.copy2(EXAMPLES / "package.json", cache)
        try:
            done = subprocess.run(
                ["npm", "install", "--no-audit", "--no-fund", "--loglevel", "error"],
                cwd=cache,
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            failed = done.returncode and done.stderr
        except subprocess.TimeoutExpired:
            failed = "no answer within 100 s"
        if failed:
            missing(f"npm cannot install `redis`: {failed}")
    return cache
