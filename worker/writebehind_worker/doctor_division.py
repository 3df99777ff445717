"""What `writebehind doctor` finds of a queue that is divided into shards, or was."""

from __future__ import annotations

from collections.abc import Collection

from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from writebehind.keys import QueueKeys
from writebehind.shards import Layout

from .config import one_line
from .doctor import Finding
from .errors import FatalError
from .lost_steps import find_lost_steps, suspects
from .nodes import REDIS_ERRORS, is_clustered
from .redis_number import NotOurs
from .resharding import LostSteps, layout_of
from .shard_clocks import hear_clocks
from .verify_view import many


def examine_division(client: Redis, keys: QueueKeys, counts: Collection[int]) -> Finding:
    """Asks the server, or all nodes. ``counts``: numbers of shards that the ledger knows of.

    Raises ``redis.RedisError`` if the one server does not answer any more; a node that does not is told by
    `cluster_finding`.
    """
    try:
        layout = layout_of(client, keys)
        heard = hear_clocks(client, keys, counts)
        for error in heard.errors.values():
            raise error
        lost = find_lost_steps(client, keys, layout, heard.whole)
        waiting = suspects(layout, heard.clocks) - heard.whole
        return division_finding(keys.queue, layout, lost, len(heard.silent), waiting)
    except FatalError as error:
        return Finding("redis.division", "fatal", str(error), error.hint)
    except NotOurs as error:
        remedy = "find out what did: until it is mended, lost steps of a division are not found there"
        return Finding("redis.division", "fatal", one_line(error), remedy)
    except NoPermissionError as error:
        what = f"the user may not look at the queue's shards, and the worker must: {one_line(error)}"
        remedy = f"say {keys.queue}* and {{{keys.queue}* where deploy/redis-acl.conf names the queue"
        return Finding("redis.division", "fatal", what, remedy)
    except REDIS_ERRORS as error:
        if not isinstance(error, ResponseError) and not is_clustered(client):
            raise
        return Finding("redis.division", "note", f"could not be looked at: {one_line(error)}")


def division_finding(
    queue: str,
    layout: Layout,
    lost: LostSteps | None,
    silent: int = 0,
    waiting: Collection[int] = frozenset(),
) -> Finding:
    """All rules, on what has been found.

    ``silent``: so many shards of the ledger do not answer. ``waiting``: numbers of shards of which some do
    not answer, and others do not fit.
    """
    there = many(layout.shards, "shard")
    if lost is not None:
        what = f"{there}, and Redis has lost steps of a division: {lost.reason}"
        remedy = "start a worker: it divides the queue anew; until then writes may wait where none looks"
        return Finding("redis.division", "fatal", what, remedy)
    if waiting:
        what = f"{there}, and Redis has lost steps of a division: {min(waiting)} former shards do not fit it"
        remedy = "bring back the node of those that cannot be asked: until then writes wait where none looks"
        return Finding("redis.division", "fatal", what, remedy)
    if layout.closing is not None:
        what = f"{there}, being divided into {layout.closing}: until then no write is accepted"
        return Finding("redis.division", "warning", what, f"run `writebehind reshard {layout.closing}` again")
    if moving := [(table, says.queue) for table, says in layout.tables.items() if says.waits]:
        table, target = moving[0]
        what = f"{there}; {table} is being moved to {target!r}, and its writes wait"
        remedy = f"if that command has ended: `writebehind move --queue {queue} {table} {target}`"
        return Finding("redis.division", "warning", what, remedy)
    if layout.draining:
        what = f"{there}; what the former ones hold goes to Postgres first"
        return Finding("redis.division", "note", what, "see `writebehind status` for what they wait for")
    agree = f"{there}; the layout and all shards say the same"
    if silent:
        what = f"{agree}, but for {many(silent, 'former shard')} that cannot be asked"
        return Finding("redis.division", "note", what, "bring the node back, or find out what it refuses")
    return Finding("redis.division", "ok", agree)
