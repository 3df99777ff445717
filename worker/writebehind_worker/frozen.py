"""A frozen batch: what the owner has claimed, never cut or stamped again. No I/O."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from functools import cached_property
from operator import attrgetter

from .received import Message, declared_size, receive

_member = attrgetter("member")
_SEQ = re.compile(rb'\{"seq":([0-9]{1,16}),"table":')


class FrozenBatch:
    """``items`` oldest first, as they are in Redis; ``id`` is ``epoch << 32 | n``, unique in the life of the
    ledger; ``clock`` is the highest seq that the queue had given out; ``size_bytes`` is that of all items,
    packed columns unpacked; ``sizes`` those of the items as they are.
    """

    def __init__(self, id: int, items: Sequence[bytes], clock: int, size_bytes: int | None = None) -> None:
        self.id, self.items, self.clock = id, items, clock
        self.sizes = array("I", map(len, items))  # found out while they are in the core's cache
        self.size_bytes = sum(len(i) + declared_size(i) for i in items) if size_bytes is None else size_bytes

    @cached_property
    def messages(self) -> Sequence[Message]:
        """The items as they are read one by one: only where `digest` cannot read them at once.

        Each write of a group is one, in the place of the group.
        """
        read = [receive(i, item, self.clock) for i, item in enumerate(self.items)]
        if not any(map(_member, read)):
            return read
        return [one for message in read for one in message.members or (message,)]

    @property
    def applied_seq(self) -> int:
        """The highest seq in it; 0 if none has one."""
        return max((m.seq for m in self.messages if m.seq is not None), default=0)


def stamped_seq(item: bytes) -> int | None:
    """The seq that our producer script put in front of an item; ``None`` for anybody else's."""
    found = _SEQ.match(item)
    return int(found[1]) if found and b',"key":"' in item else None


def count_applied_before(items: Iterable[bytes], applied_seq: int, clock: int) -> tuple[int, bool]:
    """How many items, oldest first, have been applied before Redis went back in time; whether that is all.

    Items up to the last one with ``seq <= applied_seq``, the raw ones among them included; the count stops
    at the first newer one, since seqs grow along the list. One beyond the queue's clock is not ours.
    ``scan.lua`` does the same for the items that wait.
    """
    count = 0
    for position, item in enumerate(items, start=1):
        seq = stamped_seq(item)
        if seq is None or seq > clock:
            continue
        if seq > applied_seq:
            return count, True
        count = position
    return count, False


def split_applied_before(
    messages: Sequence[Message], rollback_seq: int, rollback_items: int
) -> tuple[Sequence[Message], Sequence[Message], int]:
    """(applied before a rollback of Redis, to be applied, rollback items left for the next batches)."""
    for i, message in enumerate(messages):
        if message.position >= rollback_items:
            return messages[:i], messages[i:], 0
        if message.seq is not None and message.seq > rollback_seq:
            return messages[:i], messages[i:], 0
    return messages, [], rollback_items - (messages[-1].position + 1 if messages else 0)
