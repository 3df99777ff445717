"""A class of rows: its fields as columns, and columns back as its objects. No I/O.

A dataclass, a ``msgspec.Struct``, an attrs class or a Pydantic model; a column is named as its field.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, Generic, TypeVar, cast, get_type_hints
from uuid import UUID

import msgspec

from .errors import InvalidLoad, InvalidWrite, RowMismatch
from .message import Id, encode, encode_row, plain

R = TypeVar("R")
Mend = Callable[[Any], Any]

_KEPT = (bytes, bytearray, memoryview, Decimal, UUID, dt.datetime, dt.date, dt.time, dt.timedelta)
_DURATION = re.compile(r"(-?\d+) days (\d+\.\d{6}) seconds", re.ASCII)
_UNFIT = (ValueError, TypeError, OverflowError, RecursionError, msgspec.MsgspecError)


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    """``argument`` is what the class's constructor calls it."""

    name: str
    argument: str
    decode: Callable[[bytes], Any]


class RowShape(Generic[R]):
    """What is known of a class of rows.

    Args:
        kind: the class.
        key: the fields that make the row's id.
        parse_float: makes a number with a fraction where the class does not say what it shall be.
    """

    def __init__(self, kind: type[R], key: tuple[str, ...], parse_float: Callable[[str], Any]) -> None:
        self.kind, self.key = kind, key
        self._construct: Callable[..., R] = _constructor(kind)
        self.fields: dict[str, _Field] = {}
        for name, argument, annotation in _fields(kind):
            try:
                decode = _decoder(annotation, parse_float)
            except TypeError as error:
                raise TypeError(f"{kind.__name__}.{name}: this type cannot be read back: {error}") from error
            self.fields[name] = _Field(name, argument, decode)
        if not key or (missing := [name for name in key if name not in self.fields]):
            what = f"no field {missing[0]!r}" if key else "no key"
            raise TypeError(
                f"{kind.__name__} has {what}; name the fields of the primary key by key=, "
                f"out of: {', '.join(self.fields)}"
            )

    def id_of(self, table: str, row: R) -> Id:
        """The id in the row's key fields. Raises :class:`InvalidWrite` for an object of another class."""
        if not isinstance(row, self.kind):
            raise InvalidWrite(f"{table}: a row must be a {self.kind.__name__}, not {type(row).__name__}")
        values = [getattr(row, name) for name in self.key]
        return cast(Id, values[0]) if len(values) == 1 else dict(zip(self.key, values, strict=True))

    def id(self, table: str, id: Any) -> Id:
        """An id as the untyped calls have it: of several key fields it is a tuple, in their order."""
        if len(self.key) == 1:
            return cast(Id, id)
        if not isinstance(id, tuple) or len(id) != len(self.key):
            raise InvalidWrite(f"{table}: an id is a tuple ({', '.join(self.key)}), not {id!r}")
        return dict(zip(self.key, id, strict=True))

    def values(self, row: R) -> dict[str, Any]:
        """Column → value."""
        return {name: _builtin(getattr(row, name)) for name in self.fields}

    def changes(self, table: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Column → value of fields that may change. Raises :class:`InvalidWrite` for what does not fit."""
        values: dict[str, Any] = {}
        for name, value in changes.items():
            self.check_name(table, name)
            try:
                values[name] = _builtin(value)
                self.fields[name].decode(encode(plain(values[name])))
            except _UNFIT as error:
                raise InvalidWrite(f"{table}.{name}: {error}") from error
        return values

    def check_name(self, table: str, name: str) -> None:
        """Raises :class:`InvalidWrite` unless it is a field that may change."""
        if name not in self.fields:
            known = ", ".join(self.fields)
            raise InvalidWrite(f"{table}: {self.kind.__name__} has no field {name!r}; it has: {known}")
        if name in self.key:
            raise InvalidWrite(f"{table}.{name}: a field of the key cannot be changed")

    def row(self, columns: Mapping[str, bytes]) -> R:
        """The row of column → JSON text. Raises :class:`RowMismatch`; a column more does no harm."""
        arguments: dict[str, Any] = {}
        for name, field in self.fields.items():
            text = columns.get(name)
            if text is None:
                raise RowMismatch(self.kind.__name__, name, "the row has no such column")
            try:
                arguments[field.argument] = field.decode(text)
            except _UNFIT as error:
                raise RowMismatch(self.kind.__name__, name, str(error)) from error
        try:
            return self._construct(**arguments)
        except Exception as error:  # what the class itself checks
            raise RowMismatch(self.kind.__name__, None, str(error)) from error

    def encode(self, table: str, loaded: Any) -> dict[str, bytes]:
        """Column → JSON text of what a loader returned: a row or a mapping."""
        values = self.values(loaded) if isinstance(loaded, self.kind) else loaded
        if not isinstance(values, Mapping):
            raise InvalidLoad(
                f"{table}: the loader must return a {self.kind.__name__}, a mapping or None, "
                f"not {type(loaded).__name__}"
            )
        columns = encode_row(table, {name: _builtin(value) for name, value in values.items()})
        try:
            self.row(columns)
        except RowMismatch as error:
            raise InvalidLoad(f"{table}: what the loader returned does not fit: {error}") from error
        return columns


def _is_pydantic(kind: Any) -> bool:
    return (
        isinstance(kind, type) and hasattr(kind, "__pydantic_validator__") and hasattr(kind, "model_fields")
    )


def _fields(kind: Any) -> Iterable[tuple[str, str, Any]]:
    """Name, constructor's argument and type of each field that the constructor takes."""
    if _is_pydantic(kind):
        for name, field in kind.model_fields.items():
            alias = field.validation_alias if field.validation_alias is not None else field.alias
            if alias is not None and not isinstance(alias, str):
                raise TypeError(f"{kind.__name__}.{name}: an alias must be one string, not {alias!r}")
            yield name, alias or name, field.annotation
        return
    if not isinstance(kind, type):
        raise TypeError(f"rows need a class, not {kind!r}")
    if issubclass(kind, msgspec.Struct):
        names = [(name, name) for name in kind.__struct_fields__]
    elif dataclasses.is_dataclass(kind):
        names = [(f.name, f.name) for f in dataclasses.fields(kind) if f.init]
    elif hasattr(kind, "__attrs_attrs__"):
        names = [(f.name, f.alias) for f in kind.__attrs_attrs__ if f.init]
    else:
        raise TypeError(
            f"{kind.__name__} is no dataclass, msgspec.Struct, attrs class or Pydantic model: "
            "its fields are not known"
        )
    hints = get_type_hints(kind, include_extras=True)
    for name, argument in names:
        yield name, argument, hints[name]


def _constructor(kind: Any) -> Callable[..., Any]:
    if not _is_pydantic(kind):
        return cast(Callable[..., Any], kind)
    # By the alias of each, whether the model may be filled by name or not.
    return lambda **arguments: kind.model_validate(arguments)


def _builtin(value: Any) -> Any:
    """Objects inside a value as mappings, named as they are read back."""
    if value is None or type(value) in (str, int, float, bool, *_KEPT):
        return value
    return msgspec.to_builtins(value, builtin_types=_KEPT, enc_hook=_unknown_to_msgspec)


def _unknown_to_msgspec(value: Any) -> Any:
    if _is_pydantic(type(value)):
        return {name: _builtin(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return dict(value)
    return str(value) if _has_text(type(value)) else plain(value)


def _has_text(kind: type) -> bool:
    """Pydantic's own types, such as its URLs, have a text."""
    return kind.__module__.split(".")[0] in ("pydantic", "pydantic_core", "ipaddress", "pathlib")


def _decoder(annotation: Any, parse_float: Callable[[str], Any]) -> Callable[[bytes], Any]:
    """Reads JSON text as a value of this type."""
    from msgspec.inspect import type_info  # noqa: PLC0415 - only who has typed rows needs it

    mend, custom = _mender(type_info(annotation), {})
    decode = cast(
        Callable[[bytes], Any],
        msgspec.json.Decoder(
            annotation, dec_hook=_from_builtin, float_hook=Decimal if custom else parse_float
        ).decode,
    )
    if mend is None:
        return decode
    exact = msgspec.json.Decoder(float_hook=Decimal).decode
    return lambda text: decode(encode(mend(exact(text))))


def _from_builtin(kind: type, value: Any) -> Any:
    """An object of a class that msgspec does not know: a Pydantic model, or a type that Pydantic knows."""
    if isinstance(value, kind):
        return value
    if _is_pydantic(kind):
        shape = _nested(kind)
        if not isinstance(value, dict):
            raise ValueError(f"expected a {kind.__name__}, got {type(value).__name__}")
        return shape.row({name: encode(item) for name, item in value.items()})
    if _has_text(kind):
        return kind(value)
    raise NotImplementedError(f"{kind.__name__} is not known")


_shapes: dict[type, RowShape[Any]] = {}


def _nested(kind: Any) -> RowShape[Any]:
    if kind not in _shapes:
        _shapes[kind] = RowShape(kind, tuple(kind.model_fields)[:1], Decimal)
    return _shapes[kind]


def _mender(info: Any, open_: dict[Any, list[Mend | None]]) -> tuple[Mend | None, bool]:
    """What turns our text of bytes and durations, within a value, into msgspec's; and whether hooks are used.

    ``None`` where the type holds neither.
    """
    from msgspec import inspect  # noqa: PLC0415

    if isinstance(info, inspect.BytesType | inspect.ByteArrayType | inspect.MemoryViewType):
        return _bytes_text, False
    if isinstance(info, inspect.TimeDeltaType):
        return _duration_text, False
    if isinstance(info, inspect.CustomType):
        return None, True
    if isinstance(info, inspect.UnionType):
        inner = [_mender(t, open_) for t in info.types]
        mends = [mend for mend, _ in inner if mend]
        if len(mends) > 1 or (
            mends and len([t for t in info.types if not isinstance(t, inspect.NoneType)]) > 1
        ):
            raise TypeError("bytes and durations can be told from nothing but None")
        custom = any(hooked for _, hooked in inner)
        return (_but_for_none(mends[0]) if mends else None), custom
    if isinstance(info, inspect.CollectionType):
        mend, custom = _mender(info.item_type, open_)
        return (_of_each(mend) if mend else None), custom
    if isinstance(info, inspect.TupleType):
        each = [_mender(t, open_) for t in info.item_types]
        if not any(mend for mend, _ in each):
            return None, any(custom for _, custom in each)
        return (
            lambda v: [m(i) if m else i for i, (m, _) in zip(v, each, strict=True)]
        ), any(custom for _, custom in each)  # fmt: skip
    if isinstance(info, inspect.DictType):
        mend, custom = _mender(info.value_type, open_)
        return (_of_each(mend) if mend else None), custom
    if isinstance(info, inspect.DataclassType | inspect.StructType):
        return _mender_of_object(info, open_)
    return None, False


def _of_each(mend: Mend) -> Mend:
    """Of each item of an array, or each member of an object."""

    def mended(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: mend(item) for name, item in value.items()}
        return [mend(item) for item in value] if isinstance(value, list) else value

    return mended


def _but_for_none(mend: Mend) -> Mend:
    return lambda value: None if value is None else mend(value)


def _mender_of_object(info: Any, open_: dict[Any, list[Mend | None]]) -> tuple[Mend | None, bool]:
    if info.cls in open_:  # it holds itself: what is found of it by then is used
        later = open_[info.cls]

        def again(value: Any) -> Any:
            mend = later[0]
            return mend(value) if mend else value

        return again, False
    open_[info.cls] = found = []
    inner = {f.encode_name: _mender(f.type, open_) for f in info.fields}
    mends = {name: mend for name, (mend, _) in inner.items() if mend}

    def members(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: mends[k](v) if k in mends else v for k, v in value.items()}

    mend = members if mends else None
    found.append(mend)
    del open_[info.cls]
    return mend, any(custom for _, custom in inner.values())


def _bytes_text(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith("\\x"):
        raise ValueError("expected bytes, written as \\x and hex digits")
    return b64encode(bytes.fromhex(value[2:])).decode()


def _duration_text(value: Any) -> Any:
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("expected a duration, written as N days S.ffffff seconds")
    days, (seconds, micros) = int(found[1]), found[2].split(".")
    total = (days * 86_400 + int(seconds)) * 1_000_000 + int(micros)
    sign, total = ("-" if total < 0 else ""), abs(total)
    whole, micros_left = divmod(total, 1_000_000)
    day, rest = divmod(whole, 86_400)
    return f"{sign}P{day}DT{rest}.{micros_left:06d}S"
