"""Where the pending writes of one row are: looked for in queue and batches, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from redis import Redis

from writebehind.identity import scalar_text
from writebehind.keys import QueueKeys

from .cached_entry import as_number
from .frozen import stamped_seq
from .received import Message, receive
from .resolve import Key

_PART, _MOST_IN_PART = 64, 2000  # items read at once: more while they are small
_PART_BYTES = 1 << 20

Canonical = Callable[[str], str | None]
"""The one spelling of a key's value; ``None`` if only Postgres can tell."""

Ask = Callable[[Sequence[Mapping[str, bytes]]], Sequence[Key | None]]
"""Canonical texts of keys, column → JSON text, by Postgres; ``None`` for one that it cannot read."""


class _Head(msgspec.Struct, gc=False):
    table: str
    id: msgspec.Raw


_decode = msgspec.json.Decoder(_Head).decode
_decode_id = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class RowMatcher:
    """Tells which items of a queue mean one row.

    ``is_table`` says whether a name means its table, ``columns`` are those of its key, ``key`` their texts.
    Without ``ask`` values that only Postgres can compare are compared by their texts.
    """

    def __init__(
        self,
        is_table: Callable[[str], bool],
        columns: Sequence[tuple[str, Canonical]],
        key: Mapping[str, str],
        ask: Ask | None = None,
    ) -> None:
        self._is_table, self._columns, self._ask = is_table, list(columns), ask
        self._names: dict[str, bool] = {}
        self._row = {name: key[name] for name, _ in columns}
        self._key = self._canonical(self._row)
        self.unreadable = 0
        """Items met that are no messages at all."""

    @property
    def canonical_key(self) -> Key:
        """The row's key as dead letters have it; as it was given where Postgres cannot read it."""
        if None not in self._key:
            return tuple(text for text in self._key if text is not None)
        asked = self._ask([self._as_json(self._row)])[0] if self._ask is not None else None
        return asked or tuple(self._row.values())

    def __call__(self, items: Sequence[bytes]) -> list[int]:
        """The places of those that do."""
        found: list[int] = []
        doubtful: list[tuple[int, dict[str, str]]] = []
        for place, item in enumerate(items):
            texts = self._texts(item)
            if texts is None:
                continue
            key = self._canonical(texts)
            if None in key or None in self._key:
                doubtful.append((place, texts))
            elif key == self._key:
                found.append(place)
        return sorted(found + list(self._equal(doubtful)))

    def _texts(self, item: bytes) -> dict[str, str] | None:
        """Column → text of the key, if it is a message to this table with such a key."""
        try:
            head = _decode(item)
            named = self._names.get(head.table)
            if named is None:
                named = self._is_table(head.table)
                if len(self._names) < 1000:
                    self._names[head.table] = named
            if not named:
                return None
            raw = bytes(head.id)
            if raw[:1] != b"{":
                text = scalar_text(raw) if len(self._columns) == 1 else None
                return None if text is None else {self._columns[0][0]: text}
            given = {name: scalar_text(bytes(value)) for name, value in _decode_id(raw).items()}
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.unreadable += 1
            return None
        texts = {name: text for name, text in given.items() if text is not None}
        return texts if len(texts) == len(given) and texts.keys() == self._row.keys() else None

    def _canonical(self, texts: Mapping[str, str]) -> tuple[str | None, ...]:
        return tuple(canonical(texts[name]) for name, canonical in self._columns)

    def _equal(self, doubtful: Sequence[tuple[int, dict[str, str]]]) -> Iterator[int]:
        if not doubtful:
            return
        if self._ask is None:
            yield from (place for place, texts in doubtful if texts == self._row)
            return
        # One question for all: only then do equal keys get the same answer.
        row, *others = self._ask([self._as_json(self._row), *(self._as_json(texts) for _, texts in doubtful)])
        for (place, texts), other in zip(doubtful, others, strict=True):
            if texts == self._row or (other is not None and other == row):
                yield place

    def _as_json(self, texts: Mapping[str, str]) -> dict[str, bytes]:
        return {name: msgspec.json.encode(texts[name]) for name, _ in self._columns}


class FoundWrite(msgspec.Struct):
    """A pending write of the row. In the queue ``ahead`` writes go before it, the frozen ones included.

    Of a frozen ``batch`` it is number ``position`` of ``size``. ``age_s`` and ``seq``: of a raw message they
    are not known. ``fault``: why the worker will not take it.
    """

    op: str
    seq: int | None
    age_s: float | None
    columns: tuple[str, ...]
    cache_key: str | None
    retry: int | None
    fault: str | None
    ahead: int
    batch: int | None = None
    position: int | None = None
    size: int | None = None
    is_committed: bool = False
    body: bytes = b""


class Found(msgspec.Struct):
    """What a search has come to; ``writes`` oldest first.

    ``looked`` of ``length`` items of the queue were looked at, the newest; ``is_whole``: all that were there
    when it began; ``moved``: the queue changed meanwhile, so that a raw message may have been met twice.
    """

    writes: list[FoundWrite]
    looked: int
    length: int
    unreadable: int
    batches: list[int]
    is_whole: bool
    moved: bool


