"""``AsyncWriteBehind``: what an application calls on an event loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack, cast

from redis.asyncio import Redis

from .address import connect_async
from .async_atomic import AsyncAtomic
from .async_batch import AsyncBatch
from .async_carrier import AsyncCarrier
from .async_changes import AsyncChanges
from .async_lock import AsyncLock
from .async_rate_limiter import AsyncRateLimiter
from .async_receipt import AsyncReceipt
from .async_table import AsyncTable
from .atomic import Keep
from .batch import Accept
from .cache import BulkLoader, Loader, Row
from .client import CONNECTIONS, is_cluster, refuse_changes, refuse_decoding, refuse_near, socket_timeout
from .core import make_core, send_all
from .durability import Accepted, Assurance, Durability, assured
from .lock_steps import LockSteps
from .message import Id, Op, Route, Write
from .object_shape import R
from .rate import RateLimit
from .rate_steps import RateSteps
from .session import SessionPool
from .settings import Options, Settings
from .typed_rows import TypedRows


class AsyncWriteBehind:
    """:class:`WriteBehind` for asyncio: the same calls, awaited. A loader may be a coroutine function.

    Of one event loop, as redis-py's client is. A call that is cancelled leaves nothing behind but, perhaps,
    its effect: as with a lost reply, Redis may have accepted the write.

    Args:
        client: a client of ``redis.asyncio`` that does not decode responses, also a ``RedisCluster``.
        options: see :class:`writebehind.Settings`: ``ttl``, ``queue``, ``prefix`` and others.
    """

    def __init__(self, client: Redis, **options: Unpack[Options]) -> None:
        settings = Settings(**options)
        refuse_decoding(client)
        is_clustered = is_cluster(client)
        if is_clustered:
            refuse_near(settings)
        self.redis = client
        self._core = make_core(settings, SessionPool(), socket_timeout(client), is_clustered=is_clustered)
        self._carrier = _carrier(client, settings)
        self.keys, self.settings = self._core.keys, settings

    @classmethod
    def from_url(
        cls, url: str, *, redis_options: Mapping[str, Any] | None = None, **options: Unpack[Options]
    ) -> AsyncWriteBehind:
        """See :meth:`WriteBehind.from_url`; ``redis_options`` go to ``redis.asyncio.BlockingConnectionPool``.

        There are 100 connections at most: further calls wait, for as long as a reply may take.
        """
        given = {**CONNECTIONS, "max_connections": 100, **(redis_options or {})}
        return cls(connect_async(url, {"timeout": given["socket_timeout"], **given}), **options)

    async def close(self) -> None:
        """Closes the Redis connections."""
        self._core.close()
        await self._carrier.close()
        await self.redis.aclose()

    async def __aenter__(self) -> AsyncWriteBehind:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def put(
        self,
        table: str,
        id: Id,
        data: Mapping[str, Any],
        *,
        route: Route | None = None,
        wait: float | None = None,
        durability: Durability | None = None,
    ) -> AsyncReceipt:
        """See :meth:`WriteBehind.put`."""
        return await self._write("put", table, id, data, route, wait, durability)

    async def patch(
        self,
        table: str,
        id: Id,
        data: Mapping[str, Any],
        *,
        route: Route | None = None,
        wait: float | None = None,
        durability: Durability | None = None,
    ) -> AsyncReceipt:
        """See :meth:`WriteBehind.patch`."""
        return await self._write("patch", table, id, data, route, wait, durability)

    async def increment(
        self,
        table: str,
        id: Id,
        data: Mapping[str, Any],
        *,
        route: Route | None = None,
        wait: float | None = None,
        durability: Durability | None = None,
    ) -> AsyncReceipt:
        """See :meth:`WriteBehind.increment`."""
        return await self._write("increment", table, id, data, route, wait, durability)

    async def delete(
        self,
        table: str,
        id: Id,
        *,
        route: Route | None = None,
        wait: float | None = None,
        durability: Durability | None = None,
    ) -> AsyncReceipt:
        """See :meth:`WriteBehind.delete`."""
        return await self._write("delete", table, id, None, route, wait, durability)

    def batch(self, *, wait: float | None = None, durability: Durability | None = None) -> AsyncBatch:
        """``async with wb.batch() as batch:``; see :meth:`WriteBehind.batch`."""
        return AsyncBatch(self._send, self._carrier, self._core.wanted(wait, durability))

    def atomic(
        self, *, route: Route, wait: float | None = None, durability: Durability | None = None
    ) -> AsyncAtomic:
        """``async with wb.atomic(route=order) as tx:``; see :meth:`WriteBehind.atomic`."""
        return AsyncAtomic(self._send_group, route, self._core.wanted(wait, durability))

    async def _write(
        self,
        op: Op,
        table: str,
        id: Id,
        data: Mapping[str, Any] | None,
        route: Route | None,
        wait: float | None,
        durability: Durability | None,
    ) -> AsyncReceipt:
        wanted = self._core.wanted(wait, durability)
        sending = self._core.write(op, table, id, data, route, wanted)
        if wanted is None:
            return self._receipt(await self._carrier.run(sending), 0)

        def keep(accepted: Accepted) -> list[AsyncReceipt]:
            return [self._receipt(accepted, 0)]

        return (await self._carrier.run(assured(sending, wanted, keep)))[0]

    async def _send(
        self, writes: Sequence[Write], wanted: Assurance | None, accept: Accept[AsyncReceipt]
    ) -> None:
        def keep(positions: Sequence[int], accepted: Accepted) -> list[AsyncReceipt]:
            receipts = [self._receipt(accepted, number) for number in range(len(positions))]
            accept(positions, receipts)
            return receipts

        await self._carrier.run(send_all(self._core, writes, wanted, keep))

    async def _send_group(
        self, writes: Sequence[Write], wanted: Assurance | None, accepted: Keep[AsyncReceipt]
    ) -> None:
        def keep(answer: Accepted) -> list[AsyncReceipt]:
            receipt = self._receipt(answer, 0)
            accepted(receipt)
            return [receipt]

        sending = self._core.send(writes, wanted=wanted, as_group=True)
        await self._carrier.run(assured(sending, wanted, keep))

    def _receipt(self, accepted: Accepted, number: int) -> AsyncReceipt:
        return AsyncReceipt(self._carrier, accepted.keys, accepted.generation, accepted.seq + number)

    async def get(
        self,
        table: str,
        id: Id,
        load: Loader | None = None,
        *,
        route: Route | None = None,
        timeout: float = 5.0,
    ) -> Row | None:
        """See :meth:`WriteBehind.get`."""
        return await self._carrier.run(self._core.get(table, id, load, timeout, route))

    async def get_many(
        self,
        table: str,
        ids: Sequence[Id],
        load: BulkLoader | None = None,
        *,
        route: Route | None = None,
        timeout: float = 5.0,
    ) -> list[Row | None]:
        """See :meth:`WriteBehind.get_many`."""
        return await self._carrier.run(self._core.get_many(table, ids, load, timeout, route))

    async def invalidate(
        self, table: str, id: Id, *, route: Route | None = None, wait: float | None = None
    ) -> bool:
        """See :meth:`WriteBehind.invalidate`."""
        return await self._carrier.run(self._core.invalidate(table, id, wait, route))

    async def invalidate_many(
        self, table: str, ids: Sequence[Id], *, route: Route | None = None
    ) -> list[bool]:
        """See :meth:`WriteBehind.invalidate_many`."""
        return await self._carrier.run(self._core.invalidate_many(table, ids, route))

    def table(
        self,
        kind: type[R],
        *,
        name: str | None = None,
        key: str | Sequence[str] = "id",
        route: str | None = None,
    ) -> AsyncTable[R]:
        """See :meth:`WriteBehind.table`."""
        return AsyncTable(self, self._carrier, TypedRows(self._core, kind, name, key, route))

    def changes(self, tables: Iterable[str] | None = None) -> AsyncChanges:
        """See :meth:`WriteBehind.changes`."""
        refuse_changes(self.redis)
        return AsyncChanges(self.redis, self.keys.changes, tables)

    def lock(
        self,
        name: str,
        *,
        timeout: float,
        blocking: bool = True,
        blocking_timeout: float | None = None,
        sleep: float = 0.1,
        thread_local: bool = True,
    ) -> AsyncLock:
        """See :meth:`WriteBehind.lock`."""
        return AsyncLock(
            self.redis,
            self._carrier,
            LockSteps(self._core, name, timeout),
            blocking=blocking,
            blocking_timeout=blocking_timeout,
            sleep=sleep,
            thread_local=thread_local,
        )

    def rate_limit(self, name: str, limit: int, per: float) -> AsyncRateLimiter:
        """See :meth:`WriteBehind.rate_limit`."""
        return AsyncRateLimiter(self._carrier, RateSteps(self._core, RateLimit(name, limit, per)))


def _carrier(client: Redis, settings: Settings) -> AsyncCarrier:
    if is_cluster(client):
        from .async_cluster_carrier import AsyncClusterCarrier  # noqa: PLC0415 - few need it

        return AsyncClusterCarrier(cast(Any, client))
    if not settings.near_cache:
        return AsyncCarrier(client)
    from .async_near import AsyncNearCache  # noqa: PLC0415 - few need them
    from .async_near_carrier import AsyncNearCarrier  # noqa: PLC0415

    return AsyncNearCarrier(client, AsyncNearCache(client, settings.near_cache, settings.near_cache_ttl))
