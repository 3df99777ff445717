"""The rows that a near cache keeps, and what is being read of them. Pure: nobody is asked anything."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .entry import read_entry

QUEUE_S = 0.1  # how long a reader waits for the connection before it goes another way
AWAY_S = 1.0  # for so long nobody connects again after the connection was lost


class Look(NamedTuple):
    """What Redis says of a cache key: HGETALL's reply or its error, and PTTL's."""

    fields: Mapping[bytes, bytes] | Exception
    left_ms: int


class Reading:
    """Keys that are being read since ``started``."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.started = names, time.monotonic()

    def commands(self) -> list[tuple[str, str]]:
        """What asks Redis for a look at each of them."""
        return [(command, name) for name in self.names for command in ("HGETALL", "PTTL")]


class _Kept(NamedTuple):
    fields: Mapping[bytes, bytes]
    expires: float
    until: float


class NearRows:
    """Durable rows, by cache key. Thread-safe.

    Args:
        rows: how many are kept; the one that was not used for longest goes first.
        ttl_s: how old one may become.
    """

    def __init__(self, rows: int, ttl_s: float) -> None:
        self._rows, self._ttl_s = rows, ttl_s
        self._guard = threading.Lock()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._reading: dict[str, Reading] = {}

    def find(self, names: Iterable[str]) -> dict[str, Look]:
        """What is kept of these and has not expired."""
        now, found = time.monotonic(), {}
        with self._guard:
            for name in names:
                kept = self._kept.get(name)
                if kept is None:
                    continue
                if now >= kept.until:
                    del self._kept[name]
                else:
                    self._kept.move_to_end(name)
                    found[name] = Look(kept.fields, max(1, int((kept.expires - now) * 1000)))
        return found

    def begin(self, names: Sequence[str]) -> Reading:
        """These are read from now on. Of two that read the same key the later one's answer is kept."""
        reading = Reading(names)
        with self._guard:
            self._reading.update(dict.fromkeys(names, reading))
        return reading

    def take(self, reading: Reading, replies: Sequence[object]) -> dict[str, Look]:
        """The replies to its commands have come. Raises what Redis answers to ``PTTL``."""
        looks = {}
        for name, fields, left_ms in zip(reading.names, replies[::2], replies[1::2], strict=True):
            if isinstance(left_ms, Exception):
                raise left_ms
            looks[name] = Look(fields, left_ms)  # type: ignore[arg-type]
            self._keep(name, looks[name], reading)
        return looks

    def drop(self, names: Iterable[str]) -> None:
        """Keeps these no longer, nor what is being read of them at this moment."""
        with self._guard:
            for name in names:
                self._kept.pop(name, None)
                self._reading.pop(name, None)

    def told(self, names: Sequence[bytes] | None) -> None:
        """Redis tells that these have changed; ``None``: all, by FLUSHALL or the like."""
        if names is None:
            self.forget_all()
        else:
            self.drop(name.decode(errors="replace") for name in names)

    def forget_all(self) -> None:
        """Keeps nothing, nor what is being read."""
        with self._guard:
            self._kept.clear()
            self._reading.clear()

    def _keep(self, name: str, look: Look, reading: Reading) -> None:
        """A durable row, unless it has been dropped meanwhile; what is pending or awaited soon changes."""
        fields, left_ms = look
        is_row = not isinstance(fields, Exception) and left_ms > 0 and read_entry(fields).state == "row"
        with self._guard:
            if self._reading.get(name) is not reading:
                return
            del self._reading[name]
            if is_row and not isinstance(fields, Exception):
                # Redis counts whole ms, of a clock as coarse
                expires = reading.started + (left_ms - 1) / 1000
                self._kept[name] = _Kept(fields, expires, min(expires, reading.started + self._ttl_s))
                self._kept.move_to_end(name)
                if len(self._kept) > self._rows:
                    self._kept.popitem(last=False)
