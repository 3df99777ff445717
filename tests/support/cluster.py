"""Six nodes of a cluster as real processes: three primaries, each with a replica."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import redis
from redis.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot

from writebehind_worker.embedded import EmbeddedRedis, ServerNotFound, temporary_data_dir
from writebehind_worker.embedded.process import is_free
from writebehind_worker.testing.servers import FAST_REDIS, missing
from writebehind_worker.testing.wait import wait_until

PRIMARIES = 3
SLOTS = 16384
_BUS = 1  # above the port: the usual 10,000 reaches into those of outgoing connections
_START_S = 60


class Cluster:
    """``nodes``: the first three begin as primaries; ``nodes[n + 3]`` is the replica of ``nodes[n]``."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = temporary_data_dir()
            stack.callback(shutil.rmtree, folder)
            self.nodes = [_Node(folder / str(n), options=_OPTIONS) for n in range(2 * PRIMARIES)]
            for node in self.nodes:
                stack.callback(node.kill)
                _start(node)
            self.clients = [stack.enter_context(redis.Redis.from_url(node.url)) for node in self.nodes]
            self._meet()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """Names all of them."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def connect(self, **options: Any) -> RedisCluster:
        """A client of all nodes. It is the caller's to close."""
        make: Any = ClusterNode
        seeds = [make("127.0.0.1", node.port) for node in self.nodes]
        return RedisCluster(startup_nodes=seeds, **options)

    def node_of(self, key: str) -> int:
        """The place of the primary that has this key's slot."""
        slot = key_slot(key.encode())
        for place in range(len(self.nodes)):
            if self.nodes[place].pid is not None and slot in _own_slots(self.clients[place]):
                return place
        raise AssertionError(f"no node has slot {slot}")

    def fail_over(self, place: int) -> int:
        """The replica of this primary takes over in order, as for maintenance; its place."""
        successor = self.replica_of(place)
        self.clients[successor].execute_command("CLUSTER FAILOVER")
        _wait(lambda: not _primary_of(self.clients[successor]) and bool(_primary_of(self.clients[place])))
        return successor

    def kill(self, place: int) -> int:
        """The primary dies once its replica has all that it had; the place of who is promoted."""
        successor = self.replica_of(place)
        assert self.clients[place].execute_command("WAIT", 1, _START_S * 1000) == 1
        self.nodes[place].kill()
        self.wait_for_promotion(successor)
        return successor

    def wait_for_promotion(self, place: int) -> None:
        """It is a primary, and whom it knows agree."""
        _wait(
            lambda: (
                not _primary_of(self.clients[place]) and _info(self.clients[place])["cluster_state"] == "ok"
            )
        )

    def heal(self) -> None:
        """All nodes run, and each slot has a primary and a replica."""
        for node in self.nodes:
            node.start()
        _wait(lambda: all(_is_whole(client) for client in self.clients))

    def replica_of(self, place: int) -> int:
        """The place of a primary's replica."""
        mine = _id(self.clients[place])
        return next(
            n for n, client in enumerate(self.clients) if self._runs(n) and _primary_of(client) == mine
        )

    def _runs(self, place: int) -> bool:
        return self.nodes[place].pid is not None

    def another(self, key: str) -> int:
        """The place of a primary that does not have this key's slot."""
        return next(
            place
            for place, client in enumerate(self.clients)
            if self._runs(place) and not _primary_of(client) and place != self.node_of(key)
        )

    def move(self, key: str) -> None:
        """A key's slot goes to another primary at once, as Valkey 9 can do it."""
        source, target, slot = self.node_of(key), self.another(key), key_slot(key.encode())
        self.clients[source].execute_command(
            "CLUSTER MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", _id(self.clients[target])
        )
        _wait(lambda: self.node_of(key) == target)
        self._wait_until_all_know(slot, target)

    @contextmanager
    def moving(self, key: str) -> Iterator[None]:
        """Within this block the slot is on its way to another primary; at its end the keys go, one by one."""
        source, target, slot = self.node_of(key), self.another(key), key_slot(key.encode())
        here, there = self.clients[source], self.clients[target]
        there.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", _id(here))
        here.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", _id(there))
        yield
        while names := here.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
            for name in names:
                here.migrate("127.0.0.1", self.nodes[target].port, [name], 0, 5000)
        for client in (there, here):
            client.execute_command("CLUSTER SETSLOT", slot, "NODE", _id(there))
        self._wait_until_all_know(slot, target)

    def _wait_until_all_know(self, slot: int, place: int) -> None:
        port = self.nodes[place].port
        running = [client for n, client in enumerate(self.clients) if self._runs(n)]
        _wait(lambda: all(_port_of(client, slot) == port for client in running))

    def _meet(self) -> None:
        first = self.clients[0]
        for n, client in enumerate(self.clients[:PRIMARIES]):
            start, end = SLOTS * n // PRIMARIES, SLOTS * (n + 1) // PRIMARIES - 1
            client.execute_command("CLUSTER ADDSLOTSRANGE", start, end)
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", n + 1)
        for node in self.nodes[1:]:
            first.execute_command("CLUSTER MEET", "127.0.0.1", node.port, node.port + _BUS)
        _wait(lambda: all(_knows(client, 2 * PRIMARIES) for client in self.clients))
        for n, client in enumerate(self.clients[PRIMARIES:]):
            client.execute_command("CLUSTER REPLICATE", _id(self.clients[n]))
        _wait(lambda: all(_is_whole(client) for client in self.clients))


