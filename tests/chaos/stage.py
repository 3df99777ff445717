"""What a run plays on: both servers, a proxy for each kind of client, the workers and the producers."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any, Self

import psycopg
from redis import Redis, RedisError
from tests.support.workers import flags

from writebehind.keys import QueueKeys
from writebehind_worker.embedded import EmbeddedPostgres
from writebehind_worker.testing.proxy import Proxy, proxied_url

from .child import Child, work
from .producer import CACHE_PREFIX, Orders, client_of, produce
from .sabotage import SABOTAGES
from .snapshot import TABLES
from .topology import TOPOLOGIES

QUEUE = "chaos:queue"
WORKERS = 3
PRODUCERS = 3  # the last one raw
LEASE_TTL_S = 0.7
_SCHEMA = Path(__file__).with_name("schema.sql")
_LEDGER = Path(__file__).parents[2] / "schema.sql"
_TABLES = ", ".join((*TABLES, "versions", "writebehind.dead_letters"))


class Stage:
    """Started with its ``with`` block; however that is left, all processes are ended."""

    def __init__(self, folder: Path, writes_per_s: float, topology: str = "single") -> None:
        self.folder, self._writes_per_s = folder, writes_per_s
        self.topology = TOPOLOGIES[topology](folder / "servers")
        self.postgres_server = EmbeddedPostgres(folder / "servers")
        self.workers: list[Child] = []
        self.producers: list[Child] = []
        self._sabotage: str | None = None
        self._seed, self._history = 0, folder
        self._progress: Any = None
        self._produced = 0  # producers started in this round
        self._accepted_before = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._stack.callback(self._end_children)
            self._stack.enter_context(self.topology)
            self._stack.callback(self.postgres_server.stop)
            self.postgres_server.start()
            self._connect_proxies()
            with self.postgres() as pg:
                pg.execute(_LEDGER.read_bytes())
                pg.execute(_SCHEMA.read_bytes())
            self.workers = [self.new_worker(i) for i in range(WORKERS)]
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _connect_proxies(self) -> None:
        self.links = {"worker-postgres": self._stack.enter_context(Proxy.to(self.postgres_server.url))}
        if self.topology.has_links:
            for name in ("worker-redis", "producer-redis"):
                self.links[name] = self._stack.enter_context(Proxy.to(self.topology.url))

    def _redis_url(self, link: str) -> str:
        url = self.topology.url
        return proxied_url(url, self.links[link].port) if link in self.links else url

    # Direct connections, past the proxies.

    def redis(self) -> Redis:
        """Of a cluster, the node that has the queue."""
        return client_of(self.topology.url, QUEUE, 10)

    @property
    def cache_prefix(self) -> str:
        """What the keys of the cache begin with."""
        return (QueueKeys(QUEUE).entry("", 0) if self.topology.has_entries_by_queue else "") + CACHE_PREFIX

    def postgres(self) -> psycopg.Connection[Any]:
        """Autocommit, and not read-only while others are."""
        return psycopg.connect(
            self.postgres_server.url,
            autocommit=True,
            client_encoding="utf8",
            options="-c default_transaction_read_only=off",
            application_name="chaos",
        )

    # Processes.

    def new_worker(self, index: int) -> Child:
        """A worker in the place of another."""
        arguments = flags(
            redis_url=self._redis_url("worker-redis"),
            postgres_url=proxied_url(self.postgres_server.url, self.links["worker-postgres"].port),
            queue=QUEUE,
            lease_ttl_s=LEASE_TTL_S,
            batch_size=SABOTAGES[self._sabotage].batch_size if self._sabotage else 300,
        )
        child = Child(work, (arguments, self._sabotage), self.folder / f"worker-{index}.log")
        child.start()
        return child

    def spoil(self, sabotage: str) -> None:
        """Begins anew, with empty servers and workers that break this rule; the producers will, too."""
        self._end_children()
        self._sabotage = sabotage
        self.clear()
        with self.postgres() as pg, self.redis() as client:
            pg.execute("TRUNCATE writebehind.ledger")
            client.flushall()
        self.workers = [self.new_worker(i) for i in range(WORKERS)]

    def start_producers(self, seed: int, history: Path) -> None:
        """A fresh set, which writes its histories to this folder."""
        self._seed, self._history = seed, history
        self._produced = 0
        self._progress = [RawArray("q", 2) for _ in range(PRODUCERS)]
        self.producers = [self.new_producer(i) for i in range(PRODUCERS)]

    def new_producer(self, index: int) -> Child:
        """A producer in the place of another; it goes by a number of its own."""
        who, self._produced = self._produced, self._produced + 1
        self._accepted_before += self._progress[index][0]
        self._progress[index][:] = [0, 0]
        orders = Orders(
            who=who,
            seed=self._seed,
            is_raw=index == PRODUCERS - 1,
            redis_url=self._redis_url("producer-redis"),
            postgres_url=self.postgres_server.url,
            queue=QUEUE,
            folder=self._history,
            writes_per_s=self._writes_per_s / PRODUCERS,
            sabotage=self._sabotage,
            progress=self._progress[index],
        )
        child = Child(produce, (orders,), self.folder / "producers.log")
        child.start()
        return child

    def is_calling(self, index: int) -> bool:
        """Whether this producer is within a call."""
        return bool(self._progress[index][1])

    @property
    def accepted(self) -> int:
        """Writes that the producers were told are accepted, in this round."""
        return self._accepted_before + sum(int(progress[0]) for progress in self._progress or [])

    def end_producers(self) -> None:
        for child in self.producers:
            child.end(timeout_s=30)

    def _end_children(self) -> None:
        for child in (*self.producers, *self.workers):
            with suppress(ValueError, AttributeError):
                child.kill()

    def owner(self) -> int | None:
        """Which worker holds the lease, as far as Redis tells."""
        try:
            with self.redis() as client:
                lease: Any = client.get(f"{{{QUEUE}}}:lease")
        except RedisError:
            return None
        pid = (lease or b"").rpartition(b":")[2].decode()
        return next((i for i, child in enumerate(self.workers) if str(child.pid) == pid), None)

    # Quiet.

    def pending(self) -> int | None:
        """Items waiting and in frozen batches; ``None``: Redis does not answer."""
        try:
            with self.redis() as client:
                batches: Any = client.lrange(f"{{{QUEUE}}}:inflight", 0, -1)
                frozen = sum(client.llen(f"{{{QUEUE}}}:processing:{int(b)}") for b in batches)
                pending: int = client.llen(QUEUE) + frozen + len(batches)
                return pending
        except RedisError:
            return None

    def is_drained(self, timeout_s: float, tell: Callable[[], None] = lambda: None) -> bool:
        """Waits until nothing is pending."""
        deadline = time.monotonic() + timeout_s
        while self.pending() != 0:
            tell()
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def clear(self) -> None:
        """Forgets the rows and the cache entries of a round; the queue and its ledger go on."""
        with self.postgres() as pg:
            pg.execute(f"TRUNCATE {_TABLES}")
        with self.redis() as client:
            for key in list(client.scan_iter(match=f"{self.cache_prefix}*", count=1000)):
                client.unlink(key)
        self._accepted_before = 0
        self._progress = None
