"""Hearing of changes as they become durable, on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, Self

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ConnectionError, ResponseError, TimeoutError

from .change import Change, Missed
from .hearing import LOOK_S, Hearing
from .translate import as_ours


class AsyncChanges:
    """See :class:`Changes`. For one task; another may close it."""

    def __init__(self, client: Redis, channel: str, tables: Iterable[str] | None = None) -> None:
        self._pool = _OwnConnections(client.connection_pool)
        self._channel, self._hearing = channel, Hearing(tables)
        self._pubsub: Any = None
        self._is_closed, self._turn = False, asyncio.Lock()

    async def close(self) -> None:
        """See :meth:`Changes.close`."""
        self._is_closed = True
        if not self._turn.locked():  # else the task that iterates does it
            await self._disconnect()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[Change | Missed]:
        return self

    async def __anext__(self) -> Change | Missed:
        """The next one, as soon as there is one. A call that is cancelled takes none."""
        async with self._turn:
            while not self._is_closed:
                if self._hearing.found:
                    return self._hearing.found.popleft()
                await self._hear()
            await self._disconnect()
            raise StopAsyncIteration

    async def _hear(self) -> None:
        try:
            if self._pubsub is None:
                await self._connect()
                return
            message = await self._pubsub.get_message(timeout=LOOK_S)
            if message is not None:
                self._hearing.take(message)
            elif self._hearing.must_ask():
                await self._pubsub.ping()
        except (ResponseError, AuthenticationError) as error:
            await self._disconnect()
            raise as_ours("changes", error) from error
        except (ConnectionError, TimeoutError, OSError):
            await self._disconnect()
            await asyncio.sleep(self._hearing.pause_s())

    async def _connect(self) -> None:
        pubsub: Any = PubSub(self._pool)  # type: ignore[arg-type]
        try:
            await pubsub.subscribe(self._channel)
        except BaseException:
            await pubsub.aclose()
            raise
        self._pubsub = pubsub
        self._hearing.begin()

    async def _disconnect(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            await pubsub.aclose()


class _OwnConnections:
    """What redis-py's PubSub needs of a pool: it connects as the client's does, but tries once."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def get_encoder(self) -> Any:
        return self._pool.get_encoder()

    async def get_connection(self, *_: Any, **__: Any) -> Any:
        options = {**self._pool.connection_kwargs, "retry": Retry(NoBackoff(), 0)}
        connection = self._pool.connection_class(**options)
        await connection.connect()
        return connection

    async def release(self, connection: Any) -> None:
        await connection.disconnect()
