"""Connections of the commands, with their errors as an operator needs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import redis

from .config import Config, one_line, redacted
from .errors import ClusteredRedis, FatalError
from .nodes import REDIS_ERRORS
from .postgres import Connection, connect
from .redis_server import RedisLink

_REDIS_HINT = "check --redis-url, --queue, and the user's rights (deploy/redis-acl.conf)"
_STATEMENT_TIMEOUT_S, _LOCK_TIMEOUT_S = 30, 1  # a migration may have locked a table


@contextmanager
def reading_redis(config: Config, hint: str = _REDIS_HINT) -> Iterator[redis.Redis]:
    """A client. Raises `FatalError` for whatever Redis answers with inside the block."""
    try:
        with RedisLink(config.redis_url) as link:
            yield link.client
    except (*REDIS_ERRORS, OSError) as error:
        raise FatalError(redis_error(config, error), hint) from error


@contextmanager
def reading_postgres(config: Config) -> Iterator[Connection]:
    """A connection that can write nothing. Raises `FatalError` for whatever Postgres answers with, too."""
    try:
        with connect(config.postgres_url) as conn:
            conn.limit(
                **{"transaction_read_only" if conn.is_pooled else "default_transaction_read_only": "'on'"},
                statement_timeout=f"'{_STATEMENT_TIMEOUT_S}s'",
                lock_timeout=f"'{_LOCK_TIMEOUT_S}s'",
                extra_float_digits="'1'",
            )
            yield conn
    except psycopg.Error as error:
        raise FatalError(
            postgres_error(config, error), "check --postgres-url, and the role's rights (deploy/roles.sql)"
        ) from error


def redis_error(config: Config, error: Exception) -> str:
    """What it says, and where; of a node that names another one, what that means."""
    where = redacted(config.redis_url)
    if isinstance(error, redis.exceptions.AskError):
        clustered = ClusteredRedis(where)
        return f"{clustered}; {clustered.hint}"
    return f"Redis at {where}: {one_line(error)}"


def postgres_error(config: Config, error: Exception) -> str:
    """What it says, and where."""
    return f"Postgres at {redacted(config.postgres_url)}: {one_line(error)}"


def refuse_standby(conn: Connection) -> None:
    """Raises `FatalError` where Postgres may be behind: every difference would be a false one."""
    row = conn.execute("SELECT pg_is_in_recovery()").fetchone()
    if row is not None and row[0]:
        raise FatalError(
            "Postgres is a standby here: it may be behind, and the cache would seem to differ",
            "give --postgres-url of the primary (target_session_attrs=read-write)",
        )
