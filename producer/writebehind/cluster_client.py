"""redis-py's clients of a cluster, by addresses of some of its nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from redis import Redis
from redis import asyncio as redis_asyncio
from redis.asyncio.cluster import ClusterNode as AsyncClusterNode
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import RedisClusterException

from .errors import RedisUnavailable
from .sentinel import Host

_OF_A_SINGLE_SERVER = ("cluster support disabled", "Cluster mode is not enabled")  # Redis' words, redis-py's


def cluster(hosts: Iterable[Host], options: Mapping[str, Any], *, tls: bool) -> Redis:
    """A client; it asks the nodes at once who has what. Raises ``RedisUnavailable`` if none answers.

    It is no ``Redis``, but executes commands as one does.
    """
    make: Any = ClusterNode
    given = {"require_full_coverage": False, **options, **({"ssl": True} if tls else {})}
    # Only once it is made: it asks the node of slot 0 what commands there are, and others if it may again.
    retry = given.pop("retry", None)
    try:
        client = RedisCluster(startup_nodes=[make(*host) for host in hosts], **given)
    except RedisClusterException as error:
        raise RedisUnavailable(f"no node of the cluster answers: {explained(error)}") from error
    if retry is not None:
        client.set_retry(retry)
    return cast(Redis, client)


def explained(error: Exception) -> str:
    """What it says, and where it is another kind of URL that is needed, that."""
    is_single = any(text in str(error) for text in _OF_A_SINGLE_SERVER)
    return f"{error}; a single server's URL is redis://host:port" if is_single else str(error)


def async_cluster(hosts: Iterable[Host], options: Mapping[str, Any], *, tls: bool) -> redis_asyncio.Redis:
    """The same on an event loop; it asks nobody before the first command."""
    given = {name: value for name, value in options.items() if name != "timeout"}
    given = {"require_full_coverage": False, **given, **({"ssl": True} if tls else {})}
    nodes = [AsyncClusterNode(*host) for host in hosts]
    client: Any = redis_asyncio.RedisCluster(startup_nodes=nodes, **given)
    return cast(redis_asyncio.Redis, client)
