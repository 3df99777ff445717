"""``WriteBehind``: what an application calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from redis import Redis

from .batch import Batch
from .cache import Loader, RowCache
from .directory import TableDirectory
from .enqueue import Enqueue, pack_write
from .errors import InvalidWrite
from .identity import cache_key
from .keys import DEFAULT_QUEUE, QueueKeys
from .message import MAX_TTL_S, Id, Op, Write, make_write
from .receipt import Receipt


class WriteBehind:
    """Writes rows to Redis; a worker brings them to Postgres. Thread-safe, and safe to fork.

    Args:
        client: a redis-py client that does not decode responses.
        ttl: how long a row stays cached once it is durable, in seconds.
        queue: name of the list; the worker's ``--queue`` must be the same.
        prefix: put before every cache key.
        version: of the rows' shape; part of every cache key, so that another shape is never read.
        max_queue_length: writes pending at which :class:`QueueFull` is raised.
        max_message_bytes: largest message, in bytes of JSON.
        negative_ttl: how long it is remembered that a row does not exist, in seconds.
        fill_timeout: how long one reader may take to load a row before another may, in seconds.
        parse_float: makes a number with a fraction out of its text (``Decimal`` keeps all digits).
    """

    def __init__(
        self,
        client: Redis,
        *,
        ttl: int = 3600,
        queue: str = DEFAULT_QUEUE,
        prefix: str = "",
        version: str | int | None = None,
        max_queue_length: int = 1_000_000,
        max_message_bytes: int = 1 << 20,
        negative_ttl: int = 5,
        fill_timeout: float = 5.0,
        parse_float: Callable[[str], Any] = float,
    ) -> None:
        for name, value in (("ttl", ttl), ("negative_ttl", negative_ttl)):
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_TTL_S:
                raise ValueError(f"{name} must be whole seconds from 1 to {MAX_TTL_S}, not {value!r}")
        if not 0.001 <= fill_timeout <= 86_400:
            raise ValueError(f"fill_timeout must be from a millisecond to a day, not {fill_timeout!r}")
        if client.get_encoder().decode_responses:
            raise ValueError("the Redis client must be made with decode_responses=False")
        self.redis = client
        self.keys = QueueKeys(queue)
        self.ttl = ttl
        self.max_queue_length, self.max_message_bytes = max_queue_length, max_message_bytes
        self._prefix = prefix + (f"v{version}:" if version is not None else "")
        self._cache = RowCache(client, self.keys, ttl, negative_ttl, fill_timeout, parse_float)
        self._directory = TableDirectory(client, self.keys)
        self._enqueue = Enqueue(client, self.keys)

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        ttl: int = 3600,
        queue: str = DEFAULT_QUEUE,
        prefix: str = "",
        version: str | int | None = None,
        max_queue_length: int = 1_000_000,
        max_message_bytes: int = 1 << 20,
        negative_ttl: int = 5,
        fill_timeout: float = 5.0,
        parse_float: Callable[[str], Any] = float,
        **redis_options: Any,
    ) -> WriteBehind:
        """Connects to ``redis://``, ``rediss://`` or ``unix://``.

        ``redis_options`` go to ``redis.Redis.from_url``: pooling, timeouts, TLS, retries. Both timeouts are
        5 s unless given here or in the URL. The other arguments are those of the class.
        """
        options = {"socket_timeout": 5.0, "socket_connect_timeout": 5.0, **redis_options}
        return cls(
            Redis.from_url(url, **options),
            ttl=ttl,
            queue=queue,
            prefix=prefix,
            version=version,
            max_queue_length=max_queue_length,
            max_message_bytes=max_message_bytes,
            negative_ttl=negative_ttl,
            fill_timeout=fill_timeout,
            parse_float=parse_float,
        )

    def close(self) -> None:
        """Closes the Redis connections; those of a pool of the caller's go back to it."""
        self._enqueue.close()
        self.redis.close()

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Writing. Each raises InvalidWrite, QueueFull, RedisFull, RedisRefused or RedisUnavailable.

    def put(self, table: str, id: Id, data: Mapping[str, Any]) -> Receipt:
        """The row exists and these columns have these values. Columns not given stay as they are.

        ``data`` is the row as the application sees it: until its TTL, ``get`` answers with just that.
        """
        return self._write("put", table, id, data)

    def patch(self, table: str, id: Id, data: Mapping[str, Any]) -> Receipt:
        """Changes columns of a row that exists; if it does not, the write is rejected."""
        return self._write("patch", table, id, data)

    def increment(self, table: str, id: Id, data: Mapping[str, Any]) -> Receipt:
        """Adds to numeric columns (null counts as 0); inserts the row with the deltas if it is missing."""
        return self._write("increment", table, id, data)

    def delete(self, table: str, id: Id) -> Receipt:
        """The row does not exist any more; it is no error if it never did."""
        return self._write("delete", table, id, None)

    def batch(self) -> Batch:
        """``with wb.batch() as batch:`` many writes in one round trip, all accepted or none."""
        return Batch(self._send)

    def _write(self, op: Op, table: str, id: Id, data: Mapping[str, Any] | None) -> Receipt:
        return self._send([make_write(op, table, id, data)])[0]

    def _send(self, writes: Sequence[Write]) -> list[Receipt]:
        entries: list[str] = []
        packed: list[bytes] = []
        for write in writes:
            entry = self._cache_key(write.table, write.key)
            message = write.message(entry, self.ttl)
            if len(message) > self.max_message_bytes:
                raise InvalidWrite(
                    f"{write.table}: the message has {len(message)} bytes, at most "
                    f"{self.max_message_bytes} are allowed (max_message_bytes)"
                )
            entries.append(entry)
            packed.append(pack_write(write.op, message, write.cache_fields()))
        ops = {write.op for write in writes}
        seq, generation = self._enqueue(entries, ops, packed, self.max_queue_length)
        return [Receipt(self.redis, self.keys, generation, seq + i) for i in range(len(writes))]

    def _cache_key(self, table: str, key: str | Mapping[str, str]) -> str:
        made = cache_key(self._prefix, self._directory.find(table), key)
        if self.keys.owns(made):
            raise InvalidWrite(f"{table}: {made!r} is a key of the queue itself; set a prefix for cache keys")
        return made

    # Reading.

    def get(
        self, table: str, id: Id, load: Loader | None = None, *, timeout: float = 5.0
    ) -> dict[str, Any] | None:
        """The row as last written, or ``None`` if it does not exist.

        Args:
            load: called with ``id`` on a miss; reads the row from the primary. One reader loads, the others
                wait for it. Without it only the cache is asked, and ``None`` also means "not cached".
            timeout: longest wait, in seconds, for a write that the cache cannot show yet.

        Values are as JSON has them: a date or a uuid comes back as text, whether cached or just loaded.

        Raises:
            FlushTimeout: the row has a pending write that the cache cannot show, and it was not committed
                in time; to answer would be to go back to an older row.
        """
        return self._cache.get(self._where(table, id), table, id, load, timeout)

    def invalidate(self, table: str, id: Id) -> bool:
        """Removes a row from the cache, so that the next ``get`` loads it.

        Returns ``False``, and removes nothing, while a write to it is pending: the cache is then newer than
        Postgres.
        """
        return self._cache.invalidate(self._where(table, id))

    def _where(self, table: str, id: Id) -> str:
        """The row's cache key; table and id are validated as a write's are."""
        return self._cache_key(table, make_write("delete", table, id, None).key)
