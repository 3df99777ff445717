"""Where the writes of one row are now, followed in the way that they go: cache, queue, batches, Postgres."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import msgspec
import psycopg
from psycopg import errors as pg
from redis import Redis

from writebehind.identity import canonical
from writebehind.keys import QueueKeys

from .cache_names import CacheNames
from .cached_entry import CachedEntry, read_entries
from .catalog import load_catalog
from .config import Config, one_line
from .connections import reading_postgres, redis_error
from .errors import FatalError, LedgerMissing
from .history import committed
from .key_reader import KeyReader
from .known_tables import KnownTables, read_published
from .moving import follow
from .nodes import REDIS_ERRORS, is_clustered
from .obstacles import obstacles, pause_of
from .other_queues import OtherQueues
from .packed_rows import unpacked_columns
from .postgres import Connection, begin, milliseconds, roll_back
from .redis_server import RedisLink
from .resharding import layout_of
from .resolve import Key
from .row_comparison import CachedRow, RowComparison
from .row_ledger import LedgerView, LetterView, read_ledgers, read_letters
from .row_search import Found, RowMatcher
from .shard_search import Searched, entries_of, search_shards
from .sqlstate import Verdict, judge
from .statement import read
from .status import read_status
from .table import Table
from .verify import Difference, difference_of

_MOST_TRIES = 5
_ASK_TIMEOUT_S = 30.0


class Identity(msgspec.Struct, frozen=True):
    """Which row is meant; ``key`` is column → canonical text. ``is_known``: Postgres has such a table."""

    table: str
    key: dict[str, str]
    cache_key: str
    is_known: bool


class Explanation(msgspec.Struct):
    """All that is known; ``None`` where a server could not be asked, and the error says why.

    ``queue``: the shard that has the row, or the queue itself; the ``ledger`` is its. ``moved_to``: the queue
    that the table is in, where that is another than was asked about.
    ``agrees``: ``None`` where there is nothing to compare: no entry, or one that shows a pending write.
    ``values``: of the row in Postgres, column → JSON text, if they were asked for. ``row_error``: why the row
    alone could not be read. ``no_value``: why no row can have this key.
    """

    identity: Identity
    queue: str
    moved_to: str | None = None
    entry: CachedEntry | None = None
    now_ms: int = 0
    searched: Searched | None = None
    found: Found | None = None
    ledger: LedgerView | None = None
    letters: list[LetterView] | None = None
    exists: bool | None = None
    difference: Difference | None = None
    values: dict[str, bytes] | None = None
    obstacles: list[str] = msgspec.field(default_factory=list)
    row_error: str | None = None
    no_value: str | None = None
    redis_error: str | None = None
    postgres_error: str | None = None

    @property
    def is_divided(self) -> bool:
        """Whether there is more than one queue in which its writes could be."""
        return self.searched is not None and len(self.searched.parts) > 1

    @property
    def waiting(self) -> int:
        """Writes that are not in Postgres."""
        return sum(not write.is_committed for write in self.found.writes) if self.found else 0

    @property
    def open_letters(self) -> list[LetterView]:
        """Those that no later write of the row has superseded."""
        return [letter for letter in self.letters or () if not letter.is_superseded]


class Explainer:
    """Explains one row; ``id`` is a scalar's text, or a JSON object of the key's columns.

    ``cache_key`` names the entry where producers of another language choose their own.
    """

    def __init__(
        self,
        config: Config,
        table: str,
        id: str,
        names: CacheNames,
        *,
        cache_key: str | None = None,
        limit: int | None = None,
        with_values: bool = False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._config, self._name, self._id, self._names = config, table, id, names
        self._cache_key, self._limit, self._with_values = cache_key, limit, with_values
        self._keys, self._progress = QueueKeys(config.queue), progress
        self._moved_to: str | None = None

    def explain(self) -> Explanation:
        """Asks both servers; either may be down.

        Raises:
            FatalError: the table or the id cannot be what is meant, or a right is missing.
        """
        try:
            with reading_postgres(self._config) as conn:
                return self._explain(conn, None)
        except FatalError as error:
            if not isinstance(error.__cause__, psycopg.OperationalError):
                raise
            return self._explain(None, str(error))

    def _explain(self, conn: Connection | None, postgres_error: str | None) -> Explanation:
        link = RedisLink(self._config.redis_url)
        with link:
            try:
                made = self._steady(conn, link.client)
            except (*REDIS_ERRORS, OSError) as error:
                made = self._without_redis(conn, redis_error(self._config, error))
        made.postgres_error = postgres_error
        if made.waiting or made.redis_error or made.postgres_error:
            made.obstacles = self._obstacles(made)
        return made

    def _obstacles(self, made: Explanation) -> list[str]:
        found = obstacles(read_status(replace(self._config, queue=made.queue)))
        if made.queue != self._config.queue:
            whole = read_status(self._config).redis  # a pause of it is one of every shard
            if whole is not None and (paused := pause_of(whole)) is not None:
                found.insert(0, paused)
        return found

    def _steady(self, conn: Connection | None, client: Redis) -> Explanation:
        """Looks again where the entry was changed while we looked: by a write, say, that is under way."""
        place = follow(client, QueueKeys(self._config.queue), self._name).keys
        if place != self._keys:
            self._keys, self._config = place, replace(self._config, queue=place.queue)
            self._moved_to = place.queue
        tables = KnownTables(load_catalog(conn) if conn else None, read_published(client, self._keys))
        for _ in range(_MOST_TRIES):
            made = self._look(conn, client, tables)
            assert made.entry is not None
            assert made.searched is not None
            if layout_of(client, self._keys) != made.searched.layout:
                continue
            if made.found and made.found.writes:
                break
            (again,) = read_entries(client, self._keys, [made.entry.name])
            if again.is_still(made.entry):
                break
        return made

    def _look(self, conn: Connection | None, client: Redis, tables: KnownTables) -> Explanation:
        row = self._row(conn, tables)
        identity, table, matcher = row
        seconds, micros = client.time()
        names = [identity.cache_key]
        layout = layout_of(client, self._keys)
        if is_clustered(client) and self._cache_key is None:
            names = entries_of(self._keys, layout, identity.table, identity.key, identity.cache_key)
        read = read_entries(client, self._keys, [n.encode(errors="surrogateescape") for n in names])
        entry = next((one for one in read if one.standing != "absent"), read[0])
        identity = msgspec.structs.replace(identity, cache_key=entry.name.decode(errors="surrogateescape"))
        searched = search_shards(client, self._keys, layout, matcher, self._limit, self._progress)
        made = Explanation(identity, searched.shard(identity.table, identity.key), self._moved_to, entry)
        made.now_ms = seconds * 1000 + micros // 1000
        made.searched, made.found = searched, searched.whole
        if entry.has_no_ttl and not made.found.writes:
            (made.entry,) = OtherQueues(client, self._keys).exclude([entry])
        if conn is not None:
            self._ask_postgres(conn, made, table)
        return made

    def _without_redis(self, conn: Connection | None, error: str) -> Explanation:
        tables = KnownTables(load_catalog(conn) if conn else None, {})
        identity, table, _ = self._row(conn, tables)
        made = Explanation(identity, self._config.queue, redis_error=error)
        if conn is not None:
            self._ask_postgres(conn, made, table)
        return made

    def _row(self, conn: Connection | None, tables: KnownTables) -> tuple[Identity, Table | None, RowMatcher]:
        table, known = tables.find(self._name), tables.identity(self._name)
        if table is not None and not table.key:
            raise FatalError(
                f"{table.full_name} has no primary key: its rows cannot be told apart",
                "writes to it become dead letters (42P10): see `writebehind dead list`",
            )
        columns: list[tuple[str, Callable[[str], str | None]]]
        if table is not None:
            columns = [(column.name, column.canonical) for column in table.key]
        else:
            columns = [(name, partial(canonical, kind)) for name, kind in known.columns]
        key = read_id(self._id, [name for name, _ in columns], self._name)
        if not columns:  # nobody has told us of the table: names and values are taken as they are
            columns = [(name, str) for name in sorted(key)]
        ask = None
        if conn is not None and table is not None:
            reader = KeyReader(conn, _ASK_TIMEOUT_S)
            ask = partial(_ask, reader, table)
        matcher = RowMatcher(partial(tables.means_the_same, self._name), columns, key, ask)
        names = [name for name, _ in columns]
        identity = Identity(
            table.full_name if table else self._name,
            dict(zip(names, matcher.canonical_key, strict=True)),
            self._cache_key or self._names.name(known, key if len(key) > 1 else next(iter(key.values()))),
            table is not None,
        )
        return identity, table, matcher

    def _ask_postgres(self, conn: Connection, made: Explanation, table: Table | None) -> None:
        """The ledger first: what is committed while we ask is pending to us, not lost."""
        try:
            ledgers = read_ledgers(conn, [made.queue, *(made.searched.parts if made.searched else ())])
            identity = made.identity
            names, key = [self._name, identity.table], list(identity.key.values())
            made.letters = read_letters(conn, self._config.queue, names, key, identity.cache_key)
        except (pg.UndefinedTable, pg.InvalidSchemaName) as error:
            raise LedgerMissing(conn.info.dbname) from error
        made.ledger = ledgers.get(made.queue, LedgerView())
        for queue, part in made.searched.parts.items() if made.searched else ():
            done = set(committed(ledgers.get(queue, LedgerView()).recent_batches, part.batches))
            for write in part.writes:
                write.is_committed = write.batch in done
        if table is None:
            return
        try:
            self._compare(conn, made, table)
        except (pg.LockNotAvailable, pg.QueryCanceled) as error:
            made.row_error = f"{table.full_name} cannot be read now: {one_line(error)}"

    def _compare(self, conn: Connection, made: Explanation, table: Table) -> None:
        comparison, entry = RowComparison(conn), made.entry
        columns = (
            unpacked_columns(entry.entry.columns) if entry and entry.standing in ("row", "stuck") else {}
        )
        (compared,) = comparison(table, [CachedRow(made.identity.key, columns)])
        made.exists = compared.exists
        if not made.exists:
            made.no_value = _no_value(conn, table, made.identity.key)
        if entry and entry.standing in ("row", "gone"):
            made.difference = difference_of(entry, table, compared)
        elif entry and entry.standing == "stuck":
            made.difference = Difference(entry, table.full_name, "stuck")
        if self._with_values:
            made.values = comparison.values(table, made.identity.key)


def _no_value(conn: Connection, table: Table, key: Mapping[str, str]) -> str | None:
    """Which text of a key Postgres cannot read as the column's type; ``None``: none, or it does not tell."""
    for column in table.key:
        text = key[column.name]
        begin(conn, statement_timeout=milliseconds(_ASK_TIMEOUT_S))
        try:
            conn.execute(read(table, [column.name]), [msgspec.json.encode([{column.name: text}]).decode()])
        except psycopg.Error as error:
            if judge(error) is Verdict.ROW:
                return f"{text!r} is no value of {column.type}, the type of {table.full_name}.{column.name}"
            raise
        finally:
            roll_back(conn)
    return None


