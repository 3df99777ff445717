"""Several writes as one message, which Postgres applies whole or not at all. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from .message import Write, encode

MAX_GROUP = 1000
"""Writes in one group: they are applied together, and refused together."""


def group_message(writes: Sequence[Write], cache_keys: Sequence[str], ttl_s: int) -> bytes:
    """The queue item of all of them, but for ``seq``.

    The `table` and `id` of the first stand beside the group: a worker that knows no groups takes the message
    for one of a later version by them, and stops.
    """
    members = [
        msgspec.structs.replace(write, route=None).message(key, ttl_s)
        for write, key in zip(writes, cache_keys, strict=True)
    ]
    first = writes[0]
    route = b"" if first.route is None else b',"route":%b' % encode(first.route)
    return b'{"table":%b,"id":%b,"v":3%b,"group":[%b]}' % (
        encode(first.table), first.id_json, route, b",".join(members),
    )  # fmt: skip
