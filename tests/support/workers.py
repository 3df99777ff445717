"""Workers for tests: in a thread of this process, or as a process of their own."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

from writebehind_worker.config import Config
from writebehind_worker.log import get_logger
from writebehind_worker.metrics import Metrics
from writebehind_worker.state import WorkerState
from writebehind_worker.worker import Worker


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

    def stop(self) -> None:
        """Stops it as SIGTERM would; raises what it ended with."""
        self._stop.set()
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
