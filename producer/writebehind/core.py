"""What the clients do, as steps: every decision of both stands here and in what this calls."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from .cache import BulkLoader, Loader, Row, RowCache
from .directory import TableDirectory
from .division import CLOSED_FOR_S
from .durability import Accepted, Assurance, Durability, assurance, assure
from .enqueue import Enqueue, EntryChanged, ShardMoved, Variant, pack_write, pack_write_with_frames
from .errors import FlushTimeout, InvalidWrite, RedisRefused
from .group import group_message
from .home import Wanted
from .identity import TableKey, cache_key
from .keys import QueueKeys
from .message import Id, Op, Route, Write, make_write, route_text, row_key, with_trace
from .observer import Observer, guarded
from .pauses import pauses
from .places import Places, TableMoved, View, not_settled
from .rate_steps import admit_writes
from .receipt import AnyReceipt
from .session import SessionPool
from .settings import Settings
from .shards import plain_table
from .steps import Pause, Steps, T


class Core:
    """A client without its connection. The steps of each method raise as the client's method says."""

    def __init__(self, settings: Settings, places: Places) -> None:
        self.settings = settings
        self._is_clustered = places.is_clustered
        self.keys = QueueKeys(settings.queue)
        self.places = places
        self._prefix = settings.cache_prefix
        self._packing = settings.packing()
        self._pack = pack_write if self._packing is None else pack_write_with_frames
        self._cache = RowCache(settings, places.confirm)
        self._directory = TableDirectory(self.keys)
        self._usual = assurance(None, settings.durability, settings.durability_timeout, settings.replicas)
        self.traceparent: Callable[[], str | None] | None = None  # of the span at hand, if it is sampled

    def close(self) -> None:
        """Lets go of the connections that idle sessions keep."""
        self.places.close()

    def call(self, operation: str, table: str | None, size: int, begin: Callable[[], Steps[T]]) -> Steps[T]:
        """Steps that are a call of the application's, about so many rows of a table, if of one."""
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
        route: Route | None = None,
        wanted: Assurance | None = None,
    ) -> Steps[Accepted]:
        """One write."""
        return self.send([make_write(op, table, id, data, route)], wanted=wanted)

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
        other._cache = RowCache(other.settings, self.places.confirm)
        return other

    def send(
        self,
        writes: Sequence[Write],
        variant: Callable[[QueueKeys], Variant] | None = None,
        sizes: list[int] | None = None,
        wanted: Assurance | None = None,
        admits: bool = True,
        as_group: bool = False,
    ) -> Steps[Accepted]:
        """All of the writes, or none, as a variant of the script accepts them. All are for one shard.

        ``variant`` is made of the keys of the shard. ``sizes`` gets the bytes of each message.
        ``admits``: they have not been let in yet. ``as_group``: they are one message.

        Raises:
            ShardMoved: they were, but the shards have become others meanwhile. Nothing was written.
        """
        trace = None if self.traceparent is None else self.traceparent()
        arguments = self._grouped if as_group else self._singly
        made_for = self._way_of(writes)[0] if self._is_clustered else None
        entries, packed = yield from arguments(writes, made_for, trace, sizes)
        if admits:
            yield from self.admit(writes)
        ops = {write.op for write in writes}
        deadline = time.monotonic() + CLOSED_FOR_S
        for pause in pauses():
            way, waits = self._way_of(writes)
            if way is None:
                if not as_group:
                    break
                yield from self._check_one_queue(writes)
                if time.monotonic() + pause > deadline:
                    raise _not_one_way(writes)
                yield Pause(pause)
                continue
            if waits is not None:
                if not as_group and len({plain_table(write.table) for write in writes}) > 1:
                    break  # the others' writes are sent without it
                yield from self.places.look_again(waits)
                continue
            if self._is_clustered and way is not made_for:
                made_for = way
                entries, packed = yield from arguments(writes, way, trace, None)
            one = None if variant is None else variant(way.keys)
            try:
                most = self.settings.max_queue_length
                if as_group:
                    most += len(writes) - 1  # the script counts rows, and they are one message
                return (yield from way.steps(entries, ops, packed, most, one, wanted))
            except ShardMoved:
                for table in dict.fromkeys(write.table for write in writes):
                    yield from self.places.have_heard(table)
                if self._way_of(writes)[1] is None:
                    yield from self.places.look_again(writes[0].table)
            if time.monotonic() + pause > deadline:
                raise self.places.of(writes[0].table).disagrees(way)
            yield Pause(pause)
        raise ShardMoved

    def _check_one_queue(self, writes: Sequence[Write]) -> Steps[None]:
        """A group is one message, of one queue. Raises :class:`InvalidWrite`."""
        tables = dict.fromkeys(write.table for write in writes)
        for table in tables:
            yield from self.places.look_again(table)
        queues = {table: self.places.of(table).queue for table in tables}
        if len(set(queues.values())) > 1:
            each = ", ".join(f"{table} is in {queue!r}" for table, queue in queues.items())
            raise InvalidWrite(
                f"all writes of a group go to one queue, and their tables have several: {each}"
            )

    def _singly(
        self, writes: Sequence[Write], way: Enqueue | None, trace: str | None, sizes: list[int] | None
    ) -> Steps[tuple[list[str], list[bytes]]]:
        """Cache keys and arguments of writes that are a message each."""
        entries: list[str] = []
        packed: list[bytes] = []
        if self._packing is not None:
            writes = [self._packing.write(write) for write in writes]
        for write in writes:
            found = self._directory.known(write.table)  # in line: a generator takes 0.3 µs
            if found is None:
                found = yield from self._directory.find(write.table)
            entry = self._name(write.table, found, write.key)
            if self._is_clustered and way is not None:
                entry = way.entry(entry)
            message = write.message(entry, self.settings.entry_ttl())
            self._check_size(message, f"{write.table}: the message")
            if trace is not None:  # a limit that a write keeps to must not depend on tracing
                message = with_trace(message, trace, write.says_version)
            if sizes is not None:
                sizes.append(len(message))
            entries.append(entry)
            packed.append(self._pack(write.op, message, write.cache_fields()))
        return entries, packed

    def _grouped(
        self, writes: Sequence[Write], way: Enqueue | None, trace: str | None, sizes: list[int] | None
    ) -> Steps[tuple[list[str], list[bytes]]]:
        """Cache keys and arguments of writes that are one message: it comes with the first of them."""
        entries: list[str] = []
        for write in writes:
            entry = yield from self._cache_key(write.table, write.key)
            entries.append(way.entry(entry) if self._is_clustered and way is not None else entry)
        message = group_message(writes, entries, self.settings.entry_ttl())
        self._check_size(message, "the message of the group")
        if trace is not None:
            message = with_trace(message, trace, says_version=True)
        if sizes is not None:
            sizes += [len(message), *[0] * (len(writes) - 1)]
        messages = [message, *[b""] * (len(writes) - 1)]
        each = zip(writes, messages, strict=True)
        return entries, [self._pack(write.op, text, write.cache_fields()) for write, text in each]

    def _check_size(self, message: bytes, what: str) -> None:
        if len(message) > self.settings.max_message_bytes:
            raise InvalidWrite(
                f"{what} has {len(message)} bytes, at most "
                f"{self.settings.max_message_bytes} are allowed (max_message_bytes)"
            )

    def admit(self, writes: Sequence[Write]) -> Steps[None]:
        """Raises ``RateLimited`` where the setting ``admit`` does not let them in."""
        if self.settings.admit is not None:
            yield from admit_writes(self.keys, self.settings.admit, writes)

    def all_shards(self, table: str) -> Sequence[QueueKeys]:
        """The keys of each where a table's rows are, and of former ones that still drain."""
        return self.places.of(table).with_former

    def shards_have_changed(self, table: str) -> Steps[bool]:
        """Asks Redis whether there are others than was known."""
        return self.places.have_changed(table)

    def shard(self, write: Write) -> QueueKeys:
        """The keys of the shard that a write goes to."""
        return self.places.way(write.table, write.key, write.route).keys

    def parts(self, writes: Sequence[Write]) -> list[list[int]]:
        """Which of the writes can be accepted together: their positions, for each shard."""
        if self.places.is_one:
            return [list(range(len(writes)))]
        found: dict[tuple[int, str | None], list[int]] = {}
        view = View(self.places)
        for position, write in enumerate(writes):
            way = id(view.way(write.table, write.key, write.route))
            # Those of a table that waits for its move hold up no other's.
            part = way, plain_table(write.table) if view.waits(write.table) else None
            found.setdefault(part, []).append(position)
        return sorted(found.values(), key=lambda those: view.waits(writes[those[0]].table))

    def _way_of(self, writes: Sequence[Write]) -> tuple[Enqueue | None, str | None]:
        """Into the shard of all of the writes, if they have one; and a table of them that is being moved."""
        shards = self.places.own.now
        if not shards.layout.tables:
            first = shards.way(writes[0].table, writes[0].key, writes[0].route)
            if len(writes) == 1 or len(shards.ways) == 1:
                return first, None
            is_one = all(shards.way(w.table, w.key, w.route) is first for w in writes)
            return first if is_one else None, None
        view = View(self.places)
        first = view.way(writes[0].table, writes[0].key, writes[0].route)
        is_one = all(view.way(w.table, w.key, w.route) is first for w in writes)
        waits = next((w.table for w in writes if view.waits(w.table)), None)
        return first if is_one else None, waits

    def get(
        self, table: str, id: Id, load: Loader | None, timeout: float, route: Route | None = None
    ) -> Steps[Row | None]:
        """A row, or nothing."""

        def get(timeout: float) -> Steps[Row | None]:
            wanted = yield from self.wanted_row(table, id, route=route)
            return (yield from self._cache.get(wanted, table, load, timeout))

        return self.by_shards_of_now(table, get, timeout)

    def get_many(
        self,
        table: str,
        ids: Sequence[Id],
        load: BulkLoader | None,
        timeout: float,
        route: Route | None = None,
    ) -> Steps[list[Row | None]]:
        """A row or nothing for each id."""

        def get_many(timeout: float) -> Steps[list[Row | None]]:
            wanted = yield from self.wanted_rows(table, ids, route)
            return (yield from self._cache.get_many(wanted, table, load, timeout))

        return self.by_shards_of_now(table, get_many, timeout)

    def by_shards_of_now(self, table: str, begin: Callable[[float], Steps[T]], timeout: float) -> Steps[T]:
        """The steps with that timeout; again, without waiting, if the shards have become others.

        While the table is being moved they are begun again and again: an entry shows when its write is in
        Postgres, whichever queue has it.
        """
        deadline = time.monotonic() + timeout
        try:
            if self._is_clustered:
                return (yield from self.at_home(table, lambda: begin(timeout)))
            return (yield from begin(timeout))
        except (FlushTimeout, TableMoved) as error:
            failed: Exception = error
        for pause in pauses():
            left = max(0.0, deadline - time.monotonic())
            if isinstance(failed, FlushTimeout):
                if not (yield from self.places.of(table).have_changed()):
                    raise failed
                left = 0.0
            else:
                yield Pause(pause)
            try:
                return (yield from self.at_home(table, partial(begin, left)))
            except (FlushTimeout, TableMoved) as error:
                if left == 0.0:
                    raise not_settled(table, timeout) if isinstance(error, TableMoved) else error from None
                failed = error
        raise AssertionError

    def at_home(self, table: str, begin: Callable[[], Steps[T]]) -> Steps[T]:
        """The steps; on a cluster from their beginning where rows turn out to be at home in other shards.

        Raises ``RedisRefused`` where that does not end.
        """
        deadline = time.monotonic() + CLOSED_FOR_S
        for pause in pauses():
            try:
                return (yield from begin())
            except ShardMoved:
                yield from self.places.look_again(table)
            if time.monotonic() + pause > deadline:
                raise self.places.own.disagrees(self.places.own.ways[0])
            yield Pause(pause)
        raise AssertionError

    def invalidate(self, table: str, id: Id, wait: float | None, route: Route | None = None) -> Steps[bool]:
        """Whether nothing is cached any more."""

        def invalidate() -> Steps[bool]:
            wanted = yield from self.wanted_row(table, id, route=route)
            return (yield from self._cache.invalidate(wanted, table, wait))

        return self.at_home(table, invalidate)

    def invalidate_many(self, table: str, ids: Sequence[Id], route: Route | None = None) -> Steps[list[bool]]:
        """For each id, whether nothing is cached any more."""

        def invalidate_many() -> Steps[list[bool]]:
            wanted = yield from self.wanted_rows(table, ids, route)
            return (yield from self._cache.invalidate_many(wanted))

        return self.at_home(table, invalidate_many)

    def _cache_key(self, table: str, key: str | Mapping[str, str]) -> Steps[str]:
        found = self._directory.known(table)
        if found is None:
            found = yield from self._directory.find(table)
        return self._name(table, found, key)

    def wanted_row(self, table: str, id: Id, given: Any = None, route: Route | None = None) -> Steps[Wanted]:
        """The row's cache key and shard; table and id are validated as a write's are.

        ``given``: the id as the caller has it, if that is another form of it.
        """
        key = row_key(table, id)
        where = yield from self._cache_key(table, key)
        way = self.places.way(table, key, None if route is None else route_text(route))
        named = id if given is None else given
        if self._is_clustered:
            return Wanted(way.entry(where), named, way.keys, way.shard)
        return Wanted(where, named, way.keys)

    def wanted_rows(self, table: str, ids: Sequence[Id], route: Route | None = None) -> Steps[list[Wanted]]:
        """The same for each of them."""
        keys = [row_key(table, id) for id in ids]
        text = None if route is None else route_text(route)
        found = (yield from self._directory.find(table)) if keys else TableKey(table)
        each = [
            (self._name(table, found, key), id, self.places.way(table, key, text))
            for key, id in zip(keys, ids, strict=True)
        ]
        if self._is_clustered:
            return [Wanted(way.entry(where), id, way.keys, way.shard) for where, id, way in each]
        return [Wanted(where, id, way.keys) for where, id, way in each]

    def _name(self, table: str, found: TableKey, key: str | Mapping[str, str]) -> str:
        made = cache_key(self._prefix, found, key)
        if self.keys.owns(made):
            raise InvalidWrite(f"{table}: {made!r} is a key of the queue itself; set a prefix for cache keys")
        return made


