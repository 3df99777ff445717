"""What the session stores do, as steps: every decision of both stands here."""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec

from .batch import MAX_BATCH
from .cache import Loader
from .core import Core, send_all
from .durability import Accepted, Assurance, R, assured
from .enqueue import EntryChanged, ShardMoved, Variant
from .entry import read_look, row_decoder
from .errors import (
    DurabilityNotReached,
    FlushTimeout,
    InvalidLoad,
    OutcomeUnknown,
    QueueFull,
    RedisFull,
    RedisRefused,
    RedisUnavailable,
    SessionEnded,
    WriteRejected,
)
from .home import held, home_commands, homes
from .identity import canonical
from .keys import QueueKeys
from .login_session import (
    Lifetime,
    LoginSession,
    check_fields,
    make_token,
    read_session,
    session_id,
    user_text,
)
from .message import Write, make_write
from .pauses import pauses
from .script import Script
from .steps import Load, Pause, Pipeline, Steps, T, run_script
from .translate import redis_errors_as_ours

IdsLoader = Callable[[str], Any]
"""Gives the ids of a user's sessions; for the async store it may be a coroutine function."""

_SESSION = Script("writebehind", "session")
_REOPEN = Script("writebehind", "reopen")
_CLOSED_FOR_S = 60
_MOST_PASSES = 10
_UNKNOWN = "there is no such session: it has expired, was revoked, or never was"


class Found(NamedTuple):
    """A live session; ``columns`` is its cache entry, or ``None`` if it was loaded; ``now`` is Redis'."""

    session: LoginSession
    columns: Mapping[str, bytes] | None
    seq: int
    now: dt.datetime


class _Applied(NamedTuple):
    """The last seq known committed, of the shard with these keys."""

    keys: QueueKeys
    seq: int


P = ParamSpec("P")


def _call(
    method: Callable[Concatenate[SessionCore[R], P], Steps[T]],
) -> Callable[Concatenate[SessionCore[R], P], Steps[T]]:
    """Makes a method's steps one call of the application's."""

    def begin(core: SessionCore[R], /, *args: P.args, **named: P.kwargs) -> Steps[T]:
        operation = f"session_{method.__name__}"
        return core._call(operation, core._table, 1, lambda: method(core, *args, **named))

    return begin


