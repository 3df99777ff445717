"""What other caches must hear of writes that are durable: messages of a bounded size. No I/O.

``{"changes":[{"table":...,"id":...,"key":...,"seq":...}]}``; ``key`` and ``seq`` where the write has one.
``{"missed":true}``: there is a change that is too large to be told, or has no id that everybody can read.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Raw

MOST_CHANGES = 500
MOST_BYTES = 64_000
_MISSED = b'{"missed":true}'


class _Change(msgspec.Struct, omit_defaults=True, gc=False):
    table: str
    id: Raw = Raw(b"null")
    key: str | None = None
    seq: int | None = None


_decode = msgspec.json.Decoder(_Change).decode
_encode = msgspec.json.Encoder().encode


def change_messages(items: Iterable[bytes]) -> list[bytes]:
    """Each row once; also the writes that were refused, if they can be read: their cache entry is gone."""
    changes: dict[tuple[str, bytes, str | None], bytes] = {}
    is_missed = False
    for item in items:
        change = _read(item)
        if change is None:
            continue
        text = _encode(change)
        if len(text) > MOST_BYTES or not _is_value(change.id):
            is_missed = True
            continue
        row = change.table, bytes(change.id), change.key
        changes.pop(row, None)
        changes[row] = text
    messages = list(_packed(changes.values()))
    return [*messages, _MISSED] if is_missed else messages


def _read(item: bytes) -> _Change | None:
    """``None`` where no table can be made out: nothing has changed then."""
    try:
        item.decode()  # msgspec does not look at what it skips
        return _decode(item)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _read_faulty(item)


def _is_value(text: Raw) -> bool:
    """Whether everybody can read it: as a number it may be too large for that."""
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return False
    return True


def _read_faulty(item: bytes) -> _Change | None:
    try:
        found = msgspec.json.decode(item)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("table"), str):
        return None
    key, seq = found.get("key"), found.get("seq")
    return _Change(
        found["table"],
        Raw(_encode(found.get("id"))),
        key if isinstance(key, str) else None,
        seq if type(seq) is int else None,
    )


def _packed(changes: Iterable[bytes]) -> Iterable[bytes]:
    those: list[bytes] = []
    size = 0
    for change in changes:
        if those and (len(those) == MOST_CHANGES or size + len(change) > MOST_BYTES):
            yield b'{"changes":[' + b",".join(those) + b"]}"
            those, size = [], 0
        those.append(change)
        size += len(change) + 1
    if those:
        yield b'{"changes":[' + b",".join(those) + b"]}"
