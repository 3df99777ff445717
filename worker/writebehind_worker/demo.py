"""`writebehind demo`: servers, producers and a worker of its own; the worker is killed half-way, another
goes on, and in the end every row is compared.

All child processes are in sessions of their own, so that Ctrl-C reaches this process alone: it ends them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from types import FrameType

import msgspec
import psycopg
from rich.console import Console

from writebehind import WriteBehind

from .config import Config
from .demo_check import Verdict, check
from .demo_load import PRODUCERS, SCHEMA, Expected, read_expected, shared_rows
from .demo_view import Sample, View
from .embedded import EmbeddedServers, temporary_data_dir
from .errors import WorkerError
from .ledger_schema import apply_schema
from .status import QueueStatus, read_status

INTERRUPTED = 130  # what a shell reports for Ctrl-C

_LEASE_TTL_S = 1.5
_LOOK_EVERY_S = 0.05
_STANDSTILL_S = 30.0
_STOP_TIMEOUT_S = 15.0
_LOG_LINES = 15


class DemoFailed(WorkerError):
    """The demo could not be brought to its end; ``log`` is the end of what the process in question printed."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:] if log and log.exists() else []
        super().__init__("\n".join([message, *lines]))


class _Interrupted(Exception):
    """SIGINT, SIGTERM or SIGHUP."""


class _Child:
    """A process that is killed when the demo ends, whatever happens; its output goes to ``name.log``."""

    def __init__(self, name: str, folder: Path, stack: ExitStack, *arguments: str) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.printed = ""  # the last line
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        stack.callback(self.kill)

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.printed = line.strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def stop(self) -> None:
        """SIGTERM, and it must end well."""
        self.process.terminate()
        try:
            code = self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"{self.name} did not stop on SIGTERM", self.log) from None
        if code:
            raise DemoFailed(f"{self.name} ended with code {code}", self.log)

    def check(self, may_be_over: bool = False) -> bool:
        """Whether it runs. Raises DemoFailed if it has ended and must not have."""
        code = self.process.poll()
        if code or (code == 0 and not may_be_over):
            raise DemoFailed(f"{self.name} ended with code {code}", self.log)
        return code is None


class _LogLine(msgspec.Struct):
    event: str
    batch: int = 0
    writes: int = 0
    rows: int = 0
    seconds: float = 0


class _Demo:
    def __init__(self, writes: int, rows: int, folder: Path, view: View, stack: ExitStack) -> None:
        self._writes, self._rows, self._folder = writes, rows, folder
        self._view, self._stack = view, stack
        self._servers = EmbeddedServers(folder)
        self._workers: list[_Child] = []
        self._producers: list[_Child] = []
        self._durable = 0
        self._asked_to_stop = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            stack.callback(signal.signal, number, signal.signal(number, self._handle))

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self._asked_to_stop = True  # no exception from here: it could hit between a start and its note

    def run(self) -> Verdict:
        started = time.monotonic()
        self._start_servers()
        self._view.say(f"Valkey and PostgreSQL answer after {time.monotonic() - started:.1f} s.")
        self._start_worker()
        self._start_producers()
        self._serve()
        self._workers[-1].stop()
        return self._check()

    # Starting.

    def _start_servers(self) -> None:
        self._stack.callback(self._servers.stop)
        self._servers.start()
        self._look_at_signals()
        self._config = Config(redis_url=self._servers.redis_url, postgres_url=self._servers.postgres_url)
        with psycopg.connect(self._config.postgres_url) as conn:
            apply_schema(conn)
            conn.execute(SCHEMA.encode())
            for (table, *key), row in shared_rows(self._rows).items():
                document = msgspec.json.encode(dict(zip(_columns(conn, str(table)), key, strict=False)) | row)
                conn.execute(
                    f"INSERT INTO {table} SELECT * FROM json_populate_record(NULL::{table}, %s)",
                    [document.decode()],
                )

    def _start_worker(self) -> None:
        worker = _Child(
            f"worker-{len(self._workers) + 1}", self._folder, self._stack,
            "writebehind_worker", "run", "--redis-url", self._config.redis_url,
            "--postgres-url", self._config.postgres_url, "--lease-ttl", str(_LEASE_TTL_S),
            "--metrics-port", "0", "--log-format", "json",
        )  # fmt: skip
        self._workers.append(worker)
