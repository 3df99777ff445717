"""The shards of a queue: queues of their own, whose names are made of its name. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from .keys import QueueKeys

MAX_SHARDS = 1024
_SHARD = re.compile(r"[1-9][0-9]{0,3}of([1-9][0-9]{0,3})")


class Assignment(msgspec.Struct, frozen=True, array_like=True):
    """What a queue says of a table that has been moved: by its ``number``-th move, or that of another queue.

    ``state``: ``away``, its writes go to ``queue``; ``here``, it has come from there; ``closed``, its writes
    wait until all that are here are in Postgres, to go there; ``open``, they are, and it is opened there.
    """

    number: int
    state: str
    queue: str

    @property
    def waits(self) -> bool:
        """No write to the table is accepted, here or there."""
        return self.state in ("closed", "open")


_decode_tables = msgspec.json.Decoder(dict[str, Assignment]).decode


@dataclass(frozen=True, slots=True)
class Layout:
    """Into how many shards a queue is divided, and which tables have been moved from it or to it.

    ``number``: of the last division. ``closing``: how many there will be, while the present ones are being
    closed and none takes a write. ``draining``: how many there were, while theirs are not all in Postgres:
    nothing of the present ones goes there before; after a failover they are several such numbers.
    ``moves``: how often a table has left or come.
    """

    shards: int = 1
    closing: int | None = None
    draining: tuple[int, ...] = ()
    number: int = 0
    moves: int = 0
    tables: Mapping[str, Assignment] = field(default_factory=dict)

    @property
    def is_undivided(self) -> bool:
        """One shard, and nothing of others is left."""
        return self.shards == 1 and not self.draining


LAYOUT_FIELDS = ("shards", "closing", "draining", "number", "moves", "tables")
"""Of the hash in Redis that says it."""
_COUNTS = ("number", "moves")


def read_layout(values: Sequence[bytes | None]) -> Layout:
    """What those fields say; one shard where there is none. Raises ``ValueError`` for what is no layout."""
    told = {name: text for name, text in zip(LAYOUT_FIELDS, values, strict=True) if text is not None}
    tables = told.pop("tables", None)
    draining = tuple(int(text) for text in told.pop("draining", b"").split(b",") if text)
    numbers = {name: int(text) for name, text in told.items()}
    counts = [*draining, *(n for name, n in numbers.items() if name not in _COUNTS)]
    if bad := [n for n in counts if not 1 <= n <= MAX_SHARDS]:
        raise ValueError(f"{bad[0]} is no number of shards")
    try:
        moved = _decode_tables(tables) if tables else {}
    except msgspec.DecodeError as error:
        raise ValueError(f"of tables it says what is none: {error}") from error
    return Layout(**{"shards": 1, **numbers}, draining=draining, tables=moved)


def plain_table(table: str) -> str:
    """The table as moves know it: without its schema, as the hash of its rows does."""
    return table.rpartition(".")[2]


def check_shards(shards: int | None) -> None:
    """Raises ``ValueError`` for what is no number of shards."""
    if shards is None:
        return
    if not isinstance(shards, int) or isinstance(shards, bool) or not 1 <= shards <= MAX_SHARDS:
        raise ValueError(f"shards must be a number from 1 to {MAX_SHARDS}, or None, not {shards!r}")


def shard_queues(queue: str, shards: int) -> list[str]:
    """The names of the shards' queues; that of the only one is the queue's own."""
    return [queue] if shards == 1 else [f"{queue}:{number + 1}of{shards}" for number in range(shards)]


def shards_of(queue: str, name: str) -> int | None:
    """Of how many shards of ``queue`` the queue ``name`` is one; ``None`` if it is none."""
    found = _SHARD.fullmatch(name.removeprefix(f"{queue}:")) if name.startswith(f"{queue}:") else None
    return None if found is None else int(found[1])


def stamp(shard: int, shards: int, moves: int = 0) -> str:
    """What a shard's clock says that it is; of the only one, nothing. The moves of tables follow, if any."""
    name = "" if shards == 1 else f"{shard + 1}of{shards}"
    return f"{name}/{moves}" if moves else name


def shard_keys(queue: str, shards: int) -> list[QueueKeys]:
    """The keys of each shard."""
    return [QueueKeys(name) for name in shard_queues(queue, shards)]
