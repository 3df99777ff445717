"""Reading a column's JSON text as a value of the type that its field declares. No I/O."""

from __future__ import annotations

import re
import threading
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Protocol, cast

import msgspec

from .field_types import check_class, check_hints, check_unknown, is_pydantic
from .message import encode

Decode = Callable[[bytes], Any]
Mend = Callable[[Any], Any]

_DURATION = re.compile(r"(-?\d+) days (\d+\.\d{6}) seconds", re.ASCII)


# Msgspec looks into a class when it first hears of it: two threads that tell it at once crash the process.
_MAKING = threading.RLock()


class Models(Protocol):
    """Makes the objects of Pydantic models within a value."""

    def know(self, kind: type) -> None:
        """Raises ``TypeError`` if they cannot be read."""

    def make(self, kind: type, members: Mapping[str, bytes]) -> Any:
        """One of name → JSON text."""


def field_decoder(annotation: Any, parse_float: Callable[[str], Any], models: Models) -> Decode:
    """Reads JSON text as a value of this type. Raises ``TypeError`` for one that cannot be read back."""
    with _MAKING:
        return _made(annotation, parse_float, models)


def _made(annotation: Any, parse_float: Callable[[str], Any], models: Models) -> Decode:
    from msgspec.inspect import type_info  # noqa: PLC0415 - only who has typed rows needs it

    # Msgspec's own message for what it refuses is the better one.
    made = msgspec.json.Decoder(annotation, dec_hook=_from_builtin(models), float_hook=parse_float)
    mender = _Mender()
    mend = mender.find(type_info(annotation))
    for kind in mender.models:
        models.know(kind)
    if mender.models:  # each gets its numbers as they were written
        made = msgspec.json.Decoder(annotation, dec_hook=_from_builtin(models), float_hook=Decimal)
    decode = cast(Decode, made.decode)
    if mend is None:
        return decode
    exact = msgspec.json.Decoder(float_hook=Decimal).decode
    return lambda text: decode(encode(mend(exact(text))))


def _from_builtin(models: Models) -> Callable[[type, Any], Any]:
    def made(kind: type, value: Any) -> Any:
        if not is_pydantic(kind):
            return kind(value)
        if not isinstance(value, dict):
            raise ValueError(f"expected a {kind.__name__}, got {type(value).__name__}")
        return models.make(kind, {name: encode(item) for name, item in value.items()})

    return made


class _Mender:
    """Finds what turns our text of bytes and durations, within a value, into msgspec's.

    ``models`` are the Pydantic models that it met.
    """

    def __init__(self) -> None:
        self.models: set[type] = set()
        self._open: dict[int, list[Mend | None]] = {}

    def find(self, info: Any) -> Mend | None:
        """``None`` where the type holds neither."""
        from msgspec import inspect  # noqa: PLC0415

        if isinstance(info, inspect.BytesType | inspect.ByteArrayType | inspect.MemoryViewType):
            return _bytes_text
        if isinstance(info, inspect.TimeDeltaType):
            return _duration_text
        if isinstance(info, inspect.RawType | inspect.ExtType):
            raise TypeError("msgspec's Raw and Ext are no values: use Any")
        if isinstance(info, inspect.CustomType):
            check_unknown(info.cls)
            if is_pydantic(info.cls):
                self.models.add(info.cls)
            return None
        if isinstance(info, inspect.Metadata):
            return self.find(info.type)
        if isinstance(info, inspect.UnionType):
            return self._of_union(info)
        if isinstance(info, inspect.CollectionType):
            return _of_each(self.find(info.item_type))
        if isinstance(info, inspect.TupleType):
            return _of_positions([self.find(item) for item in info.item_types])
        if isinstance(info, inspect.DictType):
            _check_keys(info.key_type)
            return _of_each(self.find(info.value_type))
        if isinstance(
            info,
            inspect.DataclassType | inspect.StructType | inspect.TypedDictType | inspect.NamedTupleType,
        ):
            return self._of_object(info)
        return None

    def _of_union(self, info: Any) -> Mend | None:
        from msgspec import inspect  # noqa: PLC0415

        mends = [mend for t in info.types if (mend := self.find(t))]
        some = [t for t in info.types if not isinstance(t, inspect.NoneType)]
        if mends and len(some) > 1:
            raise TypeError("bytes and durations can be told from nothing but None")
        if len([t for t in some if isinstance(t, inspect.FloatType | inspect.DecimalType)]) > 1:
            raise TypeError("a Decimal and a float cannot be told apart")
        return _but_for_none(mends[0]) if mends else None

    def _of_object(self, info: Any) -> Mend | None:
        from msgspec import inspect  # noqa: PLC0415

        if id(info) in self._open:  # it holds itself: what is found of it by then is used
            later = self._open[id(info)]

            def again(value: Any) -> Any:
                mend = later[0]
                return mend(value) if mend else value

            return again
        kind = info.cls
        check_class(getattr(kind, "__origin__", kind))
        check_hints(kind)
        self._open[id(info)] = found = []
        mends = {f.encode_name: self.find(f.type) for f in info.fields}
        if isinstance(info, inspect.NamedTupleType):
            mend = _of_positions(list(mends.values()))
        elif isinstance(info, inspect.StructType) and info.array_like:
            mend = _of_positions([None] * (info.tag is not None) + list(mends.values()))
        else:
            mend = _of_members({name: mend for name, mend in mends.items() if mend})
        found.append(mend)
        del self._open[id(info)]
        return mend


def _check_keys(info: Any) -> None:
    from msgspec import inspect  # noqa: PLC0415

    if isinstance(info, inspect.Metadata):
        return _check_keys(info.type)
    texts = (inspect.AnyType, inspect.StrType, inspect.IntType, inspect.EnumType, inspect.LiteralType)
    others = (
        inspect.UUIDType,
        inspect.DateType,
        inspect.DateTimeType,
        inspect.TimeType,
        inspect.DecimalType,
    )
    if not isinstance(info, texts + others):
        name = type(info).__name__.removesuffix("Type").lower()
        raise TypeError(
            f"a {name} cannot be the key of a dict: use str, int, UUID, Decimal, a date or an Enum"
        )
    return None


def _of_each(mend: Mend | None) -> Mend | None:
    """Of each item of an array, or each member of an object."""
    if mend is None:
        return None

    def mended(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: mend(item) for name, item in value.items()}
        return [mend(item) for item in value] if isinstance(value, list) else value

    return mended


def _of_positions(mends: Sequence[Mend | None]) -> Mend | None:
    """Of items of an array; it may be shorter, where the last have defaults, or longer."""
    if not any(mends):
        return None

    def mended(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [m(i) if m else i for i, m in zip(value, mends, strict=False)] + value[len(mends) :]

    return mended


def _of_members(mends: Mapping[str, Mend]) -> Mend | None:
    if not mends:
        return None

    def mended(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: mends[name](item) if name in mends else item for name, item in value.items()}

    return mended


def _but_for_none(mend: Mend) -> Mend:
    return lambda value: None if value is None else mend(value)


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
