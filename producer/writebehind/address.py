"""Where Redis is: one server, the primary that sentinels name, or the nodes of a cluster; by one URL.

    redis://[user:password@]host[:port][/db]                            rediss:// with TLS
    unix:///path
    redis+sentinel://[user:password@]host[:port],host[:port]/service[/db]     rediss+sentinel://
    redis+cluster://[user:password@]host[:port],host[:port][/0]               rediss+cluster://

Options follow as ``?name=value``, named as redis-py has them. Of sentinels that ask for a password of their
own: ``sentinel_username``, ``sentinel_password``.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote

from redis import Redis
from redis import asyncio as redis_asyncio
from redis.asyncio.connection import BlockingConnectionPool
from redis.connection import Connection, SSLConnection, parse_url

from .cluster_client import async_cluster, cluster
from .sentinel import Host, async_primary, primary

SCHEMES = "redis://, rediss://, unix://, redis+sentinel://host,host/service or redis+cluster://host,host"
"""What a message about a wrong URL names."""

_SCHEME = re.compile(r"redis(s?)\+(sentinel|cluster)://")
_OF_ONE_SERVER = ("redis://", "rediss://", "unix://")
_PORTS = {"sentinel": 26379, "cluster": 6379}
_OF_SENTINELS = "sentinel_"
_TEXTUAL = re.compile(
    r"(ssl|socket)_(?!ocsp_context|keepalive_options|type)\w+|db|host|port|path|username|password|protocol"
    r"|encoding|encoding_errors|decode_responses|client_name|lib_name|lib_version|retry_on_timeout"
    r"|health_check_interval|legacy_responses"
)
_OF_POOLS = ("max_connections",)
_OF_WAITING_POOLS = ("max_connections", "timeout")  # those on an event loop


class UnknownOption(ValueError):
    """A URL has an option that is none; redis-py would say so at the first use, and not in words."""


@dataclass(frozen=True, slots=True)
class Address:
    """A URL, read. The ``repr`` shows no password.

    ``options``: of the connections, by redis-py's names. ``sentinel_options``: of those to the sentinels.
    ``hosts``: the sentinels, or nodes of the cluster, of which one that answers is enough.
    """

    kind: Literal["single", "sentinel", "cluster"]
    options: Mapping[str, Any] = field(repr=False)
    hosts: tuple[Host, ...] = ()
    service: str = ""
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    tls: bool = False

    @property
    def asks_first(self) -> int:
        """How many servers may be asked where the primary is, before it is connected to."""
        return len(self.hosts)


def read_address(url: str, of_pool: Collection[str] = _OF_POOLS) -> Address:
    """Parses a URL; connects to nothing. ``of_pool``: options of the pool of connections.

    Raises:
        UnknownOption: it has one that is none.
        ValueError: it is none of these. The text quotes nothing of the URL but what is no secret.
    """
    found = _SCHEME.match(url)
    if found is None:
        if not url.startswith(_OF_ONE_SERVER):
            raise ValueError(f"a URL of Redis is {SCHEMES}")
        options = _options(url)
        kind = options.get("connection_class", Connection)
        _check(options.keys() - {"connection_class"}, {*_names(kind), *of_pool}, url)
        return Address("single", options)
    rest, _, query = url[found.end() :].partition("?")
    authority, _, path = rest.partition("/")
    account, at, names = authority.rpartition("@")
    options = _options(f"redis://{account}{at}_/?{query}")
    del options["host"]
    hosts = tuple(_host(name, _PORTS[found[2]]) for name in names.split(","))
    of_connections = {*_names(SSLConnection if found[1] else Connection), *of_pool} - {"host", "port"}
    if found[2] == "cluster":
        return _of_cluster(url, hosts, path, options, of_connections, tls=bool(found[1]))
    sentinel_options = {
        name.removeprefix(_OF_SENTINELS): options.pop(name)
        for name in [name for name in options if name.startswith(_OF_SENTINELS)]
    }
    _check(options, of_connections, url)
    _check(sentinel_options, _names(Redis), url, _OF_SENTINELS)
    service, _, db = path.partition("/")
    if not service:
        raise ValueError("redis+sentinel://host,host/service: the name of the service is missing")
    if db and not db.isdecimal():
        raise ValueError(f"{db!r} is no number of a database")
    if db:
        options["db"] = int(db)
    return Address("sentinel", options, hosts, unquote(service), sentinel_options, bool(found[1]))


def _of_cluster(
    url: str,
    hosts: tuple[Host, ...],
    path: str,
    options: dict[str, Any],
    of_connections: set[str],
    *,
    tls: bool,
) -> Address:
    _check(options, of_connections, url)
    if path not in ("", "0") or options.pop("db", 0) != 0:
        raise ValueError("redis+cluster://host,host: a cluster has no databases but 0")
    return Address("cluster", options, hosts, tls=tls)


def _options(url: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError as error:
        text = str(error)  # urllib's own quotes what may be a piece of a password, that of redis-py a name
        if not text.startswith("Invalid value for "):
            text = "its host, or its port, cannot be read: percent-encode what is special in a password"
        raise ValueError(text) from None
    return found


@functools.cache  # asking Python for signatures takes longer than reading the rest of the URL
def _names(kind: type) -> frozenset[str]:
    """Options of those connections that a text can be the value of."""
    makers = [vars(one)["__init__"] for one in kind.__mro__ if "__init__" in vars(one)]
    found = {name for maker in makers for name in inspect.signature(maker).parameters}
    return frozenset(name for name in found if _TEXTUAL.fullmatch(name))


def _check(options: Collection[str], known: Collection[str], url: str, prefix: str = "") -> None:
    unknown = sorted(prefix + name for name in set(options).difference(known))
    if not unknown:
        return
    # With an @ in it, it may be a piece of a password that is not percent-encoded.
    shown = f": {', '.join(unknown)}" if "@" not in url.partition("?")[2] else ""
    raise UnknownOption(f"an option that this kind of URL of Redis does not have{shown}")


def _host(text: str, port: int) -> Host:
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]+)(?::([0-9]{1,5}))?", text)
    if found is None or not 0 < int(found[2] or port) < 65536:
        raise ValueError(f"{text!r} is no host, nor host:port")
    return unquote(found[1].strip("[]")), int(found[2] or port)


def connect(url: str, options: Mapping[str, Any]) -> Redis:
    """A client; what the URL says wins over ``options``, as with redis-py.

    Raises ``ValueError`` for a wrong URL.
    """
    address = read_address(url)
    if address.kind == "single":
        return Redis.from_url(url, **options)
    given = {**options, **address.options}
    if address.kind == "cluster":
        return cluster(address.hosts, given, tls=address.tls)
    asking = _asking(address, given)
    return primary(list(address.hosts), address.service, asking, given, tls=address.tls)


def connect_async(url: str, options: Mapping[str, Any]) -> redis_asyncio.Redis:
    """The same on an event loop; ``options`` are of ``redis.asyncio.BlockingConnectionPool``."""
    address = read_address(url, _OF_WAITING_POOLS)
    if address.kind == "single":
        return redis_asyncio.Redis.from_pool(BlockingConnectionPool.from_url(url, **options))
    given = {**options, **address.options}
    if address.kind == "cluster":
        return async_cluster(address.hosts, given, tls=address.tls)
    asking = _asking(address, given)
    return async_primary(list(address.hosts), address.service, asking, given, tls=address.tls)


def _asking(address: Address, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the connections to the sentinels."""
    shared = {name: value for name, value in given.items() if name.startswith(("socket_", "ssl_"))}
    return {**shared, **address.sentinel_options}