class _Part(msgspec.Struct):
    items: list[bytes]
    length: int
    inflight: list[int]
    clock: int
    now_us: int


def search(
    client: Redis,
    keys: QueueKeys,
    matcher: RowMatcher,
    limit: int | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Found:
    """Looks from the newest item to the oldest, then at the frozen batches: as items move, so none is missed.

    ``limit``: items of the queue to look at, at most; frozen batches are looked at in any case. ``progress``
    is told how many items of how many have been seen.

    Raises:
        redis.RedisError: it does not answer, or a key of the queue is of another type.
    """
    found: dict[object, FoundWrite] = {}
    index = looked = 0
    part_size, moved, is_whole = _PART, False, False
    oldest_seq: int | None = None
    first = part = _read_part(client, keys, 0, 0)
    while limit is None or looked < limit:
        want = part_size if limit is None else min(part_size, limit - looked)
        before, part = part, _read_part(client, keys, index, want)
        # What was pushed since is in front, and what we have seen has moved on by as much.
        pushed = max(0, part.length - before.length)
        moved = moved or part.length != before.length or part.inflight != before.inflight
        items = part.items[_seen_before(part.items, pushed if looked else 0, oldest_seq) :]
        start = index + len(part.items) - len(items)
        for place in matcher(items):
            write = _write(items[place], part)
            write.ahead = part.length - 1 - (start + place)
            found[write.seq or ("raw", looked + place)] = write
        seqs = [seq for item in items if (seq := stamped_seq(item)) is not None and seq <= part.clock]
        oldest_seq = min([*seqs, *([] if oldest_seq is None else [oldest_seq])], default=None)
        index += len(part.items)
        looked += len(items)
        progress(looked, part.length)
        if index >= part.length or not part.items:
            is_whole = True
            break
        size = sum(map(len, part.items))
        part_size = min(_MOST_IN_PART, part_size * 2) if size < _PART_BYTES else max(1, part_size // 2)
    end = _read_part(client, keys, 0, 0)
    frozen = 0
    for batch in end.inflight:
        writes, size = _search_batch(client, keys, matcher, batch, end)
        for write in writes:
            write.ahead += frozen
            found.pop(write.seq, None)
            found[write.seq or (batch, write.position)] = write
        frozen += size
    for write in found.values():
        if write.batch is None:
            write.ahead += frozen
    writes = sorted(found.values(), key=lambda write: write.ahead)
    moved = moved or end.length != first.length or end.inflight != first.inflight
    return Found(writes, looked, end.length, matcher.unreadable, end.inflight, is_whole, moved)


def _search_batch(
    client: Redis, keys: QueueKeys, matcher: RowMatcher, batch: int, end: _Part
) -> tuple[list[FoundWrite], int]:
    """Those of a frozen batch, and how many it has; none if it has been acknowledged since."""
    found: list[FoundWrite] = []
    start, part_size, name = 0, _PART, keys.processing(batch)
    while True:
        items: Any = client.lrange(name, start, start + part_size - 1)
        for place in matcher(items):
            write = _write(items[place], end)
            write.batch, write.position, write.ahead = batch, start + place + 1, start + place
            found.append(write)
        start += len(items)
        if len(items) < part_size:
            break
        size = sum(map(len, items))
        part_size = min(_MOST_IN_PART, part_size * 2) if size < _PART_BYTES else max(1, part_size // 2)
    for write in found:
        write.size = start
    return found, start


def _read_part(client: Redis, keys: QueueKeys, start: int, size: int) -> _Part:
    pipe: Any = client.pipeline()
    pipe.llen(keys.queue).lrange(keys.inflight, 0, -1).hmget(keys.clock, "seq").time()
    if size:
        pipe.lrange(keys.queue, start, start + size - 1)
    length, inflight, (clock,), (seconds, micros), *items = pipe.execute()
    batches = [as_number(batch, keys.inflight) for batch in inflight]
    return _Part(
        items[0] if items else [], length, batches, as_number(clock, keys.clock), seconds * 1_000_000 + micros
    )


def _seen_before(items: Sequence[bytes], pushed: int, oldest_seq: int | None) -> int:
    """How many of these, the newest of a part, have been in the part before it."""
    seen = min(pushed, len(items))
    if oldest_seq is not None:
        for place, item in enumerate(items):
            seq = stamped_seq(item)
            if seq is not None and seq >= oldest_seq:
                seen = max(seen, place + 1)
            elif seq is not None:
                break
    return seen


def _write(item: bytes, part: _Part) -> FoundWrite:
    # A message that was stamped since the clock was read is as good as one from before.
    message: Message = receive(0, item, max(part.clock, stamped_seq(item) or 0))
    return FoundWrite(
        op=message.op,
        seq=message.seq,
        age_s=None if message.seq is None else max(0, part.now_us - message.seq) / 1e6,
        columns=tuple(message.columns or ()),
        cache_key=message.cache_key,
        retry=message.retry,
        fault=None if message.fault is None else message.fault.reason,
        ahead=0,
        body=item,
    )
