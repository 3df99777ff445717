"""What other caches must hear of writes that are durable: messages of a bounded size. No I/O.

``{"changes":[{"table":...,"id":...,"key":...,"seq":...}]}``; ``key`` and ``seq`` where the write has one.
``{"missed":true}``: there is a change that is too large to be told, or has an id with a number that is; and
first of all that a worker says, and first after Redis has refused some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import msgspec
from msgspec import Raw

MOST_CHANGES = 500
MOST_BYTES = 64_000
MISSED = b'{"missed":true}'
_NONE = Raw(b"null")
_T = TypeVar("_T")


class _Change(msgspec.Struct, omit_defaults=True, gc=False):
    table: str
    id: Raw = _NONE
    key: str | None = None
    seq: int | None = None


class _Faulty(msgspec.Struct, gc=False):
    """What was rejected as it stands: only its table is sure to be of the right type."""

    table: str
    id: Raw = _NONE
    key: Raw = _NONE
    seq: Raw = _NONE


class _Group(msgspec.Struct, gc=False):
    group: list[Raw]
    seq: int | None = None


_Scalar = str | int | float | bool | None

_decode = msgspec.json.Decoder(_Change).decode
_decode_group = msgspec.json.Decoder(_Group).decode
_decode_faulty = msgspec.json.Decoder(_Faulty).decode
_read_id = msgspec.json.Decoder(_Scalar | dict[str, _Scalar]).decode
_read_columns = msgspec.json.Decoder(dict[str, Raw]).decode
_read_key = msgspec.json.Decoder(str | None).decode
_read_seq = msgspec.json.Decoder(int | None).decode
_encode = msgspec.json.Encoder().encode


class _Untold(Exception):
    """There may be a change, and it cannot be told."""


def change_messages(items: Iterable[bytes]) -> list[bytes]:
    """Each row once; also the writes that were refused, if they can be read: their cache entry is gone."""
    changes: dict[tuple[str, bytes, str | None], bytes] = {}
    is_missed = False
    for item in _singles(items):
        try:
            change = _read(item)
            if change is None:
                continue
            text = _encode(change)
            if len(text) > MOST_BYTES:
                raise _Untold
        except _Untold:
            is_missed = True
            continue
        row = change.table, bytes(change.id), change.key
        changes.pop(row, None)
        changes[row] = text
    messages = list(_packed(changes.values()))
    return [*messages, MISSED] if is_missed else messages


def _singles(items: Iterable[bytes]) -> Iterator[bytes]:
    """The items; in the place of a group each of its writes, as an item of its own with the group's `seq`."""
    for item in items:
        if b'"group"' not in item:
            yield item
            continue
        try:
            found = _decode_group(item)
        except (msgspec.MsgspecError, RecursionError):  # none, or one that was rejected as it stands
            yield item
            continue
        seq = b"" if found.seq is None else b'"seq":%d,' % found.seq
        for member in found.group:
            text = bytes(member).strip()
            yield b"{" + seq + text[1:] if text.startswith(b"{") else text


def _read(item: bytes) -> _Change | None:
    """``None`` where no table can be made out: nothing has changed then."""
    try:
        item.decode()  # msgspec does not look at what it skips
        return _with_plain_id(_read_envelope(item))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    except RecursionError:  # how deep it may be depends on where it is read: what wrote it may have managed
        if item.lstrip().startswith(b"{"):
            raise _Untold from None
        return None


def _read_envelope(item: bytes) -> _Change:
    try:
        return _decode(item)
    except msgspec.ValidationError:
        found = _decode_faulty(item)
    return _Change(found.table, found.id, _or_none(_read_key, found.key), _or_none(_read_seq, found.seq))


def _with_plain_id(change: _Change) -> _Change:
    """With an id that everybody can read, at whatever depth: a scalar, or an object of scalars.

    A write with another one was rejected, and means no row; what is told is its entry in the cache.
    """
    try:
        _read_id(change.id)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        if _is_plain(change.id):  # a number that is too large for many a reader, but not for Postgres
            raise _Untold from None
        change.id = _NONE
    return change


def _is_plain(id: Raw) -> bool:
    text = bytes(id)
    if not text.startswith((b"[", b"{")):
        return True
    try:
        values = _read_columns(text).values()
    except (msgspec.MsgspecError, RecursionError):
        return False
    return not any(bytes(value).startswith((b"[", b"{")) for value in values)


def _or_none(read: Callable[[Raw], _T], text: Raw) -> _T | None:
    try:
        return read(text)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None


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
