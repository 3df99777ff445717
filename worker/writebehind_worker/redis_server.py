"""The worker's connections to Redis, and what it must know of the server before trusting it."""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError
from redis.retry import Retry

from .config import Config, redacted
from .errors import UnsafeRedis, UnsupportedRedis

_TIMEOUT_S = 5.0  # longer than we ever block


class RedisLink:
    """A client that never re-sends a command: after a lost reply the owner reads again instead.

    ``connections`` counts those made: redis-py replaces an idle one that was closed without a word, and
    behind the new one may be another server, or the same with older data.
    """

    def __init__(self, url: str) -> None:
        self.connections = 0
        self.client = Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            redis_connect_func=self._connected,
        )

    def open(self, connections: int) -> None:
        """Has so many at hand: one more later would count as renewed."""
        pool = self.client.connection_pool
        held = [pool.get_connection() for _ in range(connections)]
        for connection in held:
            pool.release(connection)

    def _connected(self, connection: Any) -> None:
        connection.on_connect()
        self.connections += 1

    def __enter__(self) -> RedisLink:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()


def check(client: Redis, config: Config) -> str | None:
    """Refuses a server that is too old or that may evict the queue; returns its run id, if it tells.

    Raises:
        ReadOnlyError: it is a replica; once promoted it will do.
        UnsupportedRedis, UnsafeRedis: the operator must act.
        redis.RedisError: it does not answer.
    """
    info: dict[str, Any] = client.info()
    where = redacted(config.redis_url)
    version = str(info.get("redis_version", "7"))
    if int(version.split(".", maxsplit=1)[0]) < 7:
        raise UnsupportedRedis(where, version)
    policy = str(info.get("maxmemory_policy", ""))
    if policy.startswith("allkeys") and not config.allow_eviction:
        raise UnsafeRedis(policy, where)
    if info.get("role") == "slave":
        raise ReadOnlyError(f"{where} is a replica; waiting until it is promoted, or the address moves")
    run_id = info.get("run_id")
    return None if run_id is None else str(run_id)
