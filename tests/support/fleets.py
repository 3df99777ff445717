"""One process of a fleet, in threads of this one."""

from __future__ import annotations

import sys
import threading
from typing import Any, Self

import structlog
from structlog.typing import FilteringBoundLogger

from writebehind_worker.config import Config
from writebehind_worker.fleet import Fleet
from writebehind_worker.metrics import Metrics
from writebehind_worker.state import WorkerState

# To stderr itself: a command that is invoked at the same time has what it says for itself.
_LOG: FilteringBoundLogger = structlog.wrap_logger(structlog.PrintLogger(sys.__stderr__))


class RunningFleet:
    """``with RunningFleet(redis_url=…, postgres_url=…)``: raises at the end what has ended it."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("lease_ttl_s", 2.0)
        self.config = Config(**options)
        self.state, self.metrics = WorkerState(), Metrics(self.config.queue)
        self.fleet = Fleet(self.config, self.state, self.metrics, _LOG)
        self._stop = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.fleet.run(self._stop)
        except BaseException as error:
            self.error = error

    def owned(self) -> set[str]:
        """The queues that it owns."""
        return {q for q, one in self.fleet._serving.copy().items() if one.state.facts()["role"] == "owner"}

    def stop(self) -> None:
        """Finishes what is frozen."""
        self._stop.set()
        self._thread.join(40)
        assert not self._thread.is_alive()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self.error is not None:
            raise self.error
