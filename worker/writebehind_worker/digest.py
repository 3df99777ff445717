"""Many writes read at once: what frozen batches come to where nothing about them is odd. No I/O.

Most writes are alike: a known table, one plain key, columns that it has, values that need no look. Those are
read and merged by calls that take thousands of them, at about 1 µs a write; one by one, as `received.py`,
`resolve.py` and `coalesce.py` go about it, it is 8. Whatever is not like that goes their way: a row with
writes of several kinds alone, a table with an odd write as a whole; where a message is wrong, or Postgres
refuses anything, the batch. What it comes to is the same either way.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import add, lt
from typing import Any

import msgspec
from msgspec import Raw
from msgspec.structs import astuple

from writebehind.message import Op

from . import row_lines
from .catalog import Catalog
from .frozen import FrozenBatch
from .plain_shape import Key, PlainMessage, PlainShape, Values, find_plain_shape
from .received import DEFAULT_TTL_S, receive
from .resolve import MustAsk, Write, never_ask, resolve
from .row_lines import CHUNK, Row, as_lines
from .settle import Latest, Settlement
from .table import Table

Rows = dict[PlainShape, dict[Key, Row]]


class _Message(PlainMessage, kw_only=True, forbid_unknown_fields=True, gc=False):
    data: Raw = Raw(b"")
    packed: Raw = Raw(b"")
    unpacked: int | None = None


_decode = msgspec.json.Decoder(_Message).decode
_decode_columns = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_deltas = msgspec.json.Decoder(dict[str, int]).decode


class _Odd(Exception):
    """These messages have to be read one by one."""


_ODD = (_Odd, MustAsk, msgspec.MsgspecError, RecursionError, UnicodeDecodeError, OverflowError)


@dataclass(slots=True)
class Digest:
    """What batches come to, by the tables as ``catalog`` knows them.

    ``rows``: by kind of write, each row once. ``others``: the writes to other rows, which were read one by
    one. ``seqs`` ascend, packed: long after they were read, they are still near each other in memory.
    ``messages`` counts by table.
    """

    catalog: Catalog
    rows: Rows
    others: Sequence[Write]
    latest: Latest
    seqs: array[int]
    messages: Counter[str]
    _keys: Mapping[PlainShape, Collection[Key]] | None = None  # once it is closed
    _settlements: Sequence[Settlement] = ()

    @property
    def keys(self) -> Mapping[PlainShape, Collection[Key]]:
        """Of ``rows``."""
        return self.rows if self._keys is None else self._keys

    @property
    def size(self) -> int:
        """Rows to be written, at most."""
        return sum(map(len, self.keys.values())) + len(self.others)

    @property
    def applied_seq(self) -> int:
        """The highest seq; 0 if there is none."""
        return self.seqs[-1] if self.seqs else 0

    @property
    def tables(self) -> set[int]:
        """The oids of all tables that are written to."""
        return {shape.table.oid for shape in self.keys} | {write.table.oid for write in self.others}

    @property
    def settlements(self) -> Sequence[Settlement]:
        """What the cache must hear once all of it is in Postgres."""
        if self.is_closed:
            return self._settlements
        return list(self.latest.settlements())

    @property
    def is_closed(self) -> bool:
        """Nothing can be added to it, and of its rows it knows the keys only."""
        return self._keys is not None

    def close(self) -> None:
        """Its statements have been made: lets go of the values, which are most of its memory."""
        if not self.is_closed:
            self._settlements = self.settlements
            self._keys = {shape: tuple(rows) for shape, rows in self.rows.items()}
            self.rows, self.latest = {}, Latest()

    def land(self) -> None:
        """It is in Postgres: what Redis must hear of it is kept."""
        self.close()
        self._keys = {}

    def add(self, later: Digest) -> bool:
        """Takes in the next batch too. False, and nothing is changed, where both at once could differ."""
        if self.is_closed or later.is_closed or self.others or later.others:
            return False
        if self.catalog is not later.catalog:
            return False
        if self.seqs and later.seqs and later.seqs[0] <= self.seqs[-1]:
            return False
        if _has_barrier([*self.rows, *later.rows], (), self.tables | later.tables):
            return False
        if any(self._has_other_kinds(shape, rows) for shape, rows in later.rows.items()):
            return False
        sums = {s: _added(self.rows.get(s, {}), rows) for s, rows in later.rows.items() if s.adds}
        if not all(shape.fits(list(rows.values())) for shape, rows in sums.items()):
            return False
        for shape, rows in later.rows.items():
            self.rows.setdefault(shape, {}).update(sums.get(shape, rows))
        self.latest.add_all(later.latest)
        self.seqs += later.seqs
        self.messages += later.messages
        return True

    def _has_other_kinds(self, shape: PlainShape, rows: Mapping[Key, Row]) -> bool:
        """Whether one of these rows has writes of another kind here."""
        others = (mine for s, mine in self.rows.items() if s is not shape and s.table is shape.table)
        return any(not mine.keys().isdisjoint(rows) for mine in others)


def digest(batch: FrozenBatch, catalog: Catalog) -> Digest | None:
    """``None`` where the batch has to be read message by message."""
    try:
        return _digest(batch, catalog)
    except _ODD:
        return None


def _digest(batch: FrozenBatch, catalog: Catalog) -> Digest:
    found = _Reading(catalog, may_copy=len(batch.items) >= row_lines.COPIED_FROM)
    for start in range(0, len(batch.items), CHUNK):
        found.take(batch.items[start : start + CHUNK])
    seqs = found.seqs
    ascend = all(map(lt, seqs, seqs[1:]))
    if None in found.latest.seqs or not ascend or (seqs and seqs[-1] > batch.clock):
        raise _Odd
    rows = found.rows()
    odd_rows = _take_mixed(rows)
    others: Sequence[Write] = ()
    if found.odd_tables or odd_rows:
        others = _read_one_by_one(batch, found.is_odd(odd_rows), catalog)
    result = Digest(catalog, rows, others, found.latest, array("q", seqs), found.messages())
    if _has_barrier(rows, others, result.tables):
        raise _Odd
    return result


class _Reading:
    """What has been read of a batch. ``may_copy``: it may be large enough for COPY."""

    def __init__(self, catalog: Catalog, may_copy: bool) -> None:
        self._catalog, self._may_copy = catalog, may_copy
        self._tables: dict[str, Table] = {}
        self._last: dict[PlainShape, dict[Key, Row]] = defaultdict(dict)
        self._deltas: dict[PlainShape, dict[Key, list[Values]]] = {}
        self._count: Counter[str] = Counter()
        self.latest = Latest()
        self.seqs: list[int] = []
        self.odd_tables: set[int] = set()

    def take(self, items: Sequence[bytes]) -> None:
        """The next messages."""
        text = b"\n".join(items)
        if not text.isascii():
            text.decode()  # msgspec takes the insides of Raw as they come
        if not self._take_alike(items):
            self._take_mixed(items)

    def _take_alike(self, items: Sequence[bytes]) -> bool:
        """Whether all of them are of the shape of the first one; else nothing is taken."""
        first = _decode(items[0])
        if first.op == "delete":
            return False
        try:
            shape = _shape(self._table(first.table), first.op, tuple(_decode_columns(first.data)))
            messages = list(map(shape.message_reader(first.table), items))
            self._add(shape, [m.id for m in messages], list(map(astuple, [m.data for m in messages])))
        except _ODD:
            return False
        self._count[first.table] += len(messages)
        self._stamp(messages)
        return True

    def _take_mixed(self, items: Sequence[bytes]) -> None:
        messages = list(map(_decode, items))
        kinds: dict[tuple[str, Op], list[_Message]] = defaultdict(list)
        for message in messages:
            kinds[message.table, message.op].append(message)
            if len(message.packed):
                self.odd_tables.add(self._table(message.table).oid)
        for (name, op), those in kinds.items():
            self._count[name] += len(those)
            table = self._table(name)
            if table.oid in self.odd_tables:
                continue
            try:
                self._read(table, op, [m.id for m in those], [m.data for m in those])
            except _ODD:
                self.odd_tables.add(table.oid)
        self._stamp(messages)

    def _stamp(self, messages: Sequence[PlainMessage]) -> None:
        ours = [m for m in messages if m.seq is not None]
        if not ours:
            return
        seqs = [m.seq for m in ours if m.seq is not None]
        ttls, puts = [m.ttl or DEFAULT_TTL_S for m in ours], [m.op == "put" for m in ours]
        are_alike = ttls.count(ttls[0]) == puts.count(puts[0]) == len(ours)
        kinds = (ttls[0], puts[0]) if are_alike else list(zip(ttls, puts, strict=True))
        self.latest.add([m.key for m in ours], seqs, kinds)
        self.seqs += seqs

    def _table(self, name: str) -> Table:
        table = self._tables.get(name)
        if table is None:
            table = self._catalog.find(name)
            # Unknown; or one by two names: what came first to a row of it would not be seen any more.
            if table is None or any(table is known for known in self._tables.values()):
                raise _Odd
            self._tables[name] = table
        return table

    def _read(self, table: Table, op: Op, keys: Sequence[Key], texts: Sequence[Raw]) -> None:
        if op == "delete":
            if any(map(bytes, texts)):
                raise _Odd
            self._add(_shape(table, op, ()), keys, [()] * len(keys))
            return
        shape = _shape(table, op, tuple(_decode_columns(texts[0])))
        try:
            values = list(map(astuple, map(shape.read, texts)))
        except msgspec.ValidationError:  # not all have these columns
            self._read_mixed(table, op, keys, texts)
        else:
            self._add(shape, keys, values)

    def _read_mixed(self, table: Table, op: Op, keys: Sequence[Key], texts: Sequence[Raw]) -> None:
        decode: Callable[[Raw], Mapping[str, Any]] = _decode_columns
        if op == "increment":
            decode = _decode_deltas
        found: dict[PlainShape, tuple[list[Key], list[Values]]] = defaultdict(lambda: ([], []))
        for key, data in zip(keys, map(decode, texts), strict=True):
            shape = _shape(table, op, tuple(data))
            those = found[shape]
            those[0].append(key)
            those[1].append(tuple([data[name] for name in shape.group.columns]))
        for shape, (own, values) in found.items():
            self._add(shape, own, values)

    def _add(self, shape: PlainShape, keys: Sequence[Key], values: Sequence[Values]) -> None:
        if not shape.has_plain(keys):
            raise _Odd
        if shape.adds:
            deltas = self._deltas.setdefault(shape, defaultdict(list))
            for key, one in zip(keys, values, strict=True):
                deltas[key].append(one)
        else:
            rows = as_lines(keys, values) if shape.copies and self._may_copy else values
            self._last[shape].update(zip(keys, rows, strict=True))

    def rows(self) -> Rows:
        """Those of the tables that are not odd."""
        found: Rows = {**self._last}
        for shape, deltas in self._deltas.items():
            found[shape] = {k: tuple(map(sum, zip(*those, strict=True))) for k, those in deltas.items()}
            if not shape.fits(list(found[shape].values())):
                self.odd_tables.add(shape.table.oid)
        return {shape: those for shape, those in found.items() if shape.table.oid not in self.odd_tables}

    def is_odd(self, odd_rows: Mapping[int, Collection[Key]]) -> Callable[[_Message], bool]:
        """Whether a message has to be read by itself."""

        def is_odd(message: _Message) -> bool:
            oid = self._tables[message.table].oid
            return oid in self.odd_tables or message.id in odd_rows.get(oid, ())

        return is_odd

    def messages(self) -> Counter[str]:
        """How many, by table."""
        return Counter({self._tables[name].full_name: count for name, count in self._count.items()})


def _shape(table: Table, op: Op, names: tuple[str, ...]) -> PlainShape:
    shape = find_plain_shape(table, op, names)
    if shape is None:
        raise _Odd
    return shape


def _added(rows: Mapping[Key, Any], later: Mapping[Key, Any]) -> dict[Key, Row]:
    """The sums of each row that ``later`` adds to."""
    sums: dict[Key, Row] = {}
    for key, deltas in later.items():
        old = rows.get(key)
        sums[key] = deltas if old is None else tuple(map(add, old, deltas))
    return sums


def _take_mixed(rows: Rows) -> dict[int, set[Key]]:
    """Takes out the rows that get writes of several kinds; their keys by the table's oid."""
    seen: dict[int, set[Key]] = defaultdict(set)
    mixed: dict[int, set[Key]] = defaultdict(set)
    for shape, found in rows.items():
        oid = shape.table.oid
        mixed[oid] |= seen[oid] & found.keys()
        seen[oid] |= found.keys()
    for shape, found in rows.items():
        for key in mixed[shape.table.oid]:
            found.pop(key, None)
    return {oid: keys for oid, keys in mixed.items() if keys}


def _read_one_by_one(
    batch: FrozenBatch, is_odd: Callable[[_Message], bool], catalog: Catalog
) -> Sequence[Write]:
    items = enumerate(batch.items)
    messages = [receive(i, item, batch.clock) for i, item in items if is_odd(_decode(item))]
    writes, refusals = resolve(messages, catalog, never_ask)
    if refusals:
        raise _Odd
    return writes


def _has_barrier(shapes: Iterable[PlainShape], others: Iterable[Write], tables: Collection[int]) -> bool:
    """Whether a delete reaches into one of the tables: what comes before it must stay before it."""
    deletes = [s.table for s in shapes if s.group.op == "delete"]
    deletes += [w.table for w in others if w.op == "delete"]
    return any(not table.cascades.isdisjoint(tables) for table in deletes)
