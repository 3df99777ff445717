"""The names of a queue's keys in Redis. One hash tag: they share a cluster slot. Locks, rates have a TTL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

DEFAULT_QUEUE = "db:write:queue"


_SHARD = r"((?::[0-9]+of[0-9]+)?)"


@lru_cache(maxsize=100)
def _stem(queue: str) -> str:
    # `q` and `{q}:x` share a slot; where q has a hash tag of its own, `q:of:x` does (`{a}:x` is a's).
    name = _slot_name(queue)
    return f"{name}:of:" if name == queue else f"{name}:"


@lru_cache(maxsize=3000)
def _slot_name(queue: str) -> str:
    """The queue's name with a hash tag: its own, or else all of it."""
    return queue if re.search(r"\{[^}]+\}", queue) else f"{{{queue}}}"


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """Redis keys of one queue. ``queue`` itself is the list that producers LPUSH to."""

    queue: str = DEFAULT_QUEUE

    def _own(self, name: str) -> str:
        return _stem(self.queue) + name

    def owns(self, key: str) -> bool:
        """Whether ``key`` is one of the queue's: no cache entry may be put there."""
        return key == self.queue or key.startswith(_stem(self.queue))

    def entry(self, plain: str, number: int) -> str:
        """On a cluster, where an entry is in the slot of its shard: the cache key of a row.

        ``plain`` is what it is on one server; ``number``: of the last division. After two of them a row may
        be in a shard of the same name again, and must not find its entry of then.
        """
        return f"{_slot_name(self.queue)}/{number}/{plain}"

    def plain_of(self, entry: str) -> tuple[int, str] | None:
        """The number and the plain key that :meth:`entry` was made of, for this queue or a shard of it.

        ``None`` for what is none of these.
        """
        found = self._apart(entry)
        return None if found is None else (int(found[2]), found[3])

    def home_of(self, entry: str) -> tuple[str, int] | None:
        """The queue or shard, and the number, that :meth:`entry` was made of; ``None`` as above."""
        found = self._apart(entry)
        return None if found is None else (self.queue + found[1], int(found[2]))

    def _apart(self, entry: str) -> re.Match[str] | None:
        name = _slot_name(self.queue)
        head = re.escape(name) + _SHARD if name == self.queue else re.escape(name[:-1]) + _SHARD + r"\}"
        return re.fullmatch(rf"{head}/(0|[1-9][0-9]*)/(.*)", entry, re.ASCII | re.DOTALL)

    @property
    def inflight(self) -> str:
        """List: ids of the frozen batches, oldest first."""
        return self._own("inflight")

    def processing(self, batch: int) -> str:
        """List: one frozen batch, oldest item first."""
        return self._own(f"processing:{batch}")

    @property
    def lease(self) -> str:
        """String ``token|expiry in ms of server time|owner``."""
        return self._own("lease")

    @property
    def epoch(self) -> str:
        """String: fencing epoch of the owner, given out by Postgres."""
        return self._own("epoch")

    @property
    def clock(self) -> str:
        """Hash: ``seq`` last given out, ``generation`` of this Redis history, ``committed`` as announced."""
        return self._own("clock")

    @property
    def producers(self) -> str:
        """Hash: producer session → ``counter:first seq:generation``: a re-sent call takes effect once."""
        return self._own("producers")

    @property
    def applied(self) -> str:
        """String: last seq known committed in Postgres."""
        return self._own("applied")

    @property
    def acked(self) -> str:
        """String: id of the last batch acknowledged."""
        return self._own("acked")

    @property
    def rejected(self) -> str:
        """Sorted set, bounded: ``seq`` → JSON reason of writes that became dead letters."""
        return self._own("rejected")

    @property
    def paused(self) -> str:
        """String ``ms|reason``: there while an operator has paused the queue."""
        return self._own("paused")

    @property
    def sessions(self) -> str:
        """Sorted set of one score: ``user:id`` of each login session that may not be committed yet."""
        return self._own("sessions")

    @property
    def session_seqs(self) -> str:
        """Sorted set: the same members → seq of the write that made the session."""
        return self._own("sessions:seq")

    def closing(self, user: str) -> str:
        """String, with a TTL: there while all of a user's sessions are revoked, and none is rotated."""
        return self._own(f"sessions:closing:{user}")

    @property
    def tables(self) -> str:
        """Hash: table as a message may name it → JSON of its name and key columns, for cache keys."""
        return self._own("tables")

    @property
    def changes(self) -> str:
        """Channel: what has become durable, where the worker is told to publish it."""
        return self._own("changes")

    def lock(self, name: str) -> str:
        """String ``token:fence``, with a TTL: who has an application's lock."""
        return self._own(f"lock:{name}")

    @property
    def layout(self) -> str:
        """Hash: into how many shards the queue is divided; there is none where it is not."""
        return self._own("layout")

    @property
    def fleet(self) -> str:
        """Sorted set: the workers of a queue with shards → until when they are there, ms of server time."""
        return self._own("fleet")

    @property
    def fence(self) -> str:
        """String: the fencing token last given out, of all locks together."""
        return self._own("fence")

    def rate(self, name: str, window_us: int) -> str:
        """Sorted set, with a TTL: the slots of an application's rate limit → when they were taken, in µs.

        Each window has its own: a shorter one would forget what a longer one still counts.
        """
        return self._own(f"rate:{window_us}:{name}")
