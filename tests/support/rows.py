"""The commands that look at rows, run in this process, and queues for them to look at."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import psycopg
import redis
from click.testing import CliRunner, Result
from tests.support.crashing_worker import CrashingWorker
from tests.support.workers import RunningWorker, flags

from writebehind import WriteBehind
from writebehind.keys import QueueKeys
from writebehind_worker.cli import cli
from writebehind_worker.config import SETTINGS
from writebehind_worker.testing.wait import wait_until

DOWN_REDIS = "redis://:hunter2@127.0.0.1:1/0"
DOWN_POSTGRES = "postgresql://ada:hunter2@127.0.0.1:1/app"


@dataclass
class Rows:
    """A queue, its servers and a producer whose cache keys begin with ``prefix``."""

    options: dict[str, Any]
    client: redis.Redis
    pg: psycopg.Connection[Any]
    wb: WriteBehind
    prefix: str

    @property
    def queue(self) -> str:
        return str(self.options["queue"])

    @property
    def keys(self) -> QueueKeys:
        return QueueKeys(self.queue)

    def name(self, rest: str) -> str:
        """A cache key."""
        return f"{self.prefix}{rest}"

    def process(self, point: str | None = None, **options: Any) -> CrashingWorker:
        """A worker that is another process: its log does not come into what a command prints."""
        return CrashingWorker(point, flags(**{**self.options, "lease_ttl_s": 0.5, **options}))

    def flush(self) -> None:
        """Brings all that waits to Postgres."""
        with RunningWorker(**self.options):
            wait_until(
                lambda: not self.client.llen(self.queue) and not self.client.llen(self.keys.inflight), 20
            )

    def run(self, *arguments: str, **options: Any) -> Result:
        """The command; options are those of `Config`."""
        command, *rest = arguments
        return CliRunner().invoke(cli, [command, *self._given(**options), *rest], catch_exceptions=False)

    def on_terminal(self, *arguments: str) -> tuple[int, str, str]:
        """Of the command as a process: its exit code, its stdout, and what its stderr, a terminal, shows."""
        terminal, its_end = pty.openpty()
        command = [sys.executable, "-m", "writebehind_worker", *arguments, *self._given()]
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=its_end, env=environment) as process:
            os.close(its_end)
            shown = b""
            with contextlib.suppress(OSError):  # the terminal ends with the process
                while part := os.read(terminal, 10_000):
                    shown += part
            printed, _ = process.communicate(timeout=20)
        os.close(terminal)
        return process.returncode, printed.decode(), shown.decode()

    def _given(self, **options: Any) -> list[str]:
        return [
            part
            for name, value in {**self.options, **options}.items()
            for part in (SETTINGS[name].flag, value)
        ]

    def explain(self, *arguments: str, **options: Any) -> dict[str, Any]:
        """What it says as JSON, and its exit code."""
        result = self.run("explain", "--json", "--prefix", self.prefix, *arguments, **options)
        assert result.exit_code in (0, 1, 2), result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found | {"exit_code": result.exit_code}

    def verify(self, *arguments: str, all: bool = True, **options: Any) -> dict[str, Any]:
        """What it says as JSON, and its exit code."""
        every = ["--all"] if all else []
        result = self.run("verify", "--json", "--prefix", self.prefix, *every, *arguments, **options)
        assert result.exit_code in (0, 1), result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found | {"exit_code": result.exit_code}
