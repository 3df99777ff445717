"""Sending dead letters again: each as a new write that names the letter, so that it takes effect once."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import Any, NamedTuple, cast

import msgspec
import psycopg
from redis import Redis

from writebehind.batch import MAX_BATCH
from writebehind.carrier import Carrier
from writebehind.cluster_carrier import ClusterCarrier
from writebehind.division import CLOSED_FOR_S
from writebehind.enqueue import Enqueue, ShardMoved, pack_write_with_frames
from writebehind.errors import QueueFull
from writebehind.keys import QueueKeys
from writebehind.message import MAX_COLUMNS, Op
from writebehind.packing import packed_fields
from writebehind.pauses import pauses
from writebehind.places import Places, View
from writebehind.session import SessionPool
from writebehind.shards import shards_of
from writebehind.translate import redis_errors_as_ours

from .dead import PAGE, Letter
from .errors import FatalError
from .nodes import is_clustered
from .packed_rows import frames_of
from .received import Message, receive
from .rehoming import at_home, renamed

_BYTES_AT_ONCE = 8 << 20
_MOVED_S = 0.05
_OURS = ("seq", "retry", "force")
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Shown(NamedTuple):
    """A write to the cache entry of a row: ``fields`` are column, JSON text or frame, ..."""

    table: str
    key: str | Mapping[str, str]
    op: Op
    cache_key: str
    fields: Sequence[str | bytes]
    route: str | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """A message to send. ``shown`` is what its cache entry is to show, of a group one for each of its writes;
    nothing: it is pushed as it is.
    """

    letter: int
    message: bytes
    shown: Sequence[Shown]


def make_retry(letter: Letter, body: bytes, keys: QueueKeys, *, force: bool) -> Retry | None:
    """The write of a dead letter, to be sent again; ``None`` where the body is no JSON object."""
    fields = _fields(body)
    if fields is None:
        return None
    message = _composed(fields, letter.id, force)
    return Retry(letter.id, message, _shown(message, keys) if letter.seq is not None else ())


def make_correction(letter: Letter, body: bytes, corrected: str, keys: QueueKeys, *, force: bool) -> Retry:
    """``corrected`` in the place of the letter's ``body``; it keeps the cache entry if it is the same row.

    Raises:
        FatalError: the worker would not take it for a message.
    """
    fields = _fields(corrected.encode(errors="surrogateescape"))
    if fields is None:
        raise FatalError("--body is no JSON object", "see docs/wire-format.md; the letter is unchanged")
    message = _composed(fields, letter.id, force)
    fault = receive(0, message, 0).fault
    if fault is not None:
        raise FatalError(f"--body: {fault.reason}", "see docs/wire-format.md; the letter is unchanged")
    was = _fields(body) or {}
    is_same_row = all(fields.get(name) == was.get(name) for name in ("table", "id"))
    before, now = _rows_by_entry(_composed(was, letter.id, force)), _rows_by_entry(message)
    if any(now[key] != before[key] for key in before.keys() & now.keys()):
        raise FatalError(
            "--body: its `key` is the cache entry of another row, that of the letter",
            "leave `key` and `ttl` away; the letter is unchanged",
        )
    missing = () if "key" in fields else ("key", "ttl")
    if is_same_row and (kept := [name for name in (*missing, "route") if name in was]):
        fields = {name: was[name] for name in kept} | fields
        message = _composed(fields, letter.id, force)
    return Retry(letter.id, message, _shown(message, keys))


def _rows_by_entry(message: bytes) -> dict[str, tuple[str | None, object]]:
    """Table and id of each write that names its cache entry."""
    read = receive(0, message, 0)
    writes = read.members or (read,)
    return {one.cache_key: (one.table, one.id) for one in writes if one.cache_key is not None}


def _fields(body: bytes) -> dict[str, bytes] | None:
    try:
        return {name: bytes(value) for name, value in _decode(body.decode()).items()}
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError):
        return None


def _composed(fields: Mapping[str, bytes], letter: int, force: bool) -> bytes:
    """`table` in front, where the script puts `seq` before it; values keep their texts."""
    kept = [(n, v) for n, v in fields.items() if n not in _OURS]
    kept.sort(key=lambda member: (member[0] != "table", member[0] == "unpacked"))
    kept.append(("retry", str(letter).encode()))
    if force:
        kept.append(("force", b"true"))
    return b"{" + b",".join(msgspec.json.encode(name) + b":" + value for name, value in kept) + b"}"


def _shown(message: bytes, keys: QueueKeys) -> Sequence[Shown]:
    """The message as the producers' script takes it; nothing if that must not touch the cache for it."""
    read = receive(0, message, 0)
    if read.fault is not None:
        return ()
    found = [_entry(one, keys) for one in read.members or (read,)]
    whole = [one for one in found if one is not None]
    return whole if len(whole) == len(found) else ()


