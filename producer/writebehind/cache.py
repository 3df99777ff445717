"""Reading rows through the cache: the states of docs/cache.md as a reader meets them. No I/O: steps."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from .entry import Entry, read_entry, read_look, row_decoder
from .errors import FlushTimeout, InvalidLoad, InvalidWrite, RowMismatch
from .home import Wanted, held, home_commands, homes, look_home
from .keys import QueueKeys
from .loaded import by_id
from .message import MAX_COLUMNS, Id, cache_fields, encode_row
from .observer import guarded, tell_fills, tell_looks, timed
from .pauses import pauses
from .refresh import ABANDONED, Outcome, Refresh, log_failure
from .script import Argument, Script
from .settings import Settings
from .steps import Command, Load, Pause, Pipeline, Steps, T, run_script, run_scripts, undone_if_cancelled
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
_FORMER = Entry("filling", {})
"""Absent, but a write may be pending in the shard where the row was before: waited for, as a fill is."""


Confirm = Callable[[str, QueueKeys], Steps[None]]
"""Raises where the writes of a table's rows are not, or not for sure, in the shard with these keys."""


class RowForm(Protocol):
    """What rows are to the application, where they are not what JSON has."""

    def row(self, columns: Mapping[str, bytes]) -> Any:
        """The row of column → JSON text."""

    def encode(self, table: str, loaded: Any) -> dict[str, bytes]:
        """Column → JSON text of what a loader returned."""


