"""The types that a field of a row may have: each can be written and read back. No I/O.

Of classes that neither we nor msgspec know it is not known how: they are refused when a table is made.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import pathlib
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

_TEXTS = (
    pathlib.PurePath,
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
)
_PYDANTIC_TEXTS = frozenset({"Url", "MultiHostUrl", "_BaseUrl", "_BaseMultiHostUrl"})
_PYDANTIC_NAMES: dict[str, type] = {
    "AwareDatetime": dt.datetime,
    "NaiveDatetime": dt.datetime,
    "PastDatetime": dt.datetime,
    "FutureDatetime": dt.datetime,
    "PastDate": dt.date,
    "FutureDate": dt.date,
    "EmailStr": str,
}
"""Pydantic's names for a value of another type, which the model checks when it is made."""

_CONCEALED = "its text is no value, and a row is read by many: keep a hash or a ciphertext, as str or bytes"
_INSTEAD = {
    "SecretStr": _CONCEALED,
    "SecretBytes": _CONCEALED,
    "Secret": _CONCEALED,
    "EncodedBytes": "its model takes encoded text and holds decoded: use bytes",
    "EncodedStr": "its model takes encoded text and holds decoded: use str",
    "Json": "its model takes text and holds what that says: use the type of that, such as dict[str, Any]",
    "IPvAnyAddress": "use ipaddress.IPv4Address, ipaddress.IPv6Address or str",
    "RootModel": "use the type of its root",
    **{name: f"use datetime.{kind.__name__}" for name, kind in _PYDANTIC_NAMES.items() if kind is not str},
}


def is_pydantic(kind: Any) -> bool:
    """Whether it is a class of Pydantic models."""
    return (
        isinstance(kind, type) and hasattr(kind, "__pydantic_validator__") and hasattr(kind, "model_fields")
    )


def has_text(kind: type) -> bool:
    """Whether ``kind(str(value))`` is the value: URLs, IP addresses, paths. Or a number: ``ByteSize``."""
    if issubclass(kind, _TEXTS) or (kind.__name__ == "ByteSize" and _is_of_pydantic(kind)):
        return True
    return any(c.__name__ in _PYDANTIC_TEXTS and _is_of_pydantic(c) for c in kind.__mro__)


def check_unknown(kind: Any) -> None:
    """Raises ``TypeError`` for a class that msgspec does not know, unless we do."""
    if is_pydantic(kind):
        check_class(kind)
    elif not isinstance(kind, type) or not has_text(kind):
        _refuse(kind)


def check_class(kind: Any) -> None:
    """Raises ``TypeError`` for a class of objects of which a part would be lost."""
    config = kind.model_config if is_pydantic(kind) else getattr(kind, "__pydantic_config__", None)
    if config and config.get("extra") == "allow":
        raise TypeError(
            f"{kind.__name__} has extra='allow', and what is no field would be lost: "
            "use a field of type dict[str, Any]"
        )
    if any(c.__name__ == "RootModel" and _is_of_pydantic(c) for c in kind.__mro__):
        raise TypeError(f"{kind.__name__} is a RootModel: {_INSTEAD['RootModel']}")


def check_hints(kind: Any) -> None:
    """Raises ``TypeError`` if a field of the class is marked as one that reads otherwise than it writes."""
    for annotation in get_type_hints(get_origin(kind) or kind, include_extras=True).values():
        plain_type(annotation)


def check_marks(marks: Iterable[Any]) -> None:
    """Raises ``TypeError`` for Pydantic's marks (``Annotated``) of what is read otherwise than written."""
    for mark in marks:
        kind = mark if isinstance(mark, type) else type(mark)
        if kind.__name__ in ("EncodedBytes", "EncodedStr", "Json") and _is_of_pydantic(kind):
            _refuse(kind)


def plain_type(annotation: Any) -> Any:
    """The annotation, with Pydantic's names for ``datetime``, ``date`` and ``str`` replaced by these."""
    if isinstance(annotation, type) and _is_of_pydantic(annotation):
        return _PYDANTIC_NAMES.get(annotation.__name__, annotation)
    if (meant := getattr(annotation, "__supertype__", None)) is not None:  # of a NewType
        return plain_type(meant)
    if type(annotation).__name__ == "TypeAliasType":
        return plain_type(annotation.__value__)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is None or origin is Literal:
        return annotation
    if origin is Annotated:
        check_marks(annotation.__metadata__)
        arguments = (annotation.__origin__, *annotation.__metadata__)
        return Annotated[(plain_type(arguments[0]), *arguments[1:])]
    plain = tuple(plain_type(argument) for argument in arguments)
    if all(new is old for new, old in zip(plain, arguments, strict=True)):
        return annotation
    if _is_union(annotation):
        return Union[plain]  # noqa: UP007 - they are a tuple
    return origin[plain[0] if len(plain) == 1 else plain]


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) is Union or type(annotation).__name__ == "UnionType"


def _is_of_pydantic(kind: type) -> bool:
    return kind.__module__.split(".")[0] in ("pydantic", "pydantic_core")


def _refuse(kind: Any) -> NoReturn:
    name = getattr(kind, "__name__", str(kind))
    instead = _INSTEAD.get(name) if isinstance(kind, type) and _is_of_pydantic(kind) else None
    raise TypeError(f"{name}: {instead or 'use a type of Python, or str, and convert it in the class'}")
