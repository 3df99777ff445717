"""Everything that a write goes through, for one test: Redis, a worker, a database; and faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg
import redis
from psycopg import sql
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from writebehind import WriteBehind

from ..ledger_schema import schema_sql
from .proxy import Proxy, proxied_url
from .servers import Servers
from .wait import wait_until


class Stack:
    """What a test has. Its queue, cache keys and database are its own.

    Attributes:
        redis_url: Redis itself, without the proxy that ``wb`` goes through.
        postgres_url: a database with the ledger's tables, and nothing else.
        queue: the queue's name.
        wb: a client; the prefix of its cache keys is the queue's name and a colon.
    """

    def __init__(self, redis_url: str, postgres_url: str, queue: str, proxy: Proxy) -> None:
        self.redis_url, self.postgres_url, self.queue = redis_url, postgres_url, queue
        self._proxy = proxy
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._worker: subprocess.Popen[bytes] | None = None
        self.wb = WriteBehind.from_url(
            proxied_url(redis_url, proxy.port),
            queue=queue,
            prefix=f"{queue}:",
            redis_options={"retry": Retry(ConstantBackoff(0.02), 5)},
        )

    def start_worker(self) -> None:
        """Starts a worker; there must be none."""
        assert self._worker is None, "the worker runs: kill it first"
        environment = {n: v for n, v in os.environ.items() if not n.startswith(("WRITEBEHIND_", "PG"))}
        environment |= {
            "WRITEBEHIND_REDIS_URL": self.redis_url,
            "WRITEBEHIND_POSTGRES_URL": self.postgres_url,
        }
        options = ["--queue", self.queue, "--metrics-port", "0", "--lease-ttl", "2"]
        command = [sys.executable, "-m", "writebehind_worker", "run", *options]
        self._worker = subprocess.Popen(command, env=environment, stdout=self._log, stderr=self._log)

    def kill_worker(self) -> None:
        """SIGKILL: it ends wherever it is. Its successor takes over within 2 s."""
        worker = self._running()
        worker.kill()
        worker.wait(10)
        self._worker = None

    def pause_worker(self) -> None:
        """SIGSTOP: it does nothing until ``resume_worker``; its lease of 2 s runs out."""
        self._running().send_signal(signal.SIGSTOP)

    def resume_worker(self) -> None:
        """SIGCONT."""
        self._running().send_signal(signal.SIGCONT)

    def drop_reply(self) -> None:
        """Redis' reply to the next request of ``wb`` is lost: Redis has done it, and ``wb`` asks again."""
        self._proxy.drop_reply_after(lambda request: b"EVAL" in request)

    @property
    def replies_dropped(self) -> int:
        """How many replies have been lost."""
        return self._proxy.dropped

    def drain(self, timeout: float = 20) -> None:
        """Waits until every write is durable, or a dead letter; AssertionError after ``timeout`` seconds."""
        keys = self.wb.keys
        with redis.Redis.from_url(self.redis_url) as client:

            def is_empty() -> bool:
                with client.pipeline(transaction=True) as pipe:
                    pipe.llen(keys.queue)
                    pipe.llen(keys.inflight)
                    return not any(pipe.execute())

            try:
                wait_until(is_empty, timeout, message="the queue was not drained")
            except AssertionError as error:
                raise AssertionError(f"{error}; the worker's log:\n{self.log}") from None

    @property
    def log(self) -> str:
        """What the workers have written."""
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).decode()

    def close(self) -> None:
        """Ends the worker and the client's connections."""
        if self._worker is not None:
            self.kill_worker()
        self.wb.close()
        self._log.close()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._worker is not None, "no worker runs: start one"
        return self._worker


@contextmanager
def stack_on(servers: Servers) -> Iterator[Stack]:
    """One with a running worker; what it has kept in the servers is removed on leaving."""
    name = f"wb_stack_{uuid.uuid4().hex[:12]}"
    queue = f"{name}:queue"
    url = urlsplit(servers.postgres_url)._replace(path=f"/{name}").geturl()
    with psycopg.connect(servers.postgres_url, autocommit=True) as admin:
        admin.execute(
            sql.SQL("CREATE DATABASE {} ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0").format(
                sql.Identifier(name)
            )
        )
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(schema_sql().encode())
            with Proxy.to(servers.redis_url) as proxy:
                stack = Stack(servers.redis_url, url, queue, proxy)
                try:
                    stack.start_worker()
                    yield stack
                finally:
                    stack.close()
        finally:
            admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            with redis.Redis.from_url(servers.redis_url) as client:
                for key in client.scan_iter(f"*{queue}*"):
                    client.delete(key)
