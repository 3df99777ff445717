"""The cache entry of a write that is sent again on a cluster: its name tells which shard the row has now."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from writebehind.keys import QueueKeys


def at_home(keys: QueueKeys, entry: str, name: Callable[[str], str]) -> str:
    """The entry where the row is now; ``name`` makes one of a plain key. Others stay."""
    found = keys.plain_of(entry)
    return entry if found is None else name(found[1])


def renamed(message: bytes, entry: str, new: str) -> bytes:
    """The message with another name for this entry; of a group, in each write that has it."""
    before, after = (b'"key":' + msgspec.json.encode(name) for name in (entry, new))
    return message.replace(before, after)
