"""What a run plays on: both servers, a proxy for each kind of client, the workers and the producers.

The queue is divided into shards; or it is not, and a table of it is moved to a second queue and back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any, Self

import psycopg
from redis import Redis, RedisError
from tests.support.workers import flags

from writebehind.keys import QueueKeys
from writebehind.shards import shard_keys
from writebehind_worker.embedded import EmbeddedPostgres
from writebehind_worker.resharding import layout_of, served
from writebehind_worker.testing.proxy import Proxy, proxied_url

from .child import Child, command
from .producer import CACHE_PREFIX, Orders, client_of, produce
from .sabotage import SABOTAGES
from .snapshot import TABLES
from .topology import TOPOLOGIES

QUEUE, SECOND = "chaos:queue", "chaos:second"
KEYS = QueueKeys(QUEUE)
MOVED = "plain"  # a table without dead letters: they keep one where it is
WORKERS = 3
_OF_THE_SECOND = 2  # workers, beside them
_COMMAND_S = 90.0  # longer than any takes on a busy machine
PRODUCERS = 3  # the last one raw
LEASE_TTL_S = 0.7
_SCHEMA = Path(__file__).with_name("schema.sql")
_LEDGER = Path(__file__).parents[2] / "schema.sql"
_TABLES = ", ".join((*TABLES, "versions", "writebehind.dead_letters"))


class Stage:
    """Started with its ``with`` block; however that is left, all processes are ended."""

    def __init__(self, folder: Path, writes_per_s: float, topology: str = "single", shards: int = 1) -> None:
        self.folder, self._writes_per_s, self.shards = folder, writes_per_s, shards
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
            self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _begin(self) -> None:
        if self.shards > 1:
            self.run_to_its_end("reshard", str(self.shards))
        workers = WORKERS + (_OF_THE_SECOND if "moves" in self.lanes else 0)
        self.workers = [self.new_worker(i) for i in range(workers)]

    @property
    def lanes(self) -> frozenset[str]:
        """What can be done to all of this: what is divided has no table moved."""
        return self.topology.lanes - {"moves" if self.shards > 1 else "division"}

    def _connect_proxies(self) -> None:
        self.links = {"worker-postgres": self._stack.enter_context(Proxy.to(self.postgres_server.url))}
        if self.topology.has_links:
            for name in ("worker-redis", "producer-redis"):
                self.links[name] = self._stack.enter_context(Proxy.to(self.topology.url))

    def _redis_url(self, link: str) -> str:
        url = self.topology.url
        return proxied_url(url, self.links[link].port) if link in self.links else url

    # Direct connections, past the proxies.

    def redis(self, queue: str = QUEUE) -> Redis:
        """Of a cluster, the node that has this queue."""
        return client_of(self.topology.url, queue, 10)

    def queues(self) -> Sequence[QueueKeys]:
        """All that are served now: on a server that is up. Raises ``RedisError``."""
        with self.redis() as client:
            found = served(KEYS, layout_of(client, KEYS))
        return found if self.shards > 1 else [*found, QueueKeys(SECOND)]

    @contextmanager
    def entries(self) -> Iterator[Sequence[tuple[Redis, str]]]:
        """Where cache entries are, and what their keys begin with: on a cluster, those of each shard."""
        with ExitStack() as stack:
            client = stack.enter_context(self.redis())
            if not self.topology.has_entries_by_queue:
                yield [(client, CACHE_PREFIX)]
                return
            layout = layout_of(client, KEYS)
            yield [
                (stack.enter_context(self.redis(one.queue)), one.entry(CACHE_PREFIX, layout.number))
                for one in shard_keys(QUEUE, layout.shards)
            ]

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
            queue=QUEUE if index < WORKERS else SECOND,
            lease_ttl_s=LEASE_TTL_S,
            batch_size=SABOTAGES[self._sabotage].batch_size if self._sabotage else 300,
        )
        child = Child(command, (["run", *arguments], self._sabotage), self.folder / f"worker-{index}.log")
        child.start()
        return child

    def begin_command(self, *arguments: str) -> Child:
        """What an operator does to the queue. It is the caller's to end."""
        where = ["--redis-url", self.topology.url, "--queue", QUEUE]
        if arguments[0] == "move":
            where += ["--postgres-url", self.postgres_server.url]
        child = Child(command, ([*arguments, *where], self._sabotage), self.folder / "operator.log")
        child.start()
        return child

    def run_to_its_end(self, *arguments: str) -> None:
        """The same, where nothing may keep it from that."""
        child = self.begin_command(*arguments)
        child.wait(_COMMAND_S)
        code = child.exit_code
        child.kill()
        if code != 0:
            raise AssertionError(f"{' '.join(arguments)} has ended with {code}: see {child.log}")

    def end_move(self) -> None:
        """Brings one to its end that was killed half-way."""
        with self.redis() as client:
            says = [layout_of(client, keys).tables.get(MOVED) for keys in (KEYS, QueueKeys(SECOND))]
        for one in says:
            if one is not None and one.waits:
                self.run_to_its_end("move", MOVED, one.queue)

    def spoil(self, sabotage: str) -> None:
        """Begins anew, with empty servers and workers that break this rule; the producers will, too."""
        self._end_children()
        self._sabotage, self.shards = sabotage, SABOTAGES[sabotage].shards
        self.clear()
        with self.postgres() as pg, self.redis() as client:
            pg.execute("TRUNCATE writebehind.ledger")
            client.flushall()
        self._begin()

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

    def one_queue(self, pick: float) -> str:
        """One of those that are served, as far as Redis tells."""
        try:
            queues = self.queues()
        except RedisError:
            return QUEUE
        return queues[int(pick * len(queues))].queue

    def owner(self, queue: str) -> int | None:
        """Which worker holds the lease, as far as Redis tells."""
        try:
            with self.redis(queue) as client:
                lease: Any = client.get(QueueKeys(queue).lease)
        except RedisError:
            return None
        pid = (lease or b"").rpartition(b":")[2].decode()
        return next((i for i, child in enumerate(self.workers) if str(child.pid) == pid), None)

    # Quiet.

    def pending(self) -> int | None:
        """Items waiting and in frozen batches; ``None``: Redis does not answer."""
        try:
            return sum(map(self._pending_in, self.queues()))
        except RedisError:
            return None

    def _pending_in(self, keys: QueueKeys) -> int:
        with self.redis(keys.queue) as client:
            batches: Any = client.lrange(keys.inflight, 0, -1)
            frozen = sum(int(client.llen(keys.processing(int(b)))) for b in batches)
            return int(client.llen(keys.queue)) + frozen + len(batches)

    def _is_divided(self) -> bool:
        """Whether no division is under way."""
        try:
            with self.redis() as client:
                layout = layout_of(client, KEYS)
        except RedisError:
            return False
        return layout.closing is None and not layout.draining

    def is_drained(self, timeout_s: float, tell: Callable[[], None] = lambda: None) -> bool:
        """Waits until nothing is pending, and no division is under way."""
        deadline = time.monotonic() + timeout_s
        while not self._is_divided() or self.pending() != 0:
            tell()
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def clear(self) -> None:
        """Forgets the rows and the cache entries of a round; the queue and its ledger go on."""
        with self.postgres() as pg:
            while True:
                try:
                    pg.execute(f"TRUNCATE {_TABLES}")
                    break
                except psycopg.errors.DeadlockDetected:  # a broken worker may still be in its transaction
                    continue
        with self.entries() as entries:
            for client, prefix in entries:
                for key in list(client.scan_iter(match=f"{prefix}*", count=1000)):
                    client.unlink(key)
        self._accepted_before = 0
        self._progress = None