def _entry(read: Message, keys: QueueKeys) -> Shown | None:
    if read.cache_key is None or keys.owns(read.cache_key):
        return None
    assert read.table is not None
    columns = {name: bytes(text) for name, text in (read.columns or {}).items()}
    if len(columns) > MAX_COLUMNS:
        return None
    fields = packed_fields(columns, {} if read.member else frames_of(read))
    return Shown(read.table, read.id, read.op, read.cache_key, fields, read.route)


def chunks(letters: Iterable[Letter]) -> Iterator[list[Letter]]:
    """Cuts a page where the bodies would become too much to hold at once."""
    part: list[Letter] = []
    size = 0
    for letter in letters:
        if part and size + letter.body_bytes > _BYTES_AT_ONCE:
            yield part
            part, size = [], 0
        part.append(letter)
        size += letter.body_bytes
    if part:
        yield part


class Sender:
    """Puts retries into the queue, up to ``max_queue_length``."""

    def __init__(self, client: Redis, keys: QueueKeys, max_queue_length: int) -> None:
        self._client, self._limit = client, max_queue_length
        self._keys = _whole(client, keys)
        self._is_clustered = is_clustered(client)
        self._carrier = ClusterCarrier(cast(Any, client)) if self._is_clustered else Carrier(client)
        sessions = SessionPool()
        self._places = Places(
            self._keys,
            None,
            lambda shard, stamp: Enqueue(shard, sessions, None, stamp),
            is_clustered=self._is_clustered,
        )

    def send(self, retries: Iterable[Retry]) -> Iterator[Sequence[int]]:
        """Sends them in order; yields the letters of each call once it is done.

        Raises:
            QueueFull, RedisFull, RedisRefused, RedisUnavailable: what was sent stays sent.
        """
        for is_raw, run in groupby(retries, key=lambda retry: not retry.shown):
            part = list(run)
            if is_raw:
                self._push(part)
                yield [retry.letter for retry in part]
            else:
                yield from self._accept_all(part)

    def _accept_all(self, retries: Sequence[Retry]) -> Iterator[Sequence[int]]:
        """Each to the shard that its row has now."""
        left, deadline = list(retries), time.monotonic() + CLOSED_FOR_S
        while left:
            view, table = View(self._places), left[0].shown[0].table
            way = _way(view, left[0])
            if (queue := view.queue(table)) != self._keys.queue:
                raise FatalError(
                    f"dead letter {left[0].letter}: {table} is in {queue!r} by now, whose worker "
                    f"knows no letters of {self._keys.queue!r}",
                    "write it anew, or `writebehind dead drop` it",
                )
            part = _one_call([retry for retry in left if _way(view, retry) is way])
            try:
                if any(view.waits(shown.table) for retry in part for shown in retry.shown):
                    raise ShardMoved
                self._accept(way, part)
            except ShardMoved:
                self._carrier.run(self._places.look_again(table))
                if time.monotonic() > deadline:
                    raise self._places.of(table).disagrees(way) from None
                time.sleep(_MOVED_S)
                continue
            yield [retry.letter for retry in part]
            deadline = time.monotonic() + CLOSED_FOR_S
            sent = {retry.letter for retry in part}
            left = [retry for retry in left if retry.letter not in sent]

    def _accept(self, way: Enqueue, retries: Sequence[Retry]) -> None:
        entries: list[str] = []
        packed: list[bytes] = []
        ops: set[Op] = set()
        for retry in retries:
            at_home = self._at_home(way, retry)
            for number, shown in enumerate(at_home.shown):
                entries.append(shown.cache_key)
                ops.add(shown.op)
                message = at_home.message if number == 0 else b""  # of a group it comes with the first
                packed.append(pack_write_with_frames(shown.op, message, shown.fields))
        self._carrier.run(way.steps(entries, ops, packed, self._limit))

    def _at_home(self, way: Enqueue, retry: Retry) -> Retry:
        """On a cluster the row may be in another shard by now, and its entry is named by that."""
        if not self._is_clustered:
            return retry

        def name(entry: str) -> str:
            return at_home(self._keys, entry, way.entry)

        shown = [one._replace(cache_key=name(one.cache_key)) for one in retry.shown]
        return Retry(retry.letter, renamed(retry.message, name), shown)

    def _push(self, retries: Sequence[Retry]) -> None:
        with redis_errors_as_ours("retry"):
            length: int = self._client.llen(self._keys.queue)
            if length + len(retries) > self._limit:
                raise QueueFull(self._keys.queue, length, self._limit)
            self._client.lpush(self._keys.queue, *(retry.message for retry in retries))