def read_id(id: str, columns: Sequence[str], table: str) -> dict[str, str]:
    """Column → text. ``columns`` of the key are empty where they are not known.

    Raises:
        FatalError: a key of several columns needs an object that has just these.
    """
    given = _object(id)
    if given is not None and (not columns or given.keys() == set(columns)):
        return given
    if len(columns) > 1:
        example = msgspec.json.encode(dict.fromkeys(columns, 1)).decode()
        raise FatalError(
            f"{table}: {id!r} is no id of it: its key has the columns {', '.join(columns)}",
            f"give an object that has each of them, such as '{example}'",
        )
    if not id or "\0" in id:
        raise FatalError("the id is empty, or has a NUL", "give that of a row")
    return {columns[0] if columns else "id": id}


def _object(text: str) -> dict[str, str] | None:
    """The members of a JSON object of scalars, as texts."""
    try:
        found = msgspec.json.decode(text.encode(), type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
        return None
    texts: dict[str, str] = {}
    for name, raw in found.items():
        first = bytes(raw)[:1]
        if first in (b"{", b"[", b"n"):
            return None
        texts[name] = msgspec.json.decode(raw, type=str) if first == b'"' else bytes(raw).decode()
    return texts or None


def _ask(reader: KeyReader, table: Table, keys: Sequence[Mapping[str, bytes]]) -> Sequence[Key | None]:
    return reader(table, keys)
