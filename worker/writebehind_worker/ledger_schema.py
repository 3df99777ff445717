"""Brings `schema.sql` to the database."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import psycopg
from psycopg import errors as pg

from .errors import FatalError, NewerVersion

# Two CREATE … IF NOT EXISTS at the same time can fail on a unique key of the catalog.
_LOCK_KEY = int.from_bytes(b"writebeh")
_LOCK_TIMEOUT_S = 15

SCHEMA_VERSION = 1
"""Of the tables that `schema.sql` makes; it is the number at the end of that file."""


def schema_sql() -> str:
    """The statements of `schema.sql`: from the installed package, else from the repository's root."""
    packaged = resources.files(__package__) / "schema.sql"
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parents[2] / "schema.sql").read_text(encoding="utf-8")


def apply_schema(conn: psycopg.Connection[Any]) -> bool:
    """Creates what is missing, in one transaction. True if the ledger was not there before.

    Any number may run at the same time. Raises `NewerVersion` if a later version has made the tables,
    `FatalError` if the role may not, or somebody's lock holds it up for too long.
    """
    try:
        with conn.transaction():
            conn.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT_S}s'")
            conn.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK_KEY])
            row = conn.execute("SELECT to_regclass('writebehind.ledger') IS NULL").fetchone()
            _refuse_newer(conn)
            conn.execute(schema_sql().encode())
    except pg.InsufficientPrivilege as error:
        raise FatalError(
            f"role {conn.info.user!r} may not create the ledger in the database "
            f"{conn.info.dbname!r}: {error.diag.message_primary}",
            "run `writebehind init` as the database's owner, or GRANT CREATE ON DATABASE … TO the role",
        ) from error
    except pg.LockNotAvailable as error:
        raise FatalError(
            f"another session held a lock on the ledger in {conn.info.dbname!r} "
            f"for more than {_LOCK_TIMEOUT_S} s",
            "find it in pg_stat_activity, end it, and run `writebehind init` again",
        ) from error
    return row is not None and bool(row[0])


def _refuse_newer(conn: psycopg.Connection[Any]) -> None:
    exists = conn.execute("SELECT to_regclass('writebehind.schema_version') IS NOT NULL").fetchone()
    if exists is not None and exists[0]:
        check_not_newer(conn)


def check_not_newer(conn: psycopg.Connection[Any]) -> int:
    """The version of the tables that are there, 0 if none is noted. Raises `NewerVersion`."""
    found = conn.execute("SELECT version FROM writebehind.schema_version").fetchone()
    version = 0 if found is None else int(found[0])
    if version > SCHEMA_VERSION:
        raise NewerVersion(
            f"the ledger's tables in the database {conn.info.dbname!r} have", version, SCHEMA_VERSION
        )
    return version
