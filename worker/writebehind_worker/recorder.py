"""The thread that keeps the `Course` of the metrics."""

from __future__ import annotations

import threading
import time

from .course import Course
from .metrics import Metrics

_EVERY_S = 1.0


class Recorder:
    """Starting and stopping twice is harmless. It asks no server for anything."""

    def __init__(self, metrics: Metrics, course: Course) -> None:
        self._metrics, self._course = metrics, course
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._record, name="course", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _record(self) -> None:
        due_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            self._course.add(now_s, self._metrics.figures())
            due_s = max(due_s + _EVERY_S, now_s)  # after a stop there is nothing to catch up with
            if self._stop.wait(due_s - now_s):
                return