def _way(view: View, retry: Retry) -> Enqueue:
    first = retry.shown[0]
    return view.way(first.table, first.key, first.route)


def _one_call(retries: Sequence[Retry]) -> Sequence[Retry]:
    """As many of the first as one call may have writes: Redis does nothing else meanwhile."""
    totals = accumulate(len(retry.shown) for retry in retries)
    return retries[: max(1, sum(total <= MAX_BATCH for total in totals))]


def _whole(client: Redis, keys: QueueKeys) -> QueueKeys:
    """The keys of the queue that a queue is a shard of, if it is one."""
    name, _, _ = keys.queue.rpartition(":")
    whole = QueueKeys(name)
    return whole if name and shards_of(name, keys.queue) and client.exists(whole.layout) else keys


@dataclass(slots=True)
class Returned:
    """Retries that were rejected with one SQLSTATE: how many, and one of them."""

    count: int
    letter: int
    reason: str


@dataclass(slots=True)
class Outcome:
    """What has become of the retries that were sent, as far as it can be told by now."""

    landed: int = 0
    superseded: int = 0
    unknown: int = 0
    returned: dict[str | None, Returned] = field(default_factory=dict)


class Watch:
    """Watches dead letters that are sent again: made before the first, told of each, asked at the end."""

    def __init__(self, conn: psycopg.Connection[Any], *, force: bool) -> None:
        self._conn, self._force = conn, force
        self._sent = array("q")
        self._began = conn.execute("SELECT clock_timestamp()").fetchone()

    def __len__(self) -> int:
        return len(self._sent)

    def sent(self, letters: Iterable[int]) -> None:
        """These have been sent."""
        self._sent.extend(letters)

    def outcome(self, timeout_s: float) -> Outcome:
        """Waits until all are told, up to ``timeout_s``. They come to the queue's end in order."""
        found, deadline = Outcome(), time.monotonic() + timeout_s
        for start in range(0, len(self._sent), PAGE):
            pending = list(self._sent[start : start + PAGE])
            for pause in pauses():
                pending = self._look(pending, found)
                if not pending or time.monotonic() + pause > deadline:
                    break
                time.sleep(pause)
            found.unknown += len(pending)
        return found

    def _look(self, letters: Sequence[int], found: Outcome) -> list[int]:
        """Counts those whose outcome is known; returns the others."""
        began = self._began[0] if self._began else None
        rows = self._conn.execute(
            "SELECT id, coalesce(retried_at >= $2, false), superseded_at IS NOT NULL, sqlstate, reason "
            "FROM writebehind.dead_letters WHERE id = ANY ($1::bigint[]) ORDER BY id",
            [letters, began],
        ).fetchall()
        found.landed += len(letters) - len(rows)
        pending = []
        for letter, has_returned, is_superseded, sqlstate, reason in rows:
            if has_returned:
                found.returned.setdefault(sqlstate, Returned(0, letter, reason)).count += 1
            elif is_superseded and not self._force:
                found.superseded += 1
            else:
                pending.append(letter)
        return pending
