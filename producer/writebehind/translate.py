"""redis-py's errors as ours, at the edge; each is chained to its cause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions as redis_errors

from .errors import RedisFull, RedisRefused, RedisUnavailable, WriteBehindError


@contextmanager
def redis_errors_as_ours(doing: str) -> Iterator[None]:
    """Translates what redis-py raises inside the block; ``doing`` opens the message."""
    try:
        yield
    except (redis_errors.RedisError, OSError) as error:
        raise as_ours(doing, error) from error


def as_ours(doing: str, error: redis_errors.RedisError | OSError) -> WriteBehindError:
    """The error to raise from one of redis-py's; ``doing`` opens its message."""
    if isinstance(error, redis_errors.OutOfMemoryError):
        return RedisFull(f"{doing}: Redis is at its maxmemory and evicts nothing: {error}")
    if isinstance(error, redis_errors.ReadOnlyError | redis_errors.AuthenticationError):
        return RedisRefused(f"{doing}: Redis refused: {error}")
    # A Redis that loads may have died right after it accepted the write: redis-py has sent it again since.
    if isinstance(error, redis_errors.ConnectionError | redis_errors.TimeoutError | OSError):
        return RedisUnavailable(f"{doing}: no answer from Redis: {error}")
    if str(error).startswith("OOM"):  # from inside a script redis-py has no class for it
        return RedisFull(f"{doing}: Redis is at its maxmemory: {error}")
    if isinstance(error, redis_errors.AskError | redis_errors.ClusterCrossSlotError):
        return RedisRefused(f"{doing}: Redis is a node of a cluster, whose URL is redis+cluster://host,host")
    hint = ""
    if isinstance(error, redis_errors.NoPermissionError):
        hint = "; the rights that a producer needs are in deploy/redis-acl.conf"
    return RedisRefused(f"{doing}: Redis refused: {error}{hint}")
