"""Six nodes of a cluster as real processes: three primaries, each with a replica."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Self, cast

import pytest
import redis
from redis.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot

from writebehind_worker.embedded import EmbeddedRedis, ServerNotFound
from writebehind_worker.embedded.process import is_free
from writebehind_worker.testing.servers import FAST_REDIS, missing, new_data_dir
from writebehind_worker.testing.wait import wait_until

PRIMARIES = 3
SLOTS = 16384
_BUS = 1  # above the port: the usual 10,000 reaches into those of outgoing connections
_START_S = 60


class Cluster:
    """``nodes``: the first three begin as primaries; ``nodes[n + 3]`` is the replica of ``nodes[n]``."""

    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        self._options = _OPTIONS | dict(options or {})
        self._is_patient = _TIMEOUT not in (options or {})

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = new_data_dir()
            stack.callback(shutil.rmtree, folder)
            self.nodes = [_Node(folder / str(n), options=self._options) for n in range(2 * PRIMARIES)]
            for node in self.nodes:
                stack.callback(node.kill)
                _start(node)
            self.clients = [stack.enter_context(redis.Redis.from_url(node.url)) for node in self.nodes]
            self._meet()
            self._expect_deaths(False)
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
        mine = _id(self.clients[place])
        successor = next(n for n, client in enumerate(self.clients) if _primary_of(client) == mine)
        self.clients[successor].execute_command("CLUSTER FAILOVER")
        _wait(lambda: not _primary_of(self.clients[successor]) and bool(_primary_of(self.clients[place])))
        return successor

    def slot_moves(self, key: str, target: int) -> SlotMove:
        """The slot of this key can be moved to another primary, key by key."""
        return SlotMove(self, key_slot(key.encode()), self.node_of(key), target)

    def move_at_once(self, key: str, target: int) -> None:
        """The slot of this key, as Valkey moves it by itself. Raises ``ResponseError`` where it cannot."""
        slot = key_slot(key.encode())
        source: Any = self.clients[self.node_of(key)]
        source.execute_command(
            "CLUSTER MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", _id(self.clients[target])
        )
        _wait(lambda: slot in _own_slots(self.clients[target]))

    @contextmanager
    def slot_of_nobody(self, key: str) -> Iterator[None]:
        """No node has the slot of this key, as where one that died was forgotten; its keys stay."""
        slot, place = key_slot(key.encode()), self.node_of(key)
        owner: Any = self.clients[place]

        def is_nobodys() -> bool:
            for client in (owner, *self.clients):  # those that a word of the owner's has reached again, too
                with suppress(redis.ResponseError):  # it has none
                    client.execute_command("CLUSTER DELSLOTS", slot)
            return all(_info(client)["cluster_slots_assigned"] == str(SLOTS - 1) for client in self.clients)

        _wait(is_nobodys)
        try:
            yield
        finally:
            owner.execute_command("CLUSTER ADDSLOTS", slot)
            _wait(self.is_whole)

    def other_primary(self, place: int) -> int:
        """The place of a primary that is not this one."""
        return next(n for n, c in enumerate(self.clients) if n != place and not _primary_of(c))

    def kill(self, place: int) -> None:
        """As if its machine had died."""
        self._expect_deaths(True)
        self.nodes[place].kill()

    def lose(self, place: int) -> int:
        """A primary dies once its replica has all that it had; the place of that one, when it is promoted."""
        successor = self.replica_of(place)
        wait: Any = self.clients[place]
        assert wait.execute_command("WAIT", 1, _START_S * 1000) == 1
        self.kill(place)
        _wait(lambda: not _primary_of(self.clients[successor]))
        return successor

    def replica_of(self, place: int) -> int:
        """The place of its replica."""
        mine = _id(self.clients[place])
        return next(n for n, client in enumerate(self.clients) if _primary_of(client) == mine)

    def take_over(self, place: int) -> None:
        """A replica takes its primary's place, whatever that one does: nobody is asked."""
        self.clients[place].execute_command("CLUSTER FAILOVER", "TAKEOVER")
        _wait(lambda: not _primary_of(self.clients[place]))

    def wait_for_replica(self, place: int) -> None:
        """Until this one, which was a primary, has heard who is."""
        _wait(lambda: bool(_primary_of(self.clients[place])))

    def is_whole(self) -> bool:
        """All nodes are there, and have what they should have."""
        with suppress(redis.RedisError):
            return all(_is_whole(client) for client in self.clients)
        return False

    def restart(self, *places: int) -> None:
        """They come back with what they had on disk, and the cluster is whole."""
        for place in places:
            self.nodes[place].start()
        _wait(lambda: all(_is_whole(client) for client in self.clients))
        self._expect_deaths(False)

    def _expect_deaths(self, expected: bool) -> None:
        """Where none is, who is slow is not taken for dead: its replica would lack what came last."""
        for client in self.clients if self._is_patient else ():
            with suppress(redis.RedisError):
                client.config_set(_TIMEOUT, _OPTIONS[_TIMEOUT] if expected else _PATIENT_MS)

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


