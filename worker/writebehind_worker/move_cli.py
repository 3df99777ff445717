"""`writebehind move`: gives a table another queue, while it is used."""

from __future__ import annotations

import click
from psycopg import errors as pg

from writebehind.keys import QueueKeys
from writebehind.shards import plain_table

from .config import Config
from .connections import reading_postgres, reading_redis
from .errors import FatalError, LedgerMissing
from .ledger import OF_WHOLE
from .moving import Move, is_served
from .nodes import is_clustered
from .options import config_options
from .postgres import Connection

_HINT = "check --redis-url and the user's rights; run it again: each of its steps can be made twice"
_IS_OF_TABLE = "regexp_replace({}, '^.*[.]', '') = $2::text"


@click.command("move")
@click.argument("table")
@click.argument("target", metavar="[QUEUE]", required=False)
@click.option("--back", is_flag=True, help="To the queue of --queue, instead of naming one.")
@click.option(
    "--timeout",
    "timeout_s",
    default=600.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds to wait for a moment in which what its present queue holds gets to Postgres soon.",
)
@click.option(
    "--unserved", is_flag=True, help="Also to a queue that no worker serves: its writes wait there."
)
@config_options("redis_url", "postgres_url", "queue")
def move_command(
    config: Config, table: str, target: str | None, back: bool, timeout_s: float, unserved: bool
) -> None:
    """Let the writes of TABLE go to QUEUE from now on, without stopping producers, readers or workers.

    Clients find out by themselves. Its writes wait for a moment, at most 8 s: until all that its present
    queue has accepted is in Postgres. A worker has to serve QUEUE: `writebehind run --queue QUEUE`.
    --queue is any queue that has had the table. Run again after it was killed, it does the rest.
    """
    if back == (target is not None):
        raise FatalError("give either QUEUE or --back", "writebehind move events db:write:bulk")
    goal = QueueKeys(config.queue if target is None else target)
    with reading_redis(config, _HINT) as client, reading_postgres(config) as conn:
        if is_clustered(client):
            raise FatalError(
                "tables cannot be moved on a Redis Cluster yet",
                "give them a client of its own, with another queue: docs/scaling.md, More than one queue",
            )

        def open_letters(queue: str, name: str) -> int:
            return _open_letters(conn, queue, name)

        home = QueueKeys(config.queue)
        moved = Move(client, home, table, goal, open_letters, timeout_s, unserved).move()
        is_waiting = not is_served(client, goal)
    name = plain_table(table)
    click.echo(f"{name} is in {goal.queue} now." if moved else f"{name} is in {goal.queue} already.")
    if is_waiting:
        click.echo(f"No worker serves it now: writebehind run --queue {goal.queue}", err=True)


def _open_letters(conn: Connection, queue: str, table: str) -> int:
    """Those of a group count for each of its tables."""
    try:
        found = conn.execute(
            f"SELECT count(*) FROM writebehind.dead_letters WHERE queue = ANY ({OF_WHOLE}) "
            f"AND superseded_at IS NULL AND ({_IS_OF_TABLE.format('table_name')} OR EXISTS (SELECT FROM "
            f"jsonb_array_elements(group_rows) AS r WHERE {_IS_OF_TABLE.format('r ->> 0')}))",
            [queue, table],
        ).fetchone()
    except (pg.UndefinedTable, pg.InvalidSchemaName) as error:
        raise LedgerMissing(conn.info.dbname) from error
    return int((found or (0,))[0])
