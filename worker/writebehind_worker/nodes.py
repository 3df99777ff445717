"""The nodes of a Redis Cluster: which of them has a queue, a client of all, whether a slot has moved."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, cast

from redis import Redis, RedisError
from redis.backoff import ExponentialWithJitterBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ConnectionError,
    MovedError,
    RedisClusterException,
    ResponseError,
    TryAgainError,
)
from redis.retry import Retry

from writebehind.address import Address
from writebehind.cluster_client import explained

REDIS_ERRORS = (RedisError, RedisClusterException)
"""What a client of all nodes raises; the second is none of the first."""

SLOT_MOVES = (AskError, TryAgainError)
"""Answers of a node that does not have a key's slot, or not for long. MOVED is an ASK, too."""

_ATTEMPTS, _FIRST_PAUSE_S, _LONGEST_PAUSE_S = 8, 0.05, 0.5

_NoSlots = IndexError  # what redis-py raises where none of the nodes has any

Options = Mapping[str, Any]


def slot_of(key: str) -> int:
    """The slot that a key is in."""
    return int(key_slot(key.encode(errors="surrogateescape")))


def node_of(address: Address, key: str, asking: Options, options: Options) -> Redis:
    """A client of the primary that has this key's slot; ``asking``: options of who finds it.

    The nodes of the URL are asked in an order of chance: one that was cut off may name a former primary.

    Raises:
        ClusterDownError: none of those that answer knows of one.
        redis.RedisError: what the last one said.
    """
    failed: Exception = ClusterDownError("no node is named")
    for host, port in random.sample(address.hosts, len(address.hosts)):
        try:
            with _connect(address, host, port, asking) as asked:
                primary = _primary_of(slot_of(key), asked, host)
        except RedisError as error:
            failed = ResponseError(explained(error)) if type(error) is ResponseError else error
        else:
            if primary is not None:
                return _connect(address, *primary, options)
            failed = ClusterDownError(f"no node has slot {slot_of(key)}, that of {key}")
    raise failed


def all_nodes(address: Address, options: Options, attempts: int = _ATTEMPTS) -> RedisCluster:
    """A client that asks for each key the node that has it. What is sent twice for it must do no harm.

    ``attempts``: how often anything is sent again that got no answer, once it is made.

    Raises ``ConnectionError`` where no node answers.
    """
    seeds = [cast(Any, ClusterNode)(host, port) for host, port in address.hosts]
    pauses = ExponentialWithJitterBackoff(cap=_LONGEST_PAUSE_S, base=_FIRST_PAUSE_S)
    # To be made, it asks one node what commands there are: that of slot 0, and others only if it asks again.
    given = {**address.options, **options, "retry": Retry(pauses, _ATTEMPTS)}
    try:
        client = RedisCluster(startup_nodes=seeds, require_full_coverage=False, **given, **_tls(address))
    except RedisClusterException as error:
        raise ConnectionError(explained(error)) from error
    except _NoSlots as error:
        raise ConnectionError("no node of the cluster has slots") from error
    client.set_retry(Retry(pauses, attempts))
    return client


def primaries(client: Redis) -> Iterator[Redis]:
    """Of a client of all nodes, one of each primary; of another, itself."""
    found: Any = client
    if not isinstance(found, RedisCluster):
        yield client
        return
    for node in found.get_primaries():  # type: ignore[no-untyped-call]
        yield found.get_redis_connection(node)


def home(client: Redis, clock: str) -> Redis:
    """A client of the node that has a queue, for questions in one transaction; ``clock``: its key."""
    found: Any = client
    if not is_clustered(client):
        return client
    client.hmget(clock, "seq")  # where the slot has moved, it is found
    node: Redis = found.get_redis_connection(found.get_node_from_key(clock))
    return node


def look_up(client: Redis) -> None:
    """Has a client of all nodes ask who has which slot. By itself it does not where it knows of nobody."""
    with suppress(RedisClusterException, _NoSlots):
        cast(Any, client).nodes_manager.initialize()


def is_clustered(client: Redis) -> bool:
    """Whether it is a client of all nodes."""
    return isinstance(cast(Any, client), RedisCluster)


def identity(info: Mapping[str, Any]) -> str | None:
    """Of a node's history, by its ``INFO``.

    Unlike a run id, it is another one after the node was a replica for a while and was promoted again.
    """
    run = info.get("run_id")
    if run is None or not _was_promoted(info):
        return None if run is None else str(run)
    return f"{run} {info['master_replid']}"


def _was_promoted(info: Mapping[str, Any]) -> bool:
    """Whether another node's history comes before its own.

    A node forgets whose that was once it has had no replica for ``repl-backlog-ttl``. That it has read from a
    primary it counts until it ends.
    """
    has_read = int(info.get("total_net_repl_input_bytes", 0)) > 0
    return has_read or bool(str(info.get("master_replid2", "")).strip("0"))


def has_moved(
    address: Address, clock: str, client: Redis, options: Options, former: str, since_us: int
) -> bool:
    """Whether the slot has come to this node from the one that is called ``former``, with all that it held.

    It has where that one is still the primary that it was, and says that the slot is another's; and where no
    other was ever promoted, and none has started since ``since_us``, by the clock of ``former``: then none
    can have lost what it had of it. No node tells when it was promoted, but ``former`` is called otherwise
    from then on. Where anything is unknown, it has not. Other nodes' clocks are not asked.
    """
    with suppress(RedisError, ValueError, KeyError), ExitStack() as stack:
        now_s, longest_ago_s = None, []
        for host, port in _known_primaries(client, address):
            node = stack.enter_context(_connect(address, host, port, options))
            info: dict[str, Any] = node.info()
            is_former = identity(info) == former
            if info["role"] != "master" or (_was_promoted(info) and not is_former):
                return False
            longest_ago_s.append(int(info["uptime_in_seconds"]) - 1)
            if is_former and _is_elsewhere(node, clock):
                now_s = node.time()[0]
        return now_s is not None and (now_s - min(longest_ago_s)) * 1_000_000 < since_us
    return False


def _is_elsewhere(node: Redis, clock: str) -> bool:
    try:
        node.hmget(clock, "seq")
    except MovedError:
        return True
    return False


def _known_primaries(client: Redis, address: Address) -> list[tuple[str, int]]:
    """All that this node knows of, without slots, too. Raises ``ValueError`` where one is not there."""
    text = client.execute_command("CLUSTER NODES")  # type: ignore[no-untyped-call]
    found = []
    for name, node in text.items():
        if "master" not in node["flags"]:
            continue
        if not {"fail", "fail?", "noaddr", "handshake"}.isdisjoint(node["flags"].split(",")):
            raise ValueError(f"{name} is not there")
        host, _, port = name.rpartition(":")
        found.append((node.get("hostname") or host, int(port)))
    return found


def _primary_of(slot: int, asked: Redis, host: str) -> tuple[str, int] | None:
    answer: Sequence[Any] = asked.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
    for start, end, (named, port, *_), *_ in answer:
        if start <= slot <= end:
            # Nodes that know no name of their own mean the address that they were asked at.
            return (named.decode() if named else "") or host, int(port)
    return None


def _connect(address: Address, host: str, port: int, options: Options) -> Redis:
    return Redis(host=host, port=port, **{**address.options, **options}, **_tls(address))


def _tls(address: Address) -> dict[str, Any]:
    return {"ssl": True} if address.tls else {}
