"""Producer sessions: the (session, counter) by which a re-sent call is told from a new one.

A session is borrowed for the length of one call. It is given back only when the call's outcome is known: a
call that may still be under way somewhere must stay the last one of its session.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import deque
from dataclasses import dataclass, field

from redis import Redis
from redis.exceptions import RedisError

_SHARE = 10  # of a pool's connections, idle sessions keep one in so many ...
_LARGE = 100  # ... where it has so many: who allows fewer may need each of them elsewhere
_LOOK_AFTER_S = 1.0  # unused for so long, a connection is looked at: the server may have closed it


@dataclass(slots=True)
class Session:
    """``counter`` grows with every call; the script refuses one that is lower than it has seen.

    ``client`` has a connection of its own, where the session keeps one.
    """

    client: Redis | None = None
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    counter: int = 0
    used_at: float = 0.0


class SessionPool:
    """Idle sessions of this process. A forked child starts with none: two processes must not share one."""

    def __init__(self) -> None:
        self._idle: deque[Session] = deque()
        self._pid = os.getpid()

    def borrow(self) -> Session:
        """A session with a fresh counter, to be given back once the outcome of its call is known."""
        if self._pid != os.getpid():
            self._start_anew()
        session = self._take() or Session()
        session.counter += 1
        return session

    def give_back(self, session: Session) -> None:
        """Lets the next call have it. One whose call raised is not given back, but only forgotten."""
        self._idle.append(session)

    def forget(self, session: Session) -> None:
        """Lets its connection go, if it has one of its own."""

    def close(self) -> None:
        """Lets go of the connections that are kept; from now on none is."""

    def _take(self) -> Session | None:
        return _last(self._idle)

    def _start_anew(self) -> None:
        self._idle, self._pid = deque(), os.getpid()


class ConnectedSessionPool(SessionPool):
    """A few sessions keep their connection between calls.

    redis-py takes 15 µs, a tenth of a call, to take one from its pool and to put it back.
    """

    def __init__(self, client: Redis) -> None:
        super().__init__()
        self._client = client
        self._kept: deque[Session] = deque()
        pool = client.connection_pool
        has_cache = getattr(pool, "cache", None) is not None  # its connections hear of invalidations
        may_keep = pool.max_connections >= _LARGE and not has_cache
        self._most_kept = pool.max_connections // _SHARE if may_keep else 0

    def borrow(self) -> Session:
        """As of any pool; it may have a connection."""
        session = super().borrow()
        if session.client is None:
            if len(self._kept) < self._most_kept:
                session.client = self._client.client()  # type: ignore[no-untyped-call]
        elif time.monotonic() - session.used_at > _LOOK_AFTER_S:
            _reconnect_if_closed(session.client)
        return session

    def give_back(self, session: Session) -> None:
        """As of any pool; it keeps its connection while few do."""
        session.used_at = time.monotonic()
        if session.client is not None and len(self._kept) < self._most_kept:
            self._kept.append(session)
        else:
            self.forget(session)
            super().give_back(session)

    def forget(self, session: Session) -> None:
        """Lets its connection go, if it has one of its own."""
        if session.client is not None:
            session.client.close()
            session.client = None

    def close(self) -> None:
        """Lets go of the connections that are kept; from now on none is."""
        self._most_kept = 0
        while session := _last(self._kept):
            self.forget(session)

    def _take(self) -> Session | None:
        return _last(self._kept) or super()._take()

    def _start_anew(self) -> None:
        super()._start_anew()
        self._kept = deque()


def _last(sessions: deque[Session]) -> Session | None:
    """Taken out of there, if there is one: other threads may be quicker."""
    try:
        return sessions.pop()
    except IndexError:
        return None


def _reconnect_if_closed(client: Redis) -> None:
    connection = client.connection
    assert connection is not None
    try:
        is_closed = connection.can_read()  # nobody has asked for anything
    except (RedisError, OSError):
        is_closed = True
    if is_closed:
        connection.disconnect()  # type: ignore[no-untyped-call]
