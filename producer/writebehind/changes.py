"""Hearing of changes as they become durable, over a connection of our own."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.client import PubSub
from redis.exceptions import AuthenticationError, ConnectionError, ResponseError, TimeoutError
from redis.retry import Retry

from .change import Change, Missed, chosen_tables, read_changes
from .pauses import pauses
from .translate import as_ours

LOOK_S = 0.2
"""An iteration sees so soon that it is closed."""
SILENCE_S = 5.0
"""After so long the server is asked whether it lives; and has as long to answer."""


class Changes:
    """Iterates over changes that are durable, as :meth:`WriteBehind.changes` gives it. For one thread.

    It connects when it is iterated, and again by itself whenever the connection is lost; each time a
    :class:`Missed` comes first. A message that the worker did not write is skipped.
    """

    def __init__(self, client: Redis, channel: str, tables: Iterable[str] | None = None) -> None:
        self._pool = _OwnConnections(client.connection_pool)
        self._channel, self._tables = channel, chosen_tables(tables)
        self._found: deque[Change | Missed] = deque()
        self._pubsub: Any = None
        self._closed, self._turn = threading.Event(), threading.Lock()
        self._pauses = reconnect_pauses()
        self._heard_at, self._asked = 0.0, False

    def close(self) -> None:
        """Ends the iteration, within a moment; from any thread."""
        self._closed.set()
        if self._turn.acquire(blocking=False):  # else the thread that iterates does it
            try:
                self._disconnect()
            finally:
                self._turn.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Change | Missed]:
        return self

    def __next__(self) -> Change | Missed:
        """The next one, as soon as there is one.

        Raises:
            RedisRefused: the user may not subscribe, or the password is wrong.
        """
        with self._turn:
            try:
                while not self._closed.is_set():
                    if self._found:
                        return self._found.popleft()
                    self._hear()
            except BaseException:
                self._disconnect()
                raise
            self._disconnect()
            raise StopIteration

    def _hear(self) -> None:
        try:
            if self._pubsub is None:
                self._connect()
            elif self._pubsub.connection.can_read(timeout=LOOK_S):
                self._take(self._pubsub.get_message(timeout=SILENCE_S))
            else:
                self._ask()
        except (ResponseError, AuthenticationError) as error:
            raise as_ours("changes", error) from error
        except (ConnectionError, TimeoutError, OSError):
            self._disconnect()
            self._closed.wait(next(self._pauses))

    def _connect(self) -> None:
        self._pubsub = PubSub(self._pool)
        self._pubsub.subscribe(self._channel)
        self._heard_at, self._asked = time.monotonic(), False

    def _take(self, message: Any) -> None:
        self._heard_at, self._asked = time.monotonic(), False
        if message is None:
            return
        if message["type"] == "subscribe":
            self._pauses = reconnect_pauses()
            self._found.append(Missed())
        elif message["type"] == "message":
            self._found.extend(read_changes(message["data"], self._tables))

    def _ask(self) -> None:
        silent_s = time.monotonic() - self._heard_at
        if silent_s > 2 * SILENCE_S:
            raise TimeoutError("the server is silent")
        if silent_s > SILENCE_S and not self._asked:
            self._asked = True
            self._pubsub.ping()

    def _disconnect(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            pubsub.close()


class _OwnConnections:
    """What redis-py's PubSub needs of a pool: it connects as the client's does, but tries once."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def get_encoder(self) -> Any:
        return self._pool.get_encoder()

    def get_connection(self, *_: Any, **__: Any) -> Any:
        options = {**self._pool.connection_kwargs, "retry": Retry(NoBackoff(), 0)}
        connection = self._pool.connection_class(**options)
        connection.connect()
        return connection

    def release(self, connection: Any) -> None:
        connection.disconnect()


def reconnect_pauses() -> Iterator[float]:
    """Seconds before each attempt to connect again; not all clients come at once."""
    for pause in pauses(0.05, 2, 2.0):
        yield pause * random.uniform(0.5, 1)  # noqa: S311 - no secret