class RowCache:
    """The cached rows of one client; ``form`` says what they are, if they are typed."""

    def __init__(self, settings: Settings, confirm: Confirm, form: RowForm | None = None) -> None:
        self._settings, self._confirm = settings, confirm
        self._row = row_decoder(settings.parse_float) if form is None else form.row
        self._encode = encode_row if form is None else form.encode
        ahead = settings.refresh_ahead
        self._refresh = None if ahead is None else Refresh(ahead, settings.fill_timeout)
        self.refresh_failed: Callable[[str, Exception], None] = log_failure
        self._observer = guarded(settings.observer)
        self._packing = settings.packing()

    def get(self, wanted: Wanted, table: str, load: Loader | None, timeout: float) -> Steps[Row | None]:
        """See :meth:`WriteBehind.get`."""
        where, id, keys, _ = wanted
        deadline = time.monotonic() + timeout
        due: Sequence[Wanted] = ()
        if self._refresh is None or load is None:
            entry = yield from self._look(wanted)
        else:
            (entry,), due = yield from self._look_ahead(self._refresh, [wanted])
        observer, waits_since = self._observer, 0.0
        if observer is not None:
            tell_looks(observer, table, [entry.state])
        if self._refresh is not None and load is not None and due:
            refreshed = yield from self._load_anew(self._refresh, due, table, lambda _: _load_one(id, load))
            return refreshed[where] if refreshed else self._row(entry.columns)
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
            _check_former([entry], table, time.monotonic() + pause, deadline)
            waits_since = waits_since or time.monotonic()
            yield Pause(pause)
            entry = yield from self._look(wanted)
            if observer is not None and entry.state != "filling":
                observer.waited_for_load(table, time.monotonic() - waits_since)
                waits_since = 0.0
        if entry.state == "marker":
            yield from self._await_applied(table, keys, entry.seq, deadline)
        (row,) = yield from self._timed(table, _load_one(id, load))
        return self._loaded(table, row)[0]

    def get_many(
        self, wanted: Sequence[Wanted], table: str, load: BulkLoader | None, timeout: float
    ) -> Steps[list[Row | None]]:
        """See :meth:`WriteBehind.get_many`."""
        deadline = time.monotonic() + timeout
        open_ = {w.where: w for w in wanted}
        observer, waits_since = self._observer, 0.0
        found: dict[str, Row | None] = {}
        due: Sequence[Wanted] = ()
        if self._refresh is None or load is None:
            looked = yield from self._look_at_all(list(open_.values()))
        else:
            looked, due = yield from self._look_ahead(self._refresh, list(open_.values()))
        if observer is not None:
            tell_looks(observer, table, [entry.state for entry in looked])
        if self._refresh is not None and load is not None and due:
            anew = yield from self._load_anew(self._refresh, due, table, lambda some: _load_all(some, load))
            found.update(anew)
        entries = {w: entry for w, entry in zip(open_, looked, strict=True) if w not in found}
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
            if waits_since and observer is not None and not waiting:
                observer.waited_for_load(table, time.monotonic() - waits_since)
            if load is None or not waiting:
                break
            _check_former(entries.values(), table, time.monotonic() + pause, deadline)
            waits_since = waits_since or time.monotonic()
            yield Pause(pause)
            again = yield from self._look_at_all([open_[where] for where in waiting])
            entries.update(zip(waiting, again, strict=True))
        if load is not None and entries:
            pending = [(open_[where], entry.seq) for where, entry in entries.items()]
            for keys, seq in _latest(pending).items():
                yield from self._await_applied(table, keys, seq, deadline)
            rest = [open_[where] for where in entries]
            rows = yield from self._timed(table, _load_all(rest, load))
            for w, row in zip(rest, rows, strict=True):
                found[w.where] = self._loaded(table, row)[0]
        return [found.get(w.where) for w in wanted]

    def invalidate(self, wanted: Wanted, table: str, wait: float | None) -> Steps[bool]:
        """Removes the entry unless a write to it is pending; whether nothing is cached any more."""
        deadline = time.monotonic() + (wait or 0)
        for pause in pauses():
            with redis_errors_as_ours("invalidate"):
                removed = bool((yield from run_script(_INVALIDATE, [wanted.where], [])))
            removed = removed and wanted.keys not in (yield from look_home([wanted]))
            if removed or wait is None:
                return removed
            if time.monotonic() + pause > deadline:
                raise FlushTimeout(
                    f"{table}: a write to this row was not committed in {wait} s; it stays cached"
                )
            yield Pause(pause)
        raise AssertionError

    def invalidate_many(self, wanted: Sequence[Wanted]) -> Steps[list[bool]]:
        """As :meth:`invalidate`, of many and without waiting."""
        with redis_errors_as_ours("invalidate"):
            replies = yield from run_scripts(_INVALIDATE, [([w.where], []) for w in wanted])
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        pending = yield from look_home(wanted)
        return [bool(reply) and w.keys not in pending for reply, w in zip(replies, wanted, strict=True)]

    def remove_misfits(self, wanted: Sequence[Wanted], table: str, deadline: float) -> Steps[None]:
        """Removes the rows that do not fit their class; first, the writes that they show are waited for.

        Raises :class:`FlushTimeout`.
        """
        for pause in pauses():
            entries = yield from self._look_at_all(wanted)
            misfits = [(w, e.seq) for w, e in zip(wanted, entries, strict=True) if not self._fits(e)]
            if not misfits:
                return
            for keys, seq in _latest(misfits).items():
                yield from self._await_applied(table, keys, seq, deadline)
            if all((yield from self.invalidate_many([w for w, _ in misfits]))):
                return
            if time.monotonic() + pause > deadline:
                raise FlushTimeout(f"{table}: the cached row does not fit, and a write to it is pending")
            yield Pause(pause)

    def _fits(self, entry: Entry) -> bool:
        try:
            if entry.state == "row":
                self._row(entry.columns)
        except RowMismatch:
            return False
        return True

    def _look(self, wanted: Wanted) -> Steps[Entry]:
        if wanted.shard is not None:
            return (yield from self._look_at_all([wanted]))[0]
        with redis_errors_as_ours("get"):
            try:
                return read_entry((yield Command(("HGETALL", wanted.where))))
            except ResponseError as error:
                return read_look(error)

    def _look_at_all(self, wanted: Sequence[Wanted]) -> Steps[list[Entry]]:
        """Raises :class:`ShardMoved` where a row is at home elsewhere by now."""
        with redis_errors_as_ours("get_many"):
            replies = yield from _with_homes([("HGETALL", w.where) for w in wanted], wanted)
            return [read_look(reply) for reply in replies]

    def _look_ahead(
        self, refresh: Refresh, wanted: Sequence[Wanted]
    ) -> Steps[tuple[list[Entry], list[Wanted]]]:
        """The entries, and which of the rows are to be refreshed."""
        with redis_errors_as_ours("get"):
            looks = [(command, w.where) for w in wanted for command in ("HGETALL", "PTTL")]
            replies = yield from _with_homes(looks, wanted)
            entries, due = [], []
            for w, reply, left_ms in zip(wanted, replies[::2], replies[1::2], strict=True):
                if isinstance(left_ms, Exception):
                    raise left_ms
                entry = read_look(reply)
                entries.append(entry)
                if refresh.is_due(entry, left_ms):
                    due.append(w)
            return entries, due

    def _load_anew(
        self,
        refresh: Refresh,
        due: Sequence[Wanted],
        table: str,
        loading: Callable[[Sequence[Wanted]], Steps[list[Any]]],
    ) -> Steps[dict[str, Row | None]]:
        """The rows that this reader has refreshed, by cache key: the others' cached ones are still valid."""
        token = secrets.token_hex(8)
        seqs = yield from refresh.begin([w.where for w in due], token)
        mine = [(w, seq) for w, seq in zip(due, seqs, strict=True) if seq]
        if not mine:
            return {}
        try:
            steps = loading([w for w, _ in mine])
            if self._observer is not None:
                steps = timed(steps, self._observer.refreshed, table)
            loaded = yield from steps
            rows = [self._loaded(table, row) for row in loaded]
        except GeneratorExit:
            raise
        except Exception as error:
            # The tokens stay: a loader that fails is not called again before they end.
            self.refresh_failed(table, error)
            return {}
        except BaseException:
            yield from refresh.abandon([w.where for w, _ in mine], token)
            raise
        outcomes = [self._outcome(row, columns) for row, columns in rows]
        yield from refresh.end([(w.where, seq) for w, seq in mine], token, outcomes)
        return {w.where: row for (w, _), (row, _) in zip(mine, rows, strict=True)}

    def begin_fills(self, names: Sequence[str], token: str) -> Steps[list[Entry]]:
        """Puts a fill token where nothing is (``absent``), or tells what is there by now."""
        args: list[Argument] = [token, int(self._settings.fill_timeout * 1000)]
        with redis_errors_as_ours("get"):
            replies = yield from undone_if_cancelled(
                run_scripts(_BEGIN_FILL, [([where], args) for where in names]),
                lambda: self._end_fills(names, token, [ABANDONED] * len(names)),
            )
            return [_begun(reply) for reply in replies]

    def _fill(
        self, names: Sequence[str], token: str, table: str, loading: Steps[list[Any]]
    ) -> Steps[list[Row | None]]:
        """Loads rows whose fill tokens are in place; gives the tokens up, whatever happens."""
        try:
            loaded = yield from self._timed(table, loading)
            rows = [self._loaded(table, row) for row in loaded]
            outcomes = [self._outcome(row, columns) for row, columns in rows]
            replies = yield from self._end_fills(names, token, outcomes)
        except GeneratorExit:
            raise
        except BaseException:
            yield from self._end_fills(names, token, [ABANDONED] * len(names))
            raise
        if self._observer is not None:
            tell_fills(self._observer, table, outcomes, replies)
        return [row for row, _ in rows]

    def _outcome(self, row: Row | None, columns: Mapping[str, bytes]) -> Outcome:
        if row is None:
            return "negative", self._settings.negative_ttl, []
        if len(columns) > MAX_COLUMNS:
            return ABANDONED
        fields = cache_fields(columns) if self._packing is None else self._packing.fields(columns)
        return ABANDONED if fields is None else ("row", self._settings.entry_ttl(), fields)

    def _end_fills(self, names: Sequence[str], token: str, outcomes: Iterable[Outcome]) -> Steps[list[Any]]:
        calls: list[tuple[Sequence[str], Sequence[Argument]]] = [
            ([where], [token, kind, ttl, *fields])
            for where, (kind, ttl, fields) in zip(names, outcomes, strict=True)
        ]
        with contextlib.suppress(RedisError, OSError):  # the rows are loaded; a token runs out by itself
            return (yield from run_scripts(_END_FILL, calls))
        return []

    def _timed(self, table: str, loading: Steps[T]) -> Steps[T]:
        """The same; the observer hears how long it took."""
        return loading if self._observer is None else timed(loading, self._observer.loaded, table)

    def _loaded(self, table: str, loaded: Mapping[str, Any] | None) -> tuple[Row | None, dict[str, bytes]]:
        if loaded is None:
            return None, {}
        try:
            columns = self._encode(table, loaded)
        except InvalidWrite as error:
            raise InvalidLoad(f"the loader returned what cannot be cached: {error}") from error
        return self._row(columns), columns

    def _await_applied(self, table: str, keys: QueueKeys, seq: int, deadline: float) -> Steps[None]:
        if seq:  # after the entry was read: what it shows is of this queue then
            yield from self._confirm(table, keys)
        waiting = _until_applied(table, keys, seq, deadline)
        if self._observer is not None and seq:
            waiting = timed(waiting, self._observer.waited_for_write, table)
        yield from waiting


