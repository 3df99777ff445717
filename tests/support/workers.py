"""Workers for tests, in a thread of this process or as a process of their own, and work for them."""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import psycopg
from redis import Redis, RedisError
from redis.backoff import ConstantBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError
from redis.retry import Retry

from writebehind import Receipt, WriteBehind
from writebehind.keys import QueueKeys
from writebehind_worker.cli import cli
from writebehind_worker.config import SETTINGS, Config
from writebehind_worker.log import get_logger
from writebehind_worker.metrics import Metrics
from writebehind_worker.redis_server import RedisLink
from writebehind_worker.state import WorkerState
from writebehind_worker.testing.wait import wait_until
from writebehind_worker.worker import Worker

ROOT = Path(__file__).parents[2]

forking = multiprocessing.get_context("forkserver")
"""Processes are forked from one that has imported everything: a start takes some ten milliseconds."""
forking.set_forkserver_preload(
    ["__main__", "tests.support.crashing_worker", "writebehind_worker.service", "tests.support.all_imported"]
)


class RunningWorker:
    """A worker in threads of this process: ``with RunningWorker(redis_url=..., postgres_url=...)``."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("lease_ttl_s", 2.0)
        self.config = Config(**options)
        self.state, self.metrics = WorkerState(), Metrics()
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        worker = Worker(self.config, self.state, self.metrics, get_logger())
        try:
            worker.run(self._stop)
        except BaseException as error:
            self._error = error

    def start(self) -> None:
        self._thread.start()

    def wait_for_role(self, role: str, timeout: float = 30) -> dict[str, Any]:
        """The state's facts once it has this role."""
        wait_until(lambda: self.facts["role"] == role, timeout, message=f"the worker was not {role}")
        return self.facts

    @property
    def facts(self) -> dict[str, Any]:
        """What the worker knows of itself."""
        return self.state.facts()

    def metric(self, name: str, **labels: str) -> float:
        """A sample of its metrics; 0 if there is none yet."""
        return self.metrics.registry.get_sample_value(f"writebehind_{name}", labels) or 0.0

    def stop(self) -> None:
        """Stops it as SIGTERM would; raises what it ended with."""
        self._stop.set()
        with suppress(RedisError):
            _wake(self.config)
        self._thread.join(timeout=15)
        assert not self._thread.is_alive(), "the worker did not stop"
        if self._error is not None:
            raise self._error

    def __enter__(self) -> RunningWorker:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _wake(config: Config) -> None:
    """Ends the waiting of idle owners, which lasts up to a second: to them it looks like a time-out."""
    with RedisLink(config.redis_url, config.queue) as link:
        for connection in link.client.client_list():
            if connection["cmd"] == "blmove":
                link.client.client_unblock(int(connection["id"]))


def _is_stopped(pid: int) -> bool:
    """Every thread of it: until one has taken the signal, which may take a while, the others go on."""
    tasks = Path(f"/proc/{pid}/task")
    try:
        states = [task.joinpath("stat").read_text().rpartition(") ")[2][0] for task in tasks.iterdir()]
    except FileNotFoundError:  # a thread that has ended; or no Linux
        return not tasks.exists()
    return all(state in "TtZX" for state in states)


class WorkerProcess:
    """A worker in a process of its own: ``with WorkerProcess(redis_url=..., postgres_url=...)``.

    However the block is left, the process is killed and reaped.
    """

    def __init__(self, **options: Any) -> None:
        self.arguments: Sequence[str] = flags(**options)
        self._log = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process: ForkServerProcess | None = None

    @classmethod
    def told(cls, *arguments: str) -> Self:
        """``writebehind run`` with just these arguments."""
        worker = cls()
        worker.arguments = arguments
        return worker

    def start(self) -> None:
        environment = {n: v for n, v in os.environ.items() if not n.startswith(("WRITEBEHIND_", "PG"))}
        self._process = forking.Process(target=_run, args=(self.arguments, environment, self._log.name))
        self._process.start()

    @property
    def _started(self) -> ForkServerProcess:
        assert self._process is not None, "the worker has not been started"
        return self._process

    @property
    def pid(self) -> int:
        assert self._started.pid is not None
        return self._started.pid

    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._started.is_alive()

    def kill(self) -> None:
        """SIGKILL, and waits."""
        self._started.kill()
        self._started.join(10)

    def pause(self) -> None:
        """SIGSTOP: it does nothing at all until ``resume``."""
        self.terminate(signal.SIGSTOP)
        wait_until(lambda: _is_stopped(self.pid))

    def resume(self) -> None:
        self.terminate(signal.SIGCONT)

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Asks it to stop."""
        if self.is_alive():
            os.kill(self.pid, number)

    def wait(self, timeout: float = 40) -> int:
        """Its exit code; negative for the signal that ended it."""
        self._started.join(timeout)
        code = self._started.exitcode
        assert code is not None, f"the worker did not end within {timeout} s; log:\n{self.log}"
        return code

    @property
    def log(self) -> str:
        """All that it has written so far."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Its log lines of one event."""
        lines = [line for line in self.log.splitlines() if line.startswith("{") and line.endswith("}")]
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def wait_for_event(self, name: str, count: int = 1, timeout: float = 40) -> dict[str, Any]:
        """The ``count``-th such log line, once it is there."""
        try:
            wait_until(lambda: len(self.events(name)) >= count, timeout)
        except AssertionError as error:
            raise AssertionError(f"no event {name!r}: {error}; log:\n{self.log}") from None
        return self.events(name)[count - 1]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.resume()
        self.kill()
        if kind is not None:
            print(self.log)  # pytest shows it
        self._started.close()
        self._log.close()


