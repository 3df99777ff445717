"""What `writebehind doctor` finds of a queue that is divided into shards, or was."""

from __future__ import annotations

import psycopg

from writebehind.keys import QueueKeys
from writebehind.shards import Layout

from . import postgres
from .config import Config
from .doctor import Finding
from .errors import FatalError
from .former_shards import counts_in_ledger
from .lost_steps import find_lost_steps
from .nodes import REDIS_ERRORS
from .redis_server import RedisLink
from .resharding import LostSteps, layout_of
from .verify_view import many


def examine_division(config: Config) -> list[Finding]:
    """Asks both servers. Whether they answer is told by others; what the ledger does not say is not asked."""
    try:
        with postgres.connect(config.postgres_url) as conn:
            counts = counts_in_ledger(conn, config.queue)
    except psycopg.Error:
        counts = set()
    keys = QueueKeys(config.queue)
    try:
        with RedisLink(config.redis_url) as link:
            layout = layout_of(link.client, keys)
            lost = find_lost_steps(link.client, keys, layout, counts)
    except FatalError as error:
        return [Finding("redis.division", "fatal", str(error), error.hint)]
    except (*REDIS_ERRORS, OSError):
        return []
    return [division_finding(layout, lost)]


def division_finding(layout: Layout, lost: LostSteps | None) -> Finding:
    """All rules, on what has been found."""
    there = many(layout.shards, "shard")
    if lost is not None:
        what = f"{there}, and Redis has lost steps of a division: {lost.reason}"
        remedy = "start a worker: it divides the queue anew; until then writes may wait where none looks"
        return Finding("redis.division", "fatal", what, remedy)
    if layout.closing is not None:
        what = f"{there}, being divided into {layout.closing}: until then no write is accepted"
        return Finding("redis.division", "warning", what, f"run `writebehind reshard {layout.closing}` again")
    if layout.draining:
        what = f"{there}; what the former ones hold goes to Postgres first"
        return Finding("redis.division", "note", what, "see `writebehind status` for what they wait for")
    return Finding("redis.division", "ok", f"{there}; the layout and all shards say the same")
