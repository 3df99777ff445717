"""The live line: what is being measured just now."""

from __future__ import annotations

import sys
import time


class LiveLine:
    """On a terminal one line that is written again; else a line now and then."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._began = self._shown = time.monotonic()

    def show(self, text: str) -> None:
        now = time.monotonic()
        if self._is_terminal:
            print(f"\r\033[K{now - self._began:5.0f} s  {text}", end="", file=sys.stderr, flush=True)
        elif now - self._shown > 10:
            self._shown = now
            print(f"{now - self._began:5.0f} s  {text}", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._is_terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
