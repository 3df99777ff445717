"""What `writebehind doctor` finds in a Redis Cluster beyond the queue's node: shards are on all nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from redis import Redis
from redis.exceptions import ConnectionError, ResponseError, TimeoutError

from .config import Config, one_line
from .doctor import Finding
from .nodes import primaries
from .redis_server import is_replica, redis_risks

_SLOTS = 16384
_Level = Literal["fatal", "warning", "note"]


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """``state``: of CLUSTER INFO. ``nodes``: address and ``INFO`` of each primary.

    ``unheard``: address of each that does not answer, or knows no such user, and what it came to.
    """

    state: Mapping[str, str]
    nodes: Sequence[tuple[str, Mapping[str, Any]]]
    covers_all: str | None
    unheard: Sequence[tuple[str, str]] = ()


def read_cluster(client: Redis) -> ClusterFacts:
    """Asks all primaries; ``client`` is one of all nodes."""
    nodes: list[tuple[str, Mapping[str, Any]]] = []
    unheard: list[tuple[str, str]] = []
    state: dict[str, str] = {}
    covers_all = None
    for node in primaries(client):
        at = node.connection_pool.connection_kwargs
        where = f"{at['host']}:{at['port']}"
        try:
            nodes.append((where, node.info()))
        except (ConnectionError, TimeoutError) as error:
            unheard.append((where, one_line(error)))
            continue
        try:
            told: Any = node.execute_command("CLUSTER INFO")  # type: ignore[no-untyped-call]
            state = told if isinstance(told, dict) else _lines(told)
            setting: Any = node.config_get("cluster-require-full-coverage")
            covers_all = setting.get("cluster-require-full-coverage")
        except ResponseError:  # refused to this user
            continue
    return ClusterFacts(state, nodes, covers_all, unheard)


def cluster_finding(facts: ClusterFacts, config: Config) -> Finding:
    """All rules: the worst one says how bad it is."""
    found = list(_faults(facts, config))
    if not found:
        return Finding("redis.cluster", "ok", f"{len(facts.nodes)} primaries have all slots")
    order: list[_Level] = ["fatal", "warning", "note"]
    worst = min((level for level, _, _ in found), key=order.index)
    whats = "; ".join(what for _, what, _ in found)
    remedies = dict.fromkeys(remedy for _, _, remedy in found)
    return Finding("redis.cluster", worst, whats, "; ".join(remedies))


def _faults(facts: ClusterFacts, config: Config) -> Iterator[tuple[_Level, str, str]]:
    have = int(facts.state.get("cluster_slots_ok", _SLOTS))
    if have < _SLOTS:
        what = f"{_SLOTS - have} slots have no node that answers: shards and rows in them wait"
        yield "fatal", what, "bring the nodes back, or give their slots to others (CLUSTER NODES)"
    for where, why in facts.unheard:
        what = f"{where} cannot be asked, and the shards and rows there may wait: {why}"
        remedy = "bring it back (where it is dead its replica is promoted), and have the user on every node"
        yield "fatal", what, remedy
    for where, info in facts.nodes:
        yield from _of_node(where, info, config)
    if facts.covers_all == "yes":
        what = "cluster-require-full-coverage yes: where one slot has no node, all others stop, too"
        yield "note", what, "CONFIG SET cluster-require-full-coverage no, and the same in the files"


def _of_node(where: str, info: Mapping[str, Any], config: Config) -> Iterator[tuple[_Level, str, str]]:
    risks = redis_risks(info)
    if "eviction" in risks:
        what = f"{where} has maxmemory-policy {info['maxmemory_policy']}: when full it evicts what waits"
        level: _Level = "warning" if config.allow_eviction else "fatal"
        yield level, what, "set maxmemory-policy to noeviction or volatile-ttl on every node"
    if "persistence" in risks:
        what = f"{where} keeps no AOF: a restart loses what waits there"
        yield "warning", what, "set appendonly to yes on every node"
    if "write_error" in risks:
        yield "warning", f"{where} could not write its files, the last time", "look at its log"
    if not is_replica(info) and info.get("connected_slaves") == 0:
        yield "note", f"{where} has no replica: with it its slots stop", "give every primary a replica"


def _lines(told: bytes | str) -> dict[str, str]:
    text = told.decode() if isinstance(told, bytes) else told
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
