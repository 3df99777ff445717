"""What the process does on a signal."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Self

from .log import get_logger


class Signals:
    """The first SIGTERM or SIGINT sets ``stop``, the second ends the process at once; SIGHUP reloads.

    Only within a ``with`` block, on the main thread. A handler does next to nothing: it interrupts the main
    thread anywhere, inside a lock's own code too. A SimpleQueue is made for that; a thread does the rest.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._received: SimpleQueue[int | None] = SimpleQueue()
        self._asked = False
        self._before: dict[int, Any] = {}
        self._on_stop: Callable[[], None] = lambda: None
        self._on_reload: Callable[[], None] = lambda: None

    def call(self, on_stop: Callable[[], None], on_reload: Callable[[], None]) -> None:
        """From now on these are called, too, on a thread of its own; at once, if a stop was asked before."""
        self._on_stop, self._on_reload = on_stop, on_reload
        if self.stop.is_set():
            on_stop()

    def __enter__(self) -> Self:
        threading.Thread(target=self._relay, name="signals", daemon=True).start()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._received.put(None)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGHUP:
            if self._asked:
                os._exit(128 + number)  # what a shell reports for this signal
            self._asked = True
        self._received.put(number)

    def _relay(self) -> None:
        while (number := self._received.get()) is not None:
            try:
                if number != signal.SIGHUP:
                    self.stop.set()
                    self._on_stop()
                elif not self.stop.is_set():
                    self._on_reload()
            except Exception:  # the next signal must be heard, whatever this one did
                get_logger().exception("a signal could not be served", signal=signal.Signals(number).name)
