"""The connections of `writebehind dead`, with their errors as an operator needs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import redis
from psycopg import errors as pg

from writebehind import QueueFull, WriteBehindError
from writebehind.address import connect as to_redis

from .config import Config
from .connections import postgres_error, redis_error
from .dead import DeadLetters
from .errors import FatalError, LedgerMissing, LedgerOutdated
from .nodes import REDIS_ERRORS
from .postgres import connect


@contextmanager
def dead_letters(config: Config) -> Iterator[DeadLetters]:
    """Over a connection of its own."""
    try:
        with connect(config.postgres_url) as conn:
            try:
                yield DeadLetters(conn, config.queue)
            except (pg.UndefinedTable, pg.InvalidSchemaName) as error:
                raise LedgerMissing(conn.info.dbname) from error
            except pg.UndefinedColumn as error:
                raise LedgerOutdated(conn.info.dbname) from error
    except pg.InsufficientPrivilege as error:
        hint = "grant USAGE of the schema writebehind and SELECT on its dead_letters; for drop, DELETE"
        raise FatalError(postgres_error(config, error), hint) from error
    except psycopg.Error as error:
        hint = "check --postgres-url, and that the server runs"
        raise FatalError(postgres_error(config, error), hint) from error


@contextmanager
def connected_redis(config: Config) -> Iterator[redis.Redis]:
    try:
        with to_redis(config.redis_url, {"socket_timeout": 5.0, "socket_connect_timeout": 5.0}) as client:
            yield client
    except QueueFull as error:
        hint = "what was sent stays sent; once the worker has caught up, run the same command again"
        raise FatalError(str(error), hint) from error
    except (*REDIS_ERRORS, WriteBehindError) as error:
        hint = "check --redis-url and the user's rights; what was sent stays sent: run the same command again"
        raise FatalError(redis_error(config, error), hint) from error
