"""What the clients do, as steps: every decision of both stands here and in what this calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .cache import BulkLoader, Loader, Row, RowCache, Wanted
from .directory import TableDirectory
from .enqueue import Enqueue, pack_write, pack_write_with_frames
from .errors import InvalidWrite
from .identity import cache_key
from .keys import QueueKeys
from .message import Id, Op, Write, make_write
from .session import SessionPool
from .settings import Settings
from .steps import Steps


class Accepted(NamedTuple):
    """Writes that one call has put into the queue: the first one's seq; the others follow it."""

    seq: int
    generation: int


class Core:
    """A client without its connection. The steps of each method raise as the client's method says."""

    def __init__(self, settings: Settings, sessions: SessionPool) -> None:
        self.settings = settings
        self.keys = QueueKeys(settings.queue)
        self._prefix = settings.cache_prefix
        self._packing = settings.packing()
        self._pack = pack_write if self._packing is None else pack_write_with_frames
        self._cache = RowCache(self.keys, settings)
        self._directory = TableDirectory(self.keys)
        self._enqueue = Enqueue(self.keys, sessions)

    def close(self) -> None:
        """Lets go of the connections that idle sessions keep."""
        self._enqueue.close()

    def write(self, op: Op, table: str, id: Id, data: Mapping[str, Any] | None) -> Steps[Accepted]:
        """One write."""
        return self.send([make_write(op, table, id, data)])

    def send(self, writes: Sequence[Write]) -> Steps[Accepted]:
        """All of the writes, or none."""
        settings = self.settings
        entries: list[str] = []
        packed: list[bytes] = []
        if self._packing is not None:
            writes = [self._packing.write(write) for write in writes]
        for write in writes:
            entry = yield from self._cache_key(write.table, write.key)
            message = write.message(entry, settings.ttl)
            if len(message) > settings.max_message_bytes:
                raise InvalidWrite(
                    f"{write.table}: the message has {len(message)} bytes, at most "
                    f"{settings.max_message_bytes} are allowed (max_message_bytes)"
                )
            entries.append(entry)
            packed.append(self._pack(write.op, message, write.cache_fields()))
        ops = {write.op for write in writes}
        seq, generation = yield from self._enqueue.steps(entries, ops, packed, settings.max_queue_length)
        return Accepted(seq, generation)

    def get(self, table: str, id: Id, load: Loader | None, timeout: float) -> Steps[Row | None]:
        """A row, or nothing."""
        where = yield from self._where(table, id)
        return (yield from self._cache.get(Wanted(where, id), table, load, timeout))

    def get_many(
        self, table: str, ids: Sequence[Id], load: BulkLoader | None, timeout: float
    ) -> Steps[list[Row | None]]:
        """A row or nothing for each id."""
        wanted = []
        for id in ids:
            wanted.append(Wanted((yield from self._where(table, id)), id))
        return (yield from self._cache.get_many(wanted, table, load, timeout))

    def invalidate(self, table: str, id: Id) -> Steps[bool]:
        """Whether nothing is cached any more."""
        where = yield from self._where(table, id)
        return (yield from self._cache.invalidate(where))

    def _cache_key(self, table: str, key: str | Mapping[str, str]) -> Steps[str]:
        found = self._directory.known(table)
        if found is None:
            found = yield from self._directory.find(table)
        made = cache_key(self._prefix, found, key)
        if self.keys.owns(made):
            raise InvalidWrite(f"{table}: {made!r} is a key of the queue itself; set a prefix for cache keys")
        return made

    def _where(self, table: str, id: Id) -> Steps[str]:
        """The row's cache key; table and id are validated as a write's are."""
        return self._cache_key(table, make_write("delete", table, id, None).key)
