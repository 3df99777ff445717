"""The near cache: rows that this process keeps itself, and of whose change Redis tells it.

All of them come over one connection of our own, which tracks what was read over it. Before a kept row is
used, what Redis has said on that connection meanwhile is read: another process's write is seen as soon as
word of it has come, and after ``ttl_s`` at the latest. redis-py's own client-side caching is not used: it
refuses Valkey, keeps replies for ever while its connection is half-open, does not see pipelines, and reads
one thread's connection from another.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from redis import Redis
from redis._parsers import _RESP3Parser
from redis.exceptions import ConnectionError, ResponseError, TimeoutError

from .forks import begins_anew_in_a_child
from .near_rows import AWAY_S, QUEUE_S, Look, NearRows


class NearCache:
    """Durable rows, by cache key. Thread-safe, and safe to fork.

    Args:
        client: whose server it is; only the options of its connections are used.
        rows: how many are kept; the one that was not used for longest goes first.
        ttl_s: how old one may become.
    """

    def __init__(self, client: Redis, rows: int, ttl_s: float) -> None:
        self._pool = client.connection_pool
        self._size = rows, ttl_s
        self._is_open, self._not_before = False, 0.0
        self._start_anew()
        begins_anew_in_a_child(self, NearCache._start_anew)

    def look(self, names: Sequence[str]) -> dict[str, Look] | None:
        """For each key what is kept, or what Redis says now; ``None`` if the connection cannot be had.

        Raises what Redis answers: the user may have no right to ``CLIENT TRACKING``.
        """
        self._hear()
        found = self._rows.find(names)
        if len(found) < len(names):
            if not self._is_open and time.monotonic() < self._not_before:
                return None
            if not self._wire.acquire(timeout=QUEUE_S):
                return None
            try:
                found.update(self._rows.find(names))  # another may have brought it
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
        return found

    def drop(self, names: Iterable[str]) -> None:
        """Keeps these no longer, nor what is being read of them at this moment."""
        self._rows.drop(names)

    def close(self) -> None:
        """Closes the connection."""
        with self._wire:
            self._lose()

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
        reading = self._rows.begin(names)
        commands = reading.commands()
        connection.send_packed_command(connection.pack_commands(commands))
        return self._rows.take(reading, [self._reply() for _ in commands])

    def _reply(self) -> Any:
        try:
            return self._connection.read_response()
        except ResponseError as error:
            return error

    def _start_anew(self) -> None:
        """As new; in a forked child nothing may be waited for that another thread had at that moment."""
        self._wire, self._rows = threading.Lock(), NearRows(*self._size)
        self._is_open, self._not_before = False, 0.0
        options = {**self._pool.connection_kwargs, "protocol": 3}
        self._connection: Any = self._pool.connection_class(**options)
        if not hasattr(self._connection._parser, "set_invalidation_push_handler"):  # redis-py 6 with hiredis
            self._connection.set_parser(_RESP3Parser)
        self._connection.register_connect_callback(self._track)

    def _track(self, connection: Any) -> None:
        """Nothing that was read over an earlier connection is kept: nobody would tell of its change."""
        self._rows.forget_all()
        connection.send_command("CLIENT", "TRACKING", "ON")
        connection.read_response()
        connection._parser.set_invalidation_push_handler(self._told)

    def _told(self, message: Sequence[Any]) -> None:
        self._rows.told(message[1])

    def _lose(self) -> None:
        self._is_open, self._not_before = False, time.monotonic() + AWAY_S
        self._connection.disconnect()
        self._rows.forget_all()
