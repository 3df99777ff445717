"""Objects within a value as mappings and sequences, as a decoder of their class reads them. No I/O."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from .field_types import has_text, is_pydantic

_SCALARS = frozenset(
    {str, int, float, bool, type(None), bytes, bytearray, memoryview, Decimal, UUID, dt.date, dt.timedelta}
)


def builtin(value: Any) -> Any:
    """The value, of what :func:`plain` takes.

    Raises ``ValueError``, and ``RecursionError`` for one that holds itself.
    """
    kind = type(value)
    if kind in _SCALARS or isinstance(value, enum.Enum):
        return value
    if isinstance(value, dt.datetime | dt.time):
        return _with_whole_minutes(value)
    if isinstance(value, Mapping):
        members = {_member(name): builtin(item) for name, item in value.items()}
        if len(members) < len(value):
            raise ValueError("two keys are the same as text")
        return members
    if isinstance(value, list | tuple | set | frozenset):
        return [builtin(item) for item in value]
    if isinstance(value, msgspec.Struct):
        return _of_struct(value)
    if is_pydantic(kind):
        return _members(value, kind.model_fields) | builtin(value.__pydantic_extra__ or {})
    if hasattr(kind, "__attrs_attrs__"):
        return _members(value, [a.name for a in kind.__attrs_attrs__])
    if dataclasses.is_dataclass(kind):
        return _members(value, [f.name for f in dataclasses.fields(kind)])
    return str(value) if has_text(kind) and not isinstance(value, int) else value


def _members(value: Any, names: Iterable[str]) -> dict[str, Any]:
    members = {name: getattr(value, name) for name in names}
    return {name: builtin(item) for name, item in members.items() if item is not msgspec.UNSET}


def _of_struct(value: msgspec.Struct) -> Any:
    config = value.__struct_config__
    names, encoded = value.__struct_fields__, value.__struct_encode_fields__
    if config.array_like:
        tag = [] if config.tag is None else [config.tag]
        return tag + [builtin(getattr(value, name)) for name in names]
    members = _members(value, names)
    named = {text: members[name] for name, text in zip(names, encoded, strict=True) if name in members}
    return named if config.tag is None else {config.tag_field: config.tag, **named}


def _member(name: Any) -> Any:
    """The name of a member of a JSON object; text of what a decoder of its type reads."""
    if isinstance(name, enum.Enum):
        return _member(name.value)
    if isinstance(name, dt.datetime | dt.time):
        return _with_whole_minutes(name).isoformat()
    if isinstance(name, dt.date):
        return name.isoformat()
    return str(name) if isinstance(name, UUID | Decimal) else name


def _with_whole_minutes(value: Any) -> Any:
    """The same time with a UTC offset that RFC 3339 can say: Paris was at +00:09:21 until 1911."""
    offset = value.utcoffset()
    if offset is None or offset % dt.timedelta(minutes=1) == dt.timedelta(0):
        return value
    if isinstance(value, dt.time):
        raise ValueError(f"{value}: its UTC offset has seconds, and it has no date to tell the time in UTC")
    return value.astimezone(dt.UTC)