class _Node(EmbeddedRedis):
    def _choose_port(self) -> int:
        while not is_free((port := super()._choose_port()) + _BUS):
            assert not self.port, f"the port {port + _BUS} of the cluster's bus is taken"
        return port

    def _command(self, port: int) -> list[str]:
        return [*super()._command(port), "--cluster-port", str(port + _BUS)]


_OPTIONS = FAST_REDIS | {
    "cluster-enabled": "yes",
    "cluster-node-timeout": "1000",
    "cluster-require-full-coverage": "no",
    "repl-diskless-sync-delay": "0",
}


def _start(node: _Node) -> None:
    try:
        node.start()
    except ServerNotFound as error:
        missing(str(error))


def _wait(condition: Callable[[], bool]) -> None:
    wait_until(condition, _START_S, 0.05, "the cluster did not come together")


def _knows(client: redis.Redis, nodes: int) -> bool:
    return _info(client)["cluster_known_nodes"] == str(nodes)


def _is_whole(client: redis.Redis) -> bool:
    """All slots have a primary, and this node is one, or has what its primary has."""
    if _info(client)["cluster_state"] != "ok" or _info(client)["cluster_slots_ok"] != str(SLOTS):
        return False
    told = client.info("replication")
    if told["role"] == "master":
        return bool(told["connected_slaves"] == 1)
    return bool(told["master_link_status"] == "up")


def _info(client: redis.Redis) -> dict[str, str]:
    found = _ask(client, "CLUSTER INFO")
    if isinstance(found, dict):
        return found
    lines = found.decode() if isinstance(found, bytes) else found
    return dict(line.split(":", 1) for line in lines.splitlines() if ":" in line)


def _primary_of(client: redis.Redis) -> Any:
    """The id of the primary that this one is a replica of."""
    primary = _me(client)["master_id"]
    return "" if primary == "-" else primary


def _me(client: redis.Redis) -> dict[str, Any]:
    """What a node says of itself."""
    nodes = _ask(client, "CLUSTER NODES")
    (me,) = (node for node in nodes.values() if node["node_id"] == _id(client))
    found: dict[str, Any] = me
    return found


def _id(client: redis.Redis) -> str:
    mine = _ask(client, "CLUSTER MYID")
    return mine.decode() if isinstance(mine, bytes) else str(mine)


def _own_slots(client: redis.Redis) -> set[int]:
    return {n for part in _me(client)["slots"] for n in range(int(part[0]), int(part[-1]) + 1)}


def _port_of(client: redis.Redis, slot: int) -> int | None:
    """Who has the slot, in this node's view."""
    return next(
        (p for first, last, (_, p, *_), *_ in _ask(client, "CLUSTER SLOTS") if first <= slot <= last), None
    )


def _ask(client: Any, question: str) -> Any:
    return client.execute_command(question)
