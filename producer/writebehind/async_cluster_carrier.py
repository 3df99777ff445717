"""Carries steps to the nodes of a cluster and their replies back, on an event loop."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from .async_carrier import AsyncCarrier
from .cluster import Ask, Slots, carry
from .cluster_options import own_options
from .sentinel import Host
from .steps import Command, Pause, Pipeline, Step


class AsyncClusterCarrier(AsyncCarrier):
    """The way to all nodes of a cluster, for the async client: see :class:`ClusterCarrier`."""

    def __init__(self, client: RedisCluster) -> None:
        super().__init__(cast(Redis, client))
        given = client.connection_kwargs
        self._pool_class, self._most = given["connection_class"], given["max_connections"]
        self._options = own_options(given)
        manager = client.nodes_manager
        seeds = [(str(n.host), int(n.port)) for n in manager.startup_nodes.values()]
        self._slots = Slots(seeds, getattr(manager, "address_remap", None))
        self._nodes: dict[Host, Redis] = {}

    async def close(self) -> None:
        """Closes its connections."""
        while self._nodes:
            await self._nodes.popitem()[1].aclose()

    async def _do(self, step: Step) -> Any:
        if not isinstance(step, Command | Pipeline):
            return await super()._do(step)
        asks = carry(self._slots, step)
        try:
            ask = next(asks)
            while True:
                try:
                    replies = await self._ask(ask)
                except BaseException as error:
                    ask = asks.throw(error)
                else:
                    ask = asks.send(replies)
        except StopIteration as done:
            return done.value

    async def _ask(self, ask: Ask | Pause) -> list[Any] | None:
        if isinstance(ask, Pause):
            await asyncio.sleep(ask.seconds)
            return None
        node = self._nodes.get(ask.node) or self._nodes.setdefault(ask.node, self._connect(ask.node))
        if len(ask.commands) == 1:
            try:
                return [await node.execute_command(*ask.commands[0])]  # type: ignore[no-untyped-call]
            except ResponseError as error:
                return [error]
        async with node.pipeline(transaction=False) as pipe:
            for arguments in ask.commands:
                pipe.execute_command(*arguments)
            return await pipe.execute(raise_on_error=False)

    def _connect(self, host: Host) -> Redis:
        return Redis.from_pool(
            BlockingConnectionPool(
                connection_class=self._pool_class,
                max_connections=self._most,
                timeout=self._options.get("socket_timeout"),
                **{**self._options, "host": host[0], "port": host[1], "retry": Retry(NoBackoff(), 0)},
            )
        )
