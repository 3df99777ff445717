"""An owner of a queue without a worker: what it asks of Redis is the test's to say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from writebehind.keys import QueueKeys
from writebehind_worker.lease import Lease
from writebehind_worker.owned_queue import CONNECTIONS, OwnedQueue
from writebehind_worker.redis_server import RedisLink


@contextmanager
def owning(url: str, keys: QueueKeys) -> Iterator[OwnedQueue]:
    """Of epoch 1."""
    with RedisLink(url) as link:
        assert Lease(link.client, keys, "token", "me", 60).take() is None
        link.open(CONNECTIONS)
        owned = OwnedQueue(link, keys, "token")
        owned.own(1, 0)
        yield owned
