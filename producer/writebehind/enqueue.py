"""Sending writes to the script that accepts them, each once however often a call is re-sent."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import NamedTuple, cast

import msgspec
from redis.exceptions import RedisError, ResponseError

from .durability import Accepted, Assurance, send_safely
from .errors import OutcomeUnknown, QueueFull
from .keys import QueueKeys
from .message import Op
from .script import Argument, Script
from .session import Session, SessionPool
from .steps import Command, Steps, run_script
from .translate import as_ours

_ENQUEUE = Script("writebehind", "enqueue")
_pack = msgspec.msgpack.encode


def pack_write(op: Op, message: bytes, fields: Sequence[str | bytes]) -> bytes:
    """One write as the script takes it; ``fields`` are column, JSON text, ... as the cache entry holds them.

    One argument, not one a field: redis-py spends 0.2 µs on each, and the script holds them one by one.
    """
    packed = _pack([op, message[1:].decode(), *fields])
    return packed[1:] if packed[0] < 0xA0 else packed[3:]  # the strings without the head of their array


def pack_write_with_frames(op: Op, message: bytes, fields: Sequence[str | bytes]) -> bytes:
    """As :func:`pack_write`, where some of the ``fields`` are no text.

    They are strings of MessagePack as well: of its binary data the server's library knows nothing.
    """
    return b"".join(map(_string, (op, message[1:], *fields)))


def _string(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return b"\xdb" + len(raw).to_bytes(4, "big") + raw


class Variant(NamedTuple):
    """A script that accepts writes as ``enqueue`` does; what it is told beyond that, which comes last."""

    script: Script
    keys: Sequence[str]
    args: Sequence[Argument]


class ShardMoved(Exception):
    """The queue is not the shard that it was taken for. Nothing was written."""


class EntryChanged(Exception):
    """A variant found an entry that is not as it was told. Nothing was written."""


class Enqueue:
    """The producers' way into a queue. ``socket_timeout``: of the connections, in seconds.

    ``shard``: which one the queue has to be, as its clock says; nothing for the only one. On a cluster
    ``@`` and the number of the division follow: it is part of the cache keys.
    """

    def __init__(
        self, keys: QueueKeys, sessions: SessionPool, socket_timeout: float | None = None, shard: str = ""
    ) -> None:
        self.keys, self.shard = keys, shard
        self._number = int(shard.partition("@")[2] or 0)
        self._queue, self._producers = keys.queue, keys.producers
        self._names = (keys.queue, keys.clock, keys.producers)
        self._sessions, self._socket_timeout = sessions, socket_timeout

    def steps(
        self,
        cache_keys: Sequence[str],
        ops: Set[Op],
        writes: Sequence[bytes],
        max_queue_length: int,
        variant: Variant | None = None,
        wanted: Assurance | None = None,
    ) -> Steps[Accepted]:
        """Accepts all of the writes or none.

        ``writes`` are from :func:`pack_write`, and ``ops`` what occurs in them.
        """
        script, keys, args = variant or (_ENQUEUE, (), ())
        session = None
        try:
            session = self._sessions.borrow()
            head: list[Argument] = [session.id, session.counter, max_queue_length, " ".join(ops), self.shard]
            unreached = None
            names, given = (*self._names, *cache_keys, *keys), [*head, *writes, *args]
            try:
                if wanted is None or not wanted.is_told_by_redis:
                    reply = yield from run_script(script, names, given, session)
                else:
                    sent = yield from send_safely(script, names, given, wanted, self._socket_timeout)
                    reply, unreached = sent
            except ResponseError as error:
                reply = yield from self._accepted_before(session, error)
                if wanted is not None and wanted.is_told_by_redis:
                    unreached = f"the write is queued; whether it is {wanted.level} is not known: {error}"
        except BaseException as error:
            if session is not None:
                self._sessions.forget(session)
            if isinstance(error, (RedisError, OSError)):
                raise as_ours("write", error) from error
            raise
        self._sessions.give_back(session)
        first, second = (*reply, b"")[:2]
        if first == b"full":
            raise QueueFull(self._queue, int(second), max_queue_length)
        if first == b"stale":
            raise OutcomeUnknown("write: a later call of the same session has overtaken this one")
        if first == b"changed":
            raise EntryChanged
        if first == b"moved":
            raise ShardMoved
        return Accepted(int(first), int(second), self.keys, unreached)

    def entry(self, plain: str) -> str:
        """On a cluster, the cache key of a row of this shard."""
        return self.keys.entry(plain, self._number)

    def close(self) -> None:
        """Lets go of the connections that idle sessions keep."""
        self._sessions.close()

    def _accepted_before(self, session: Session, error: ResponseError) -> Steps[list[bytes]]:
        """The first answer to a call that was refused when redis-py re-sent it: Redis had become full.

        Raises ``error`` if the call has not been accepted.
        """
        seen = yield Command(("HGET", self._producers, session.id))
        counter, *answer = (seen or b"0").split(b":")
        if int(counter) != session.counter:
            raise error
        return cast(list[bytes], answer)
