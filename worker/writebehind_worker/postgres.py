"""The worker's connection to Postgres."""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.array import ListBinaryDumper

# A server that vanished is noticed in seconds, not in the hours that TCP takes by itself.
_DEFAULTS: dict[str, Any] = {
    "application_name": "writebehind",
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # ms
}


def connect(url: str) -> psycopg.Connection[Any]:
    """Connects in autocommit, with parameters written ``$1``; what the URL says wins over our defaults.

    ``synchronous_commit`` is raised where it is off: a batch leaves Redis when its commit is durable.
    """
    conninfo = make_conninfo(**{**_DEFAULTS, **conninfo_to_dict(url)})
    conn: psycopg.Connection[Any] = psycopg.connect(
        conninfo, autocommit=True, cursor_factory=psycopg.RawCursor
    )
    conn.adapters.register_dumper(list, ListBinaryDumper)  # dead letters: as text they take far longer
    conn.execute(
        "SELECT set_config('client_encoding', 'UTF8', false), set_config('synchronous_commit', "
        "CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') THEN 'on' "
        "ELSE current_setting('synchronous_commit') END, false)"
    )
    return conn


def roll_back(conn: psycopg.Connection[Any]) -> None:
    """Ends the transaction, if there still is one: a broken connection has rolled back by itself."""
    with contextlib.suppress(psycopg.Error):
        conn.execute("ROLLBACK")


def is_broken(conn: psycopg.Connection[Any]) -> bool:
    """Whether the connection cannot be used any more."""
    return bool(conn.broken or conn.closed)


def milliseconds(seconds: float) -> str:
    """As SET takes it; at least one, since 0 would mean no limit."""
    return f"'{max(1, round(seconds * 1000))}ms'"