class SessionCore(Generic[R]):
    """A session store without its connection. The steps of each method raise as the store's method says.

    ``receipt`` makes that of one of the writes that were accepted, by its number.
    """

    def __init__(
        self,
        core: Core,
        receipt: Callable[[Accepted, int], R],
        load: Loader,
        load_ids_of_user: IdsLoader,
        lifetime: Lifetime,
        table: str,
        timeout: float,
    ) -> None:
        self._core, self._call = core.for_sessions(lifetime.ttl_s), core.call
        self._receipt, self._wanted = receipt, core.wanted(None, None)
        self._load, self._load_ids_of_user = load, load_ids_of_user
        self._lifetime, self._table, self._timeout = lifetime, table, timeout
        self._row = row_decoder(core.settings.parse_float)

    @_call
    def create(self, user_id: Any, fields: Mapping[str, Any]) -> Steps[str]:
        """The token of a new session."""
        user = user_text(user_id)
        check_fields(self._table, fields)
        token = make_token()
        now, applied = yield from self._moment(token)
        own = {"user_id": user, "created_at": now, "expires_at": self._lifetime.end(now, now)}
        write = self._write("put", token, {**fields, **own})
        with _told(token):
            yield from self._safely([write], "", user, str(write.key), applied)
        return token

    @_call
    def get(self, token: Any) -> Steps[LoginSession | None]:
        """The session, or nothing; what cannot be prolonged for lack of room lives on all the same."""
        found = yield from self._find(token)
        if found is None:
            return None
        with suppress(QueueFull, RedisFull, RedisUnavailable):
            return (yield from self._prolong(found))
        return found.session

    @_call
    def touch(self, token: Any) -> Steps[bool]:
        """Whether the session lives."""
        found = yield from self._find(token)
        if found is not None:
            yield from self._prolong(found)
        return found is not None

    @_call
    def update(self, token: Any, fields: Mapping[str, Any]) -> Steps[R]:
        """Changes fields of a session that lives."""
        check_fields(self._table, fields)
        for pause in self._attempts():
            found = yield from self._live(token)
            due = self._lifetime.is_due(found.session, found.now)
            changes = {**fields, "expires_at": self._end(found)} if due else fields
            write = self._write("patch", token, changes)
            with suppress(EntryChanged):
                return (yield from self._safely([write], "row", found.session.user_id))[0]
            yield Pause(pause)
        raise self._contended()

    @_call
    def rotate(self, token: Any) -> Steps[str]:
        """The new token of a session that lives."""
        for pause in self._attempts():
            found = yield from self._live(token)
            if found.columns is not None:
                new = self._token_beside(token)
                # As text, not as values: no digit of a number is lost.
                write = self._write("put", new, {"expires_at": self._end(found)})
                columns = {**found.columns, **write.columns}
                if "id" in columns:
                    columns["id"] = write.id_json
                moved = Write("put", write.table, write.id_json, write.key, columns)
                _, applied = yield from self._moment(new)
                with suppress(EntryChanged, ShardMoved), _told(new):
                    yield from self._safely(
                        [self._write("delete", token, None), moved],
                        str(found.seq),
                        found.session.user_id,
                        str(moved.key),
                        applied,
                    )
                    return new
            yield Pause(pause)
        raise self._contended()

    @_call
    def revoke(self, token: Any) -> Steps[R | None]:
        """Ends a session; nothing is written for what is no token."""
        if session_id(token) is None:
            return None
        return (yield from self._delete([self._write("delete", token, None)]))[0]

    @_call
    def revoke_all(self, user_id: Any, except_token: Any) -> Steps[list[R]]:
        """Ends all sessions of a user, but perhaps one; a receipt for each.

        That some are not as safe as was wanted is raised when all have ended. None is rotated
        meanwhile, and so escapes under another id. If this fails, that lasts until its time runs out: the
        others are still to be revoked, and the caller will call again.
        """
        user = user_text(user_id)
        kept = session_id(except_token)
        token = make_token()
        done: set[str] = set()

        def keep(positions: Sequence[int], accepted: Accepted) -> list[R]:
            made = [self._receipt(accepted, number) for number in range(len(positions))]
            receipts.extend(made)
            return made

        receipts: list[R] = []
        unsafe: Exception | None = None
        for _ in range(_MOST_PASSES):
            closed, found = yield from self._close(user, token)
            ids = sorted(found - done - {kept or ""})
            for start in range(0, len(ids), MAX_BATCH):
                writes = [
                    make_write("delete", self._table, id, None) for id in ids[start : start + MAX_BATCH]
                ]
                try:
                    yield from send_all(self._core, writes, self._wanted, keep)
                except (DurabilityNotReached, FlushTimeout, OutcomeUnknown, WriteRejected) as error:
                    unsafe = unsafe or error
            done.update(ids)
            if (yield from self._reopen(user, token, closed)):
                break
        else:
            raise RedisRefused(
                f"revoke_all: where {self._table} is written changed again and again, or it is being moved: "
                "sessions may be left; call again"
            )
        if unsafe is not None:
            raise unsafe
        return receipts

    def _reopen(self, user: str, token: str, closed: Sequence[QueueKeys]) -> Steps[bool]:
        """Whether all shards were closed to rotations until now, and are those that were closed."""
        were_closed = True
        for keys in closed:
            with redis_errors_as_ours("revoke_all"):
                were_closed &= bool(
                    (yield from run_script(_REOPEN, [keys.closing(self._label(user))], [token]))
                )
        have_changed = yield from self._core.shards_have_changed(self._table)
        return were_closed and not have_changed and self._core.all_shards(self._table) == closed

    def _close(self, user: str, token: str) -> Steps[tuple[Sequence[QueueKeys], set[str]]]:
        """The shards, and the user's sessions, none of which can be rotated from now on.

        Those that may not be committed yet, and only then those that are: so that none slips through.
        """
        label = self._label(user)
        ids: set[str] = set()
        yield from self._core.shards_have_changed(self._table)
        closed = self._core.all_shards(self._table)
        for keys in closed:
            close = ("SET", keys.closing(label), token, "EX", _CLOSED_FOR_S)
            look = ("ZRANGEBYLEX", keys.sessions, f"[{label}:", f"({label};")
            with redis_errors_as_ours("revoke_all"):
                _, pending = yield Pipeline([close, look])
            ids |= {member.decode().rpartition(":")[2] for member in pending}
        committed = yield Load(self._load_ids_of_user, user)
        if isinstance(committed, str | bytes | Mapping) or not isinstance(committed, Iterable):
            raise InvalidLoad(f"load_ids_of_user must return ids, not {type(committed).__name__}")
        for id in committed:
            if not isinstance(id, str):
                raise InvalidLoad(
                    f"load_ids_of_user must return the ids as text, not {type(id).__name__}: "
                    f"of each row its first column"
                )
            ids.add(id)
        return closed, ids

    def _find(self, token: Any) -> Steps[Found | None]:
        return self._core.at_home(self._table, lambda: self._look(token))

    def _look(self, token: Any) -> Steps[Found | None]:
        id = session_id(token)
        if id is None:
            return None
        wanted = yield from self._core.wanted_row(self._table, id)
        with redis_errors_as_ours("session"):
            shards = homes([wanted])
            looks = [("HGETALL", wanted.where), ("TIME",), *home_commands(shards)]
            fields, clock, *of_shard = yield Pipeline(looks, keeps_errors=True)
            if isinstance(clock, Exception):
                raise clock
            held(shards, of_shard)
            entry = read_look(fields)
        if entry.state == "gone":
            return None
        row, columns = None, None
        if entry.state == "row":
            row, columns = self._row(entry.columns), entry.columns
        else:
            row = yield from self._core.get(self._table, id, self._load, self._timeout)
            if row is None:
                return None
        session, now = read_session(self._table, id, row), _utc(clock)
        end = self._lifetime.not_beyond(session.created_at, session.expires_at)
        if end < session.expires_at:  # written by a store that allowed more
            session = dataclasses.replace(session, expires_at=end)
        return Found(session, columns, entry.seq, now) if now < end else None

    def _live(self, token: Any) -> Steps[Found]:
        found = yield from self._find(token)
        if found is None:
            raise SessionEnded(_UNKNOWN)
        return found

    def _prolong(self, found: Found) -> Steps[LoginSession]:
        """The session, its end moved if that is due; of many readers one writes."""
        session = found.session
        if not self._lifetime.is_due(session, found.now):
            return session
        end = self._end(found)
        write = make_write("patch", self._table, session.id, {"expires_at": end})
        with suppress(EntryChanged):
            yield from self._send([write], str(found.seq), session.user_id)
            return dataclasses.replace(session, expires_at=end)
        return session

    def _end(self, found: Found) -> dt.datetime:
        return self._lifetime.end(found.session.created_at, found.now)

    def _attempts(self) -> Iterator[float]:
        """How long to pause after each attempt; the timeout bounds them all."""
        deadline = time.monotonic() + self._timeout
        for pause in pauses():
            yield pause
            if time.monotonic() + pause > deadline:
                return

    def _delete(self, writes: list[Write]) -> Steps[Sequence[R]]:
        return self._assured(writes, self._core.send(writes, wanted=self._wanted))

    def _safely(
        self, writes: list[Write], must_be: str, user: str, new_id: str = "", applied: _Applied | None = None
    ) -> Steps[Sequence[R]]:
        """The same as :meth:`_send`, and they are as safe as the client's writes."""
        return self._assured(writes, self._send(writes, must_be, user, new_id, applied, self._wanted))

    def _assured(self, writes: list[Write], sending: Steps[Accepted]) -> Steps[Sequence[R]]:
        def keep(accepted: Accepted) -> list[R]:
            return [self._receipt(accepted, number) for number in range(len(writes))]

        return assured(sending, self._wanted, keep)

    def _send(
        self,
        writes: list[Write],
        must_be: str,
        user: str,
        new_id: str = "",
        applied: _Applied | None = None,
        wanted: Assurance | None = None,
    ) -> Steps[Accepted]:
        label = self._label(user)
        new = f"{label}:{new_id}" if new_id else ""

        def variant(keys: QueueKeys) -> Variant:
            names = (keys.sessions, keys.session_seqs, keys.closing(label))
            # Another queue's says nothing of these, and would forget sessions that are pending.
            seq = applied.seq if applied is not None and applied.keys == keys else 0
            return Variant(_SESSION, names, (must_be, new, seq))

        return self._core.send(writes, variant, None, wanted)

    def _write(self, op: Any, token: str, data: Mapping[str, Any] | None) -> Write:
        id = session_id(token)
        assert id is not None
        return make_write(op, self._table, id, data)

    def _token_beside(self, token: str) -> str:
        """A new one, of a session in the same shard: one step can end that one and begin the other."""
        shard = self._core.shard(self._write("delete", token, None))
        while True:
            new = make_token()
            if self._core.shard(self._write("delete", new, None)) == shard:
                return new

    def _moment(self, token: str) -> Steps[tuple[dt.datetime, _Applied]]:
        """Redis' time, and the last seq known committed in the shard of a session."""
        keys = self._core.shard(self._write("delete", token, None))
        with redis_errors_as_ours("session"):
            clock, applied = yield Pipeline([("TIME",), ("GET", keys.applied)])
        return _utc(clock), _Applied(keys, int(applied or 0))

    def _label(self, user: str) -> str:
        """Of one length, and without a colon, whatever a user is called.

        A uuid has one however it is spelt: Postgres will tell it in its own way.
        """
        user = canonical("uuid", user) or user
        return hashlib.sha256(f"{self._table}\0{user}".encode()).hexdigest()[:32]

    def _contended(self) -> RedisRefused:
        return RedisRefused(
            f"{self._table}: the session could not be written within {self._timeout} s: something else "
            "writes to its cache key, or all sessions of its user are being revoked"
        )


@contextmanager
def _told(token: str) -> Iterator[None]:
    """Whoever hears that a session is not as safe as was wanted hears its token: it has been made."""
    try:
        yield
    except (DurabilityNotReached, FlushTimeout, OutcomeUnknown) as error:
        error.token = token
        raise


def _utc(clock: tuple[Any, Any]) -> dt.datetime:
    seconds, micros = clock
    return dt.datetime.fromtimestamp(int(seconds), dt.UTC) + dt.timedelta(microseconds=int(micros))
