"""The product: a worker process as it is run in production, with its default settings."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn, Self

from redis import Redis

from writebehind.keys import QueueKeys

from ..errors import BenchFailed
from ..items import STAGED

_POLL_S = 0.002
_PATIENCE_S = 120.0
_STAGE = re.compile(r'^writebehind_stage_seconds_(sum|count)\{.*stage="(\w+)".*\} (\S+)$', re.MULTILINE)
_ROOT = Path(__file__).parents[2]


class Flush(NamedTuple):
    """A transaction, as the worker's log tells it."""

    ended_s: float
    seconds: float


class Spent(NamedTuple):
    """By so many batches, in a stage of their way."""

    seconds: float
    batches: float


class WorkerProcess:
    """``writebehind run`` on a queue of its own; killed and reaped at the end of the block.

    ``told``: its metrics can be asked for.
    """

    def __init__(
        self,
        redis: Redis,
        redis_url: str,
        postgres_url: str,
        queue: str,
        folder: Path,
        *options: str,
        told: bool = False,
    ) -> None:
        self._redis, self.keys = redis, QueueKeys(queue)
        self._read_to = 0
        self._log = folder / f"worker-{queue.replace(':', '-')}.log"
        urls = ["--redis-url", redis_url, "--postgres-url", postgres_url]
        command = [sys.executable, "-m", "writebehind_worker", "run", *urls]
        self._port = _free_port() if told else 0
        self._command = [*command, "--queue", queue, "--metrics-port", str(self._port), *options]

    def __enter__(self) -> Self:
        environment = {n: v for n, v in os.environ.items() if not n.startswith(("WRITEBEHIND_", "PG"))}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, cwd=_ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Until it owns the empty queue and waits for work; no other worker may run."""
        self.wait_until_owner()
        self._wait(lambda: any(client["cmd"] == "blmove" for client in self._redis.client_list()))

    def wait_until_owner(self) -> None:
        self._wait(lambda: bool(self._redis.exists(self.keys.epoch)))

    def drain(self, last_seq: int, up_to: int | None = None) -> None:
        """Gives it the staged list; returns once the write ``up_to`` (the last) is acknowledged."""
        self._redis.hset(self.keys.clock, "seq", last_seq)
        self._redis.rename(STAGED, self.keys.queue)
        self.wait_for(last_seq if up_to is None else up_to)

    def wait_for(self, seq: int) -> None:
        self._wait(lambda: self.applied() >= seq)

    def applied(self) -> int:
        """The last seq that it has acknowledged."""
        return int(self._redis.get(self.keys.applied) or 0)

    def committed(self) -> int:
        """The last seq of which a receipt says that it is in Postgres."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.get(self.keys.applied)
            pipe.hget(self.keys.clock, "committed")
            return max(int(seq or 0) for seq in pipe.execute())

    def flushes(self) -> list[Flush]:
        """Those that it has told since this was asked last."""
        found = []
        with self._log.open("rb") as log:
            log.seek(self._read_to)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._read_to += len(line)
                if b'"event": "flushed"' in line:
                    told = json.loads(line)
                    at = dt.datetime.fromisoformat(told["timestamp"])
                    found.append(Flush(at.timestamp(), told["seconds"]))
        return found

    def stages(self) -> dict[str, Spent]:
        """What its batches have spent where until now."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=_PATIENCE_S) as reply:
            samples = _STAGE.findall(reply.read().decode())
        seconds = {stage: float(value) for kind, stage, value in samples if kind == "sum"}
        batches = {stage: float(value) for kind, stage, value in samples if kind == "count"}
        return {stage: Spent(seconds[stage], batches[stage]) for stage in seconds}

    def stop(self) -> None:
        """Lets it finish what it has begun."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(_PATIENCE_S)

    def check(self) -> None:
        """BenchFailed if it has ended."""
        if self._process.poll() is not None:
            self._fail()

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                self._fail()
            time.sleep(_POLL_S)

    def _fail(self) -> NoReturn:
        log = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
        raise BenchFailed(f"the worker did not do its work; its log ends:\n{log}")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
