"""Which commands the worker's user of Redis must be allowed; asked by a script that runs none of them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from redis import Redis

from writebehind.keys import QueueKeys
from writebehind.script import Script

_RIGHTS = Script("writebehind_worker", "rights")


def needed(keys: QueueKeys) -> list[Sequence[str]]:
    """The commands of `writebehind run`, but for those on cache keys, whose prefix is the producers'."""
    queue, batch = keys.queue, keys.processing(1)
    return [
        ("INFO",),
        ("TIME",),
        ("EVAL", "", "1", queue),
        ("EVALSHA", "", "1", keys.lease),
        ("LLEN", queue),
        ("LINDEX", queue, "-1"),
        ("LRANGE", queue, "0", "-1"),
        ("LTRIM", queue, "0", "-1"),
        ("BLMOVE", queue, queue, "RIGHT", "RIGHT", "1"),
        ("SORT", queue, "BY", "nosort", "STORE", batch),
        ("GET", keys.lease),
        ("SET", keys.lease, ""),
        ("DEL", keys.lease),
        ("LLEN", batch),
        ("LINDEX", batch, "0"),
        ("LRANGE", batch, "0", "-1"),
        ("RPUSH", batch, ""),
        ("UNLINK", batch),
        ("LTRIM", keys.inflight, "1", "-1"),
        ("HGET", keys.clock, "seq"),
        ("HMGET", keys.clock, "seq"),
        ("HSET", keys.clock, "seq", "1"),
        ("HSCAN", keys.producers, "0"),
        ("HDEL", keys.producers, ""),
        ("ZADD", keys.rejected, "1", ""),
        ("ZREMRANGEBYRANK", keys.rejected, "0", "0"),
    ]


def missing(client: Redis, keys: QueueKeys) -> list[str]:
    """Those that the user may not run, as ``COMMAND key``.

    Raises ``redis.exceptions.NoPermissionError`` if it may not even run a script.
    """
    commands = needed(keys)
    places: list[int] = _RIGHTS(client, [], [msgspec.json.encode(commands)])
    return [_shown(commands[place - 1]) for place in places]


def may_publish(client: Redis, keys: QueueKeys) -> bool:
    """Whether the user may tell of changes; raises as :func:`missing`."""
    refused: list[int] = _RIGHTS(client, [], [msgspec.json.encode([("PUBLISH", keys.changes, "")])])
    return not refused


def _shown(command: Sequence[str]) -> str:
    name, *arguments = command
    if name.startswith("EVAL"):
        return f"{name} with the key {arguments[2]}"
    return f"{name} {arguments[0]}" if arguments else name
