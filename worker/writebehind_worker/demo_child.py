"""The demo's child processes, and what the workers among them log."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from .errors import WorkerError

_STOP_TIMEOUT_S = 15.0
_LOG_LINES = 15


class DemoFailed(WorkerError):
    """The demo could not be brought to its end; with the end of what the process in question has logged."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:] if log else []
        super().__init__("\n".join([message, *lines]))


class Child:
    """A Python module as a process, in a session of its own: Ctrl-C in the terminal does not reach it."""

    def __init__(self, name: str, folder: Path, *arguments: str) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.printed = ""
        """The last line that it has printed."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                self.printed = line.strip()

    def is_running(self, *, may_be_over: bool = False) -> bool:
        """Raises DemoFailed if it has failed, or has ended and ``may_be_over`` is not given."""
        code = self.process.poll()
        if code is None:
            return True
        if code or not may_be_over:
            raise DemoFailed(f"{self.name} ended with code {code}", self.log)
        self._reader.join()
        return False

    def kill(self) -> None:
        """SIGKILL, and wait. Harmless if it has ended."""
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def stop(self) -> None:
        """SIGTERM. Raises DemoFailed if it does not end, or not well."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"{self.name} did not stop on SIGTERM", self.log) from None
        self.is_running(may_be_over=True)


class _LogLine(msgspec.Struct):
    event: str
    batch: int = 0
    writes: int = 0
    rows: int = 0
    seconds: float = 0


_read_line = msgspec.json.Decoder(_LogLine).decode


@dataclass(slots=True)
class Flushed:
    """What the workers say that they have flushed; a killed one may have had no time to say its last."""

    batches: int = 0
    writes: int = 0
    rows: int = 0
    seconds: float = 0

    @property
    def coalescing(self) -> float | None:
        """Writes per row written; None before the first."""
        return self.writes / self.rows if self.rows else None


def read_flushed(logs: Iterable[Path]) -> Flushed:
    """Sums up the logs. A batch that was found in Postgres already has no rows, and is left out."""
    total = Flushed()
    for log in logs:
        for text in log.read_bytes().splitlines():
            try:
                line = _read_line(text)
            except msgspec.DecodeError:  # not complete yet, or a traceback
                continue
            if line.event == "flushed" and line.rows:
                total.batches += 1
                total.writes += line.writes
                total.rows += line.rows
                total.seconds += line.seconds
    return total
