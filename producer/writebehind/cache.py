"""Reading rows through the cache: the states of docs/cache.md as a reader meets them. No I/O: steps."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from .entry import Entry, read_entry, row_decoder
from .errors import FlushTimeout
from .keys import QueueKeys
from .loaded import by_id
from .message import MAX_COLUMNS, Id, cache_fields, encode_row
from .pauses import pauses
from .script import Argument, Script
from .settings import Settings
from .steps import Command, Load, Pause, Pipeline, Steps, run_script, run_scripts
from .translate import redis_errors_as_ours

Row = dict[str, Any]
Loader = Callable[[Any], Any]
"""Gives the row of an id, or ``None``; for the async client it may be a coroutine function."""
BulkLoader = Callable[[list[Any]], Any]
"""Gives the rows of ids: a mapping id → row, or a sequence with a row or ``None`` for each id."""

_BEGIN_FILL = Script("writebehind", "begin_fill")
_END_FILL = Script("writebehind", "end_fill")
_INVALIDATE = Script("writebehind", "invalidate")

_FOREIGN = Entry("foreign", {})
_Outcome = tuple[str, int, Sequence[str | bytes]]
_ABANDONED: _Outcome = ("abandon", 1, [])


class Wanted(NamedTuple):
    """A row that is asked for: its cache key, and its id as the caller has it."""

    where: str
    id: Id


class RowCache:
    """The cached rows of one client."""

    def __init__(self, keys: QueueKeys, settings: Settings) -> None:
        self._keys, self._settings = keys, settings
        self._row = row_decoder(settings.parse_float)
        self._packing = settings.packing()

    def get(self, wanted: Wanted, table: str, load: Loader | None, timeout: float) -> Steps[Row | None]:
        """See :meth:`WriteBehind.get`."""
        where, id = wanted
        deadline = time.monotonic() + timeout
        entry = yield from self._look(where)
        if load is None:
            return self._row(entry.columns) if entry.state == "row" else None
        for pause in pauses():
            if entry.state == "absent":
                token = secrets.token_hex(8)
                (entry,) = yield from self.begin_fills([where], token)
                if entry.state == "absent":
                    (row,) = yield from self._fill([where], token, table, _load_one(id, load))
                    return row
            if entry.state == "row":
                return self._row(entry.columns)
            if entry.state == "gone":
                return None
            if entry.state != "filling":
                break
            yield Pause(pause)
            entry = yield from self._look(where)
        if entry.state == "marker":
            yield from self._await_applied(table, entry.seq, deadline)
        return self._loaded(table, (yield Load(load, id)))[0]

    def get_many(
        self, wanted: Sequence[Wanted], table: str, load: BulkLoader | None, timeout: float
    ) -> Steps[list[Row | None]]:
        """See :meth:`WriteBehind.get_many`."""
        deadline = time.monotonic() + timeout
        open_ = {where: Wanted(where, id) for where, id in wanted}
        entries = dict(zip(open_, (yield from self._look_at_all(list(open_))), strict=True))
        found: dict[str, Row | None] = {}
        for pause in pauses():
            absent = [open_[where] for where, entry in entries.items() if entry.state == "absent"]
            if absent and load is not None:
                token = secrets.token_hex(8)
                begun = yield from self.begin_fills([w.where for w in absent], token)
                entries.update({w.where: entry for w, entry in zip(absent, begun, strict=True)})
                mine = [w for w, entry in zip(absent, begun, strict=True) if entry.state == "absent"]
                if mine:
                    names = [w.where for w in mine]
                    rows = yield from self._fill(names, token, table, _load_all(mine, load))
                    found.update({w.where: row for w, row in zip(mine, rows, strict=True)})
            for where, entry in entries.items():
                if entry.state in ("row", "gone"):
                    found[where] = self._row(entry.columns) if entry.state == "row" else None
            entries = {where: entry for where, entry in entries.items() if where not in found}
            waiting = [where for where, entry in entries.items() if entry.state == "filling"]
            if load is None or not waiting:
                break
            yield Pause(pause)
            entries.update(zip(waiting, (yield from self._look_at_all(waiting)), strict=True))
        if load is not None and entries:
            yield from self._await_applied(table, max(e.seq for e in entries.values()), deadline)
            rest = [open_[where] for where in entries]
            for w, row in zip(rest, (yield from _load_all(rest, load)), strict=True):
                found[w.where] = self._loaded(table, row)[0]
        return [found.get(where) for where, _ in wanted]

    def invalidate(self, where: str) -> Steps[bool]:
        """Removes the entry unless a write to it is pending; whether nothing is cached any more."""
        with redis_errors_as_ours("invalidate"):
            return bool((yield from run_script(_INVALIDATE, [where], [])))

    def _look(self, where: str) -> Steps[Entry]:
        with redis_errors_as_ours("get"):
            try:
                return read_entry((yield Command(("HGETALL", where))))
            except ResponseError as error:
                return _foreign_or_raise(error)

    def _look_at_all(self, names: Sequence[str]) -> Steps[list[Entry]]:
        with redis_errors_as_ours("get_many"):
            replies = yield Pipeline([("HGETALL", where) for where in names], keeps_errors=True)
            return [
                _foreign_or_raise(reply) if isinstance(reply, Exception) else read_entry(reply)
                for reply in replies
            ]

    def begin_fills(self, names: Sequence[str], token: str) -> Steps[list[Entry]]:
        """Puts a fill token where nothing is (``absent``), or tells what is there by now."""
        args: list[Argument] = [token, int(self._settings.fill_timeout * 1000)]
        with redis_errors_as_ours("get"):
            try:
                replies = yield from run_scripts(_BEGIN_FILL, [([where], args) for where in names])
            except GeneratorExit:
                raise
            except BaseException as error:
                if not isinstance(error, Exception):  # cancelled: the tokens may be in place
                    yield from self._end_fills(names, token, [_ABANDONED] * len(names))
                raise
            return [_begun(reply) for reply in replies]

    def _fill(
        self, names: Sequence[str], token: str, table: str, loading: Steps[list[Any]]
    ) -> Steps[list[Row | None]]:
        """Loads rows whose fill tokens are in place; gives the tokens up, whatever happens."""
        try:
            loaded = yield from loading
            rows = [self._loaded(table, row) for row in loaded]
        except GeneratorExit:
            raise
        except BaseException:
            yield from self._end_fills(names, token, [_ABANDONED] * len(names))
            raise
        yield from self._end_fills(names, token, [self._outcome(row, columns) for row, columns in rows])
        return [row for row, _ in rows]

    def _outcome(self, row: Row | None, columns: Mapping[str, bytes]) -> _Outcome:
        if row is None:
            return "negative", self._settings.negative_ttl, []
        if len(columns) > MAX_COLUMNS:
            return _ABANDONED
        fields = cache_fields(columns) if self._packing is None else self._packing.fields(columns)
        return _ABANDONED if fields is None else ("row", self._settings.ttl, fields)

    def _end_fills(self, names: Sequence[str], token: str, outcomes: Iterable[_Outcome]) -> Steps[None]:
        calls: list[tuple[Sequence[str], Sequence[Argument]]] = [
            ([where], [token, kind, ttl, *fields])
            for where, (kind, ttl, fields) in zip(names, outcomes, strict=True)
        ]
        with contextlib.suppress(RedisError, OSError):  # the rows are loaded; a token runs out by itself
            yield from run_scripts(_END_FILL, calls)

    def _loaded(self, table: str, loaded: Mapping[str, Any] | None) -> tuple[Row | None, dict[str, bytes]]:
        if loaded is None:
            return None, {}
        columns = encode_row(table, loaded)
        return self._row(columns), columns

    def _await_applied(self, table: str, seq: int, deadline: float) -> Steps[None]:
        if seq == 0:
            return
        for pause in pauses():
            with redis_errors_as_ours("get"):
                applied = yield Command(("GET", self._keys.applied))
            if int(applied or 0) >= seq:
                return
            if time.monotonic() + pause > deadline:
                raise FlushTimeout(
                    f"{table}: write {seq} to this row is not committed yet, and the cache cannot show it"
                )
            yield Pause(pause)


def _load_one(id: Id, load: Loader) -> Steps[list[Any]]:
    return [(yield Load(load, id))]


def _load_all(wanted: Sequence[Wanted], load: BulkLoader) -> Steps[list[Any]]:
    ids = [w.id for w in wanted]
    return by_id(ids, (yield Load(load, ids)))


def _begun(reply: Any) -> Entry:
    if isinstance(reply, OutOfMemoryError):  # a full Redis still answers reads: load, and cache nothing
        return _FOREIGN
    if isinstance(reply, Exception):
        raise reply
    return read_entry(reply if isinstance(reply, dict) else dict(zip(*[iter(reply)] * 2, strict=True)))


def _foreign_or_raise(error: Exception) -> Entry:
    if str(error).startswith("WRONGTYPE"):
        return _FOREIGN
    raise error
