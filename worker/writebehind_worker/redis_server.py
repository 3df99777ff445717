"""The worker's connections to Redis, and what it must know of the server before trusting it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError
from redis.retry import Retry

from writebehind.address import connect, read_address

from . import nodes
from .config import Config, redacted
from .errors import ClusteredRedis, FatalError, UnsafeRedis, UnsupportedRedis
from .metrics import RedisRisk

_TIMEOUTS = ("socket_timeout", "socket_connect_timeout")
_TIMEOUT_S = 5.0  # longer than we ever block
_LONGEST_TIMEOUT_S = 86_400.0
_ADDRESSES = 2  # of one host: IPv6 and IPv4
_MEMORY_SHARE = 0.9  # of maxmemory


class RedisLink:
    """A client that never re-sends a command: after a lost reply the owner reads again instead.

    On a cluster: of the node that has ``queue``, as one is named now; or, without it, of all nodes, made when
    it is first asked for. That one follows a slot that moves, and sends again: for what may be done twice.
    With ``at_most_s`` no node is waited for longer, nor asked again where it did not answer.

    ``connections`` counts those made: redis-py replaces an idle one that was closed without a word, and
    behind the new one may be another server, or the same with older data.
    """

    def __init__(self, url: str, queue: str | None = None, *, at_most_s: float | None = None) -> None:
        self.connections = 0
        self._url, self._address, self._at_most_s = url, read_address(url), at_most_s
        self.is_clustered = self._address.kind == "cluster"
        self._asking = {**timeouts(url), "retry": Retry(NoBackoff(), 0)}
        options = {**self._asking, "redis_connect_func": self._connected}
        self._client: Redis | None = None
        if not self.is_clustered:
            self._client = connect(url, options)
            self._bound(self._client.connection_pool.connection_kwargs)
        elif queue is not None:
            self._client = nodes.node_of(self._address, queue, self._asking, options)

    @property
    def client(self) -> Redis:
        """Raises ``redis.RedisError`` where it has to ask the nodes of a cluster, and none answers."""
        if self._client is None:
            self._client = cast(Redis, self._all_nodes(timeouts(self._url)))
        return self._client

    def _all_nodes(self, bounded: dict[str, float]) -> Any:
        if self._at_most_s is None:
            return nodes.all_nodes(self._address, bounded)
        hasty = {name: min(timeout_s, self._at_most_s) for name, timeout_s in bounded.items()}
        return nodes.all_nodes(self._address, hasty, attempts=0)

    def _bound(self, given: dict[str, Any]) -> None:
        # redis-py keeps each of them twice, the second time as what to go back to ("orig_...").
        bounded = timeouts(self._url)
        given.update({name: bounded[n] for n in _TIMEOUTS for name in (n, f"orig_{n}") if name in given})

    def has_moved(self, clock: str, former: str, since_us: int) -> bool:
        """Whether the slot of ``clock`` has come from the node ``former``, and all that it held."""
        if not self.is_clustered:
            return False
        return nodes.has_moved(self._address, clock, self.client, self._asking, former, since_us)

    def open(self, connections: int) -> None:
        """Has so many at hand: one more later would count as renewed."""
        pool = self.client.connection_pool
        held = [pool.get_connection() for _ in range(connections)]
        for connection in held:
            pool.release(connection)

    def touch(self, connections: int) -> None:
        """Says something on so many, of which none is in use: a server's ``timeout`` closes silent ones."""
        pool = self.client.connection_pool
        held: list[Any] = [pool.get_connection() for _ in range(connections)]
        try:
            for connection in held:
                connection.send_command("TIME")
                connection.read_response()
        finally:
            for connection in held:
                pool.release(connection)

    def _connected(self, connection: Any) -> None:
        connection.on_connect()
        self.connections += 1

    def __enter__(self) -> RedisLink:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()


