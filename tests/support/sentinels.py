"""A primary, a replica of it and three sentinels as real processes.

    clients ─▶ sentinels: where is the primary?        primary ─▶ link ─▶ replica

The replica is reached directly. While ``link`` is held it lags, and is promoted all the same: to the
sentinels its connection to the primary is up.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, Self, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from tests.support.replica import started_in, temporary_folder
from tests.support.workers import free_port

from writebehind_worker.embedded import EmbeddedRedis
from writebehind_worker.testing.proxy import Proxy
from writebehind_worker.testing.wait import wait_until

SERVICE = "main"
_REPLICA = {"repl-diskless-sync-delay": "0", "repl-timeout": "3600"}


class Sentinels:
    """``url`` names the service; ``servers`` are the primary that was, and the replica.

    ``lags``: it can be made to, as the sentinels leave it alone for as long as the time-out of a failover.
    ``down_after_ms``: a server that is silent for so long is dead to them, be it that the machine is slow.
    """

    def __init__(
        self, *, lags: bool = True, down_after_ms: int = 500, failover_timeout_ms: int = 60_000
    ) -> None:
        self._lags = lags
        self._times = {
            "down-after-milliseconds": down_after_ms,
            "failover-timeout": failover_timeout_ms,
        }

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = temporary_folder(stack)
            self.servers = [EmbeddedRedis(folder / name, options=_REPLICA) for name in ("first", "second")]
            for server in self.servers:
                started_in(stack, server)
            first, second = self.servers
            with self.on(second) as client:
                self.link = stack.enter_context(Proxy.to(first.url))
                client.replicaof("127.0.0.1", self.link.port if self._lags else first.port)
                wait_until(lambda: client.info("replication")["master_link_status"] == "up")
            ports = [free_port() for _ in range(3)]
            self.sentinels = [
                _Sentinel(folder / f"sentinel{port}", port, self.servers, ports, self._times)
                for port in ports
            ]
            for sentinel in self.sentinels:
                started_in(stack, sentinel)
            wait_until(self._know_each_other, message="the sentinels did not find each other")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    @staticmethod
    def on(server: EmbeddedRedis) -> redis.Redis:
        """A client of one server."""
        port = server.port
        return redis.Redis("127.0.0.1", port, socket_timeout=5, retry=Retry(NoBackoff(), 0))

    def on_sentinel(self) -> redis.Redis:
        """A client of one of them."""
        return redis.Redis("127.0.0.1", self.sentinels[0].port, socket_timeout=5)

    def role(self, server: EmbeddedRedis) -> str:
        """``master``, ``slave``, or nothing while it does not say: it cuts connections as it changes."""
        with suppress(redis.RedisError), self.on(server) as client:
            return str(client.info("replication")["role"])
        return ""

    def replica_has_all(self) -> None:
        """Until the replica has what the primary had when this was called."""
        first, second = self.servers
        with self.on(first) as primary, self.on(second) as replica:
            offset = primary.info("replication")["master_repl_offset"]
            wait_until(lambda: replica.info("replication")["slave_repl_offset"] >= offset)

    def lag(self) -> None:
        """What comes from now on does not reach the replica."""
        self.replica_has_all()
        self.link.pause()

    def kill_primary(self) -> None:
        """It does not come back by itself. What has not reached the replica is lost."""
        self.servers[0].kill()

    def pause_primary(self) -> None:
        """It says nothing, and is taken for dead."""
        send(self.servers[0], signal.SIGSTOP)

    def resume_primary(self) -> None:
        """It comes back as it was; the sentinels make a replica of it."""
        send(self.servers[0], signal.SIGCONT)

    def wait_for_promotion(self) -> None:
        """Until the replica is the primary, and all sentinels say so."""
        second = self.servers[1]
        wait_until(lambda: self.role(second) == "master", 60, 0.05, "no promotion")
        watching = [sentinel for sentinel in self.sentinels if sentinel.pid is not None]
        wait_until(lambda: all(sentinel.primary_port() == second.port for sentinel in watching), 60, 0.05)

    def _know_each_other(self) -> bool:
        return all(
            s.sees().get("num-other-sentinels") == 2 and s.sees().get("num-slaves") == 1
            for s in self.sentinels
        )


class HasPort(Protocol):
    """A server, or what stands before one."""

    @property
    def port(self) -> int: ...


@contextmanager
def lone_sentinel(primary: HasPort) -> Iterator[str]:
    """One that takes this for the primary, and for an hour for alive, whatever it hears; its URL."""
    with ExitStack() as stack:
        port, silent = free_port(), {"down-after-milliseconds": 3_600_000}
        sentinel = _Sentinel(temporary_folder(stack), port, [primary], [port], silent)
        started_in(stack, sentinel)
        yield sentinel.url


class _Sentinel(EmbeddedRedis):
    """One that watches the server at a port."""

    name = "sentinel"

    def __init__(
        self,
        data_dir: Path,
        port: int,
        servers: Sequence[HasPort],
        sentinels: Sequence[int],
        times: Mapping[str, int],
    ) -> None:
        super().__init__(data_dir, port=port)
        self._servers, self._sentinels = servers, sentinels
        self._times = times

    @property
    def _file(self) -> Path:
        return self._folder / "sentinel.conf"

    def _prepare(self) -> None:
        super()._prepare()
        if not self._file.exists():  # it writes into it what it has seen
            first, *replicas = self._servers
            quorum = len(self._sentinels) // 2 + 1
            others = [port for port in self._sentinels if port != self.port]
            lines = [
                "bind 127.0.0.1",
                f"dir {self._folder}",
                f"sentinel myid {self.port:040d}",
                f"sentinel monitor {SERVICE} 127.0.0.1 {first.port} {quorum}",
                *(f"sentinel {name} {SERVICE} {ms}" for name, ms in self._times.items()),
                *(f"sentinel known-replica {SERVICE} 127.0.0.1 {server.port}" for server in replicas),
                *(f"sentinel known-sentinel {SERVICE} 127.0.0.1 {port} {port:040d}" for port in others),
            ]
            self._file.write_text("\n".join([*lines, ""]))

    def _command(self, port: int) -> list[str]:
        return [str(self.program), str(self._file), "--sentinel", "--port", str(port)]

    def _markers(self) -> tuple[str, ...]:
        return (f" {self._file} ",)

    def sees(self) -> dict[str, Any]:
        """What it knows of the primary."""
        with suppress(redis.RedisError), redis.Redis("127.0.0.1", self.port, socket_timeout=5) as client:
            found = cast(dict[str, dict[str, Any]], client.sentinel_masters())
            return found.get(SERVICE, {})
        return {}

    def names(self, server: EmbeddedRedis) -> bool:
        """Whether that is the primary to it, and alive."""
        seen = self.sees()
        is_down = seen.get("is_sdown") or seen.get("is_odown")
        return seen.get("port") == server.port and not is_down

    def primary_port(self) -> int | None:
        """Of the server that it names."""
        return self.sees().get("port")


def send(server: EmbeddedRedis, number: signal.Signals) -> None:
    """Signals its process."""
    assert server.pid is not None
    os.kill(server.pid, number)
