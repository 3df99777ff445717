"""What the cache must hear of a flushed batch. No I/O."""

from __future__ import annotations

from collections.abc import Container, Iterable

import msgspec

from .received import Message


class Settlement(msgspec.Struct, gc=False):
    """One cache entry: the last write to it that was applied, the last that was not (seqs; 0: none)."""

    cache_key: str
    ttl_s: int
    applied_seq: int = 0
    rejected_seq: int = 0


def settlements(messages: Iterable[Message], buried: Container[int]) -> list[Settlement]:
    """One for each cache key of the batch; ``buried`` holds the positions of its dead letters.

    The entry of a retried write is removed whatever became of it: that it had no effect, its dead letter
    being gone, nothing tells a next owner.
    """
    found: dict[str, Settlement] = {}
    for message in messages:
        if message.cache_key is None or message.seq is None:
            continue
        entry = found.get(message.cache_key)
        if entry is None:
            entry = found[message.cache_key] = Settlement(message.cache_key, message.ttl_s)
        if message.position in buried or message.retry is not None:
            entry.rejected_seq = max(entry.rejected_seq, message.seq)
        else:
            entry.applied_seq, entry.ttl_s = max(entry.applied_seq, message.seq), message.ttl_s
    return list(found.values())
