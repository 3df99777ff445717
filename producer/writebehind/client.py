"""``WriteBehind``: what an application calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack, cast

from redis import Redis

from .address import connect
from .atomic import Atomic, Keep
from .batch import Accept, Batch
from .cache import BulkLoader, Loader, Row
from .carrier import Carrier
from .changes import Changes
from .core import make_core, send_all
from .durability import Accepted, Assurance, Durability, assured
from .lock import Lock
from .lock_steps import LockSteps
from .message import Id, Op, Route, Write
from .object_shape import R
from .rate import RateLimit
from .rate_limiter import RateLimiter
from .rate_steps import RateSteps
from .receipt import Receipt
from .session import ConnectedSessionPool, SessionPool
from .settings import Options, Settings
from .table import Table
from .typed_rows import TypedRows

CONNECTIONS = {"socket_timeout": 5.0, "socket_connect_timeout": 5.0, "max_connections": 1000}
"""Of connections that we make, unless told otherwise; redis-py 8 would allow 100, and refuse more threads."""


class WriteBehind:
    """Writes rows to Redis; a worker brings them to Postgres. Thread-safe, and safe to fork.

    Args:
        client: a redis-py client that does not decode responses, also a ``RedisCluster``.
        options: see :class:`writebehind.Settings`: ``ttl``, ``queue``, ``prefix`` and others.
    """

    def __init__(self, client: Redis, **options: Unpack[Options]) -> None:
        settings = Settings(**options)
        refuse_decoding(client)
        is_clustered = is_cluster(client)
        if is_clustered:
            refuse_near(settings)
        self.redis = client
        sessions = SessionPool() if is_clustered else ConnectedSessionPool(client)
        self._core = make_core(settings, sessions, socket_timeout(client), is_clustered=is_clustered)
        self._carrier = _carrier(client, settings)
        self.keys, self.settings = self._core.keys, settings

    @classmethod
    def from_url(
        cls, url: str, *, redis_options: Mapping[str, Any] | None = None, **options: Unpack[Options]
    ) -> WriteBehind:
        """Connects to a server, the primary that sentinels name, or a cluster; docs/scaling.md has the URLs.

        ``redis_options`` go to redis-py's client: pooling, timeouts, TLS, retries. Both timeouts are
        5 s unless given there or in the URL. The other options are those of the class.

        Raises ``ValueError`` for a wrong URL, ``RedisUnavailable`` if no node of a cluster answers.
        """
        return cls(connect(url, {**CONNECTIONS, **(redis_options or {})}), **options)

    def close(self) -> None:
        """Closes the Redis connections; those of a pool of the caller's go back to it."""
        self._core.close()
        self._carrier.close()
        self.redis.close()

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Writing. Each raises InvalidWrite, QueueFull, RedisFull, RedisRefused or RedisUnavailable. With ``wait``
    # a call returns when the write is in Postgres, or raises WriteRejected, or FlushTimeout after so many
    # seconds. With ``durability`` it waits for that instead, and may raise DurabilityNotReached. The
    # ``receipt`` of these errors is the write's: it is accepted, and must not be repeated.
    # ``route`` decides about the shard of a queue that is divided, instead of table and id: writes with one
    # value are in one shard, in order. All writes of a row must have the same, and its reads, too.

    def put(
        self,
        table: str,
        id: Id,
        data: Mapping[str, Any],
        *,
        route: Route | None = None,
        wait: float | None = None,
        durability: Durability | None = None,
    ) -> Receipt:
        """The row exists and these columns have these values. Columns not given stay as they are.

        ``data`` is the row as the application sees it: until its TTL, ``get`` answers with just that.
        """
        return self._write("put", table, id, data, route, wait, durability)

    def patch(
        self,
        table: str,
        id: Id,
        data: Mapping[str, Any],
        *,
        route: Route | None = None,
        wait: float | None = None,
        durability: Durability | None = None,
    ) -> Receipt:
        """Changes columns of a row that exists; if it does not, the write is rejected."""
        return self._write("patch", table, id, data, route, wait, durability)

    def increment(
        self,
        table: str,
        id: Id,
        data: Mapping[str, Any],
        *,
        route: Route | None = None,
        wait: float | None = None,
        durability: Durability | None = None,
    ) -> Receipt:
        """Adds to numeric columns (null counts as 0); inserts the row with the deltas if it is missing."""
        return self._write("increment", table, id, data, route, wait, durability)

    def delete(
        self,
        table: str,
        id: Id,
        *,
        route: Route | None = None,
        wait: float | None = None,
        durability: Durability | None = None,
    ) -> Receipt:
        """The row does not exist any more; it is no error if it never did."""
        return self._write("delete", table, id, None, route, wait, durability)

    def batch(self, *, wait: float | None = None, durability: Durability | None = None) -> Batch:
        """``with wb.batch() as batch:`` many writes in one round trip, all accepted or none."""
        return Batch(self._send, self._carrier, self._core.wanted(wait, durability))

    def atomic(
        self, *, route: Route, wait: float | None = None, durability: Durability | None = None
    ) -> Atomic:
        """``with wb.atomic(route=order) as tx:`` writes that Postgres applies together, or not at all.

        They are one message: the cache shows all of them at once, and if Postgres refuses one it refuses all,
        as one dead letter. Each of their rows must always be written with this route.

        Raises:
            InvalidWrite: when the block ends: they have more bytes than ``max_message_bytes``.
        """
        return Atomic(self._send_group, route, self._core.wanted(wait, durability))

    def _write(
        self,
        op: Op,
        table: str,
        id: Id,
        data: Mapping[str, Any] | None,
        route: Route | None,
        wait: float | None,
        durability: Durability | None,
    ) -> Receipt:
        wanted = self._core.wanted(wait, durability)
        sending = self._core.write(op, table, id, data, route, wanted)
        if wanted is None:
            return self._receipt(self._carrier.run(sending), 0)

        def keep(accepted: Accepted) -> list[Receipt]:
            return [self._receipt(accepted, 0)]

        return (self._carrier.run(assured(sending, wanted, keep)))[0]

    def _send(self, writes: Sequence[Write], wanted: Assurance | None, accept: Accept[Receipt]) -> None:
        def keep(positions: Sequence[int], accepted: Accepted) -> list[Receipt]:
            receipts = [self._receipt(accepted, number) for number in range(len(positions))]
            accept(positions, receipts)
            return receipts

        self._carrier.run(send_all(self._core, writes, wanted, keep))

    def _send_group(self, writes: Sequence[Write], wanted: Assurance | None, accepted: Keep[Receipt]) -> None:
        def keep(answer: Accepted) -> list[Receipt]:
            receipt = self._receipt(answer, 0)
            accepted(receipt)
            return [receipt]

        sending = self._core.send(writes, wanted=wanted, as_group=True)
        self._carrier.run(assured(sending, wanted, keep))

    def _receipt(self, accepted: Accepted, number: int) -> Receipt:
        return Receipt(self._carrier, accepted.keys, accepted.generation, accepted.seq + number)

    # Reading.

    def get(
        self,
        table: str,
        id: Id,
        load: Loader | None = None,
        *,
        route: Route | None = None,
        timeout: float = 5.0,
    ) -> Row | None:
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
        return self._carrier.run(self._core.get(table, id, load, timeout, route))

    def get_many(
        self,
        table: str,
        ids: Sequence[Id],
        load: BulkLoader | None = None,
        *,
        route: Route | None = None,
        timeout: float = 5.0,
    ) -> list[Row | None]:
        """A row or ``None`` for each id, in their order; what is cached takes one round trip.

        Args:
            load: called once with a list of the ids that are not cached; returns a mapping id → row (a
                composite id is then the tuple of its values), or a sequence with a row or ``None`` for each.
                It is called again only for rows that other readers were loading and did not bring, and for
                those that are refreshed before they expire (``refresh_ahead``).
            timeout: as of :meth:`get`.

        Raises:
            FlushTimeout: as :meth:`get`.
            InvalidLoad: what the loader returned does not fit the ids.
        """
        return self._carrier.run(self._core.get_many(table, ids, load, timeout, route))

    def invalidate(
        self, table: str, id: Id, *, route: Route | None = None, wait: float | None = None
    ) -> bool:
        """Removes a row from the cache, so that the next ``get`` loads it.

        While a write to it is pending the cache is newer than Postgres: then nothing is removed.

        Args:
            wait: how long to wait for a pending write to be committed, in seconds. Without it none is waited
                for, and ``False`` means that there is one.

        Raises:
            FlushTimeout: a write was still pending after ``wait`` seconds.
        """
        return self._carrier.run(self._core.invalidate(table, id, wait, route))

    def invalidate_many(self, table: str, ids: Sequence[Id], *, route: Route | None = None) -> list[bool]:
        """Removes many rows from the cache in one round trip; ``False`` where a write is pending."""
        return self._carrier.run(self._core.invalidate_many(table, ids, route))

    def table(
        self,
        kind: type[R],
        *,
        name: str | None = None,
        key: str | Sequence[str] = "id",
        route: str | None = None,
    ) -> Table[R]:
        """Rows as objects of a class: a dataclass, msgspec Struct, attrs class or Pydantic model.

        Args:
            kind: the class; its fields are the columns.
            name: the table; the class's name in snake case unless given.
            key: the field that is the primary key, or several in order.
            route: the field that is a row's routing value, such as its tenant. A call that names a row by an
                id without that field must be given ``route=``.

        Raises:
            TypeError: the class has no such field, or a field of a type that cannot be read back.
        """
        return Table(self, self._carrier, TypedRows(self._core, kind, name, key, route))

    def changes(self, tables: Iterable[str] | None = None) -> Changes:
        """``with wb.changes() as changes: for change in changes:`` hears of rows as they become durable.

        The worker must run with ``publish_changes``. First, and whenever the connection was lost, comes a
        :class:`Missed`; every other is a :class:`Change`. It does not end by itself.

        Args:
            tables: only changes of these, named as the writes name them; all unless given.
        """
        refuse_changes(self.redis)
        return Changes(self.redis, self.keys.changes, tables)

    # Coordinating.

    def lock(
        self,
        name: str,
        *,
        timeout: float,
        blocking: bool = True,
        blocking_timeout: float | None = None,
        sleep: float = 0.1,
        thread_local: bool = True,
    ) -> Lock:
        """``with wb.lock("reports", timeout=30) as lock:`` one holder at a time.

        Args:
            name: printable text of at most 256 bytes.
            timeout: after so many seconds somebody else may have it, unless it is extended.
            blocking: whether to wait for it.
            blocking_timeout: longest wait, in seconds; ``None`` waits for ever.
            sleep: seconds between two attempts.
            thread_local: ``False`` if one thread acquires it and another releases it.

        Entering raises LockNotAcquired; leaving raises LockLost if the time ran out. A pause of the process
        can outlast any timeout: only what checks ``lock.fence`` is safe from a holder that lost it.
        """
        return Lock(
            self.redis,
            self._carrier,
            LockSteps(self._core, name, timeout),
            blocking=blocking,
            blocking_timeout=blocking_timeout,
            sleep=sleep,
            thread_local=thread_local,
        )

    def rate_limit(self, name: str, limit: int, per: float) -> RateLimiter:
        """``wb.rate_limit("mails", 100, per=60).acquire()``; the arguments are of :class:`RateLimit`."""
        return RateLimiter(self._carrier, RateSteps(self._core, RateLimit(name, limit, per)))


