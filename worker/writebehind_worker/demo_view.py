"""What the demo shows while it runs: a table that is drawn again on a terminal, else a line a second."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

_LINE_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The state at one moment. ``coalescing``: writes per row written, in the batches reported so far."""

    elapsed_s: float
    total: int
    written: int
    durable: int
    queue: int
    frozen: int
    oldest_age_s: float
    coalescing: float | None

    def facts(self) -> list[tuple[str, str]]:
        factor = "-" if self.coalescing is None else f"{self.coalescing:.2f}"
        return [
            ("written", f"{self.written:,}"),
            ("durable", f"{self.durable:,}"),
            ("queue", f"{self.queue:,}"),
            ("frozen", f"{self.frozen:,}"),
            ("oldest pending", f"{self.oldest_age_s:.2f} s"),
            ("coalescing", factor),
        ]


class View:
    """A context manager: within it samples are shown; messages stay on the screen."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._shown = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, message: str) -> None:
        self._console.print(message, soft_wrap=True)

    def show(self, sample: Sample) -> None:
        if self._console.is_terminal:
            self._live.update(_drawn(sample), refresh=True)
        elif time.monotonic() - self._shown >= _LINE_EVERY_S:
            self._shown = time.monotonic()
            self.say(f"{sample.elapsed_s:5.1f} s  " + "  ".join(f"{n} {v}" for n, v in sample.facts()))


def _drawn(sample: Sample) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column()
    shares = {"written": sample.written, "durable": sample.durable}
    for name, value in sample.facts():
        share = shares.get(name, 0) / sample.total
        table.add_row(name, value, "━" * round(40 * share) if name in shares else "")
    return table
