"""A message as it was received: the wire format of docs/wire-format.md, checked. No I/O."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping
from typing import Annotated, Any, get_args

import msgspec

from writebehind.frame import MAX_UNPACKED_BYTES, BadFrame, NoZstd, unpack
from writebehind.group import MAX_GROUP
from writebehind.identity import scalar_text
from writebehind.message import MAX_TTL_S, WIRE_VERSION, Op

_OPS = frozenset(get_args(Op))
_NUMBER = re.compile(rb"-?[0-9]")
# Whole pairs, or the digit of a half. It begins with what is searched for fast: a body may be of any length.
_SURROGATE = re.compile(rb"\\u[dD](?:[89abAB]..\\u[dD][c-fC-F]|([89a-fA-F]))", re.DOTALL)
# Within the last bytes, which `claim.lua` looks at: what comes after it must be short.
_UNPACKED, _TAIL = re.compile(rb',"unpacked":([0-9]+)[,}]'), 160
PACKED_VERSION = 2
GROUP_VERSION = 3
DEFAULT_TTL_S = 3600
_MOST_VERSION = 1000  # beyond it is a mistake, not a newer version


class Fault(msgspec.Struct, frozen=True):
    """Why a write cannot be applied. ``sqlstate`` is Postgres' code, or the one that it would give."""

    sqlstate: str
    reason: str


_REASON_LENGTH = 1000  # characters: it is kept in Redis and in Postgres, and may quote a value
_NAME_LENGTH = 100


def make_fault(sqlstate: str, reason: str) -> Fault:
    """A fault whose reason is one line, cut to a length that a person reads."""
    return Fault(sqlstate, _line(reason, _REASON_LENGTH))


def shown(name: str) -> str:
    """A name that a message gives, for a reason: quoted and cut."""
    return f'"{_line(name, _NAME_LENGTH)}"'


def _line(text: str, length: int) -> str:
    cut = text if len(text) <= length else text[:length] + " ..."
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else " " if c == "\n" else f"\\x{ord(c):02x}" for c in cut)


JsonText = bytes | msgspec.Raw
"""The text of a JSON value, as it came: making bytes of each costs more than reading the message."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """One item of a frozen batch. Where ``fault`` is set, the other fields hold what could be read."""

    position: int  # of its item; the members of a group have one
    body: bytes
    table: str | None = None
    op: Op = "put"
    id: Mapping[str, str] | str = ""  # a scalar's text, or column → text
    id_json: Mapping[str, bytes] | bytes = b""
    columns: Mapping[str, JsonText] | None = None
    seq: int | None = None
    cache_key: str | None = None
    ttl_s: int = DEFAULT_TTL_S
    retry: int | None = None  # the dead letter that this sends again
    force: bool = False  # also if that one is superseded, or was applied before Redis went back
    route: str | None = None  # what has decided about its shard, where it was given
    fault: Fault | None = None
    newer_version: int | None = None  # of the wire format, where it is one that we do not know
    lacks_zstd: bool = False  # it is compressed in a way that this installation cannot read
    members: tuple[Message, ...] = ()  # of a group: its writes, each as a message of its own
    member: int = 0  # which one of its group it is, from 1; 0: of none


class _Envelope(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    table: str
    id: msgspec.Raw
    data: dict[str, msgspec.Raw] | None = None
    op: str = "put"
    seq: int | None = None
    key: str | None = None
    ttl: int | None = None
    retry: int | None = None
    force: bool = False
    v: int = 1
    packed: dict[str, str] | None = None
    unpacked: int | None = None
    route: str | int | None = None
    trace: msgspec.Raw = msgspec.Raw(b"")  # whatever it is: only `tracing` looks at it
    group: Any = msgspec.UNSET  # is read by itself


class _Member(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One write of a group: what is of the whole message is not in it."""

    table: str
    id: msgspec.Raw
    data: dict[str, msgspec.Raw] | None = None
    op: str = "put"
    key: str | None = None
    ttl: int | None = None
    v: int = 1


