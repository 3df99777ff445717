"""What the clients do, as steps: every decision of both stands here and in what this calls."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from .cache import BulkLoader, Loader, Row, RowCache, Wanted
from .directory import TableDirectory
from .durability import Accepted, Assurance, Durability, assurance
from .enqueue import Enqueue, EntryChanged, Variant, pack_write, pack_write_with_frames
from .errors import InvalidWrite
from .identity import TableKey, cache_key
from .keys import QueueKeys
from .message import Id, Op, Write, make_write, row_key, with_trace
from .observer import Observer, guarded
from .packing import PackedWrite
from .rate_steps import admit_writes
from .session import SessionPool
from .settings import Settings
from .steps import Steps, T


class Core:
    """A client without its connection. The steps of each method raise as the client's method says."""

    def __init__(self, settings: Settings, enqueue: Enqueue) -> None:
        self.settings = settings
        self.keys = QueueKeys(settings.queue)
        self._prefix = settings.cache_prefix
        self._packing = settings.packing()
        self._pack = pack_write if self._packing is None else pack_write_with_frames
        self._cache = RowCache(self.keys, settings)
        self._directory = TableDirectory(self.keys)
        self._enqueue = enqueue
        self._usual = assurance(None, settings.durability, settings.durability_timeout, settings.replicas)
        self.traceparent: Callable[[], str | None] | None = None  # of the span at hand, if it is sampled

    def close(self) -> None:
        """Lets go of the connections that idle sessions keep."""
        self._enqueue.close()

    def call(self, operation: str, table: str, size: int, begin: Callable[[], Steps[T]]) -> Steps[T]:
        """Steps that are a call of the application's, about so many rows."""
        return begin()

    def wanted(self, wait: float | None, durability: Durability | None) -> Assurance | None:
        """What a call waits for; of its arguments, or else as the settings say."""
        settings = self.settings
        if wait is None and durability is None:
            return self._usual
        return assurance(wait, durability, settings.durability_timeout, settings.replicas)

    def write(
        self,
        op: Op,
        table: str,
        id: Id,
        data: Mapping[str, Any] | None,
        wanted: Assurance | None = None,
    ) -> Steps[Accepted]:
        """One write."""
        return self.send([make_write(op, table, id, data)], wanted=wanted)

    def for_sessions(self, ttl: int) -> Core:
        """This client for login sessions, which stay cached for ``ttl`` seconds, and no shorter.

        Their keys are of no version, so that what one deploy revokes is revoked for another; no limit on
        writes keeps a session from being read, prolonged or revoked.
        """
        other = copy.copy(self)
        other.settings = dataclasses.replace(
            self.settings, ttl=ttl, ttl_jitter=0, refresh_ahead=None, version=None, admit=None
        )
        other._prefix = other.settings.cache_prefix
        other._cache = RowCache(self.keys, other.settings)
        return other

    def send(
        self,
        writes: Sequence[Write],
        variant: Variant | None = None,
        sizes: list[int] | None = None,
        wanted: Assurance | None = None,
    ) -> Steps[Accepted]:
        """All of the writes, or none, as a variant of the script accepts them.

        ``sizes`` gets the bytes of each message.
        """
        settings = self.settings
        trace = None if self.traceparent is None else self.traceparent()
        entries: list[str] = []
        packed: list[bytes] = []
        if self._packing is not None:
            writes = [self._packing.write(write) for write in writes]
        for write in writes:
            entry = yield from self._cache_key(write.table, write.key)
            message = write.message(entry, settings.entry_ttl())
            if len(message) > settings.max_message_bytes:
                raise InvalidWrite(
                    f"{write.table}: the message has {len(message)} bytes, at most "
                    f"{settings.max_message_bytes} are allowed (max_message_bytes)"
                )
            if trace is not None:  # a limit that a write keeps to must not depend on tracing
                message = with_trace(message, trace, isinstance(write, PackedWrite))
            if sizes is not None:
                sizes.append(len(message))
            entries.append(entry)
            packed.append(self._pack(write.op, message, write.cache_fields()))
        if settings.admit is not None:
            yield from admit_writes(self.keys, settings.admit, writes)
        ops = {write.op for write in writes}
        return (
            yield from self._enqueue.steps(entries, ops, packed, settings.max_queue_length, variant, wanted)
        )

    def get(self, table: str, id: Id, load: Loader | None, timeout: float) -> Steps[Row | None]:
        """A row, or nothing."""
        where = yield from self.where(table, id)
        return (yield from self._cache.get(Wanted(where, id), table, load, timeout))

    def get_many(
        self, table: str, ids: Sequence[Id], load: BulkLoader | None, timeout: float
    ) -> Steps[list[Row | None]]:
        """A row or nothing for each id."""
        names = yield from self._where_all(table, ids)
        wanted = [Wanted(where, id) for where, id in zip(names, ids, strict=True)]
        return (yield from self._cache.get_many(wanted, table, load, timeout))

    def invalidate(self, table: str, id: Id, wait: float | None) -> Steps[bool]:
        """Whether nothing is cached any more."""
        where = yield from self.where(table, id)
        return (yield from self._cache.invalidate(where, table, wait))

    def invalidate_many(self, table: str, ids: Sequence[Id]) -> Steps[list[bool]]:
        """For each id, whether nothing is cached any more."""
        return (yield from self._cache.invalidate_many((yield from self._where_all(table, ids))))

    def _cache_key(self, table: str, key: str | Mapping[str, str]) -> Steps[str]:
        found = self._directory.known(table)
        if found is None:
            found = yield from self._directory.find(table)
        return self._name(table, found, key)

    def _where_all(self, table: str, ids: Sequence[Id]) -> Steps[list[str]]:
        keys = [row_key(table, id) for id in ids]
        found = (yield from self._directory.find(table)) if keys else TableKey(table)
        return [self._name(table, found, key) for key in keys]

    def _name(self, table: str, found: TableKey, key: str | Mapping[str, str]) -> str:
        made = cache_key(self._prefix, found, key)
        if self.keys.owns(made):
            raise InvalidWrite(f"{table}: {made!r} is a key of the queue itself; set a prefix for cache keys")
        return made

    def where(self, table: str, id: Id) -> Steps[str]:
        """The row's cache key; table and id are validated as a write's are."""
        return self._cache_key(table, row_key(table, id))


