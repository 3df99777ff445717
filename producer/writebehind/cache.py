"""Reading rows through the cache: the states of docs/cache.md as a reader meets them."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

from redis import Redis
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from .entry import Entry, read_entry, row_decoder
from .errors import FlushTimeout
from .keys import QueueKeys
from .message import MAX_COLUMNS, Id, cache_fields, encode_row
from .receipt import pauses
from .script import Script
from .translate import redis_errors_as_ours

Loader = Callable[[Any], Mapping[str, Any] | None]

_BEGIN_FILL = Script("writebehind", "begin_fill")
_END_FILL = Script("writebehind", "end_fill")
_INVALIDATE = Script("writebehind", "invalidate")


class RowCache:
    """The cached rows of one client; times in seconds."""

    def __init__(
        self,
        client: Redis,
        keys: QueueKeys,
        ttl: int,
        negative_ttl: int,
        fill_timeout: float,
        parse_float: Callable[[str], Any],
    ) -> None:
        self._redis, self._keys = client, keys
        self._ttl, self._negative_ttl, self._fill_timeout = ttl, negative_ttl, fill_timeout
        self._row = row_decoder(parse_float)

    def get(
        self, where: str, table: str, id: Id, load: Loader | None, timeout: float
    ) -> dict[str, Any] | None:
        """The row whose cache key is ``where``. See :meth:`WriteBehind.get`."""
        deadline = time.monotonic() + timeout
        entry = self._look(where)
        if load is None:
            return self._row(entry.columns) if entry.state == "row" else None
        for pause in pauses():
            if entry.state == "absent":
                token = secrets.token_hex(8)
                entry = self.begin_fill(where, token)
                if entry.state == "absent":
                    return self._fill(where, token, table, id, load)
            if entry.state == "row":
                return self._row(entry.columns)
            if entry.state == "gone":
                return None
            if entry.state != "filling":
                break
            time.sleep(pause)
            entry = self._look(where)
        if entry.state == "marker":
            self._await_applied(table, entry.seq, deadline)
        return self._loaded(table, load(id))[0]

    def invalidate(self, where: str) -> bool:
        """Removes the entry unless a write to it is pending; whether nothing is cached any more."""
        with redis_errors_as_ours("invalidate"):
            return bool(_INVALIDATE(self._redis, [where], []))

    def _look(self, where: str) -> Entry:
        with redis_errors_as_ours("get"):
            try:
                return read_entry(cast(dict[bytes, bytes], self._redis.hgetall(where)))
            except ResponseError as error:
                if str(error).startswith("WRONGTYPE"):
                    return Entry("foreign", {})
                raise

    def begin_fill(self, where: str, token: str) -> Entry:
        """Puts a fill token where nothing is (``absent``), or tells what is there by now."""
        with redis_errors_as_ours("get"):
            try:
                reply = _BEGIN_FILL(self._redis, [where], [token, int(self._fill_timeout * 1000)])
            except OutOfMemoryError:  # a full Redis still answers reads: load, and cache nothing
                return Entry("foreign", {})
        fields = reply if isinstance(reply, dict) else dict(zip(*[iter(reply)] * 2, strict=True))
        return read_entry(fields)

    def _fill(self, where: str, token: str, table: str, id: Id, load: Loader) -> dict[str, Any] | None:
        outcome: tuple[str, int, list[str]] = ("abandon", 1, [])
        try:
            row, columns = self._loaded(table, load(id))
            if row is None:
                outcome = ("negative", self._negative_ttl, [])
            elif len(columns) <= MAX_COLUMNS:
                outcome = ("row", self._ttl, cache_fields(columns))
            return row
        finally:
            self._end_fill(where, token, outcome)

    def _end_fill(self, where: str, token: str, outcome: tuple[str, int, list[str]]) -> None:
        kind, ttl, fields = outcome
        with contextlib.suppress(RedisError, OSError):  # the row is loaded; the token runs out by itself
            _END_FILL(self._redis, [where], [token, kind, ttl, *fields])

    def _loaded(
        self, table: str, loaded: Mapping[str, Any] | None
    ) -> tuple[dict[str, Any] | None, dict[str, bytes]]:
        if loaded is None:
            return None, {}
        columns = encode_row(table, loaded)
        return self._row(columns), columns

    def _await_applied(self, table: str, seq: int, deadline: float) -> None:
        for pause in pauses():
            with redis_errors_as_ours("get"):
                applied = self._redis.get(self._keys.applied)
            if int(applied or 0) >= seq:
                return
            if time.monotonic() + pause > deadline:
                raise FlushTimeout(
                    f"{table}: write {seq} to this row is not committed yet, and the cache cannot show it"
                )
            time.sleep(pause)
