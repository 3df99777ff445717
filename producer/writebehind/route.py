"""Which shard of a queue a row's writes go to. No I/O.

A row must always go to the same one, however its id is spelt and whether or not the worker has published the
types of its key by now. So the id is reduced to what all spellings of one value have in common, whatever its
type: that two values may come to the same does no harm, it only puts them on one shard.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from decimal import Context, Decimal

from .identity import canonical

_NUMBER = re.compile(r"[+-]?([0-9]{1,60}(\.[0-9]{0,60})?|\.[0-9]{1,60})(e[+-]?[0-9]{1,3})?", re.ASCII)
_EXACT = Context(prec=200)


def shard_of(table: str, key: str | Mapping[str, str], shards: int) -> int:
    """From 0. ``key`` is the text of a scalar id, or column → text; ``table`` may name its schema, too."""
    if shards == 1:
        return 0
    name = table.rpartition(".")[2]
    texts = [key] if isinstance(key, str) else [key[column] for column in sorted(key)]
    return shard_of_route(":".join([name, *map(_reduced, texts)]), shards)


def shard_of_route(route: str, shards: int) -> int:
    """The shard of a routing value: CRC-32 of its UTF-8, modulo the number of shards."""
    return zlib.crc32(route.encode()) % shards


def _reduced(text: str) -> str:
    """The same for ``42``, ``+042`` and ``42.0``, for all spellings of a uuid, in either case."""
    text = text.strip().lower()
    if (uuid := canonical("uuid", text)) is not None:
        return uuid
    if _NUMBER.fullmatch(text):
        number = Decimal(text)
        return str(number.normalize(_EXACT)) if number else "0"
    truth = canonical("bool", text)
    return text if truth is None else str(int(truth == "true"))
