"""redis-py's errors as ours, at the edge; each is chained to its cause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions as redis_errors

from .errors import RedisFull, RedisRefused, RedisUnavailable


@contextmanager
def redis_errors_as_ours(doing: str) -> Iterator[None]:
    """Translates what redis-py raises inside the block; ``doing`` opens the message."""
    try:
        yield
    except redis_errors.OutOfMemoryError as error:
        raise RedisFull(f"{doing}: Redis is at its maxmemory and evicts nothing: {error}") from error
    except (redis_errors.ReadOnlyError, redis_errors.AuthenticationError) as error:
        raise RedisRefused(f"{doing}: Redis refused: {error}") from error
    # A Redis that loads may have died right after it accepted the write: redis-py has sent it again since.
    except (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError) as error:
        raise RedisUnavailable(f"{doing}: no answer from Redis: {error}") from error
    except redis_errors.RedisError as error:
        if str(error).startswith("OOM"):  # from inside a script redis-py has no class for it
            raise RedisFull(f"{doing}: Redis is at its maxmemory: {error}") from error
        hint = ""
        if isinstance(error, redis_errors.NoPermissionError):
            hint = "; the rights that a producer needs are in deploy/redis-acl.conf"
        raise RedisRefused(f"{doing}: Redis refused: {error}{hint}") from error
