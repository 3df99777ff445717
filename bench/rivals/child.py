"""A function in a process of its own, which is told to go and answers when it is done."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Self

from ..errors import BenchFailed

_context = multiprocessing.get_context("spawn")  # nothing of the harness is in it

GO, READY = "go", "ready"


class Child:
    """``work(connection, *arguments)`` sends READY first, then a reply to whatever is asked."""

    def __init__(self, work: Callable[..., None], *arguments: object) -> None:
        self._ours, self._theirs = _context.Pipe()
        self._process = _context.Process(target=_run, args=(work, self._theirs, *arguments), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._theirs.close()  # the end of its process then ends our waiting
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._ours.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def wait_until_ready(self) -> None:
        assert self.reply() == READY

    def ask(self, question: object) -> Any:
        """Its reply."""
        self.tell(question)
        return self.reply()

    def tell(self, question: object) -> None:
        """Asks without waiting; ``reply`` is the reply."""
        self._ours.send(question)

    def has_reply(self) -> bool:
        return self._ours.poll()

    def reply(self) -> Any:
        try:
            return self._ours.recv()
        except EOFError:
            raise BenchFailed("a rival's process has ended; what it died of is above") from None


def _run(work: Callable[..., None], *arguments: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the harness, which ends us
    work(*arguments)


def answer(connection: Connection[Any, Any], work: Callable[[], object]) -> None:
    """Does the work when told to go; stays, with its connections, until the process is ended.

    What a server has used for a connection is read afterwards, and would be gone with it.
    """
    connection.send(READY)
    connection.recv()
    connection.send(work())
    with suppress(EOFError):
        connection.recv()
