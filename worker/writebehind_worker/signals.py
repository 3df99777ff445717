"""What the process does on a signal."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from .log import get_logger

_END = 0  # no signal has this number


class Signals:
    """The first SIGTERM or SIGINT sets ``stop``, the second ends the process at once; SIGHUP reloads.

    Only within a ``with`` block, on the main thread. A thread does all of it: Python runs a handler on the
    main thread, which may not wake up for it where it waits for a lock, and may be inside a lock's own code.
    The number of a signal is written to a socket by the handler beneath, at once and whatever else happens.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._before: dict[int, Any] = {}
        self._on_stop: Callable[[], None] = lambda: None
        self._on_reload: Callable[[], None] = lambda: None

    def call(self, on_stop: Callable[[], None], on_reload: Callable[[], None]) -> None:
        """From now on these are called, too, on a thread of its own; at once, if a stop was asked before."""
        self._on_stop, self._on_reload = on_stop, on_reload
        if self.stop.is_set():
            on_stop()

    def __enter__(self) -> Self:
        self._received, self._sent = socket.socketpair()
        self._sent.setblocking(False)
        self._thread = threading.Thread(target=self._relay, name="signals", daemon=True)
        self._thread.start()
        self._fd_before = signal.set_wakeup_fd(self._sent.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._before[number] = signal.signal(number, lambda *_: None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        self._sent.send(bytes([_END]))
        self._thread.join()
        self._received.close()
        self._sent.close()

    def _relay(self) -> None:
        while (number := self._received.recv(1)[0]) != _END:
            try:
                self._serve(number)
            except Exception:  # the next signal must be heard, whatever this one did
                get_logger().exception("a signal could not be served", signal=number)

    def _serve(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            if self.stop.is_set():
                os._exit(128 + number)  # what a shell reports for this signal
            self.stop.set()
            self._on_stop()
        elif number == signal.SIGHUP and not self.stop.is_set():
            self._on_reload()