def _run(arguments: Sequence[str], environment: Mapping[str, str], log: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    try:
        cli(["run", *arguments], prog_name="writebehind")
    finally:
        atexit._run_exitfuncs()  # as an interpreter that ends; a forked process leaves them out


class Workload:
    """Increments of ``counters`` and puts of ``users``, and what Postgres must hold when all are applied.

    Its producer re-sends for as long as Redis is away, so that the outcome of each call is known.
    """

    def __init__(self, redis_url: str, queue: str, pg: psycopg.Connection[Any]) -> None:
        again = Retry(ConstantBackoff(0.02), 1000, (ConnectionError, TimeoutError, BusyLoadingError))
        self.wb = WriteBehind.from_url(
            redis_url, queue=queue, prefix=f"{queue}:cache:", redis_options={"retry": again}
        )
        self.keys, self.pg = QueueKeys(queue), pg
        self._writes = 0
        self.counters: dict[int, int] = {}
        self.users: dict[int, str] = {}
        pg.execute("CREATE TABLE counters (id int PRIMARY KEY, n bigint NOT NULL DEFAULT 0)")
        pg.execute("CREATE TABLE users (id int PRIMARY KEY, name text NOT NULL)")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wb.close()

    @property
    def redis(self) -> Redis:
        return self.wb.redis

    def add(self, writes: int) -> list[Receipt]:
        """Accepts so many more writes, by one call."""
        with self.wb.batch() as batch:
            for i in range(self._writes, self._writes + writes):
                row = i % 7
                if i % 3:
                    batch.increment("counters", row, {"n": i})
                    self.counters[row] = self.counters.get(row, 0) + i
                else:
                    batch.put("users", row, {"name": f"name {i}"})
                    self.users[row] = f"name {i}"
        self._writes += writes
        return batch.receipts

    def add_raw(self, writes: int, client: Redis | None = None) -> None:
        """Pushes so many increments as any language can."""
        for i in range(self._writes, self._writes + writes):
            message = {"table": "counters", "id": i % 7, "op": "increment", "data": {"n": i}}
            (client or self.redis).lpush(self.keys.queue, json.dumps(message))
            self.counters[i % 7] = self.counters.get(i % 7, 0) + i
        self._writes += writes

    @property
    def pending(self) -> int:
        """Items waiting, and frozen batches."""
        return self.redis.llen(self.keys.queue) + self.redis.llen(self.keys.inflight)

    def wait_until_done(self, timeout: float = 40) -> None:
        """Until nothing waits and nothing is frozen."""
        wait_until(lambda: self.pending == 0, timeout, message="the queue was not drained")

    def check(self, dead_letters: int = 0) -> None:
        """Every write has taken effect just once, and nothing is left behind."""
        self.wait_until_done()
        assert dict(self.pg.execute("SELECT id, n FROM counters")) == self.counters
        assert dict(self.pg.execute("SELECT id, name FROM users")) == self.users
        assert self.dead_letters() == dead_letters
        assert not list(self.redis.scan_iter(match=f"{{{self.keys.queue}}}:processing:*"))
        for key in self.redis.scan_iter(match=f"{{{self.keys.queue}}}*"):
            assert self.redis.ttl(key) == -1, f"{key!r} has a TTL"
        for key in self.redis.scan_iter(match=f"{self.keys.queue}:cache:*"):
            assert self.redis.ttl(key) > 0, f"the cache entry {key!r} has no TTL"

    def dead_letters(self, kind: str | None = None) -> int:
        """How many there are."""
        found = self.pg.execute(
            "SELECT count(*) FROM writebehind.dead_letters WHERE queue = %s AND kind = coalesce(%s, kind)",
            [self.keys.queue, kind],
        ).fetchone()
        assert found is not None
        return cast(int, found[0])

    def ledger(self, column: str) -> Any:
        """A column of the queue's row; ``None`` if there is no row yet."""
        query = psycopg.sql.SQL("SELECT {} FROM writebehind.ledger WHERE queue = %s")
        found = self.pg.execute(query.format(psycopg.sql.Identifier(column)), [self.keys.queue]).fetchone()
        return None if found is None else found[0]


def free_port() -> int:
    """One that nobody serves on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def flags(**options: Any) -> list[str]:
    """The options of ``writebehind run`` for these fields of `Config`, and defaults that suit tests."""
    given: list[str] = []
    for name, value in {"metrics_port": 0, "lease_ttl_s": 2.0, "log_format": "json", **options}.items():
        flag = SETTINGS[name].flag
        if isinstance(value, bool):
            given.append(flag if value else f"--no-{flag.removeprefix('--')}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            given += [part for item in values for part in (flag, str(item))]
    return given
