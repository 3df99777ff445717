"""The cache entry of a write that is sent again on a cluster: its name tells which shard the row has now."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from writebehind.keys import QueueKeys

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_group = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode


def at_home(keys: QueueKeys, entry: str, name: Callable[[str], str]) -> str:
    """The entry where the row is now; ``name`` makes one of a plain key. Others stay."""
    found = keys.plain_of(entry)
    return entry if found is None else name(found[1])


def renamed(message: bytes, name: Callable[[str], str]) -> bytes:
    """The message, a JSON object, with other names for its entries. All other values keep their texts."""
    fields = _decode(message)
    if "group" in fields:
        members = [_with_name(member, name) for member in _decode_group(fields["group"])]
        fields["group"] = msgspec.Raw(msgspec.json.encode(members))
    return msgspec.json.encode(_with_name(fields, name))


def _with_name(fields: dict[str, msgspec.Raw], name: Callable[[str], str]) -> dict[str, msgspec.Raw]:
    if "key" in fields:
        entry = msgspec.json.decode(fields["key"], type=str)
        fields["key"] = msgspec.Raw(msgspec.json.encode(name(entry)))
    return fields
