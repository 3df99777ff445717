"""Fixtures: real servers for the session, a clean Redis and a database of its own for each test."""

from __future__ import annotations

import gc
import signal
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from hypothesis import settings
from psycopg import sql
from tests.support.rows import Rows
from tests.support.workers import Workload

from writebehind import Options, WriteBehind
from writebehind.keys import QueueKeys
from writebehind_worker.embedded import EmbeddedServers
from writebehind_worker.owned_queue import OwnedQueue
from writebehind_worker.redis_server import RedisLink
from writebehind_worker.settle import Settlement
from writebehind_worker.testing.servers import Servers, private_servers, session_servers

pytest_plugins = ["writebehind_worker.pytest_plugin"]

ROOT = Path(__file__).parents[1]

# A speed is never asserted: the machine may be busy.
settings.register_profile("any speed", settings(), deadline=None)
settings.load_profile("any speed")
SCHEMA = ROOT / "schema.sql"
_KEPT_DATABASES = 4
# At Python's 700 the search for cycles takes a seventh of the tests' time.
gc.set_threshold(10_000)


def pytest_collection_finish() -> None:
    """What is imported and collected by now stays: no cycles are searched for among it."""
    gc.freeze()


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """The session's servers, stopped at its end."""
    # A cancelled CI job sends SIGTERM: like Ctrl-C, it must run the teardown that stops the servers.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with session_servers() as found:
            yield found
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def writebehind_servers(servers: Servers) -> Servers:
    """The plugin's are ours, too."""
    return servers


@pytest.fixture(scope="session")
def administrator(servers: Servers) -> Iterator[psycopg.Connection]:
    """Makes and drops databases: one connection, as each costs Postgres half as much as a database."""
    with psycopg.connect(servers.postgres_url, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def template_database(servers: Servers, administrator: psycopg.Connection) -> Iterator[str]:
    """A database with schema.sql applied and nothing else, to be copied; copying is fast."""
    name = f"wb_template_{uuid.uuid4().hex[:12]}"
    administrator.execute(
        sql.SQL("CREATE DATABASE {} ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0").format(
            sql.Identifier(name)
        ),
    )
    try:
        with psycopg.connect(_database_url(servers, name), autocommit=True) as connection:
            connection.execute(SCHEMA.read_bytes())
        yield name
    finally:
        administrator.execute(_drop(name))


@pytest.fixture(scope="session")
def used_databases(administrator: psycopg.Connection) -> Iterator[deque[str]]:
    """Databases to be dropped later: Postgres waits 100 ms where a connection has only just been closed."""
    used: deque[str] = deque()
    try:
        yield used
    finally:
        for name in used:
            administrator.execute(_drop(name))


@pytest.fixture(scope="session")
def copy_template(
    servers: Servers, administrator: psycopg.Connection, template_database: str
) -> sql.Composed:
    """How a database is made of the template: with our servers, without fsync, files are copied soonest."""
    copies_files = servers.ours and administrator.info.server_version >= 150_000
    template = sql.SQL("TEMPLATE {}").format(sql.Identifier(template_database))
    return template + sql.SQL(" STRATEGY FILE_COPY" if copies_files else "")


@pytest.fixture
def postgres_url(
    servers: Servers,
    administrator: psycopg.Connection,
    copy_template: sql.Composed,
    used_databases: deque[str],
) -> str:
    """A new database for this test, with the ledger's tables."""
    name = f"wb_test_{uuid.uuid4().hex[:12]}"
    while len(used_databases) >= _KEPT_DATABASES:
        administrator.execute(_drop(used_databases.popleft()))
    administrator.execute(sql.SQL("CREATE DATABASE {} ").format(sql.Identifier(name)) + copy_template)
    used_databases.append(name)
    return _database_url(servers, name)


@pytest.fixture
def pg(postgres_url: str) -> Iterator[psycopg.Connection]:
    """A connection to this test's database, autocommit."""
    with psycopg.connect(postgres_url, autocommit=True, client_encoding="utf8") as connection:
        yield connection


@pytest.fixture
def redis_url(servers: Servers, queue: str) -> Iterator[str]:
    """Redis; empty if the servers are ours. On a user's, keep to keys with ``queue`` in their name."""
    with redis.Redis.from_url(servers.redis_url) as client:
        if servers.ours:
            client.flushall()
        yield servers.redis_url
        if not servers.ours:
            for key in client.scan_iter(f"*{queue}*"):
                client.delete(key)


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A client that gives bytes."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def queue() -> str:
    """A queue's name that no other test uses."""
    return f"test:{uuid.uuid4().hex[:12]}:queue"


@pytest.fixture
def options(redis_url: str, postgres_url: str, queue: str) -> dict[str, Any]:
    """Of a worker for this test, as `Config` names them; a module with other wishes has its own."""
    return {"redis_url": redis_url, "postgres_url": postgres_url, "queue": queue}


@pytest.fixture
def users(pg: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """A connection to this test's database, which has a table of this name."""
    pg.execute("CREATE TABLE users (id bigint PRIMARY KEY, name text)")
    return pg


@pytest.fixture
def connect(redis_url: str, queue: str) -> Iterator[Callable[..., WriteBehind]]:
    """Makes producers of this test's queue, with cache keys of its own."""
    made: list[WriteBehind] = []

    def connect(url: str = redis_url, **given: Any) -> WriteBehind:
        given = {"prefix": f"{queue}:", "queue": queue, **given}
        options = cast(
            Options, {name: given.pop(name) for name in list(given) if name in Options.__annotations__}
        )
        made.append(WriteBehind.from_url(url, redis_options=given, **options))
        return made[-1]

    yield connect
    for wb in made:
        wb.close()


@pytest.fixture
def key(queue: str) -> str:
    """The cache key of the row t, 1 of such producers."""
    return f"{queue}:t:1"


@pytest.fixture
def settle(redis_url: str, queue: str, key: str) -> Iterator[Callable[[int], None]]:
    """Settles the entry of the row t, 1 as the worker does."""
    with RedisLink(redis_url) as link:
        owned = OwnedQueue(link, QueueKeys(queue), "token")
        yield lambda seq: owned.settle([Settlement(key, 600, seq)])


@pytest.fixture
def load(redis_url: str, queue: str, pg: psycopg.Connection[Any]) -> Iterator[Workload]:
    """Writes whose outcome is known."""
    with Workload(redis_url, queue, pg) as workload:
        yield workload


@pytest.fixture
def rows(
    redis_url: str,
    postgres_url: str,
    queue: str,
    redis_client: redis.Redis,
    pg: psycopg.Connection[Any],
    connect: Callable[..., WriteBehind],
) -> Rows:
    """A queue whose rows are looked at."""
    options = {"redis_url": redis_url, "postgres_url": postgres_url, "queue": queue}
    return Rows(options, redis_client, pg, connect(), f"{queue}:")


@pytest.fixture
def own_servers() -> Iterator[EmbeddedServers]:
    """A pair for this test alone, to be stopped, killed and restarted. No schema is applied."""
    with private_servers() as embedded:
        yield embedded


def _database_url(servers: Servers, name: str) -> str:
    return urlsplit(servers.postgres_url)._replace(path=f"/{name}").geturl()


def _drop(name: str) -> sql.Composed:
    return sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
