"""The cache entry of a write that is sent again on a cluster: its name tells which shard the row has now."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from writebehind.keys import QueueKeys


def plain_entry(keys: QueueKeys, entry: str) -> str | None:
    """What an entry's name was made of, in whichever shard and division; ``None``: none of the queue."""
    named = keys.plain_of(entry)
    return None if named is None else named[1]


def renamed(message: bytes, entry: str, new: str) -> bytes:
    """The message with another name for this entry; of a group, in each write that has it."""
    before, after = (b'"key":' + msgspec.json.encode(name) for name in (entry, new))
    return message.replace(before, after)


def at_home(keys: QueueKeys, entry: str, name: Callable[[str], str]) -> str:
    """The entry where the row is now; ``name`` makes one of a plain key. What is none of ours stays."""
    plain = plain_entry(keys, entry)
    return entry if plain is None else name(plain)
