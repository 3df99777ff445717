"""The queue in Redis as its owner sees it: claiming, settling, acknowledging.

Each call first checks in Redis that what we believe is so; where it is not, :class:`OwnershipLost` makes
us read everything again. Replies are never assumed: the client that is given must not retry by itself.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import msgspec
from redis import Redis
from redis.exceptions import NoPermissionError, NoScriptError, OutOfMemoryError, ResponseError

from writebehind.identity import TableKey
from writebehind.keys import QueueKeys
from writebehind.receipt import REJECTED_BOUND, Rejection
from writebehind.script import Argument, Script

from .errors import NewerVersion, OwnershipLost
from .frozen import FrozenBatch
from .history import Holdings
from .nodes import slot_of
from .pause import Pause, read_pause
from .redis_number import number_in
from .redis_server import RedisLink
from .settle import Settlement, packed

_OWN = Script("writebehind_worker", "own")
_CLAIM = Script("writebehind_worker", "claim")
_SETTLE = Script("writebehind_worker", "settle")
_ACKNOWLEDGE = Script("writebehind_worker", "acknowledge")
_SCAN = Script("writebehind_worker", "scan")
_ANNOUNCE = Script("writebehind_worker", "announce")

CONNECTIONS = 2
"""As many as use it at the same time: a link that has them open makes no more."""

KEYS_VERSION = 2
"""Of the queue's own keys in Redis, and of what they mean; an owner notes it, and stops at a later one."""

TOMBSTONE_TTL_S = 10
SETTLED_AT_ONCE = 500  # cache keys a script call, so that Redis answers others in between
_PUBLISHED_AT_ONCE = 50  # messages of 64 kB at most
_READ_AT_ONCE = 1000
_SCANNED_AT_FIRST, _SCANNED_AT_ONCE = 64, 4096  # items a script call, more ...
_SCANNED_BYTES = 1 << 20  # ... while they are small
_RAW_TAIL = -1  # claim.lua: the oldest item does not tell its age


