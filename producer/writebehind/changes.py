"""Hearing of changes as they become durable, over a connection of our own."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any, Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.client import PubSub
from redis.exceptions import AuthenticationError, ConnectionError, ResponseError, TimeoutError
from redis.retry import Retry

from .change import Change, Missed
from .forks import begins_anew_in_a_child
from .hearing import LOOK_S, SILENCE_S, Hearing, connection_options, passes
from .translate import as_ours


class Changes:
    """Iterates over changes that are durable, as :meth:`WriteBehind.changes` gives it. For one thread.

    It connects when it is iterated, and again by itself whenever the connection is lost, and in a forked
    child; each time a :class:`Missed` comes first. So it does for a message that cannot be read.
    """

    def __init__(self, client: Redis, channel: str, tables: Iterable[str] | None = None) -> None:
        self._pool = _OwnConnections(client.connection_pool)
        self._channel, self._hearing = channel, Hearing(tables)
        self._pubsub: Any = None
        self._closed, self._turn = threading.Event(), threading.Lock()
        begins_anew_in_a_child(self, Changes._start_anew)

    def close(self) -> None:
        """Ends the iteration; from any thread.

        The thread that iterates ends within 0.2 s; while Redis stands still, when the client's timeouts for
        connecting and for the reply have passed, of which none counts for more than 5 s.
        """
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
                    if self._hearing.found:
                        return self._hearing.found.popleft()
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
                self._hearing.take(self._pubsub.get_message(timeout=SILENCE_S))
            elif self._hearing.must_ask():
                self._pubsub.ping()
        except (ConnectionError, TimeoutError, OSError, ResponseError) as error:
            if isinstance(error, ResponseError | AuthenticationError) and not passes(error):
                raise as_ours("changes", error) from error
            self._disconnect()
            self._closed.wait(self._hearing.pause_s())

    def _connect(self) -> None:
        self._pubsub = PubSub(self._pool)
        self._pubsub.subscribe(self._channel)
        self._hearing.begin()

    def _disconnect(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            pubsub.close()

    def _start_anew(self) -> None:
        """In a forked child: the connection is the parent's, and a lock may be held by no thread here."""
        is_closed = self._closed.is_set()
        self._closed, self._turn = threading.Event(), threading.Lock()
        if is_closed:
            self._closed.set()
        self._disconnect()  # redis-py closes it here alone


class _OwnConnections:
    """What redis-py's PubSub needs of a pool: it connects as the client's does, but tries once."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def get_encoder(self) -> Any:
        return self._pool.get_encoder()

    def get_connection(self, *_: Any, **__: Any) -> Any:
        options = connection_options(self._pool.connection_kwargs)
        connection = self._pool.connection_class(**options, retry=Retry(NoBackoff(), 0, ()))
        try:
            connection.connect()
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def release(self, connection: Any) -> None:
        connection.disconnect()
