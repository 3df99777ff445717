"""What an application's loader has returned, in the order in which it was asked. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import InvalidLoad
from .message import Id


def by_id(ids: Sequence[Id], loaded: Any) -> list[Any]:
    """A row or ``None`` for each id.

    Args:
        ids: what the loader was asked for.
        loaded: a mapping id → row, where a composite id is the tuple of its values; or a sequence.

    Raises:
        InvalidLoad: it is neither, or holds what was not asked for: to take a row as missing that is only
            filed under another spelling of its id would hide it from every reader.
    """
    if isinstance(loaded, Mapping):
        names = [tuple(id.values()) if isinstance(id, Mapping) else id for id in ids]
        if strange := loaded.keys() - set(names):
            raise InvalidLoad(
                f"the loader returned a row for {next(iter(strange))!r}, which is no id that it "
                "was asked for; ids must be of the type that get_many was given"
            )
        return [loaded.get(name) for name in names]
    if not isinstance(loaded, Sequence) or isinstance(loaded, str | bytes):
        raise InvalidLoad(
            f"the loader must return a mapping id → row or a sequence, not {type(loaded).__name__}"
        )
    if len(loaded) != len(ids):
        raise InvalidLoad(f"the loader returned {len(loaded)} rows for {len(ids)} ids")
    return list(loaded)