class OwnedQueue:
    """The owner's view. For two threads: one that claims, and one that settles and acknowledges.

    ``whole``: the keys of the queue that it is a shard of: what is paused and told is that queue's.
    """

    def __init__(self, link: RedisLink, keys: QueueKeys, token: str, whole: QueueKeys | None = None) -> None:
        self._link, self._client, self._keys, self._token = link, link.client, keys, token
        self._whole = whole or keys
        self._connections = 0
        self._turn = threading.Lock()  # what a script is told of our beliefs is so until it has answered
        self._epoch = 0
        self._inflight: deque[int] = deque()
        self._acked = 0
        self._claimed = 0  # batches claimed under this epoch
        self._raw_since: float | None = None
        self.clock_offset_us = 0

    @property
    def frozen(self) -> int:
        """Batches claimed and not yet acknowledged."""
        return len(self._inflight)

    def epoch_floor(self) -> int:
        """The epoch that Redis knows: where Postgres went back in time, it would give it out again."""
        try:
            return int(cast(bytes | None, self._client.get(self._keys.epoch)) or 0)
        except ValueError as error:
            raise OwnershipLost(f"{self._keys.epoch} in Redis is no number ({error})") from error

    def own(
        self, epoch: int, applied_seq: int, *, generation: int | None = None, acked: int | None = None
    ) -> Holdings:
        """Installs our epoch; from then on every call of a former owner is refused.

        ``generation`` begins a new one and ``acked`` sets the last batch acknowledged, where Redis or
        Postgres went back in time.
        """
        k = self._keys
        status, *rest = _OWN(
            self._client,
            [k.lease, k.epoch, k.clock, k.applied, k.acked, k.inflight],
            [self._token, epoch, applied_seq, _or_empty(generation), _or_empty(acked), KEYS_VERSION],
        )
        if status == b"newer":
            raise NewerVersion(f"the keys of {k.queue} in Redis have", int(rest[0]), KEYS_VERSION)
        if status != b"ok":
            raise OwnershipLost("another worker holds the lease")
        try:
            now, clock, generation_now, applied, acked_now, *inflight = map(int, rest)
        except ValueError as error:
            raise OwnershipLost(
                f"a key of the queue holds what no worker has put there ({error}); look at "
                f"{k.inflight}, {k.clock}, {k.applied} and {k.acked} in Redis"
            ) from error
        self._epoch, self._claimed, self._acked = epoch, 0, acked_now
        self._connections = self._link.connections
        self._inflight = deque(inflight)
        self._saw_time(now)
        return Holdings(now, clock, generation_now, applied, acked_now, inflight)

    def read_frozen(self, batch: int, clock: int) -> FrozenBatch:
        """A batch that a former owner, or we, have claimed before."""
        items = list(self._items(self._keys.processing(batch)))
        return FrozenBatch(batch, items, clock)

    def count_applied_before(self, applied_seq: int, clock: int, progress: Callable[[], None]) -> int:
        """As :func:`frozen.count_applied_before`, of the waiting items, by looks that are short for Redis.

        ``progress`` is called after each: millions of items take many seconds.
        """
        count = passed = 0
        most = _SCANNED_AT_FIRST
        while True:
            seen, last, is_over, size = _SCAN(
                self._client, [self._keys.queue], [passed, most, applied_seq, clock]
            )
            progress()
            if last:
                count = passed + last
            passed += seen
            if is_over or seen < most:
                return count
            most = min(most * 2, _SCANNED_AT_ONCE) if size < _SCANNED_BYTES else max(1, most // 2)

    def _items(self, key: str) -> Iterator[bytes]:
        start = 0
        while chunk := cast(list[bytes], self._client.lrange(key, start, start + _READ_AT_ONCE - 1)):
            yield from chunk
            start += len(chunk)

    def claim(self, most_items: int, most_bytes: int, write_delay_s: float) -> FrozenBatch | Pause | float:
        """Freezes the next batch, or tells for how many seconds there will be none.

        0.0: the queue is empty; else its items are younger than ``write_delay_s``, and fewer than a batch.
        A `Pause` lasts until an operator ends it.
        """
        with self._turn:
            return self._claim(most_items, most_bytes, write_delay_s)

    def _claim(self, most_items: int, most_bytes: int, write_delay_s: float) -> FrozenBatch | Pause | float:
        batch = self._epoch << 32 | (self._claimed + 1)
        k = self._keys
        if self._raw_since is not None and time.monotonic() - self._raw_since >= write_delay_s:
            write_delay_s = 0.0
        keys = [k.queue, k.inflight, k.lease, k.epoch, k.acked, k.clock, k.processing(batch), k.paused]
        if self._whole is not k and not self._link.is_clustered:  # another slot; there each shard is paused
            keys.append(self._whole.paused)
        arguments: list[Argument] = [
            self._token, self._epoch, ",".join(map(str, self._inflight)), self._acked, batch,
            most_items, most_bytes, int(write_delay_s * 1e6),
        ]  # fmt: skip
        read = ("LRANGE", k.processing(batch), 0, -1)
        answer, items = self._at_once(_CLAIM.command(keys, arguments), read)
        if isinstance(answer, NoScriptError):
            answer, items = self._at_once(_CLAIM.whole_command(keys, arguments), read)
        for reply in (answer, items):
            if isinstance(reply, Exception):
                raise reply
        status, *rest = answer
        if status == b"lost":
            raise OwnershipLost(rest[0].decode())
        if self._link.connections != self._connections:
            raise OwnershipLost("the connection to Redis was renewed: another server may answer now")
        if status == b"paused":
            return read_pause(rest[0])
        if status == b"held":
            return Pause(0, rest[0].decode(errors="replace"), "reshard")
        if status == b"wait":
            return self._wait(int(rest[0]), write_delay_s)
        self._raw_since = None
        if status == b"empty":
            return 0.0
        self._claimed += 1
        self._inflight.append(batch)
        now, clock, taken, size = rest
        if len(items) != int(taken):  # a proxy that reads from a replica, say
            raise OwnershipLost("Redis does not show the batch that was claimed: it is read again")
        self._saw_time(int(now))
        return FrozenBatch(batch, items, number_in(clock, f"seq of {k.clock}"), int(size))

    def _at_once(self, *commands: Sequence[Argument]) -> list[Any]:
        """The replies to commands that are sent together: an exception where Redis refuses one."""
        pipe: Any = self._client.pipeline(transaction=False)
        with pipe:
            for command in commands:
                pipe.execute_command(*command)
            replies: list[Any] = pipe.execute(raise_on_error=False)
        return replies

    def _wait(self, left_us: int, write_delay_s: float) -> float:
        if left_us != _RAW_TAIL:
            return left_us / 1e6
        if self._raw_since is None:
            self._raw_since = time.monotonic()
        return max(0.001, self._raw_since + write_delay_s - time.monotonic())

    def _saw_time(self, now_us: int) -> None:
        self.clock_offset_us = now_us - time.time_ns() // 1000

    def now_us(self) -> int:
        """The time by the server's clock, which stamps every seq, as far as we know it."""
        return time.time_ns() // 1000 + self.clock_offset_us

    def settle(self, entries: Sequence[Settlement]) -> None:
        """Gives durable cache entries their time to live."""
        entries = self._in_reach(entries)
        parts = [entries[i : i + SETTLED_AT_ONCE] for i in range(0, len(entries), SETTLED_AT_ONCE)]
        # One by one each would wait for what comes between: together Redis is busy all the time.
        replies = (
            self._at_once(*(_SETTLE.command(*self._settlement(part)) for part in parts)) if parts else []
        )
        for part, reply in zip(parts, replies, strict=True):
            if isinstance(reply, NoScriptError | NoPermissionError):
                self._settle_again(part)
            elif isinstance(reply, Exception):
                raise reply

    def _in_reach(self, entries: Sequence[Settlement]) -> Sequence[Settlement]:
        if not self._link.is_clustered:
            return entries
        slot = slot_of(self._keys.queue)  # a raw message may name any key: no script may touch another slot's
        return [entry for entry in entries if slot_of(entry.cache_key) == slot]

    def _settle_again(self, entries: Sequence[Settlement]) -> None:
        try:
            _SETTLE(self._client, *self._settlement(entries))
        except NoPermissionError:  # a raw message may name any key: settle the others
            if len(entries) > 1:
                self._settle_again(entries[: len(entries) // 2])
                self._settle_again(entries[len(entries) // 2 :])

    def _settlement(self, entries: Sequence[Settlement]) -> tuple[Sequence[str], Sequence[Argument]]:
        """Keys and arguments of the script."""
        keys = [e.cache_key for e in entries] if self._link.is_clustered else []
        return keys, [TOMBSTONE_TTL_S, packed(entries)]

    def publish(self, messages: Sequence[bytes]) -> list[ResponseError]:
        """Sends them to who listens; what Redis refused is returned. The entries are settled by now."""
        refused: list[ResponseError] = []
        for i in range(0, len(messages), _PUBLISHED_AT_ONCE):
            those = messages[i : i + _PUBLISHED_AT_ONCE]
            for reply in self._at_once(*(("PUBLISH", self._whole.changes, message) for message in those)):
                if isinstance(reply, ResponseError):
                    refused.append(reply)
                elif isinstance(reply, Exception):
                    raise reply
        return refused

    def announce(self, applied_seq: int) -> None:
        """Tells receipts that batches with this highest seq are in Postgres, before they are settled."""
        k = self._keys
        _ANNOUNCE(self._client, [k.clock, k.lease, k.epoch], [self._token, self._epoch, applied_seq])

    def acknowledge(
        self,
        batches: Sequence[int],
        applied_seq: int,
        last_batch: int,
        rejections: Sequence[Rejection],
        entries: Sequence[Settlement] = (),
    ) -> None:
        """Drops the oldest frozen batches: they are in Postgres, and ``last_batch`` the last one that is.

        ``applied_seq`` is the highest seq in them. ``entries``, at most `SETTLED_AT_ONCE`, are settled
        before, in the same round trip.
        """
        entries = self._in_reach(entries)
        status, *why = self._acknowledge(batches, applied_seq, last_batch, rejections, entries)
        if status == b"unsettled":
            self.settle(entries)  # one by one, if need be
            status, *why = self._acknowledge(batches, applied_seq, last_batch, rejections, ())
        if status != b"ok":
            raise OwnershipLost(why[0].decode())

    def _acknowledge(
        self,
        batches: Sequence[int],
        applied_seq: int,
        last_batch: int,
        rejections: Sequence[Rejection],
        entries: Sequence[Settlement],
    ) -> Sequence[bytes]:
        """The script's answer."""
        k = self._keys
        cache_keys, settled = self._settlement(entries)
        arguments: list[Argument] = [
            self._token, self._epoch, ",".join(map(str, batches)), applied_seq, REJECTED_BOUND, last_batch,
            *settled,
        ]  # fmt: skip
        for rejection in rejections:
            arguments += (rejection.seq, msgspec.json.encode(rejection))
        own = [k.inflight, k.lease, k.epoch, k.applied, k.acked, k.rejected]
        names = [*own, *map(k.processing, batches), *cache_keys]
        with self._turn:
            try:
                answer: list[bytes] = _ACKNOWLEDGE(self._client, names, arguments)
            except NoPermissionError:
                if not cache_keys:
                    raise
                return [b"unsettled"]  # a raw message may name any key
            if answer[0] == b"ok":
                for _ in batches:
                    self._inflight.popleft()
                self._acked = last_batch
        return answer

    def keep_alive(self) -> None:
        """So that an idle owner's connections stay open; while the queue is not used."""
        self._link.touch(CONNECTIONS)

    def peek(self, block_s: float) -> None:
        """Returns when an item may be there, at the latest after ``block_s``.

        It moves the oldest item to where it is: a blocking move elsewhere would let the connection of a
        dead client take an item after its death. A full Redis refuses it (``OutOfMemoryError``).
        """
        self._client.blmove(self._keys.queue, self._keys.queue, block_s, "RIGHT", "RIGHT")  # type: ignore[arg-type]


def publish_tables(client: Redis, keys: QueueKeys, tables: Mapping[str, TableKey]) -> None:
    """Tells producers the tables' names and keys, for canonical cache keys."""
    fields: dict[Any, Any] = {name: msgspec.json.encode(key) for name, key in tables.items()}
    if fields:
        with contextlib.suppress(OutOfMemoryError):  # the next reading of the catalog tells them
            client.hset(keys.tables, mapping=fields)


def _or_empty(value: int | None) -> Argument:
    return "" if value is None else value
