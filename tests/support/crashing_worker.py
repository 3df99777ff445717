"""Worker processes that are killed, or paused, at a named point.

The driver wraps methods of the product, so that the product needs no switch for tests. The process sends
SIGKILL or SIGSTOP to itself right before or after the N-th call; nothing is closed, flushed or released.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import psycopg

from writebehind_worker import tenure
from writebehind_worker.apply import Application
from writebehind_worker.bulk import Bulk
from writebehind_worker.cli import cli
from writebehind_worker.lease import Lease
from writebehind_worker.ledger import Ledger
from writebehind_worker.owned_queue import OwnedQueue
from writebehind_worker.testing.wait import wait_until

from .workers import forking

POINTS: dict[str, tuple[type[Any], str]] = {
    "lease": (Lease, "take"),
    "take": (Ledger, "take"),
    "taking": (psycopg.Connection, "execute"),  # each statement of Ledger.take
    "own": (OwnedQueue, "own"),
    "adopt": (Ledger, "adopt"),
    "claim": (OwnedQueue, "claim"),
    "record": (Ledger, "record"),
    "copy": (Bulk, "copy"),
    "apply": (Bulk, "write"),
    "arrive": (psycopg.Pipeline, "__exit__"),
    "apply one by one": (Application, "run"),
    "bury": (Ledger, "bury"),
    "buried": (Ledger, "buried"),
    "commit": (psycopg.Connection, "execute"),  # the COMMIT of a batch
    "announce": (OwnedQueue, "announce"),
    "settle": (OwnedQueue, "settle"),
    "acknowledge": (OwnedQueue, "acknowledge"),
    "release": (Lease, "release"),
}

_ARRIVED = "at the named point"
_PATIENCE_S = 2.0


class CrashingWorker:
    """``writebehind run`` in a process that dies at ``point``, "NAME:before|after:N"; ``None``: it does not.

    ``number`` SIGSTOP: it is paused there instead.

    It is forked from a server process that has imported everything: a start takes some ten milliseconds.
    The process is killed and reaped at the end of the block.
    """

    def __init__(
        self, point: str | None, arguments: Sequence[str], number: signal.Signals = signal.SIGKILL
    ) -> None:
        self._log = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed in __exit__
        given = (point, int(number), list(arguments), self._log.name)
        self._process = forking.Process(target=_run, args=given)

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """SIGKILL, and waits."""
        self._process.kill()
        self._process.join(10)

    def wait_for_end(self, timeout: float = 40) -> int | None:
        """Its exit code; ``None`` if it still runs."""
        self._process.join(timeout)
        return self._process.exitcode

    def wait_for_point(self, meanwhile: Callable[[], object], timeout: float = 40) -> None:
        """Until it has come there; ``meanwhile`` gives it something to do where it does not."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                return self.wait_for_log(_ARRIVED, _PATIENCE_S)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
            meanwhile()

    def wait_for_pause(self, timeout: float = 40) -> None:
        """Until it has come to its point."""
        self.wait_for_log(_ARRIVED, timeout)

    def resume(self) -> None:
        """It goes on from its point."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def wait_for_log(self, text: str, timeout: float = 40) -> None:
        """Until it has logged ``text``."""
        try:
            wait_until(lambda: text in Path(self._log.name).read_text(), timeout)
        except AssertionError as error:
            log = Path(self._log.name).read_text()
            raise AssertionError(f"no {text!r} in the log: {error}\n{log}") from None

    def wait_for_death(self, timeout: float = 40) -> None:
        """Until it has been killed at its point; AssertionError with its log if it was not."""
        self._process.join(timeout)
        if self._process.exitcode != -signal.SIGKILL:
            log = Path(self._log.name).read_text()
            raise AssertionError(f"not killed, but ended with {self._process.exitcode}; log:\n{log}")

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.kill()
        if kind is not None:
            print(Path(self._log.name).read_text())  # pytest shows it
        self._process.close()
        self._log.close()


def _run(point: str | None, number: int, arguments: list[str], log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    if point is not None:
        name, when, nth = point.split(":")
        if name == "settle":  # else what few entries there are is settled by the call that acknowledges
            vars(tenure)["SETTLED_AT_ONCE"] = 0
        if name == "announce":  # else receipts are told so early only where there is much to settle
            vars(tenure)["MANY_ENTRIES"] = 0
        counts: Callable[..., bool] = _always
        if name in _STATEMENTS:
            counts = _STATEMENTS[name]()
        _arm(*POINTS[name], when, int(nth), counts, signal.Signals(number))
    cli(["run", *arguments], prog_name="writebehind")


def _arm(
    cls: type[Any], name: str, when: str, nth: int, counts: Callable[..., bool], number: signal.Signals
) -> None:
    inner = getattr(cls, name)
    calls = itertools.count(1)

    @functools.wraps(inner)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        is_there = counts(*args) and next(calls) == nth
        if is_there and when == "before":
            _send(number)
        try:
            return inner(*args, **kwargs)
        finally:
            if is_there and when == "after":
                _send(number)

    setattr(cls, name, wrapped)


def _always(*_: object) -> bool:
    return True


class _CommitOfBatch:
    """Whether a statement is the COMMIT of a transaction that has recorded a batch in the ledger."""

    def __init__(self) -> None:
        self._recorded = False
        _follow(Ledger, "record", self._has_recorded)

    def _has_recorded(self, is_over: bool) -> None:
        self._recorded = is_over

    def __call__(self, _conn: object, query: object, *_: object) -> bool:
        is_it, self._recorded = self._recorded and query == "COMMIT", self._recorded and query != "COMMIT"
        return is_it


class _WithinTake:
    """Whether a statement is one of Ledger.take."""

    def __init__(self) -> None:
        self._is_within = False
        _follow(Ledger, "take", self._has_taken)

    def _has_taken(self, is_over: bool) -> None:
        self._is_within = not is_over

    def __call__(self, *_: object) -> bool:
        return self._is_within


_STATEMENTS: dict[str, Callable[[], Callable[..., bool]]] = {
    "commit": _CommitOfBatch,
    "taking": _WithinTake,
}


def _follow(cls: type[Any], name: str, tell: Callable[[bool], None]) -> None:
    """Tells when a method begins (False) and when it has returned (True)."""
    inner = getattr(cls, name)

    @functools.wraps(inner)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        tell(False)
        result = inner(*args, **kwargs)
        tell(True)
        return result

    setattr(cls, name, wrapped)


def _send(number: signal.Signals) -> None:
    os.write(1, f"{_ARRIVED}\n".encode())
    # To this thread: it then stops here. Sent to the process, SIGSTOP reaches another thread first.
    signal.pthread_kill(threading.get_ident(), number)