class ObservedCore(Core):
    """A core whose writes an observer hears of."""

    def __init__(self, settings: Settings, enqueue: Enqueue, observer: Observer) -> None:
        super().__init__(settings, enqueue)
        self._observer = observer

    def send(
        self,
        writes: Sequence[Write],
        variant: Variant | None = None,
        sizes: list[int] | None = None,
        wanted: Assurance | None = None,
    ) -> Steps[Accepted]:
        """See :meth:`Core.send`."""
        observer, sizes = self._observer, []
        try:
            accepted = yield from super().send(writes, variant, sizes, wanted)
        except EntryChanged:  # no failure: it is tried again, or need not be written
            raise
        except Exception as error:
            for write in writes:
                observer.write_failed(write.table, write.op, error)
            raise
        for write, size in zip(writes, sizes, strict=True):
            observer.wrote(write.table, write.op, size)
        return accepted


def make_core(settings: Settings, sessions: SessionPool, socket_timeout: float | None) -> Core:
    """A core that is observed and traced as the settings say; ``socket_timeout``: of its connections, s."""
    enqueue = Enqueue(QueueKeys(settings.queue), sessions, socket_timeout)
    observer = guarded(settings.observer)
    core = Core(settings, enqueue) if observer is None else ObservedCore(settings, enqueue, observer)
    if settings.tracer is None:
        return core
    from .opentelemetry import TracedCore  # noqa: PLC0415 - not everybody has what it imports

    return cast(Core, TracedCore(core, settings.tracer))
