"""`writebehind top`: the status of a running worker, live in the terminal."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import termios
import time
import tty
from concurrent.futures import ThreadPoolExecutor
from types import FrameType, TracebackType
from typing import Any, Self

import click
from rich.console import Console
from rich.live import Live

from .config import Config
from .errors import ConfigError
from .options import config_options
from .top_view import frame
from .watch import Watch, ask, checked_url

_EVERY_S = 1.0
_LOOK_S = 0.2  # whether a key was pressed, or the window has another size


@click.command("top")
@click.option(
    "--url",
    "urls",
    multiple=True,
    help="A worker's endpoint, http://host:9753; repeat it to see owner and standbys. "
    "Default: --metrics-host and --metrics-port, as of `run`.",
)
@click.option("--once", is_flag=True, help="Print it once and end; also where the output is no terminal.")
@config_options("metrics_host", "metrics_port")
def top(config: Config, urls: tuple[str, ...], once: bool) -> None:
    """Show what a running worker does, live: its figures, their recent course, dead letters by reason.

    It is the worker's status page (the same address, in a browser) for the terminal, and reads nothing else.
    q ends it. With --once, the exit code is 1 if no worker answers.
    """
    chosen = [checked_url(url) for url in urls] or [own_url(config)]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode shows a question mark for it
    console = Console(highlight=False)
    if once or not console.is_terminal:
        sys.exit(_print_once(console, chosen))
    _watch(console, chosen)


def own_url(config: Config) -> str:
    """Where a worker with this configuration serves, from this host. Raises `ConfigError` for nowhere."""
    if not config.metrics_port:
        raise ConfigError(
            "--metrics-port is 0: such a worker has no endpoint to ask",
            "give the worker a --metrics-port, or name another with --url",
        )
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.metrics_host, config.metrics_host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{config.metrics_port}"


def _print_once(console: Console, urls: list[str]) -> int:
    with ThreadPoolExecutor(len(urls)) as pool:
        answers = list(pool.map(ask, urls))
    console.print(frame(answers, urls, time.monotonic(), is_live=False))
    return 0 if any(answer.overview for answer in answers) else 1


def _watch(console: Console, urls: list[str]) -> None:
    watches = [Watch(url, _EVERY_S) for url in urls]
    for watch in watches:
        watch.start()
    before = signal.signal(signal.SIGTERM, _end)
    try:
        with Keyboard() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
            due_s, size = 0.0, console.size
            while keyboard.pressed(_LOOK_S) not in ("q", "Q"):
                now_s = time.monotonic()
                if now_s >= due_s or console.size != size:
                    due_s, size = now_s + _EVERY_S, console.size
                    live.update(frame([watch.answer for watch in watches], urls, now_s), refresh=True)
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        for watch in watches:
            watch.stop()


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)  # so that the terminal is put right


class Keyboard:
    """Single keys of the terminal that is the input; without one, only time passes."""

    def __init__(self) -> None:
        self._input = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._before: list[Any] | None = None

    def pressed(self, timeout_s: float) -> str | None:
        """The key that is pressed within so many seconds."""
        if self._input is None:
            time.sleep(timeout_s)
        elif select.select([self._input], [], [], timeout_s)[0]:
            return os.read(self._input, 1).decode(errors="replace") or "q"  # "": the terminal is gone
        return None

    def __enter__(self) -> Self:
        if self._input is not None:
            self._before = termios.tcgetattr(self._input)
            tty.setcbreak(self._input)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._input is not None and self._before is not None:
            termios.tcsetattr(self._input, termios.TCSADRAIN, self._before)
