"""An operator's pause of a queue with all of its shards."""

from __future__ import annotations

from collections.abc import Sequence

from redis import Redis

from writebehind.keys import QueueKeys

from .nodes import REDIS_ERRORS, is_clustered
from .pause import pause, resume
from .resharding import copy_to_shards, layout_of, served


def pause_all(client: Redis, keys: QueueKeys, reason: str) -> Sequence[QueueKeys]:
    """Begins it; returns the shards that may have something frozen: those made from now on do not.

    Each shard looks at the key of the whole queue as it claims. On a cluster that is in another slot: there
    each has a copy, which workers see to, also where who paused or resumed was killed half-way.
    """
    pause(client, keys, reason)
    while True:
        layout = layout_of(client, keys)
        copy_to_shards(client, keys, served(keys, layout))
        if layout_of(client, keys) == layout:
            return served(keys, layout)


def resume_all(client: Redis, keys: QueueKeys) -> bool:
    """Ends it; whether there was one. Raises what a node says, or that it is away, after all the others."""
    was_paused = resume(client, keys)
    while is_clustered(client):
        layout = layout_of(client, keys)
        failure: Exception | None = None
        for one in served(keys, layout):
            try:
                was_paused |= resume(client, one)
            except REDIS_ERRORS as error:
                failure = failure or error
        if failure is not None:
            raise failure
        if layout_of(client, keys) == layout:
            break
    return was_paused