class _GroupEnvelope(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    group: Annotated[list[_Member], msgspec.Meta(min_length=1, max_length=MAX_GROUP)]
    table: str = ""  # of the first member, or nothing: for workers that know no groups
    id: msgspec.Raw = msgspec.Raw(b"")
    seq: int | None = None
    retry: int | None = None
    force: bool = False
    v: int = GROUP_VERSION
    route: str | int | None = None
    trace: msgspec.Raw = msgspec.Raw(b"")


_decode = msgspec.json.Decoder(_Envelope).decode
_decode_group = msgspec.json.Decoder(_GroupEnvelope).decode
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
_decode_key = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Bad(ValueError):
    pass


def receive(position: int, body: bytes, clock: int) -> Message:
    """Reads one queue item; never raises. ``clock`` is the highest seq that the queue has given out."""
    try:
        if not body.isascii():
            body.decode()  # msgspec takes the insides of Raw as they come
        try:
            read = _decode(body)
        except msgspec.ValidationError:
            if not _is_group(body):
                raise
            return _group(position, body, clock)
        if read.group is not msgspec.UNSET:
            return _group(position, body, clock)
        return _message(position, body, read, clock)
    except NoZstd as error:
        reason = f"`packed`: a column {error}"
        return msgspec.structs.replace(_faulty(position, body, reason, clock), lacks_zstd=True)
    except UnicodeDecodeError as error:
        return _faulty(position, body, f"not UTF-8: {error.reason} at byte {error.start}", clock)
    except RecursionError:
        return _faulty(position, body, "nested too deep", clock)
    except (msgspec.MsgspecError, _Bad) as error:
        if type(error) is msgspec.DecodeError and any(
            found[1] for found in _SURROGATE.finditer(body)
        ):  # msgspec calls it truncated
            return _faulty(
                position, body, "a \\u escape is half of a surrogate pair, which is no text", clock
            )
        return _faulty(position, body, str(error), clock)


def _is_group(body: bytes) -> bool:
    """Of one without `table` or `id`, as other programs may push it."""
    try:
        return b'"group"' in body and "group" in _decode_key(body)
    except msgspec.MsgspecError:
        return False


def _group(position: int, body: bytes, clock: int) -> Message:
    """A message for each write of a group. What is wrong with one is wrong with all."""
    read = _decode_group(body)
    if read.v != GROUP_VERSION:
        raise _Bad(f"`v` of a group must be {GROUP_VERSION}, or left out")
    members: list[Message] = []
    for number, each in enumerate(read.group, start=1):
        envelope = _Envelope(
            each.table, each.id, each.data, each.op, read.seq, each.key, each.ttl,
            read.retry, read.force, each.v, route=read.route,
        )  # fmt: skip
        try:
            member = _message(position, body, envelope, clock)
        except (_Bad, msgspec.MsgspecError) as error:
            raise _Bad(f"member {number} of `group`: {error}") from error
        members.append(msgspec.structs.replace(member, member=number))
    return msgspec.structs.replace(members[0], members=tuple(members))


def _message(position: int, body: bytes, read: _Envelope, clock: int) -> Message:
    if not 1 <= read.v <= WIRE_VERSION:
        raise _Bad(f"`v` must be a version of the wire format, from 1 to {WIRE_VERSION}")
    if not read.table:
        raise _Bad("`table` is empty")
    if read.op not in _OPS:
        raise _Bad(f"`op` must be put, patch, increment or delete, not {shown(read.op)}")
    if read.seq is not None and not (0 < read.seq <= clock and read.key is not None):
        raise _Bad("`seq` is not one that this queue has given out; leave it out")
    if read.ttl is not None and not 0 < read.ttl <= MAX_TTL_S:
        raise _Bad(f"`ttl` must be a number of seconds from 1 to {MAX_TTL_S}")
    if read.retry is not None and not _is_letter(read.retry):
        raise _Bad("`retry` must be the id of a dead letter")
    if read.force and read.retry is None:
        raise _Bad("`force` has no meaning without `retry`")
    id_text, id_json = _id(bytes(read.id))
    return Message(
        position,
        body,
        read.table,
        read.op,  # type: ignore[arg-type]
        id_text,
        id_json,
        _columns(read) if read.packed is None and read.unpacked is None else _packed_columns(read, body),
        read.seq,
        read.key,
        read.ttl or DEFAULT_TTL_S,
        read.retry,
        read.force,
        None if read.route is None else str(read.route),
    )


def _is_letter(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 63


def _columns(read: _Envelope) -> Mapping[str, JsonText]:
    if read.op == "delete":
        if read.data:
            raise _Bad("`delete` takes no `data`")
        return {}
    if read.data is None:
        raise _Bad(f"`data` is missing: {read.op} needs column → value")
    if not read.data and read.op != "put":
        raise _Bad(f"`data` is empty: {read.op} needs at least one column")
    if read.op != "increment":
        return read.data
    deltas = {name: bytes(value) for name, value in read.data.items()}
    for name, delta in deltas.items():
        if not _NUMBER.match(delta):
            raise _Bad(f"increment of {shown(name)}: the delta must be a JSON number")
    return deltas


def _packed_columns(read: _Envelope, body: bytes) -> Mapping[str, JsonText]:
    """All columns, `data` first."""
    if read.v < PACKED_VERSION:
        raise _Bad(f"`packed` is of version {PACKED_VERSION}: say so by `v`")
    if read.op not in ("put", "patch"):
        raise _Bad(f"`{read.op}` takes no `packed`")
    if read.data is None:
        raise _Bad("`data` is missing; it may be empty beside `packed`")
    frames = {name: _frame(name, text) for name, text in (read.packed or {}).items()}
    if not frames:
        raise _Bad("`packed` is empty: leave it and `unpacked` out")
    if both := [name for name in frames if name in read.data]:
        raise _Bad(f"{shown(both[0])} is in both `data` and `packed`")
    if read.unpacked is not None and read.unpacked > MAX_UNPACKED_BYTES:
        raise _Bad(f"`packed` unpacks to {read.unpacked} bytes: {MAX_UNPACKED_BYTES} is the most")
    if read.unpacked is None or read.unpacked != declared_size(body):
        raise _Bad("`unpacked` must stand at the end: the bytes of JSON that `packed` unpacks to, in all")
    left, columns = read.unpacked, dict(read.data)
    for name, frame in frames.items():
        try:
            text = unpack(frame, left)
        except NoZstd:
            raise
        except BadFrame as error:
            raise _Bad(f"`packed`: {shown(name)} {error}") from error
        left -= len(text)
        try:
            text.decode()  # msgspec takes the insides of Raw as they come
            columns[name] = _decode_raw(text)
        except (UnicodeDecodeError, msgspec.MsgspecError) as error:
            raise _Bad(f"`packed`: {shown(name)} unpacks to what is no JSON: {error}") from error
    if left:
        raise _Bad(f"`packed` unpacks to {left} bytes less than `unpacked` says")
    return columns


def _frame(name: str, text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError as error:
        raise _Bad(f"`packed`: {shown(name)} is no base64: {error}") from error


def declared_size(body: bytes) -> int:
    """What an item says that its packed columns unpack to, where ``claim.lua`` sees it; else 0."""
    found = _UNPACKED.search(body, max(0, len(body) - _TAIL))
    size = int(found[1]) if found and b'"packed":' in body else 0
    return size if size <= MAX_UNPACKED_BYTES else 0


def _id(raw: bytes) -> tuple[Mapping[str, str] | str, Mapping[str, bytes] | bytes]:
    if raw.isdigit():
        return raw.decode(), raw
    if raw[:1] != b"{":
        return _key_text(raw), raw
    parts = {name: bytes(value) for name, value in _decode_key(raw).items()}
    if not parts:
        raise _Bad("`id` is empty")
    return {name: _key_text(value) for name, value in parts.items()}, parts


def _key_text(raw: bytes) -> str:
    text = scalar_text(raw)
    if text is None:
        raise _Bad("`id` must be a scalar, or an object of the key's columns, each a scalar and not null")
    return text


def _is_newer(read: Any) -> bool:
    """Whether it is as a later version could have written it; else it is a mistake like any other."""
    version, table = read.get("v"), read.get("table")
    is_version = type(version) is int and WIRE_VERSION < version <= _MOST_VERSION
    return is_version and isinstance(table, str) and table != "" and "id" in read


def _faulty(position: int, body: bytes, reason: str, clock: int) -> Message:
    """The fault, with what of the envelope can still be read: its cache entry must not stay pending."""
    fault = make_fault("22P02", f"not a message of the wire format: {reason}")
    try:
        read: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError):
        return Message(position, body, fault=fault)
    if not isinstance(read, dict):
        return Message(position, body, fault=fault)
    whole, group = _legible(position, body, read, clock, fault), read.get("group")
    if isinstance(group, list) and group and whole.newer_version is None:
        own = [{n: each.get(n) for n in ("table", "key")} for each in group if isinstance(each, dict)]
        members = tuple(
            msgspec.structs.replace(_legible(position, body, read | each, clock, fault), member=number)
            for number, each in enumerate(own or [{}], start=1)
        )
        return msgspec.structs.replace(members[0], members=members)
    return whole


def _legible(position: int, body: bytes, read: dict[str, Any], clock: int, fault: Fault) -> Message:
    table, seq, key, retry, v = (read.get(name) for name in ("table", "seq", "key", "retry", "v"))
    return Message(
        position,
        body,
        table if isinstance(table, str) else None,
        seq=seq if type(seq) is int and 0 < seq <= clock and isinstance(key, str) else None,
        cache_key=key if isinstance(key, str) else None,
        retry=retry if _is_letter(retry) else None,
        force=read.get("force") is True,
        fault=fault,
        newer_version=v if _is_newer(read) else None,
    )
