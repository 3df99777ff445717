"""Sending writes to the script that accepts them, each once however often a call is re-sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from redis import Redis
from redis.exceptions import ResponseError

from .errors import OutcomeUnknown, QueueFull
from .keys import QueueKeys
from .script import Argument, Script
from .session import Session, SessionPool
from .translate import redis_errors_as_ours

_ENQUEUE = Script("writebehind", "enqueue")


class Enqueue:
    """The producers' way into a queue. Thread-safe, and safe to fork."""

    def __init__(self, client: Redis, keys: QueueKeys) -> None:
        self._client, self._keys = client, keys
        self._sessions = SessionPool()

    def __call__(
        self, cache_keys: Sequence[str], arguments: Sequence[Argument], max_queue_length: int
    ) -> tuple[int, int]:
        """Accepts all of the writes or none; returns the first one's seq, and the generation.

        ``arguments`` has for each write: op, message, number of columns, then column, JSON text, ...
        """
        keys = [self._keys.queue, self._keys.clock, self._keys.producers, *cache_keys]
        with redis_errors_as_ours("write"), self._sessions.borrow() as session:
            head: list[Argument] = [session.id, session.counter, max_queue_length]
            try:
                reply = _ENQUEUE(self._client, keys, [*head, *arguments])
            except ResponseError as error:
                reply = self._accepted_before(session, error)
            first, second = (*reply, b"")[:2]
        if first == b"full":
            raise QueueFull(self._keys.queue, int(second), max_queue_length)
        if first == b"stale":
            raise OutcomeUnknown("write: a later call of the same session has overtaken this one")
        return int(first), int(second)

    def _accepted_before(self, session: Session, error: ResponseError) -> list[bytes]:
        """The first answer to a call that was refused when redis-py re-sent it: Redis had become full.

        Raises ``error`` if the call has not been accepted.
        """
        seen = cast(bytes | None, self._client.hget(self._keys.producers, session.id))
        counter, *answer = (seen or b"0").split(b":")
        if int(counter) != session.counter:
            raise error
        return answer
