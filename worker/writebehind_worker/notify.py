"""What systemd is told by sd_notify(3): ready, reloading, stopping, a line of status, and signs of life.

    NOTIFY_SOCKET  where to; unset: nobody listens, and nothing is sent
    WATCHDOG_USEC  how long systemd waits for a sign of life; WATCHDOG_PID: of which process

A sign of life is sent only while the worker says that every part of it makes progress: a loop that hangs
ends it, although this thread lives.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from .log import get_logger
from .state import WorkerState

_LOOK_EVERY_S = 1.0
_LONGEST_STATUS = 4096  # characters: a datagram has a limit


class ServiceManager:
    """The socket on which systemd listens, or none. Sending never fails: a worker works without it, too."""

    def __init__(self, path: str | None = None, watchdog_s: float | None = None) -> None:
        self._path = path
        self.watchdog_s = watchdog_s

    @classmethod
    def of(cls, environment: MutableMapping[str, str]) -> ServiceManager:
        """As systemd says by the environment; the variables are taken out, so that no child speaks for us."""
        path = environment.pop("NOTIFY_SOCKET", "")
        micros, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        if not path.startswith(("/", "@")):
            return cls()
        is_ours = not pid or pid == str(os.getpid())
        watches = is_ours and micros.isdecimal() and int(micros) > 0
        return cls(path, int(micros) / 1e6 if watches else None)

    @property
    def listens(self) -> bool:
        return self._path is not None

    def send(self, *lines: str) -> None:
        """One message of ``NAME=value`` lines."""
        if self._path is None:
            return
        # A name that begins with "@" is in the abstract namespace: a NUL in its place.
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(1.0)
            sock.sendto("\n".join(lines).encode(errors="replace"), address)

    def ready(self) -> None:
        self.send("READY=1")

    def reloading(self) -> None:
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, within_s: float) -> None:
        """It may take so long, whatever TimeoutStopSec= says."""
        self.send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(within_s * 1e6)}")


class Reporter:
    """A thread that keeps systemd informed; none where nobody listens.

    ``waiting`` tells how many writes wait in the queue.
    """

    def __init__(self, manager: ServiceManager, state: WorkerState, waiting: Callable[[], int]) -> None:
        self._manager, self._state, self._waiting = manager, state, waiting
        self._period_s = min(_LOOK_EVERY_S, (manager.watchdog_s or _LOOK_EVERY_S) / 2)
        self._said = ""
        self._has_failed = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notify", daemon=True)
        self.remark = ""
        """Something that the status line says at its end until it is set again."""

    def start(self) -> None:
        if self._manager.listens:
            self._thread.start()

    def stop(self, last_words: str = "") -> None:
        """``last_words`` stay visible after the end: why it ended."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        if last_words:
            self._manager.send(f"STATUS={last_words}")

    def _run(self) -> None:
        while True:
            self._report()
            if self._end.wait(self._period_s):
                return

    def _report(self) -> None:
        alive, health = self._state.health()
        if alive and self._manager.watchdog_s is not None:
            self._manager.send("WATCHDOG=1")  # by itself: whatever becomes of the status
        try:
            self._tell(alive, health)
        except Exception:  # a worker that is well must not end for want of words
            if not self._has_failed:
                self._has_failed = True
                get_logger().exception("the status for systemd could not be told")

    def _tell(self, alive: bool, health: Mapping[str, Any]) -> None:
        said = status_line(self._state.facts(), self._waiting()) if alive else _stalled(health)
        said = " ".join("; ".join(filter(None, (said, self.remark))).split())
        if said != self._said:
            self._manager.send(f"STATUS={said[:_LONGEST_STATUS]}")
        self._said = said


def status_line(facts: Mapping[str, Any], waiting: int) -> str:
    """What `systemctl status` shows; ``facts`` as `WorkerState.facts` has them."""
    if facts["role"] == "stopping":
        return "stopping"
    for server, name in (("redis", "Redis"), ("postgres", "Postgres")):
        if facts[f"{server}_up"] is False:
            reason = facts[f"{server}_reason"] or "it does not answer"
            return f"waiting for {name}: {reason.removeprefix(name + ': ')}"
    if facts["role"] == "standby":
        who = f"the owner is {facts['owner']}" if facts["owner"] else "others have all shards"
        return f"standby, {who}"
    if facts["role"] != "owner":
        return "starting"
    held = facts["held"] and f"waiting for a lock: {facts['held']}"
    return "; ".join(filter(None, (f"owner, {waiting} waiting", facts["paused"], facts["breaker"], held)))


def _stalled(health: Mapping[str, Any]) -> str:
    return f"hangs: {health['stalled']} has made no progress for {health['since_progress_s']:.0f} s"
