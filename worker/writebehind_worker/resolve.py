"""From messages to writes: the table and the row that each means. No I/O but through ``ask``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from writebehind.identity import scalar_text
from writebehind.message import Op

from .catalog import Catalog
from .received import Fault, JsonText, Message, make_fault, shown
from .table import Shape, Table

Key = tuple[str, ...]
RowId = tuple[int, Key]
"""(oid of the table, canonical key): equal for two writes exactly if they mean the same row."""

Ask = Callable[[Table, Sequence[Mapping[str, bytes]]], Sequence[Key | None]]
"""Asks Postgres for the canonical form of keys, ``None`` where it cannot read one."""


class MustAsk(Exception):
    """Only Postgres can tell which keys are equal."""


def never_ask(table: Table, keys: Sequence[Mapping[str, bytes]]) -> Sequence[Key | None]:
    """An `Ask` for where Postgres is not at hand: it raises `MustAsk`."""
    raise MustAsk(table.full_name)


_UNKNOWN = frozenset({"42P01", "42703"})
_MOST_DIGITS = 131_072 + 16_383 + 20  # of a numeric; a sign, a point, an exponent
_MOST_NAMES = 10  # of an `id`, that a reason quotes


Order = int | tuple[tuple[int, str], ...]
"""By which the rows of a table are sorted: integers by value."""


class Write(msgspec.Struct, frozen=True, gc=False):
    """A message that means a row; or, of several messages to a row, what they come to.

    ``key_texts`` are the JSON texts of the key, in its order, ``columns`` those of the other columns.
    """

    message: Message
    shape: Shape
    row: RowId
    order: Order
    key_texts: tuple[JsonText, ...]
    columns: Mapping[str, JsonText]
    fault: None = None

    @property
    def table(self) -> Table:
        """Whose row it is."""
        return self.shape.table

    @property
    def op(self) -> Op:
        """What is to be done with the row."""
        return self.shape.op

    @property
    def texts(self) -> dict[str, bytes]:
        """Column → JSON text, those of the key first."""
        names = (c.name for c in self.table.key)
        given = {**dict(zip(names, self.key_texts, strict=True)), **self.columns}
        return {name: bytes(text) for name, text in given.items()}

    @property
    def key_text(self) -> str:
        """The canonical key as a JSON array of texts, as dead letters have it."""
        return key_text(self.row[1])


class Refusal(msgspec.Struct, frozen=True):
    """A message that cannot be applied, and why; ``table`` and ``key`` where they are known.

    Of a group these are of the write that it is refused for, and ``rows`` are those of all of its writes,
    (``schema.table``, key as :attr:`key_text`). Where one of them is not known, ``key`` is not.
    """

    message: Message
    fault: Fault
    table: Table | None = None
    key: Key | None = None
    rows: tuple[tuple[str, str], ...] = ()

    @property
    def key_text(self) -> str | None:
        """As :attr:`Write.key_text`."""
        return None if self.key is None else key_text(self.key)


def key_text(key: Key) -> str:
    """A canonical key as a JSON array of texts, as dead letters have it."""
    return msgspec.json.encode(key).decode()


def names_unknown(refusals: Iterable[Refusal]) -> bool:
    """Whether a table or column was refused that the catalog lacks: it may have become old."""
    return any(r.message.fault is None and r.fault.sqlstate in _UNKNOWN for r in refusals)


def resolve(messages: Iterable[Message], catalog: Catalog, ask: Ask) -> tuple[list[Write], list[Refusal]]:
    """Writes and refusals, both in list order."""
    found: list[Write | _Draft] = []
    refusals: list[Refusal] = []
    for message in messages:
        drafted = _plain(message, catalog) or message.fault or _draft(message, catalog)
        if isinstance(drafted, Fault):
            refusals.append(Refusal(message, drafted, catalog.find(message.table or "")))
        else:
            found.append(drafted)
    drafts = [d for d in found if isinstance(d, _Draft)]
    _complete_keys(drafts, ask)
    refusals += [Refusal(d.message, d.fault, d.table, d.key) for d in drafts if d.fault is not None]
    writes = [f if isinstance(f, Write) else _made(f) for f in found if f.fault is None]
    refusals.sort(key=lambda r: r.message.position)
    if any(r.message.member for r in refusals):
        return whole_groups(writes, refusals)
    return writes, refusals


def whole_groups(writes: Sequence[Write], refusals: Sequence[Refusal]) -> tuple[list[Write], list[Refusal]]:
    """A group of which one write is refused is refused: the rest of it is no write, and it is one refusal."""
    refused: dict[int, list[Refusal]] = {}
    for refusal in refusals:
        refused.setdefault(refusal.message.position, []).append(refusal)
    others: dict[int, list[Write]] = {}
    for write in writes:
        if write.message.position in refused:
            others.setdefault(write.message.position, []).append(write)
    whole = [_of_group(those, others.get(position, ())) for position, those in refused.items()]
    return [w for w in writes if w.message.position not in refused], whole


def _of_group(refusals: Sequence[Refusal], others: Sequence[Write]) -> Refusal:
    first = refusals[0]
    if not first.message.member:
        return first
    rows = [(r.table.full_name, r.key_text) for r in refusals if r.table is not None and r.key_text]
    is_known = len(rows) == len(refusals)
    known = tuple(dict.fromkeys([*((t, k) for t, k in rows if k), *map(named_row, others)]))
    reason = first.fault.reason
    if first.message.fault is None:
        reason = f"{member_name(first.message)}: {reason}"
    fault = make_fault(first.fault.sqlstate, reason)
    return Refusal(first.message, fault, first.table, first.key if is_known else None, known)


def named_row(write: Write) -> tuple[str, str]:
    """Its row as dead letters have it."""
    return write.table.full_name, write.key_text


def member_name(message: Message) -> str:
    """Which write of a group a message is, for a reason."""
    return f"write {message.member} of the group, {message.op} of {shown(message.table or '')}"


def _plain(message: Message, catalog: Catalog) -> Write | None:
    """The write, where one like it has been and a plain integer names its row: most are so, this is quick."""
    table, text, columns = catalog.tables.get(message.table or ""), message.id, message.columns
    if table is None or columns is None or message.fault is not None or len(message.body) > _MOST_DIGITS:
        return None
    shape = table.shapes.get((message.op, *columns))
    if shape is None or not shape.is_int_keyed or not isinstance(text, str):
        return None
    if not (text.isdigit() and text.isascii() and len(text) < 19) or text[0] == "0":
        return None
    assert isinstance(message.id_json, bytes)
    return Write(message, shape, (table.oid, (text,)), int(text), (message.id_json,), columns)


class _Draft(msgspec.Struct):
    message: Message
    table: Table
    key_json: Mapping[str, bytes]
    texts: Mapping[str, str]
    columns: Mapping[str, JsonText]
    fault: Fault | None
    key: Key | None  # None: only Postgres can tell


def _made(draft: _Draft) -> Write:
    table, key = draft.table, draft.key or ()
    shape = table.shape(draft.message.op, tuple(draft.columns))
    order: Order = tuple(
        (int(text), "") if column.kind == "int" and column.canonical(text) else (0, text)
        for column, text in zip(table.key, key, strict=True)
    )
    if shape.is_int_keyed:
        assert isinstance(order, tuple)
        order = order[0][0]  # 0 for what is none: Postgres will refuse it
    return Write(draft.message, shape, (table.oid, key), order, tuple(draft.key_json.values()), draft.columns)


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
    columns: dict[str, JsonText],
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
            if op == "increment" or not _same(bytes(columns[name]), key_json[name], name, table, texts):
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
