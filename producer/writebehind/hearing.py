"""What both clients do with a connection that tells of changes: when to ask it, and what it said. No I/O."""

from __future__ import annotations

import math
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from redis.exceptions import ResponseError, TimeoutError

from .change import Change, Missed, chosen_tables, read_changes
from .pauses import pauses

LOOK_S = 0.2
"""An iteration sees so soon that it is closed."""
SILENCE_S = 5.0
"""After so long the server is asked whether it lives; and has as long to answer, to anything."""


_NEVER = math.inf


def connection_options(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Of a connection like the client's, but for endless waits, and for what it would do again by itself."""
    reply_s = _bounded(theirs.get("socket_timeout"), SILENCE_S)
    connect_s = _bounded(theirs.get("socket_connect_timeout"), reply_s)
    return {
        **{name: value for name, value in theirs.items() if name != "retry"},
        "socket_timeout": reply_s,
        "socket_connect_timeout": connect_s,
        "retry_on_timeout": False,
        "retry_on_error": [],
    }


def passes(error: Exception) -> bool:
    """Whether Redis refuses only for now: a script has run for too long."""
    return isinstance(error, ResponseError) and str(error).startswith("BUSY")


class Hearing:
    """``found`` are the changes that nobody has taken yet."""

    def __init__(self, tables: Iterable[str] | None) -> None:
        self._tables = chosen_tables(tables)
        self.found: deque[Change | Missed] = deque()
        self.heard_at, self.asked_at = 0.0, _NEVER
        self._pauses = _reconnect_pauses()

    def begin(self) -> None:
        """There is a new connection."""
        self.heard_at, self.asked_at = time.monotonic(), _NEVER

    def take(self, message: Any) -> None:
        """The server has said something; ``None`` if that is not for us."""
        self.heard_at, self.asked_at = time.monotonic(), _NEVER
        if message is None:
            return
        if message["type"] == "subscribe":
            self._pauses = _reconnect_pauses()
            self.found.append(Missed())
        elif message["type"] == "message":
            self.found.extend(read_changes(message["data"], self._tables))

    def must_ask(self) -> bool:
        """Whether to ask now if the server lives. Raises ``TimeoutError`` if it did not answer in time.

        Nothing has been heard just now. Before that nobody may have listened for long: that is no silence.
        """
        now = time.monotonic()
        if now - self.asked_at > SILENCE_S:
            raise TimeoutError("the server is silent")
        if now - self.heard_at <= SILENCE_S or self.asked_at != _NEVER:
            return False
        self.asked_at = now
        return True

    def pause_s(self) -> float:
        """Before the next attempt to connect."""
        return next(self._pauses)


def _bounded(timeout_s: Any, default_s: float) -> float:
    is_one = isinstance(timeout_s, int | float) and timeout_s > 0
    return min(timeout_s, SILENCE_S) if is_one else default_s


def _reconnect_pauses() -> Iterator[float]:
    """Not all clients come at once."""
    for pause in pauses(0.05, 2, 2.0):
        yield pause * random.uniform(0.5, 1)  # noqa: S311 - no secret
