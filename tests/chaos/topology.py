"""Where the queue is: one Redis, or a primary and its replica under three sentinels."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Protocol, Self

from redis import Redis, RedisError
from tests.support.cluster import Cluster
from tests.support.sentinels import SERVICE, Sentinels, send

from writebehind_worker.embedded import EmbeddedRedis
from writebehind_worker.testing.wait import wait_until

from .schedule import LANES

_NO_EVICTION = {"maxmemory-policy": "noeviction"}
_FAILOVER, _NODES, _MOVES = "failover", "nodes", "moves"
_OF_ONE_REDIS = {"redis", "worker-redis", "producer-redis"}
_WRITES_WAIT_MS = 30_000  # longer than all that is waited for until a promotion
_DOWN_AFTER_MS = 2000  # of a busy machine, too: a failover of their own would lose writes
_CAUGHT_UP_S = 3.0
_PROMOTED_S = 20.0
_AGREED_S = 90.0  # a sentinel that was kept waiting by a busy machine decides nothing for half a minute
_NODE_TIMEOUT_MS = 5000


class Topology(Protocol):
    """``lanes``: of the schedule, what can be done to it. ``has_links``: its clients can come by a proxy.

    ``has_entries_by_queue``: cache keys begin with what puts them into the queue's slot.
    """

    lanes: ClassVar[frozenset[str]]
    has_links: ClassVar[bool]
    has_entries_by_queue: ClassVar[bool]

    def __init__(self, folder: Path) -> None: ...

    @property
    def url(self) -> str: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def heal(self) -> None:
        """All of its servers are up, and one takes writes."""


class Single:
    """One server, killed and started again."""

    lanes: ClassVar[frozenset[str]] = frozenset(LANES) - {_FAILOVER, _NODES}
    has_links: ClassVar[bool] = True
    has_entries_by_queue: ClassVar[bool] = False

    def __init__(self, folder: Path) -> None:
        self.redis = EmbeddedRedis(folder, options=_NO_EVICTION)

    @property
    def url(self) -> str:
        return self.redis.url

    def __enter__(self) -> Self:
        self.redis.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.redis.stop()

    def heal(self) -> None:
        self.redis.start()


class UnderSentinels(Sentinels):
    """Of the two servers the primary is killed, paused until the other has its place, or told to step down.

    What a replica lacks is lost when it is promoted: that is no fault of ours, and would hide one. So writes
    are held for the moment in which the replica gets the last ones; whoever sends one then hears nothing.
    """

    lanes: ClassVar[frozenset[str]] = frozenset(LANES) - _OF_ONE_REDIS - {_NODES}
    has_links: ClassVar[bool] = False
    has_entries_by_queue: ClassVar[bool] = False

    def __init__(self, folder: Path) -> None:
        super().__init__(lags=False, down_after_ms=_DOWN_AFTER_MS, failover_timeout_ms=5000)

    def fail_over(self, fault: str) -> bool:
        """Whether ``fault`` came to be: the replica may not have caught up yet after the last one."""
        primary = self._primary()
        if primary is None:
            return False
        [replica] = [server for server in self.servers if server is not primary]
        if not self._hold_writes(primary, replica):
            return False
        match fault:
            case "kill primary":
                primary.kill()
            case "pause primary":
                send(primary, signal.SIGSTOP)
            case _:
                with suppress(RedisError), self.on_sentinel() as client:
                    client.execute_command("SENTINEL", "FAILOVER", SERVICE)
        try:
            self._wait_until_promoted(replica)
        finally:
            if fault == "pause primary":
                send(primary, signal.SIGCONT)
        # The sentinels would do it, too, but later: until then it would take writes that nobody will see.
        primary.start()
        with self.on(primary) as client:
            client.replicaof("127.0.0.1", replica.port)
            client.client_unpause()  # it may be the primary again before long
        return True

    def _primary(self) -> EmbeddedRedis | None:
        return next((server for server in self.servers if self.role(server) == "master"), None)

    def _wait_until_promoted(self, replica: EmbeddedRedis) -> None:
        wait_until(lambda: self.role(replica) == "master", _PROMOTED_S, message="no promotion")

    def _hold_writes(self, primary: EmbeddedRedis, replica: EmbeddedRedis) -> bool:
        with self.on(primary) as first, self.on(replica) as second:
            return _hold_writes(first, second)

    def heal(self) -> None:
        for server in self.servers:
            server.start()
        wait_until(self._is_agreed, _AGREED_S, 0.1, message="the sentinels do not agree on a primary")

    def _is_agreed(self) -> bool:
        """Whether all name the one that is."""
        primary = self._primary()
        return primary is not None and all(s.names(primary) for s in self.sentinels)


def _hold_writes(first: Redis, second: Redis) -> bool:
    """Whether the replica, the second one, has all that the first will ever have."""
    deadline = time.monotonic() + _CAUGHT_UP_S
    with suppress(RedisError):
        first.client_pause(_WRITES_WAIT_MS, all=False)
        while time.monotonic() < deadline:
            here, there = first.info("replication"), second.info("replication")
            has_all = there.get("slave_repl_offset") == here["master_repl_offset"]
            if there.get("master_link_status") == "up" and has_all:
                return True
            time.sleep(0.01)
        first.client_unpause()
    return False


class OfNodes(Cluster):
    """Six nodes. The primary of a shard's slot is replaced as under sentinels, or the slot goes elsewhere.

    Their own failover is slow, so that a busy machine does not begin one, which would lose writes.
    """

    lanes: ClassVar[frozenset[str]] = frozenset(LANES) - _OF_ONE_REDIS - {_FAILOVER, _MOVES}
    has_links: ClassVar[bool] = False
    has_entries_by_queue: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        super().__init__({"cluster-node-timeout": str(_NODE_TIMEOUT_MS)})

    def replace_node(self, fault: str, queue: str) -> bool:
        """Whether ``fault`` came to be: a replica may not have caught up yet after the last one."""
        if not self.is_whole():
            return False
        primary = self.node_of(queue)
        replica = self.replica_of(primary)
        if fault == "replace node":
            self.fail_over(primary)
            return True
        if not _hold_writes(self.clients[primary], self.clients[replica]):
            return False
        if fault == "kill node":
            self.kill(primary)
        else:
            send(self.nodes[primary], signal.SIGSTOP)
        try:
            self.take_over(replica)
        finally:
            if fault == "pause node":
                send(self.nodes[primary], signal.SIGCONT)
        self.nodes[primary].start()
        self.wait_for_replica(primary)
        self.clients[primary].client_unpause()  # it may be the primary again before long
        return True

    def move_slot(self, queue: str, slowly_s: float | None) -> bool:
        """To another primary: at once, or key by key within so many seconds."""
        if not self.is_whole():
            return False
        target = self.other_primary(self.node_of(queue))
        if slowly_s is None:
            self.move_at_once(queue, target)
        else:
            move = self.slot_moves(queue, target)
            move.begin()
            time.sleep(slowly_s / 2)
            move.move_keys(50)
            time.sleep(slowly_s / 2)
            move.end()
        return True

    def heal(self) -> None:
        self.restart(*range(len(self.nodes)))


TOPOLOGIES: dict[str, type[Topology]] = {
    "single": Single,
    "sentinel": UnderSentinels,
    "cluster": OfNodes,
}
