"""A class of rows: its fields as columns, and columns back as its objects. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

from .builtin import builtin
from .errors import InvalidLoad, InvalidWrite, RowMismatch
from .message import Id, Route, encode, encode_row, plain
from .object_shape import UNFIT, ObjectShape, R


class RowShape(ObjectShape[R]):
    """What is known of a class of rows.

    Args:
        kind: the class.
        key: the fields that make the row's id.
        parse_float: as of :class:`ObjectShape`.
        route: the field that is the row's routing value, if one is.
    """

    def __init__(
        self,
        kind: type[R],
        key: tuple[str, ...],
        parse_float: Callable[[str], Any],
        route: str | None = None,
    ) -> None:
        super().__init__(kind, parse_float)
        self.key, self._route = key, route
        if route is not None and route not in self.fields:
            raise TypeError(f"{kind.__name__} has no field {route!r}: route= names one of its fields")
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
        values = [_builtin(table, name, _attribute(table, row, name)) for name in self.key]
        return cast(Id, values[0]) if len(values) == 1 else dict(zip(self.key, values, strict=True))

    def id(self, table: str, id: Any) -> Id:
        """An id as the untyped calls have it: of several key fields it is a tuple, in their order."""
        if len(self.key) == 1:
            return cast(Id, _builtin(table, self.key[0], id))
        if not isinstance(id, tuple) or len(id) != len(self.key):
            raise InvalidWrite(f"{table}: an id is a tuple ({', '.join(self.key)}), not {id!r}")
        return {name: _builtin(table, name, value) for name, value in zip(self.key, id, strict=True)}

    def route_of(self, table: str, row: R, given: Route | None) -> Route | None:
        """The routing value of a row: the one that is given, or in its field."""
        if given is not None or self._route is None:
            return given
        return cast(Route, _builtin(table, self._route, _attribute(table, row, self._route)))

    def route(self, table: str, id: Any, given: Route | None) -> Route | None:
        """The same by an id. Raises :class:`InvalidWrite` where it does not tell, and none is given."""
        if given is not None or self._route is None:
            return given
        if self._route not in self.key:
            raise InvalidWrite(f"{table}: an id does not tell {self._route!r}: give route=")
        known = self.id(table, id)
        return cast(Route, known[self._route] if isinstance(known, Mapping) else known)

    def values(self, table: str, row: R) -> dict[str, Any]:
        """Column → value. Raises :class:`InvalidWrite` for a value that cannot be written."""
        return {name: _builtin(table, name, _attribute(table, row, name)) for name in self.fields}

    def changes(self, table: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Column → value of fields that may change. Raises :class:`InvalidWrite` for what does not fit."""
        values: dict[str, Any] = {}
        for name, value in changes.items():
            self.check_name(table, name)
            values[name] = _builtin(table, name, value)
            try:
                self.fields[name].decode(encode(plain(values[name])))
            except UNFIT as error:
                raise InvalidWrite(f"{table}.{name}: {error}") from error
        return values

    def given(
        self,
        table: str,
        fields: Mapping[str, Any] | None,
        named: Mapping[str, Any],
        arguments: Collection[str] = ("wait", "durability", "route"),
    ) -> dict[str, Any]:
        """The fields that a call with these ``arguments`` names, by a mapping and by keywords.

        Raises :class:`InvalidWrite` for keywords where one of them could be the call's own.
        """
        if (named or fields is None) and (own := self.fields.keys() & set(arguments)):
            raise InvalidWrite(
                f"{table}: {self.kind.__name__} has a field {min(own)!r}, as the call has an argument: "
                "give the fields as a mapping"
            )
        return {**(fields or {}), **named}

    def check_name(self, table: str, name: str) -> None:
        """Raises :class:`InvalidWrite` unless it is a field that may change."""
        if name not in self.fields:
            known = ", ".join(self.fields)
            raise InvalidWrite(f"{table}: {self.kind.__name__} has no field {name!r}; it has: {known}")
        if name in self.key:
            raise InvalidWrite(f"{table}.{name}: a field of the key cannot be changed")
        if name == self._route:
            raise InvalidWrite(
                f"{table}.{name}: a routing value cannot be changed: the row's writes have one"
            )

    def encode(self, table: str, loaded: Any) -> dict[str, bytes]:
        """Column → JSON text of what a loader returned: a row or a mapping."""
        if not isinstance(loaded, (self.kind, Mapping)):
            raise InvalidLoad(
                f"{table}: the loader must return a {self.kind.__name__}, a mapping or None, "
                f"not {type(loaded).__name__}"
            )
        try:
            if isinstance(loaded, Mapping):
                values = {name: _builtin(table, name, value) for name, value in loaded.items()}
            else:
                values = self.values(table, loaded)
            columns = encode_row(table, values)
            self.row(columns)
        except (InvalidWrite, RowMismatch) as error:
            raise InvalidLoad(f"{table}: what the loader returned does not fit: {error}") from error
        return columns


def _attribute(table: str, row: Any, name: str) -> Any:
    try:
        return getattr(row, name)
    except AttributeError as error:
        raise InvalidWrite(f"{table}.{name}: the row has no such value") from error


def _builtin(table: str, name: Any, value: Any) -> Any:
    try:
        return builtin(value)
    except RecursionError:
        raise InvalidWrite(f"{table}.{name}: nested too deep, or in itself") from None
    except (AttributeError, *UNFIT) as error:
        raise InvalidWrite(f"{table}.{name}: {error}") from error