class ObservedCore(Core):
    """A core whose writes an observer hears of."""

    def __init__(self, settings: Settings, places: Places, observer: Observer) -> None:
        super().__init__(settings, places)
        self._observer = observer

    def send(
        self,
        writes: Sequence[Write],
        variant: Callable[[QueueKeys], Variant] | None = None,
        sizes: list[int] | None = None,
        wanted: Assurance | None = None,
        admits: bool = True,
        as_group: bool = False,
    ) -> Steps[Accepted]:
        """See :meth:`Core.send`."""
        observer, sizes = self._observer, []
        try:
            accepted = yield from super().send(writes, variant, sizes, wanted, admits, as_group)
        except (EntryChanged, ShardMoved):  # no failure: it is tried again, or need not be written
            raise
        except Exception as error:
            for write in writes:
                observer.write_failed(write.table, write.op, error)
            raise
        for write, size in zip(writes, sizes, strict=True):
            observer.wrote(write.table, write.op, size)
        return accepted


def _not_one_way(writes: Sequence[Write]) -> RedisRefused:
    tables = ", ".join(dict.fromkeys(write.table for write in writes))
    return RedisRefused(
        f"the rows of a group ({tables}) have had no shard in common for {CLOSED_FOR_S:.0f} s: nothing was "
        "written. Is one of the tables being moved? Enter the group again"
    )


