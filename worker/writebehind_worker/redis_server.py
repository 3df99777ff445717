"""The worker's connections to Redis, and what it must know of the server before trusting it."""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .config import Config, redacted
from .errors import UnsafeRedis, UnsupportedRedis

_TIMEOUT_S = 5.0  # longer than we ever block


def connect(url: str) -> Redis:
    """A client that never re-sends a command: after a lost reply the owner reads again instead."""
    return Redis.from_url(
        url,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        decode_responses=False,
    )


def check(client: Redis, config: Config) -> str | None:
    """Refuses a server that is too old or that may evict the queue; returns its run id, if it tells.

    Raises:
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
    run_id = info.get("run_id")
    return None if run_id is None else str(run_id)