def _with_homes(looks: Sequence[Sequence[Argument]], wanted: Sequence[Wanted]) -> Steps[list[Any]]:
    """The replies; an absent row is `_FORMER` where its shard waits for others. Their clocks come after."""
    shards = homes(wanted)
    replies: list[Any] = yield Pipeline([*looks, *home_commands(shards)], keeps_errors=True)
    if not shards:
        return replies
    of_looks, of_clocks = replies[: len(looks)], replies[len(looks) :]
    pending = held(shards, of_clocks)
    if pending:
        where = {w.where for w in wanted if w.keys in pending}
        each = zip(looks, of_looks, strict=True)
        return [_FORMER if reply == {} and look[1] in where else reply for look, reply in each]
    return of_looks


def _check_former(entries: Iterable[Entry], table: str, then: float, deadline: float) -> None:
    if then > deadline and any(entry is _FORMER for entry in entries):
        raise FlushTimeout(
            f"{table}: the queue has been divided anew, and a write to this row that was accepted before "
            "may not be committed yet"
        )


def _latest(pending: Iterable[tuple[Wanted, int]]) -> dict[QueueKeys, int]:
    """By shard, the last of the writes that rows show."""
    found: dict[QueueKeys, int] = {}
    for wanted, seq in pending:
        found[wanted.keys] = max(found.get(wanted.keys, 0), seq)
    return found


def _until_applied(table: str, keys: QueueKeys, seq: int, deadline: float) -> Steps[None]:
    if seq == 0:
        return
    for pause in pauses():
        with redis_errors_as_ours("get"):
            applied = yield Command(("GET", keys.applied))
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
