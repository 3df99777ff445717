"""A class of objects: its fields, and objects of it made of their JSON text. No I/O.

A dataclass, a ``msgspec.Struct``, an attrs class or a Pydantic model; a column is named as its field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar, cast, get_type_hints

import msgspec

from .errors import RowMismatch
from .field_decoder import Decode, field_decoder
from .field_types import check_class, check_marks, is_pydantic, plain_type

R = TypeVar("R")

UNFIT = (ValueError, TypeError, OverflowError, RecursionError, msgspec.MsgspecError)
"""What reading or writing a value raises that does not fit."""


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """``argument`` is what the class's constructor calls it."""

    name: str
    argument: str
    decode: Decode


class ObjectShape(Generic[R]):
    """What is known of a class.

    Args:
        kind: the class.
        parse_float: makes a number with a fraction where the class does not say what it shall be.
        models: the shapes of the Pydantic models that are known by now; this one and those in it are added.
    """

    def __init__(
        self,
        kind: type[R],
        parse_float: Callable[[str], Any],
        models: dict[type, ObjectShape[Any]] | None = None,
    ) -> None:
        self.kind, self._parse_float = kind, parse_float
        self._models: dict[type, ObjectShape[Any]] = {} if models is None else models
        self._models[kind] = self
        if isinstance(kind, type):
            check_class(kind)
        self._construct: Callable[..., R] = _constructor(kind)
        self.fields: dict[str, Field] = {}
        for name, argument, annotation, marks in _fields(kind):
            try:
                check_marks(marks)
                decode = field_decoder(plain_type(annotation), parse_float, self)
            except TypeError as error:
                raise TypeError(f"{kind.__name__}.{name}: this type cannot be read back: {error}") from error
            self.fields[name] = Field(name, argument, decode)

    def know(self, kind: type) -> None:
        """See :class:`Models`."""
        if kind not in self._models:
            ObjectShape(kind, self._parse_float, self._models)

    def make(self, kind: type, members: Mapping[str, bytes]) -> Any:
        """See :class:`Models`."""
        return self._models[kind].row(members)

    def row(self, columns: Mapping[str, bytes]) -> R:
        """The object of field → JSON text. Raises :class:`RowMismatch`; a column more does no harm."""
        arguments: dict[str, Any] = {}
        for name, field in self.fields.items():
            text = columns.get(name)
            if text is None:
                raise RowMismatch(self.kind.__name__, name, "the row has no such column")
            try:
                arguments[field.argument] = field.decode(text)
            except UNFIT as error:
                raise RowMismatch(self.kind.__name__, name, str(error)) from error
        try:
            return self._construct(**arguments)
        except Exception as error:  # what the class itself checks
            raise RowMismatch(self.kind.__name__, None, str(error)) from error


def _fields(kind: Any) -> Iterable[tuple[str, str, Any, Iterable[Any]]]:
    """Name, constructor's argument, type and marks of each field that the constructor takes."""
    if is_pydantic(kind):
        for name, field in kind.model_fields.items():
            alias = field.validation_alias if field.validation_alias is not None else field.alias
            if alias is not None and not isinstance(alias, str):
                raise TypeError(f"{kind.__name__}.{name}: an alias must be one string, not {alias!r}")
            yield name, alias or name, field.annotation, field.metadata
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
        yield name, argument, hints[name], ()


def _constructor(kind: Any) -> Callable[..., Any]:
    if not is_pydantic(kind):
        return cast(Callable[..., Any], kind)
    # By the alias of each, whether the model may be filled by name or not.
    return lambda **arguments: kind.model_validate(arguments)
