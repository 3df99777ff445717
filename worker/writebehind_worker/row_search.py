"""Where the pending writes of one row are: looked for in queue and batches, part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from redis import Redis

from writebehind.identity import scalar_text
from writebehind.keys import QueueKeys

from .frozen import stamped_seq
from .moments import as_number
from .nodes import home
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


class _Group(msgspec.Struct, gc=False):
    group: list[msgspec.Raw]


_decode = msgspec.json.Decoder(_Head).decode
_decode_group = msgspec.json.Decoder(_Group).decode
_decode_id = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def singles(item: bytes) -> Sequence[bytes]:
    """The texts of the writes of a group; of anything else the item itself."""
    if b'"group"' not in item:
        return (item,)
    try:
        return [bytes(member) for member in _decode_group(item).group]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return (item,)


class RowMatcher:
    """Tells which items of a queue mean one row; of a group that is one of its writes.

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
            for one in singles(item):
                texts = self._texts(one)
                if texts is None:
                    continue
                key = self._canonical(texts)
                if None in key or None in self._key:
                    doubtful.append((place, texts))
                elif key == self._key:
                    found.append(place)
        return sorted({*found, *self._equal(doubtful)})

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
    """A pending write of the row. In its ``queue`` ``ahead`` writes go before it, the frozen ones included.

    Of a frozen ``batch`` it is number ``position`` of ``size``. ``age_s`` and ``seq``: of a raw message they
    are not known. ``fault``: why the worker will not take it.
    """

    queue: str
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
    batches: list[int] = []
    is_whole: bool = True
    moved: bool = False


class _Part(msgspec.Struct):
    queue: str
    items: list[bytes]
    length: int
    inflight: list[int]
    acked: int
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
    last: list[bytes] = []  # the part that was looked at last, just before ``index``
    is_doubtful = False  # it may have moved on further than we know
    first = part = _read_part(client, keys, 0, 0)
    while limit is None or looked < limit:
        before, part = part, _read_part(client, keys, index, part_size)
        moved = moved or part.length != before.length or _were_taken(before, part)
        # What was pushed since is in front, and what we have seen has moved on by as much.
        is_doubtful = bool(last) and (is_doubtful or _were_taken(before, part))
        grown = max(0, part.length - before.length) if last else 0
        start = index + max(grown, _moved_by(part.items, last) if is_doubtful else 0)
        items = part.items[start - index :]
        if limit is not None:
            items = items[: limit - looked]
        for place in matcher(items):
            write = _write(items[place], part, matcher)
            write.ahead = part.length - 1 - (start + place)
            found[_identity(write) or ("raw", looked + place)] = write
        index = start + len(items)
        if items:
            last, is_doubtful = items, False
        looked += len(items)
        progress(looked, part.length)
        if index >= part.length or not part.items:
            is_whole = True
            break
        part_size = _next_size(part_size, part.items)
    end = _read_part(client, keys, 0, 0)
    frozen = 0
    for batch in end.inflight:
        writes, size = _search_batch(client, keys, matcher, batch, end)
        for write in writes:
            write.ahead += frozen
            identity = _identity(write) or (batch, write.position)
            found.pop(identity, None)
            found[identity] = write
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
            write = _write(items[place], end, matcher)
            write.batch, write.position, write.ahead = batch, start + place + 1, start + place
            found.append(write)
        start += len(items)
        if len(items) < part_size:
            break
        part_size = _next_size(part_size, items)
    for write in found:
        write.size = start
    return found, start


def _read_part(client: Redis, keys: QueueKeys, start: int, size: int) -> _Part:
    pipe: Any = home(client, keys.clock).pipeline()
    pipe.llen(keys.queue).lrange(keys.inflight, 0, -1).get(keys.acked).hmget(keys.clock, "seq").time()
    if size:
        pipe.lrange(keys.queue, start, start + size - 1)
    length, inflight, acked, (clock,), (seconds, micros), *items = pipe.execute()
    return _Part(
        keys.queue,
        items[0] if items else [],
        length,
        [as_number(batch, keys.inflight) for batch in inflight],
        as_number(acked, keys.acked),
        as_number(clock, keys.clock),
        seconds * 1_000_000 + micros,
    )


def _next_size(size: int, items: Sequence[bytes]) -> int:
    is_small = sum(map(len, items)) < _PART_BYTES
    return min(_MOST_IN_PART, size * 2) if is_small else max(1, size // 2)


def _were_taken(before: _Part, part: _Part) -> bool:
    """Whether a batch was frozen in between."""
    return part.inflight != before.inflight or part.acked != before.acked


def _moved_by(items: Sequence[bytes], last: Sequence[bytes]) -> int:
    """By how much ``last``, which stood just before these, has moved on; 0 if it cannot be told.

    The length tells it, unless some were taken at the other end. Then those that are met again do: only
    stamped ones can be told from their likes, and all between must agree, for anybody may push one twice.
    """
    places = {item: place for place, item in enumerate(last) if stamped_seq(item) is not None}
    moves = Counter(place + len(last) - places[item] for place, item in enumerate(items) if item in places)
    for moved, _ in moves.most_common(1):
        newer = max(0, moved - len(last))  # pushed since we began, in front of what we have seen
        if items[newer:moved] == last[newer + len(last) - moved :][: len(items) - newer]:
            return moved
    return 0


def _identity(write: FoundWrite) -> object:
    """What it is known by if it is met again; ``None`` for a raw message, which may have its likes."""
    return (write.seq, write.body) if write.seq else None


def _write(item: bytes, part: _Part, matcher: RowMatcher) -> FoundWrite:
    # A message that was stamped since the clock was read is as good as one from before.
    message: Message = receive(0, item, max(part.clock, stamped_seq(item) or 0))
    if message.members:
        texts = zip(message.members, singles(item), strict=False)
        message = next((member for member, text in texts if matcher([text])), message)
    return FoundWrite(
        queue=part.queue,
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
