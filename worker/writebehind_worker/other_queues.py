"""The other queues of a database: the write that a cache entry shows may have come by any of them.

All queues stamp their writes with microseconds of one clock, and an entry does not say which queue it was.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
import redis
from redis import Redis

from writebehind.keys import QueueKeys

from .cached_entry import CachedEntry
from .errors import FatalError
from .moments import read_moment
from .nodes import is_clustered
from .resharding import layout_of, served

_SCANNED_AT_ONCE = 1000
_CLOCK = ":clock"
_NAMES = [
    getter.fget(QueueKeys("q")).removeprefix("{q}:")
    for getter in vars(QueueKeys).values()
    if isinstance(getter, property) and getter.fget
]
_NAMES += [r"processing:\d+", "lock:.*", "rate:.*", "sessions:closing:.*"]
_TAG = r"\{[^{}]+\}"
_OF_A_QUEUE = re.compile(rf"(?:{_TAG}|.*{_TAG}.*:of):(?:{'|'.join(_NAMES)})", re.DOTALL)


def is_of_a_queue(key: str, own: str) -> bool:
    """Whether it is named as keys of a queue or a shard are; of lists, only those of the queue ``own``."""
    return bool(_OF_A_QUEUE.fullmatch(key) or re.fullmatch(rf"{re.escape(own)}(?::\d+of\d+)?", key))


class OtherQueues:
    """Those beside the one of ``keys`` and its shards: looked for once, by SCAN, when first asked of them.

    Where one of them may not be read, nothing is known of any entry.
    """

    def __init__(self, client: Redis, keys: QueueKeys) -> None:
        self._client, self._keys = client, keys
        self._found: list[QueueKeys] | None = None
        self._found_at_us = 0
        self._are_readable = True

    @functools.cached_property
    def names(self) -> Collection[str]:
        """As their lists are named: all that there are when first asked for, also the own one and shards."""
        try:
            return _all_queues(self._client)
        except UnicodeDecodeError:  # not as a queue's are
            return ()

    def exclude(self, entries: Sequence[CachedEntry]) -> list[CachedEntry]:
        """The entries, marked where no other queue has their write pending; they were read before this."""
        if is_clustered(self._client):  # there an entry is named by its queue, and is no other's
            return [msgspec.structs.replace(entry, is_no_others=True) for entry in entries]
        if not entries or not self._are_readable:
            return list(entries)
        try:
            if self._found is None:
                self._found = self._find()
            moments = [read_moment(self._client, keys) for keys in self._found]
        except (redis.ResponseError, UnicodeDecodeError, FatalError):  # not allowed, or not as a queue's are
            self._are_readable = False
            return list(entries)
        marked = []
        for entry in entries:
            seq = entry.entry.seq
            # A queue that has begun since we looked for queues gives later seqs only.
            known = seq < self._found_at_us and all(moment.has_passed(seq) for moment in moments)
            marked.append(msgspec.structs.replace(entry, is_no_others=known))
        return marked

    def _find(self) -> list[QueueKeys]:
        seconds, micros = self._client.time()
        self._found_at_us = seconds * 1_000_000 + micros
        own = {one.queue for one in served(self._keys, layout_of(self._client, self._keys))}
        return [QueueKeys(queue) for queue in sorted(_all_queues(self._client) - own)]


def _all_queues(client: Redis) -> set[str]:
    """Shards, too; a queue has a clock once a worker or our library has used it."""
    names: Any = client.scan_iter(match=f"*{_CLOCK}", count=_SCANNED_AT_ONCE, _type="hash")
    return {queue for name in names if (queue := _queue_of(name.decode())) is not None}


def _queue_of(clock: str) -> str | None:
    """The queue whose clock this key is; ``None`` if it is none."""
    stem = clock.removesuffix(_CLOCK)
    candidates = (stem.removesuffix(":of"), stem[1:-1])
    return next((queue for queue in candidates if QueueKeys(queue).clock == clock), None)
