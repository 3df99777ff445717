"""Workers and producers as processes that can be killed, paused and started anew.

They are forked from a server process that has imported everything: a start takes some ten milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from writebehind_worker.cli import cli

from .sabotage import SABOTAGES

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["__main__", __name__, f"{__package__}.producer"])


class Child:
    """One process. What it prints goes to ``log``, one after the other for all that have the same."""

    def __init__(self, target: Callable[..., None], arguments: tuple[Any, ...], log: Path) -> None:
        self.log = log
        self._process = context.Process(target=_run, args=(target, arguments, str(log)), daemon=True)

    def start(self) -> None:
        self._process.start()

    @property
    def exit_code(self) -> int | None:
        """``None`` while it runs; negative for the signal that ended it."""
        return self._process.exitcode

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Nothing happens if it has ended."""
        assert self._process.pid is not None
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def wait(self, timeout_s: float) -> None:
        """Until it ends, but not longer."""
        self._process.join(timeout_s)

    def kill(self) -> None:
        """SIGKILL, and waits."""
        self._process.kill()
        self._process.join()

    def end(self, timeout_s: float) -> None:
        """SIGTERM, and waits; SIGKILL if that takes too long."""
        self.send(signal.SIGCONT)
        self._process.terminate()
        self._process.join(timeout_s)
        self.kill()


def _run(target: Callable[..., None], arguments: tuple[Any, ...], log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    target(*arguments)


def command(arguments: list[str], sabotage: str | None) -> None:
    """``writebehind …``, spoilt if so asked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sabotage is not None:
        SABOTAGES[sabotage].spoil_worker()
    cli(arguments, prog_name="writebehind")
