"""How far a command is: a bar on a terminal, else a line every few seconds. Both go to stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_LINE_EVERY_S = 5.0


class Meter:
    """``with Meter("verifying") as meter: meter.show(done, total, "3 differ")``."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._is_terminal = sys.stderr.isatty()
        self._next_line = time.monotonic() + _LINE_EVERY_S
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
            transient=True,
            disable=not self._is_terminal,
        )
        self._task = self._bar.add_task(label, total=None, note="")

    def show(self, done: int, total: int | None, note: str) -> None:
        """``note`` says it in words; ``total`` may be a guess."""
        if self._is_terminal:
            self._bar.update(self._task, completed=done, total=total, note=note)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_EVERY_S
            click.echo(f"{self._label}: {note}", err=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
