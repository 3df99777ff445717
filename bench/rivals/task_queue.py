"""A task queue in a virtual environment of its own, with its own worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..errors import BenchFailed
from ..items import STAGED
from ..load import TABLE
from ..stage import Stage

_ROOT = Path(__file__).parents[2]
_POLL_S = 0.02
_PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class Kind:
    """``queue``: its key in Redis; ``worker``: command in its virtual environment, with arguments."""

    name: str
    queue: str
    worker: Sequence[str]

    @property
    def folder(self) -> Path:
        return _ROOT / ".venv-bench" / self.name

    def install(self) -> str | None:
        """Brings it into a virtual environment of its own; what pip says if it does not install."""
        python = str(self.folder / "bin/python")
        pip: list[str] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for command in (
            [sys.executable, "-m", "venv", str(self.folder)],
            [*pip, _requirement(self.name), _DRIVER],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                return (done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1]
        return None

    def version(self) -> str:
        code = f"from importlib.metadata import version; print(version({self.name!r}))"
        return subprocess.check_output([self.folder / "bin/python", "-c", code], text=True).strip()


_DRIVER = "psycopg[binary]"
_MODULE = "bench.task_queues."
KINDS = (
    Kind("celery", "celery", ("celery", "-A", f"{_MODULE}celery_tasks", "worker", "-l", "warning")),
    Kind("dramatiq", "dramatiq:default", ("dramatiq", f"{_MODULE}dramatiq_tasks")),
    Kind("rq", "rq:queue:bench", ("rq", "worker", "bench", "--quiet", "--url", "{redis_url}")),
    Kind("arq", "arq:queue", ("arq", f"{_MODULE}arq_tasks.WorkerSettings")),
)


def _requirement(name: str) -> str:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    listed: list[str] = project["optional-dependencies"]["bench"]
    return next(requirement for requirement in listed if requirement.startswith(name))


class TaskQueue:
    """Its worker, on a queue that is empty at first; ended with all its children at the end of the block."""

    def __init__(self, stage: Stage, kind: Kind, messages: Sequence[bytes]) -> None:
        self._stage, self._kind, self._messages = stage, kind, messages
        urls = {"BENCH_REDIS_URL": stage.redis_url, "BENCH_POSTGRES_URL": stage.postgres_url}
        self._environment = {**os.environ, **urls, "PYTHONPATH": str(_ROOT)}
        self._log = stage.folder / f"{kind.name}.log"

    def __enter__(self) -> Self:
        # Its worker shall be up before there is work: the tasks are set aside, all but one.
        self._enqueue(self._messages)
        self._stage.redis.rename(self._kind.queue, STAGED)
        self._enqueue(self._messages[:1])
        program, *arguments = self._kind.worker
        command = [a.format(redis_url=self._stage.redis_url) for a in arguments]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [self._kind.folder / "bin" / program, *command],
                cwd=_ROOT, env=self._environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_written(self, rows: int) -> None:
        """Until so many rows have been updated."""
        deadline = time.monotonic() + _PATIENCE_S
        while self._written() < rows:
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
                raise BenchFailed(f"{self._kind.name} did not do its work; its log ends:\n{log}")
            time.sleep(_POLL_S)

    def drain(self) -> None:
        """Gives it the tasks; returns once all rows are written."""
        self._stage.redis.rename(STAGED, self._kind.queue)
        self.wait_until_written(len(self._messages))

    def _enqueue(self, messages: Sequence[bytes]) -> None:
        module = f"{_MODULE}{self._kind.name}_tasks"
        subprocess.run(
            [self._kind.folder / "bin/python", "-m", module],
            cwd=_ROOT, env=self._environment, input=b"\n".join(messages) + b"\n", check=True,
        )  # fmt: skip

    def _written(self) -> int:
        found = self._stage.pg.execute(f"SELECT count(*) FROM {TABLE} WHERE version = 1").fetchone()
        return int(found[0]) if found else 0
