"""Producer sessions: the (session, counter) by which a re-sent call is told from a new one.

A session is borrowed for the length of one call, as a connection is. It is given back only when the call's
outcome is known: a call that may still be under way somewhere must stay the last one of its session.
"""

from __future__ import annotations

import os
import secrets
from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class Session:
    """``counter`` grows with every call; the script refuses one that is lower than it has seen."""

    id: str = field(default_factory=lambda: secrets.token_hex(8))
    counter: int = 0


class SessionPool:
    """Idle sessions of this process. A forked child starts with none: two processes must not share one."""

    def __init__(self) -> None:
        self._idle: deque[Session] = deque()
        self._pid = os.getpid()

    def borrow(self) -> Session:
        """A session with a fresh counter, to be given back once the outcome of its call is known."""
        if self._pid != os.getpid():
            self._idle, self._pid = deque(), os.getpid()
        try:
            session = self._idle.pop()
        except IndexError:
            session = Session()
        session.counter += 1
        return session

    def give_back(self, session: Session) -> None:
        """Lets the next call have it. One whose call raised is not given back, but forgotten."""
        self._idle.append(session)
