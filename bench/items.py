"""A load as it waits in Redis: for the worker as the library leaves it, for the others as plain JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from writebehind.message import Write, cache_fields, make_write
from writebehind_worker.config import Config

from .load import TABLE, Load
from .wire import lpush, pack

STAGED = b"bench:staged"
"""Where a list waits until it is renamed to the queue: all its items become visible at once."""

_TTL_S = 3600


@dataclass(frozen=True, slots=True)
class Items:
    """``entries`` sets the cache entries that are pending; seqs run from ``first_seq``."""

    messages: Sequence[bytes]
    entries: bytes
    first_seq: int

    @property
    def last_seq(self) -> int:
        return self.first_seq + len(self.messages) - 1

    def commands(self) -> Iterator[bytes]:
        """What brings them to Redis, staged."""
        yield self.entries
        yield from lpush(STAGED, self.messages)

    def batches(self) -> Iterator[range]:
        """Positions, cut as the worker with its default settings cuts its batches."""
        start, size, config = 0, 0, Config()
        for at, message in enumerate(self.messages):
            size += len(message)
            if at > start and (at - start == config.batch_size or size > config.batch_bytes):
                yield range(start, at)
                start, size = at, len(message)
        yield range(start, len(self.messages))


def cache_key(id: int) -> str:
    return f"{TABLE}:{id}"


def stamped(seq: int, message: bytes) -> bytes:
    """As the script that accepts a message puts its seq in front."""
    return b'{"seq":%d,%b' % (seq, message[1:])


def make_items(load: Load) -> Items:
    """As if the library had accepted every write just now, into an empty cache."""
    first_seq = time.time_ns() // 1000 - len(load.writes)
    messages: list[bytes] = []
    entries: dict[int, bytes] = {}
    for seq, (id, data) in enumerate(load.writes, first_seq):
        write = make_write(load.op, TABLE, id, data)
        messages.append(stamped(seq, write.message(cache_key(id), _TTL_S)))
        entries[id] = entry(load.op, id, seq, write)
    return Items(messages, b"".join(entries.values()), first_seq)


def entry(op: Literal["put", "increment"], id: int, seq: int, write: Write) -> bytes:
    """A pending entry: the row, or for an increment of what was not cached a marker."""
    fields = cache_fields(write.columns) if op == "put" else ["@is", "marker"]
    return pack(b"HSET", cache_key(id).encode(), b"@seq", b"%d" % seq, *(f.encode() for f in fields))


def plain_items(load: Load) -> list[bytes]:
    """What an application pushes that has no library."""
    return [json.dumps(plain_item(load.op, id, data)).encode() for id, data in load.writes]


def plain_item(op: str, id: int, data: Mapping[str, object]) -> dict[str, object]:
    return {"table": TABLE, "op": op, "id": id, "data": dict(data)}
