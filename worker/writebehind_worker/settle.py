"""What the cache must hear of a flushed batch. No I/O."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

import msgspec

from .received import Message

Latest = dict[str | None, tuple[int, int, bool]]
"""Cache key → of the last of some messages that changed the entry: seq, time to live, s, if it is a put."""


class Settlement(msgspec.Struct, gc=False):
    """One cache entry: the last write to it that was applied, the last that was not (seqs; 0: none).

    ``is_put``: of the applied one. What an entry shows after a put is of nothing before it.
    """

    cache_key: str
    ttl_s: int
    applied_seq: int = 0
    rejected_seq: int = 0
    is_put: bool = False


def packed(entries: Iterable[Settlement]) -> bytes:
    """As settle_entries.lua reads them."""
    puts: list[str | int] = []
    others: list[str | int] = []
    for e in entries:
        if e.is_put and not e.rejected_seq:
            puts += (e.cache_key, str(e.applied_seq), e.ttl_s)
        else:
            others += (e.cache_key, str(e.applied_seq), e.ttl_s, e.rejected_seq and str(e.rejected_seq))
    return msgspec.msgpack.encode((puts, others))


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
            # Seqs that do not ascend are forged, or of a group, which has one: the entry may show either then
            if message.seq >= entry.applied_seq:
                is_alone = message.seq > entry.applied_seq or entry.is_put
                entry.is_put = message.op == "put" and is_alone
            entry.applied_seq, entry.ttl_s = max(entry.applied_seq, message.seq), message.ttl_s
    return list(found.values())


def still_shown(entries: Iterable[Settlement], later: Sequence[Latest]) -> Iterable[Settlement]:
    """Without the entries that a frozen batch of ``later`` changes as well: that one settles them.

    Such an entry shows the later write already, and whoever owns the queue then settles what is frozen. Of
    hot rows it is most: Redis is not asked about each of them once a unit.
    """
    for latest in filter(None, later):
        # By seq: a unit that is flushed in parts is among the later ones, with what its own parts hold.
        entries = [
            entry
            for entry in entries
            if entry.rejected_seq
            or (last := latest.get(entry.cache_key)) is None
            or last[0] <= entry.applied_seq
        ]
    return entries
