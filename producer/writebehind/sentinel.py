"""Clients of the primary that sentinels name, whichever it is by now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from redis import Redis
from redis import asyncio as redis_asyncio
from redis import sentinel as of_threads
from redis.asyncio import sentinel as of_loops
from redis.asyncio.connection import BlockingConnectionPool
from redis.asyncio.connection import SSLConnection as AsyncSSLConnection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.connection import SSLConnection
from redis.exceptions import ConnectionError, NoPermissionError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError

Host = tuple[str, int]

_RETRIES = 20
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
"""A call is tried again for some ten seconds, unless the options say otherwise: a failover takes a while."""


def primary(
    sentinels: list[Host], service: str, asking: Mapping[str, Any], options: Mapping[str, Any], *, tls: bool
) -> Redis:
    """A client of the primary. ``asking``: options of the connections to the sentinels."""
    manager = _Sentinels(sentinels, sentinel_kwargs=_asked_once(asking, tls, Retry))  # type: ignore[no-untyped-call]
    client: Redis = manager.master_for(  # type: ignore[no-untyped-call]
        service,
        connection_pool_class=_Pool,
        connection_class=_TLSConnection if tls else _Connection,
        **{"retry": Retry(_pauses(), _RETRIES), **options},
    )
    return client


def async_primary(
    sentinels: list[Host], service: str, asking: Mapping[str, Any], options: Mapping[str, Any], *, tls: bool
) -> redis_asyncio.Redis:
    """The same on an event loop."""
    manager = _AsyncSentinels(sentinels, sentinel_kwargs=_asked_once(asking, tls, AsyncRetry))  # type: ignore[no-untyped-call]
    client: redis_asyncio.Redis = manager.master_for(
        service,
        connection_pool_class=_AsyncPool,
        connection_class=_AsyncTLSConnection if tls else _AsyncConnection,
        **{"retry": AsyncRetry(_pauses(), _RETRIES), **options},
    )
    return client


def _pauses() -> ExponentialWithJitterBackoff:
    return ExponentialWithJitterBackoff(cap=_LONGEST_PAUSE_S, base=_FIRST_PAUSE_S)


def _asked_once(asking: Mapping[str, Any], tls: bool, retry: Any) -> dict[str, Any]:
    """A sentinel that does not answer is not asked again, but the next one."""
    return {**asking, "retry": retry(NoBackoff(), 0), **({"ssl": True} if tls else {})}


class _Turns:
    """Which sentinel is asked first. redis-py puts the one that answered last in front."""

    sentinels: list[Any]

    def ask_another(self) -> None:
        """The first one was wrong: it comes last."""
        first, *others = self.sentinels
        self.sentinels = [*others, first]


class _Sentinels(_Turns, of_threads.Sentinel):
    def discover_master(self, service_name: str) -> Host:
        """Raises ``MasterNotFoundError``; redis-py's own text shows all options of all connections."""
        try:
            return cast(Host, super().discover_master(service_name))  # type: ignore[no-untyped-call]
        except MasterNotFoundError:
            raise MasterNotFoundError(_nobody(service_name, self.sentinels)) from None


class _AsyncSentinels(_Turns, of_loops.Sentinel):
    async def discover_master(self, service_name: str) -> Host:
        try:
            return cast(Host, await super().discover_master(service_name))
        except MasterNotFoundError:
            raise MasterNotFoundError(_nobody(service_name, self.sentinels)) from None


def _nobody(service: str, sentinels: Sequence[Any]) -> str:
    each = [client.connection_pool.connection_kwargs for client in sentinels]
    hosts = ", ".join(f"{options['host']}:{options['port']}" for options in each)
    return f"no sentinel names a primary of {service!r}: of {hosts} none answers and thinks one alive"


class _NotPrimary(ConnectionError):
    """A sentinel that was cut off, or has slept, named a server that has stepped down since."""


def _check_role(connection: Any, reply: Sequence[Any]) -> None:
    """A replica refuses writes; but it would answer reads with what was true once."""
    if reply[0] not in (b"master", "master"):
        where = f"{connection.host}:{connection.port}"
        raise _NotPrimary(f"{where} is no primary, though a sentinel names it")


# redis-py connects a connection that was lost during a call to the address that it had. That server may be
# dead, or no primary any more: the sentinels have to be asked. Its own retries are around this.


class _Connection(of_threads.SentinelManagedConnection):
    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if self._sock is None:
            self._connect_retry()
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]

    def on_connect_check_health(self, check_health: bool = True) -> None:
        super().on_connect_check_health(check_health)
        self.send_command("ROLE", check_health=False)  # type: ignore[no-untyped-call]
        with suppress(NoPermissionError):
            _check_role(self, self.read_response())

    def _connect_retry(self) -> None:
        manager = self.connection_pool.sentinel_manager
        for _ in manager.sentinels[1:]:
            try:
                return super()._connect_retry()  # type: ignore[no-untyped-call,no-any-return]
            except _NotPrimary:
                manager.ask_another()
        return super()._connect_retry()  # type: ignore[no-untyped-call,no-any-return]


class _TLSConnection(_Connection, SSLConnection):
    pass


class _AsyncConnection(of_loops.SentinelManagedConnection):
    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if not self.is_connected:
            await self._connect_retry()
        await super().send_packed_command(command, check_health)

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        await super().on_connect_check_health(check_health)
        await self.send_command("ROLE", check_health=False)
        with suppress(NoPermissionError):
            _check_role(self, await self.read_response())

    async def _connect_retry(self) -> None:
        manager = self.connection_pool.sentinel_manager
        for _ in manager.sentinels[1:]:
            try:
                return await super()._connect_retry()  # type: ignore[no-untyped-call,no-any-return]
            except _NotPrimary:
                manager.ask_another()
        return await super()._connect_retry()  # type: ignore[no-untyped-call,no-any-return]


class _AsyncTLSConnection(_AsyncConnection, AsyncSSLConnection):
    pass


class _Pool(of_threads.SentinelConnectionPool):
    def disconnect(self, inuse_connections: bool = True) -> None:
        super().disconnect(inuse_connections)
        if inuse_connections:  # the client is closed; else only the idle ones to a former primary are
            for sentinel in self.sentinel_manager.sentinels:
                sentinel.close()


class _AsyncPool(of_loops.SentinelConnectionPool, BlockingConnectionPool):
    """Who finds all connections in use waits for one."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.aclose()
