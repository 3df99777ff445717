"""From messages to writes: the table and the row that each means. No I/O but through ``ask``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from writebehind.identity import scalar_text
from writebehind.message import Op

from .catalog import Catalog
from .received import Fault, Message, make_fault, shown
from .table import Table

Key = tuple[str, ...]
RowId = tuple[int, Key]
"""(oid of the table, canonical key): equal for two writes exactly if they mean the same row."""

Ask = Callable[[Table, Sequence[Mapping[str, bytes]]], Sequence[Key | None]]
"""Asks Postgres for the canonical form of keys, ``None`` where it cannot read one."""


_MOST_DIGITS = 131_072 + 16_383 + 20  # of a numeric; a sign, a point, an exponent
_MOST_NAMES = 10  # of an `id`, that a reason quotes


class Write(msgspec.Struct, frozen=True):
    """A message that means a row. ``key_json`` and ``columns`` are JSON texts by column."""

    message: Message
    table: Table
    row: RowId
    key_json: Mapping[str, bytes]
    columns: Mapping[str, bytes]

    @property
    def op(self) -> Op:
        """What the message asks for."""
        return self.message.op

    @property
    def key_text(self) -> str:
        """The canonical key as a JSON array of texts, as dead letters have it."""
        return key_text(self.row[1])


class Refusal(msgspec.Struct, frozen=True):
    """A message that cannot be applied, and why; ``table`` and ``key`` where they are known."""

    message: Message
    fault: Fault
    table: Table | None = None
    key: Key | None = None

    @property
    def key_text(self) -> str | None:
        """As :attr:`Write.key_text`."""
        return None if self.key is None else key_text(self.key)


def key_text(key: Key) -> str:
    """A canonical key as a JSON array of texts, as dead letters have it."""
    return msgspec.json.encode(key).decode()


def names_unknown(messages: Iterable[Message], catalog: Catalog) -> bool:
    """Whether a message names a table or column that the catalog lacks: it may have become old."""
    for message in messages:
        if message.fault is None and message.table is not None:
            table = catalog.find(message.table)
            if table is None or not (message.columns or {}).keys() <= table.columns.keys():
                return True
    return False


def resolve(messages: Iterable[Message], catalog: Catalog, ask: Ask) -> tuple[list[Write], list[Refusal]]:
    """Writes and refusals, both in list order."""
    drafts: list[_Draft] = []
    refusals: list[Refusal] = []
    for message in messages:
        found = message.fault or _draft(message, catalog)
        if isinstance(found, Fault):
            refusals.append(Refusal(message, found, catalog.find(message.table or "")))
        else:
            drafts.append(found)
    _complete_keys(drafts, ask)
    writes: list[Write] = []
    for d in drafts:
        key = d.key or ()
        if d.fault is None:
            writes.append(Write(d.message, d.table, (d.table.oid, key), d.key_json, d.columns))
        else:
            refusals.append(Refusal(d.message, d.fault, d.table, key))
    return writes, sorted(refusals, key=lambda r: r.message.position)


class _Draft(msgspec.Struct):
    message: Message
    table: Table
    key_json: Mapping[str, bytes]
    texts: Mapping[str, str]
    columns: Mapping[str, bytes]
    fault: Fault | None
    key: Key | None  # None: only Postgres can tell


def _complete_keys(drafts: Sequence[_Draft], ask: Ask) -> None:
    """Where one key of a table must be asked for, all of its keys are, so that they compare."""
    for oid in {d.table.oid for d in drafts if d.key is None}:
        same = [d for d in drafts if d.table.oid == oid]
        for draft, key in zip(same, ask(same[0].table, [d.key_json for d in same]), strict=True):
            # Keys that Postgres cannot read stay apart by their texts; the flush will say what is wrong.
            draft.key = key or tuple(draft.texts[c.name] for c in draft.table.key)


def _draft(message: Message, catalog: Catalog) -> _Draft | Fault:
    name = message.table or ""
    table = catalog.find(name)
    if table is None:
        return make_fault(
            "42P01", f"unknown table {shown(name)}: it does not exist, or --table does not allow it"
        )
    if not table.key:
        return make_fault("42P10", f"{table.full_name} has no primary key: its rows cannot be told apart")
    names = [c.name for c in table.key]
    needed = f"the primary key of {table.full_name} is ({', '.join(names)})"
    texts: Mapping[str, str]
    if isinstance(message.id, str):
        if len(names) > 1:
            return make_fault("42P10", f"{needed}: `id` must be an object with these columns")
        assert isinstance(message.id_json, bytes)
        texts, given = {names[0]: message.id}, {names[0]: message.id_json}
    else:
        assert not isinstance(message.id_json, bytes)
        if message.id.keys() != set(names):
            given_names = ", ".join(shown(name) for name in sorted(message.id)[:_MOST_NAMES])
            return make_fault("42P10", f"{needed}, but `id` gives {given_names}")
        texts, given = message.id, dict(message.id_json)
    key_json = {n: given[n] for n in names}
    columns = dict(message.columns or {})
    fault = _check_columns(message.op, table, columns, key_json, texts)
    values = [c.canonical(texts[c.name]) for c in table.key]
    key = None if None in values else tuple(v for v in values if v is not None)
    return _Draft(message, table, key_json, texts, columns, fault, key)


def _check_columns(
    op: Op,
    table: Table,
    columns: dict[str, bytes],
    key_json: Mapping[str, bytes],
    texts: Mapping[str, str],
) -> Fault | None:
    """Checks what the catalog can tell, and takes the key's columns out of ``columns``."""
    for name in list(columns):
        column = table.columns.get(name)
        if column is None:
            return make_fault("42703", f"{table.full_name} has no column {shown(name)}")
        if column.is_generated:
            return make_fault("428C9", f"{table.full_name}.{name} is generated by Postgres: leave it out")
        if name in key_json:
            if op == "increment" or not _same(columns[name], key_json[name], name, table, texts):
                return make_fault(
                    "22023", f"`data` would change {shown(name)}, which is part of the primary key"
                )
            del columns[name]
        elif op == "increment" and column.number is None:
            return make_fault("42804", f"{table.full_name}.{name} is {column.type}: it cannot be incremented")
        elif op == "increment" and len(columns[name]) > _MOST_DIGITS:
            return make_fault(
                "22003",
                f"increment of {table.full_name}.{name}: the delta has {len(columns[name])} characters; "
                "numeric takes 131072 digits before the point and 16383 after it",
            )
    if not columns and op in ("patch", "increment"):
        return make_fault("22023", f"{op} of {table.full_name} gives no column besides the primary key")
    return None


def _same(value: bytes, key: bytes, name: str, table: Table, texts: Mapping[str, str]) -> bool:
    if value == key:
        return True
    if value[:1] in (b"{", b"[", b"n"):
        return False
    column = next(c for c in table.key if c.name == name)
    text = scalar_text(value) or ""
    return text == texts[name] or column.canonical(text) == column.canonical(texts[name]) is not None