def send_all(
    core: Core,
    writes: Sequence[Write],
    wanted: Assurance | None,
    keep: Callable[[Sequence[int], Accepted], Sequence[AnyReceipt]],
) -> Steps[None]:
    """Sends writes; those for one shard are all accepted, or none of them.

    ``keep`` is told the positions of those that have been, and makes their receipts.
    """
    yield from core.admit(writes)
    left = list(range(len(writes)))
    kept: list[tuple[Sequence[AnyReceipt], str | None]] = []
    while left:
        done: set[int] = set()
        for part in core.parts([writes[position] for position in left]):
            positions = [left[number] for number in part]
            try:
                accepted = yield from core.send(
                    [writes[position] for position in positions], wanted=wanted, admits=False
                )
            except ShardMoved:
                break
            kept.append((keep(positions, accepted), accepted.unreached))
            done.update(positions)
        left = [position for position in left if position not in done]
    for receipts, unreached in kept:
        yield from assure(receipts, unreached, wanted)


def make_core(
    settings: Settings, sessions: SessionPool, socket_timeout: float | None, *, is_clustered: bool = False
) -> Core:
    """A core that is observed and traced as the settings say; ``socket_timeout``: of its connections, s."""

    def way(keys: QueueKeys, shard: str) -> Enqueue:
        return Enqueue(keys, sessions, socket_timeout, shard)

    places = Places(QueueKeys(settings.queue), settings.shards, way, is_clustered=is_clustered)
    observer = guarded(settings.observer)
    core = Core(settings, places) if observer is None else ObservedCore(settings, places, observer)
    if settings.tracer is None:
        return core
    from .opentelemetry import TracedCore  # noqa: PLC0415 - not everybody has what it imports

    return cast(Core, TracedCore(core, settings.tracer))
