"""The near cache: rows that this process keeps itself, and of whose change Redis tells it.

All of them come over one connection of our own, which tracks what was read over it. Before a kept row is
used, what Redis has said on that connection meanwhile is read: another process's write is seen as soon as
word of it has come, and after ``ttl_s`` at the latest. redis-py's own client-side caching is not used: it
refuses Valkey, keeps replies for ever while its connection is half-open, does not see pipelines, and reads
one thread's connection from another.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from redis import Redis
from redis._parsers import _RESP3Parser
from redis.exceptions import ConnectionError, ResponseError, TimeoutError

from .entry import read_entry

_QUEUE_S = 0.1  # how long a reader waits for the connection before it goes another way
_AWAY_S = 1.0  # for so long nobody connects again after the connection was lost

_ALL: weakref.WeakSet[NearCache] = weakref.WeakSet()


class Look(NamedTuple):
    """What Redis says of a cache key: HGETALL's reply or its error, and PTTL's."""

    fields: Mapping[bytes, bytes] | Exception
    left_ms: int


class _Kept(NamedTuple):
    fields: Mapping[bytes, bytes]
    expires: float
    until: float


class NearCache:
    """Durable rows, by cache key. Thread-safe, and safe to fork.

    Args:
        client: whose server it is; only the options of its connections are used.
        rows: how many are kept; the one that was not used for longest goes first.
        ttl_s: how old one may become.
    """

    def __init__(self, client: Redis, rows: int, ttl_s: float) -> None:
        self._pool = client.connection_pool
        self._rows, self._ttl_s = rows, ttl_s
        self._is_open, self._not_before = False, 0.0
        self._start_anew()
        _ALL.add(self)

    def look(self, names: Sequence[str]) -> list[Look] | None:
        """For each key what is kept, or what Redis says now; ``None`` if the connection cannot be had.

        Raises what Redis answers: the user may have no right to ``CLIENT TRACKING``.
        """
        self._hear()
        found = self._find(names)
        if len(found) < len(names):
            if not self._is_open and time.monotonic() < self._not_before:
                return None
            if not self._wire.acquire(timeout=_QUEUE_S):
                return None
            try:
                found.update(self._find(names))  # another may have brought it
                found.update(self._fetch([name for name in names if name not in found]))
            except (ConnectionError, TimeoutError, OSError):
                self._lose()
                return None
            except BaseException:  # an interrupted call leaves replies behind that nobody reads
                self._lose()
                self._not_before = 0.0  # who may not track is told so each time
                raise
            finally:
                self._wire.release()
        return [found[name] for name in names]

    def drop(self, names: Iterable[str]) -> None:
        """Keeps these no longer, nor what is being read of them at this moment."""
        with self._guard:
            for name in names:
                self._kept.pop(name, None)
                self._reading.discard(name)

    def close(self) -> None:
        """Closes the connection."""
        with self._wire:
            self._lose()

    def _find(self, names: Iterable[str]) -> dict[str, Look]:
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

    def _hear(self) -> None:
        """Reads what Redis has said unasked. Whoever has the connection hears it for us."""
        if self._is_open and self._wire.acquire(blocking=False):
            try:
                while self._is_open and self._connection.can_read():
                    # Of the parser: redis-py 6's connection does not pass it on where hiredis is installed.
                    self._connection._parser.read_response(push_request=True)
            except (ConnectionError, TimeoutError, OSError):
                self._lose()
            except BaseException:
                self._lose()
                raise
            finally:
                self._wire.release()

    def _fetch(self, names: Sequence[str]) -> dict[str, Look]:
        if not names:
            return {}
        connection = self._connection
        if not self._is_open:
            connection.connect()
            self._is_open = True
        started = time.monotonic()
        with self._guard:
            self._reading.update(names)
        commands = [(command, name) for name in names for command in ("HGETALL", "PTTL")]
        connection.send_packed_command(connection.pack_commands(commands))
        replies = [self._reply() for _ in commands]
        looks = {}
        for name, fields, left_ms in zip(names, replies[::2], replies[1::2], strict=True):
            if isinstance(left_ms, Exception):
                raise left_ms
            looks[name] = Look(fields, left_ms)
            self._keep(name, looks[name], started)
        return looks

    def _keep(self, name: str, look: Look, started: float) -> None:
        """A durable row, unless it has been dropped meanwhile; what is pending or awaited soon changes."""
        fields, left_ms = look
        is_row = not isinstance(fields, Exception) and left_ms > 0 and read_entry(fields).state == "row"
        with self._guard:
            if name in self._reading and is_row and not isinstance(fields, Exception):
                expires = started + (left_ms - 1) / 1000  # Redis counts whole ms, of a clock as coarse
                self._kept[name] = _Kept(fields, expires, min(expires, started + self._ttl_s))
                self._kept.move_to_end(name)
                if len(self._kept) > self._rows:
                    self._kept.popitem(last=False)
            self._reading.discard(name)

    def _reply(self) -> Any:
        try:
            return self._connection.read_response()
        except ResponseError as error:
            return error

    def _start_anew(self) -> None:
        """As new; in a forked child nothing may be waited for that another thread had at that moment."""
        self._guard, self._wire = threading.Lock(), threading.Lock()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._reading: set[str] = set()
        self._is_open, self._not_before = False, 0.0
        options = {**self._pool.connection_kwargs, "protocol": 3}
        self._connection: Any = self._pool.connection_class(**options)
        if not hasattr(self._connection._parser, "set_invalidation_push_handler"):  # redis-py 6 with hiredis
            self._connection.set_parser(_RESP3Parser)
        self._connection.register_connect_callback(self._track)

    def _track(self, connection: Any) -> None:
        """Nothing that was read over an earlier connection is kept: nobody would tell of its change."""
        self._forget_all()
        connection.send_command("CLIENT", "TRACKING", "ON")
        connection.read_response()
        connection._parser.set_invalidation_push_handler(self._told)

    def _told(self, message: Sequence[Any]) -> None:
        names = message[1]
        if names is None:  # FLUSHALL or the like
            self._forget_all()
        else:
            self.drop(name.decode(errors="replace") for name in names)

    def _lose(self) -> None:
        self._is_open, self._not_before = False, time.monotonic() + _AWAY_S
        self._connection.disconnect()
        self._forget_all()

    def _forget_all(self) -> None:
        with self._guard:
            self._kept.clear()
            self._reading.clear()


def _after_fork() -> None:
    """A child starts with one thread: here nobody else is about."""
    for near in list(_ALL):
        near._start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
