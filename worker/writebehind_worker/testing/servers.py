"""The servers of a test session. The first that applies:

WRITEBEHIND_TEST_REDIS_URL and WRITEBEHIND_TEST_POSTGRES_URL   the user's: nothing of theirs is emptied
WRITEBEHIND_TEST_SERVERS=containers                            Docker, images as in ..._REDIS_IMAGE
                                                               and WRITEBEHIND_TEST_POSTGRES_IMAGE
otherwise                                                      our own, from wheels or the PATH
"""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from writebehind_worker.embedded import EmbeddedPostgres, EmbeddedServers, ServerNotFound, temporary_data_dir
from writebehind_worker.embedded.folder import create_root

from .wait import wait_until

# Speed over safety: nothing in the session's servers has to survive a crash of the machine.
# With few buffers a process of Postgres starts, and a database is made or dropped, with less work.
FAST_POSTGRES = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_wal_size": "256MB",
    "shared_buffers": "32MB",
}
FAST_REDIS = {"appendfsync": "everysec"}
_ROOM_IN_MEMORY = 4 << 30  # bytes


@dataclass(frozen=True)
class Servers:
    """Where the session's servers are. ``ours``: we started them and may empty them."""

    redis_url: str
    postgres_url: str
    ours: bool


@contextmanager
def session_servers() -> Iterator[Servers]:
    """Chosen by the environment; ended on leaving."""
    redis_url = os.environ.get("WRITEBEHIND_TEST_REDIS_URL")
    postgres_url = os.environ.get("WRITEBEHIND_TEST_POSTGRES_URL")
    if redis_url and postgres_url:
        yield Servers(redis_url, postgres_url, ours=False)
    elif redis_url or postgres_url:
        pytest.fail("set both WRITEBEHIND_TEST_REDIS_URL and WRITEBEHIND_TEST_POSTGRES_URL, or neither")
    elif os.environ.get("WRITEBEHIND_TEST_SERVERS") == "containers":
        with _containers() as servers:
            yield servers
    else:
        with private_servers(redis_options=FAST_REDIS) as embedded:
            yield Servers(embedded.redis_url, embedded.postgres_url, ours=True)


@contextmanager
def private_servers(redis_options: dict[str, str] | None = None) -> Iterator[EmbeddedServers]:
    """A started pair in a folder of its own, which is removed afterwards."""
    folder = new_data_dir()
    try:
        copy_cluster(folder)
        with EmbeddedServers(
            folder, redis_options=redis_options or {}, postgres_options=FAST_POSTGRES
        ) as servers:
            yield servers
    except ServerNotFound as error:
        missing(str(error))
    finally:
        shutil.rmtree(folder)


def new_data_dir() -> Path:
    """A new empty data folder, in memory where there is room: it outlives all but the machine.

    The caller removes it.
    """
    return temporary_data_dir(*_in_memory())


def copy_cluster(folder: Path) -> None:
    """Puts what initdb makes into this folder, for an `EmbeddedPostgres` there; skips where there is none."""
    try:
        made = _new_cluster()
    except ServerNotFound as error:
        missing(str(error))
        return
    create_root(folder)
    # With owners and modes, as root too; both BSD's and GNU's know -R and -p.
    subprocess.run(["cp", "-Rp", str(made / "postgres"), str(folder)], check=True)  # noqa: S607


@functools.cache
def _new_cluster() -> Path:
    """A folder in which initdb has run: once for all servers of this process."""
    folder = new_data_dir()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    EmbeddedPostgres(folder).initialise()
    return folder


def _in_memory() -> list[Path]:
    """Where files cost no disk, if there is room: a database is copied in a quarter of the time."""
    folder = Path("/dev/shm")  # noqa: S108 - mkdtemp inside
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return []
    return [folder] if shutil.disk_usage(folder).free > _ROOM_IN_MEMORY else []


def missing(reason: str) -> None:
    """A missing service skips at a desk and fails in CI, where nobody would notice."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def _containers() -> Iterator[Servers]:
    try:
        docker_errors = importlib.import_module("docker.errors")  # it has no types
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - an extra
    except ImportError as error:
        missing(f"containers asked for, but {error}; run: pip install testcontainers")
        return
    redis_image = os.environ.get("WRITEBEHIND_TEST_REDIS_IMAGE", "redis:7.0-bookworm")
    postgres_image = os.environ.get("WRITEBEHIND_TEST_POSTGRES_IMAGE", "postgres:15-bookworm")
    with ExitStack() as stack:
        try:
            cache = stack.enter_context(
                DockerContainer(redis_image)
                .with_command(["redis-server", "--appendonly", "yes", "--save", "", "--protected-mode", "no"])
                .with_exposed_ports(6379)
            )
            database = stack.enter_context(
                DockerContainer(postgres_image)
                .with_env("POSTGRES_PASSWORD", "test")
                .with_command(["postgres", "-c", "fsync=off", "-c", "full_page_writes=off"])
                .with_exposed_ports(5432)
            )
        except docker_errors.DockerException as error:
            missing(f"containers asked for, but Docker does not answer: {error}; start it")
        host, port = cache.get_container_host_ip(), cache.get_exposed_port(6379)
        redis_url = f"redis://{host}:{port}/0"
        host, port = database.get_container_host_ip(), database.get_exposed_port(5432)
        postgres_url = f"postgresql://postgres:test@{host}:{port}/postgres"
        wait_until(lambda: _redis_answers(redis_url), timeout=60, message="Redis did not answer")
        wait_until(lambda: _postgres_answers(postgres_url), timeout=60, message="PostgreSQL did not answer")
        yield Servers(redis_url, postgres_url, ours=True)


def _redis_answers(url: str) -> bool:
    with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0)) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


def _postgres_answers(url: str) -> bool:
    # Over TCP: while the image still sets itself up, its server listens on a Unix socket only.
    try:
        with psycopg.connect(url, connect_timeout=5):
            return True
    except psycopg.OperationalError:
        return False
