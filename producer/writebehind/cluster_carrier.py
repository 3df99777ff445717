"""Carries steps to the nodes of a cluster and their replies back, in the caller's thread."""

from __future__ import annotations

import time
from typing import Any, cast

from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import ResponseError
from redis.retry import Retry

from .carrier import Carrier
from .cluster import Ask, Slots, carry
from .cluster_options import own_options
from .sentinel import Host
from .steps import Command, Pause, Pipeline, Step


class ClusterCarrier(Carrier):
    """The way to all nodes of a cluster, for the sync client. Thread-safe, and safe to fork.

    It has connections of its own, made with the options of the client's.
    """

    def __init__(self, client: RedisCluster) -> None:
        super().__init__(cast(Redis, client))
        pool = client.get_redis_connection(client.get_default_node()).connection_pool  # type: ignore[no-untyped-call]
        self._pool_class = pool.connection_class
        self._most = pool.max_connections
        self._options = own_options(pool.connection_kwargs)
        remap = getattr(client.nodes_manager, "address_remap", None)
        self._slots = Slots([(str(n.host), int(n.port)) for n in client.get_nodes()], remap)  # type: ignore[no-untyped-call]
        self._nodes: dict[Host, Redis] = {}

    def close(self) -> None:
        """Closes its connections."""
        while self._nodes:
            self._nodes.popitem()[1].close()

    def _do(self, step: Step) -> Any:
        if not isinstance(step, Command | Pipeline):
            return super()._do(step)
        asks = carry(self._slots, step)
        try:
            ask = next(asks)
            while True:
                try:
                    replies = self._ask(ask)
                except BaseException as error:
                    ask = asks.throw(error)
                else:
                    ask = asks.send(replies)
        except StopIteration as done:
            return done.value

    def _ask(self, ask: Ask | Pause) -> list[Any] | None:
        if isinstance(ask, Pause):
            time.sleep(ask.seconds)
            return None
        node = self._nodes.get(ask.node) or self._nodes.setdefault(ask.node, self._connect(ask.node))
        if len(ask.commands) == 1:
            try:
                return [node.execute_command(*ask.commands[0])]  # type: ignore[no-untyped-call]
            except ResponseError as error:
                return [error]
        with node.pipeline(transaction=False) as pipe:
            for arguments in ask.commands:
                pipe.execute_command(*arguments)  # type: ignore[no-untyped-call]
            return pipe.execute(raise_on_error=False)

    def _connect(self, host: Host) -> Redis:
        return Redis.from_pool(
            ConnectionPool(
                connection_class=self._pool_class,
                max_connections=self._most,
                **{**self._options, "host": host[0], "port": host[1], "retry": Retry(NoBackoff(), 0)},
            )
        )