def timeouts(url: str) -> dict[str, float]:
    """Seconds that `RedisLink` waits, by redis-py's names: what the URL says, or else our default.

    What would be no bound is replaced by the default, see `endless_timeouts`: nobody could tell such a wait
    from a worker that hangs.
    """
    endless = endless_timeouts(url)
    return {n: _TIMEOUT_S if n in endless else timeout_s for n, timeout_s in _asked(url).items()}


def endless_timeouts(url: str) -> list[str]:
    """Names of the timeouts that the URL sets to 0, to less, or to more than a day."""
    return [n for n, timeout_s in _asked(url).items() if not 0 < timeout_s <= _LONGEST_TIMEOUT_S]


def longest_silence_s(url: str) -> float:
    """Seconds that a worker may wait for a Redis that does not answer, before it begins again.

    Twice an attempt and a reply: what it is about, and then to let go of the lease. Before an attempt each
    sentinel may be asked in turn.
    """
    bounded = timeouts(url)
    servers = 1 + read_address(url).asks_first
    return 2 * servers * (_ADDRESSES * bounded["socket_connect_timeout"] + bounded["socket_timeout"])


def _asked(url: str) -> dict[str, float]:
    asked = read_address(url).options
    return {n: asked.get(n, _TIMEOUT_S) for n in _TIMEOUTS}


def redis_risks(info: Mapping[str, Any]) -> set[RedisRisk]:
    """What endangers the writes that wait on a server, by its ``INFO``; what it does not tell is no risk.

    eviction: when full it evicts the queue. persistence: no AOF, so that a restart loses what it had
    accepted. write_error: it could not write its AOF or its last snapshot. memory: more than nine tenths of
    ``maxmemory`` are used, and soon it refuses writes.
    """
    risks: set[RedisRisk] = set()
    if str(info.get("maxmemory_policy", "")).startswith("allkeys"):
        risks.add("eviction")
    if info.get("aof_enabled") == 0:
        risks.add("persistence")
    if "err" in (info.get("aof_last_write_status"), info.get("rdb_last_bgsave_status")):
        risks.add("write_error")
    most = info.get("maxmemory") or 0
    if most and info.get("used_memory", 0) > most * _MEMORY_SHARE:
        risks.add("memory")
    return risks


def version_error(info: Mapping[str, Any], where: str) -> FatalError | None:
    """What is wrong with the server's version, by its ``INFO``."""
    version = str(info.get("redis_version", "7"))
    return UnsupportedRedis(where, version) if int(version.split(".", maxsplit=1)[0]) < 7 else None


def eviction_error(info: Mapping[str, Any], where: str) -> FatalError | None:
    """What is wrong with its eviction policy; ``--allow-eviction`` accepts it."""
    return UnsafeRedis(str(info["maxmemory_policy"]), where) if "eviction" in redis_risks(info) else None


def cluster_error(info: Mapping[str, Any], where: str, *, is_told: bool = False) -> FatalError | None:
    """What is wrong with it where it is a node of a cluster, and the URL, ``is_told``, does not say so."""
    return ClusteredRedis(where) if info.get("cluster_enabled") == 1 and not is_told else None


def is_replica(info: Mapping[str, Any]) -> bool:
    """Whether it takes no writes, until it is promoted."""
    return info.get("role") == "slave"


def check(client: Redis, config: Config) -> str | None:
    """Refuses a server that cannot serve, or that may evict the queue; returns its `nodes.identity`.

    Raises:
        ReadOnlyError: it is a replica; once promoted it will do.
        UnsupportedRedis, ClusteredRedis, UnsafeRedis: the operator must act.
        redis.RedisError: it does not answer.
    """
    info: dict[str, Any] = client.info()
    where = redacted(config.redis_url)
    eviction = None if config.allow_eviction else eviction_error(info, where)
    is_clustered = read_address(config.redis_url).kind == "cluster"
    clustered = cluster_error(info, where, is_told=is_clustered)
    for error in (version_error(info, where), clustered, eviction):
        if error is not None:
            raise error
    if is_replica(info):
        raise ReadOnlyError(f"{where} is a replica; waiting until it is promoted, or the address moves")
    return nodes.identity(info)