def refuse_decoding(client: Any) -> None:
    """Raises ``ValueError`` for a client whose replies are no bytes."""
    if client.get_encoder().decode_responses:
        raise ValueError("the Redis client must be made with decode_responses=False")


def socket_timeout(client: Any) -> float | None:
    """How long its connections wait for a reply, in seconds; ``None``: for ever."""
    found: float | None = connection_options(client).get("socket_timeout")
    return found


def is_cluster(client: Any) -> bool:
    """Whether it is a client of all nodes of a cluster."""
    return hasattr(client, "nodes_manager")


def refuse_near(settings: Settings) -> None:
    """Raises ``ValueError`` for what cannot be had on a cluster."""
    if settings.near_cache:
        raise ValueError("near_cache is not for a Redis Cluster: each node would have to tell of changes")


def refuse_changes(client: Any) -> None:
    """Raises ``ValueError`` where nobody could say that changes were missed."""
    if is_cluster(client):
        raise ValueError(
            "changes() is not for a Redis Cluster: nobody hears there that a message between nodes was lost"
        )


def connection_options(client: Any) -> Mapping[str, Any]:
    """Of its connections, by redis-py's names."""
    if not is_cluster(client):
        client = client.connection_pool
    elif not hasattr(client, "connection_kwargs"):  # that of threads
        client = client.nodes_manager
    found: Mapping[str, Any] = client.connection_kwargs
    return found


def _carrier(client: Redis, settings: Settings) -> Carrier:
    if is_cluster(client):
        from .cluster_carrier import ClusterCarrier  # noqa: PLC0415 - few need it

        return ClusterCarrier(cast(Any, client))
    if not settings.near_cache:
        return Carrier(client)
    from .near import NearCache  # noqa: PLC0415 - few need them
    from .near_carrier import NearCarrier  # noqa: PLC0415

    return NearCarrier(client, NearCache(client, settings.near_cache, settings.near_cache_ttl))