@contextmanager
def one_node() -> Iterator[redis.Redis]:
    """A cluster of one node, which has all slots; a client of that node alone."""
    folder = new_data_dir()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        node = _Node(folder / "0", options=_OPTIONS)
        stack.callback(node.kill)
        _start(node)
        client = stack.enter_context(redis.Redis.from_url(node.url))
        ask: Any = client.execute_command
        ask("CLUSTER ADDSLOTSRANGE", 0, SLOTS - 1)
        _wait(lambda: _info(client)["cluster_state"] == "ok")
        yield client


class SlotMove:
    """A slot on its way from one primary to another, key by key, as redis-cli moves it."""

    def __init__(self, cluster: Cluster, slot: int, source: int, target: int) -> None:
        self._slot, self._nodes = slot, cluster.clients
        clients: list[Any] = cluster.clients
        self._source, self._target = clients[source], clients[target]
        self._port = cluster.nodes[target].port

    def begin(self) -> None:
        """From now on what is absent here is asked for there."""
        self._set(self._target, "IMPORTING", _id(self._source))
        self._set(self._source, "MIGRATING", _id(self._target))

    def move_keys(self, most: int = 1000) -> int:
        """So many of its keys, if there are; how many have been moved."""
        keys = _ask(self._source, f"CLUSTER GETKEYSINSLOT {self._slot} {most}")
        if keys:
            self._source.execute_command("MIGRATE", "127.0.0.1", self._port, "", 0, 5000, "KEYS", *keys)
        return len(keys)

    def move_key(self, key: str) -> None:
        """This one of its keys."""
        self._source.execute_command("MIGRATE", "127.0.0.1", self._port, key, 0, 5000)

    def end(self) -> None:
        """All that is left, and then the slot itself."""
        while self.move_keys():
            pass
        for node in (self._target, self._source, *self._nodes):
            if not _primary_of(node):
                self._set(node, "NODE", _id(self._target))

    def _set(self, node: Any, state: str, other: str) -> None:
        node.execute_command("CLUSTER SETSLOT", self._slot, state, other)


class _Node(EmbeddedRedis):
    def _choose_port(self) -> int:
        while not is_free((port := super()._choose_port()) + _BUS):
            assert not self.port, f"the port {port + _BUS} of the cluster's bus is taken"
        return port

    def _command(self, port: int) -> list[str]:
        return [*super()._command(port), "--cluster-port", str(port + _BUS)]


_TIMEOUT = "cluster-node-timeout"
_PATIENT_MS = 20_000
_OPTIONS = FAST_REDIS | {
    "cluster-enabled": "yes",
    _TIMEOUT: "1000",
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


def _ask(client: Any, question: str) -> Any:
    return client.execute_command(question)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Six nodes, for all tests of a module."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[redis.Redis]:
    """Of all nodes; it is asked for nothing that a client of one server could not be."""
    client: RedisCluster = cluster.connect()
    yield cast(redis.Redis, client)
    client.close()


@pytest.fixture
def options(cluster: Cluster, postgres_url: str, queue: str) -> dict[str, Any]:
    """Of a worker that serves this test's queue there."""
    return {"redis_url": cluster.url, "postgres_url": postgres_url, "queue": queue, "lease_ttl_s": 1.0}
