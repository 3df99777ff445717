"""Hearing of changes as they become durable, on an event loop."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any, Self

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ConnectionError, ResponseError, TimeoutError

from .change import Change, Missed
from .forks import begins_anew_in_a_child
from .hearing import LOOK_S, SILENCE_S, Hearing, connection_options, passes
from .translate import as_ours

_OF_THE_PARENT: list[Any] = []  # closed in a forked child they would be lost to the parent's event loop


class AsyncChanges:
    """See :class:`Changes`. For one task; another may close it."""

    def __init__(self, client: Redis, channel: str, tables: Iterable[str] | None = None) -> None:
        self._pool = _OwnConnections(client.connection_pool)
        self._channel, self._hearing = channel, Hearing(tables)
        self._pubsub: Any = None
        self._closed, self._turn = asyncio.Event(), asyncio.Lock()
        self._connecting: asyncio.Timeout | None = None
        begins_anew_in_a_child(self, AsyncChanges._start_anew)

    async def close(self) -> None:
        """See :meth:`Changes.close`; the task that iterates ends within 0.2 s, whatever Redis does."""
        self._closed.set()
        if self._connecting is not None and not self._connecting.expired():
            self._connecting.reschedule(0)
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
            try:
                while not self._closed.is_set():
                    if self._hearing.found:
                        return self._hearing.found.popleft()
                    await self._hear()
            except Exception:  # not so where it is cancelled: the next call goes on
                await self._disconnect()
                raise
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
        except (ConnectionError, TimeoutError, OSError, ResponseError) as error:
            if isinstance(error, ResponseError | AuthenticationError) and not passes(error):
                raise as_ours("changes", error) from error
            await self._disconnect()
            with contextlib.suppress(builtins.TimeoutError):
                async with asyncio.timeout(self._hearing.pause_s()):
                    await self._closed.wait()

    async def _connect(self) -> None:
        pubsub: Any = PubSub(self._pool)  # type: ignore[arg-type]
        try:
            async with asyncio.timeout(SILENCE_S) as self._connecting:
                await pubsub.subscribe(self._channel)
        except BaseException:
            await pubsub.aclose()
            raise
        finally:
            self._connecting = None
        self._pubsub = pubsub
        self._hearing.begin()

    async def _disconnect(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            if pubsub.connection is not None:
                await pubsub.connection.disconnect(nowait=True)  # a server that stands still says no farewell
            await pubsub.aclose()

    def _start_anew(self) -> None:
        """In a forked child, which has an event loop of its own."""
        is_closed = self._closed.is_set()
        self._closed, self._turn, self._connecting = asyncio.Event(), asyncio.Lock(), None
        if is_closed:
            self._closed.set()
        if self._pubsub is not None:
            _OF_THE_PARENT.append(self._pubsub)
            self._pubsub = None


class _OwnConnections:
    """What redis-py's PubSub needs of a pool: it connects as the client's does, but tries once."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def get_encoder(self) -> Any:
        return self._pool.get_encoder()

    async def get_connection(self, *_: Any, **__: Any) -> Any:
        options = connection_options(self._pool.connection_kwargs)
        connection = self._pool.connection_class(**options, retry=Retry(NoBackoff(), 0, ()))
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def release(self, connection: Any) -> None:
        await connection.disconnect(nowait=True)
