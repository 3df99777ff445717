"""The worker's connection to Postgres, straight or through a pooler.

A pooler such as PgBouncer in transaction mode gives each transaction the session that is free. So nothing
is kept in a session there: no setting, prepared statement or temporary table, nor a backend's process id.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import psycopg
from psycopg.abc import Params
from psycopg.conninfo import conninfo_to_dict, make_conninfo, timeout_from_conninfo
from psycopg.pq import TransactionStatus
from psycopg.types.array import ListBinaryDumper

from .errors import UnsupportedPostgres

_T = TypeVar("_T")

# A server that vanished is noticed in seconds, not in the hours that TCP takes by itself.
DEFAULTS: dict[str, Any] = {
    "application_name": "writebehind",
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # ms
}

OLDEST_VERSION = 12  # of PostgreSQL: generated columns, nondeterministic collations

REPLY_GRACE_S = 5.0
"""Beyond its ``statement_timeout`` a server that lives has answered by then, if only with an error."""

_SYNCHRONOUS = (
    "set_config('synchronous_commit', CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') "
    "THEN 'on' ELSE current_setting('synchronous_commit') END, {})"
)
DURABLE = _SYNCHRONOUS.format("true")
"""As part of a SELECT: this transaction's commit is durable, whatever the session has been told."""

_TICK_S = 0.1
_ADDRESSES = 2  # of one host: IPv6 and IPv4


_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"


class NoReply(psycopg.OperationalError):
    """The server holds the connection and says nothing. What it did with the statement is unknown."""


class Connection(psycopg.Connection[Any]):
    """One that is closed when a statement, COMMIT too, has been unanswered for ``reply_timeout_s``.

    Nothing else notices a server that is paused, or hangs on its disk: its kernel still answers for it.
    """

    reply_timeout_s: float = 30.0 + REPLY_GRACE_S
    heard: Callable[[], None] = staticmethod(lambda: None)
    """Called whenever bytes have come or gone."""

    is_pooled: bool = False
    """Whether a pooler stands between: the next transaction may be another session's."""

    _limits: Sequence[str] = ()

    def limit(self, **settings: str) -> None:
        """Sets these to literals, for all that follows; behind a pooler anew with each transaction."""
        if not self.is_pooled:
            self.execute("; ".join(f"SET {name} = {value}" for name, value in settings.items()).encode())
        self._limits = _set_locally(settings)

    def execute(
        self, query: Any, params: Params | None = None, *, prepare: bool | None = None, binary: bool = False
    ) -> psycopg.Cursor[Any]:
        """As psycopg's; where limits must be told to another session each time, in a transaction."""
        is_idle = self.info.transaction_status is TransactionStatus.IDLE
        if not (self.is_pooled and self._limits and is_idle):
            found = super().execute(query, params, prepare=prepare, binary=binary)
            if self.pgconn.pipeline_status:
                # Else the server keeps each reply until the last one, and seems silent for as long.
                self.pgconn.send_flush_request()
            return found
        self.begin()
        try:
            found = super().execute(query, params, prepare=prepare, binary=binary)
            super().execute("COMMIT")
            return found
        except BaseException:
            roll_back(self)
            raise

    def begin(self, **settings: str) -> None:
        """Begins a transaction in which these are set. One round trip, or part of one."""
        shared = [*self._limits, f"SELECT {DURABLE}"] if self.is_pooled else []
        statements = [_BEGIN, *shared, *_set_locally(settings)]
        if self.pgconn.pipeline_status:
            for statement in statements:
                super().execute(statement.encode())
        else:
            super().execute("; ".join(statements).encode())

    def forget_prepared(self) -> None:
        """After a failed `one_trip`: psycopg takes for prepared what was not run any more."""
        self._prepared.clear()

    def wait(self, gen: Generator[Any, Any, _T], *args: Any, **options: Any) -> _T:
        """Consumes a generator that operates on the connection. Raises :class:`NoReply`."""
        options["interval"] = _TICK_S
        try:
            return super().wait(_bounded(gen, self.reply_timeout_s, self.heard), **options)
        except NoReply:
            self.close()
            raise


def _bounded(
    gen: Generator[Any, Any, _T], timeout_s: float, heard: Callable[[], None] = lambda: None
) -> Generator[Any, Any, _T]:
    """Passes ``gen`` on, and counts how often psycopg has waited ``_TICK_S`` without a byte coming or going.

    Ticks, not a clock: a process that was paused itself must not take its pause for the server's.
    """
    silent = 0
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            silent = 0 if ready else silent + 1
            if ready:
                heard()
            if silent * _TICK_S > timeout_s:
                raise NoReply(f"Postgres holds the connection but has not answered for {timeout_s:g} s")
            wanted = gen.send(ready)
    except StopIteration as end:
        result: _T = end.value
        return result
    finally:
        # Interrupted on leaving a pipeline it waits once more; nobody would be there for what that comes to.
        with contextlib.suppress(psycopg.Error, RuntimeError):
            gen.close()


def connect(
    url: str,
    reply_timeout_s: float = Connection.reply_timeout_s,
    heard: Callable[[], None] = Connection.heard,
) -> Connection:
    """Connects in autocommit, with parameters written ``$1``; what the URL says wins over our defaults.

    ``synchronous_commit`` is raised where it is off: a batch leaves Redis when its commit is durable.
    Behind a pooler each transaction does that.
    """
    conninfo = make_conninfo(**_parameters(url))
    conn = Connection.connect(conninfo, autocommit=True, cursor_factory=psycopg.RawCursor)
    conn.reply_timeout_s, conn.heard = reply_timeout_s, heard
    conn.adapters.register_dumper(list, ListBinaryDumper)  # dead letters: as text they take far longer
    # A pooler's clients get process ids of its own making. Those that it has, it keeps: client_encoding.
    row = conn.execute(
        f"SELECT set_config('client_encoding', 'UTF8', false), pg_backend_pid() <> {conn.info.backend_pid}, "
        f"CASE WHEN pg_backend_pid() = {conn.info.backend_pid} THEN {_SYNCHRONOUS.format('false')} END"
    ).fetchone()
    if row is not None and row[1]:
        conn.is_pooled, conn.prepare_threshold = True, None
    return conn


def longest_connect_s(url: str) -> float:
    """Seconds that `connect` may take while nobody answers: it tries host after host."""
    parameters = _parameters(url)
    hosts = str(parameters.get("hostaddr") or parameters.get("host") or os.environ.get("PGHOST") or "")
    return (hosts.count(",") + 1) * _ADDRESSES * timeout_from_conninfo(parameters)


def may_find_standby(url: str) -> bool:
    """Whether it names several hosts, and not that one is wanted which can be written to."""
    parameters = _parameters(url)
    hosts = str(parameters.get("hostaddr") or parameters.get("host") or os.environ.get("PGHOST") or "")
    wanted = parameters.get("target_session_attrs") or os.environ.get("PGTARGETSESSIONATTRS")
    return "," in hosts and wanted not in ("read-write", "primary")


def _parameters(url: str) -> dict[str, Any]:
    return {**DEFAULTS, **conninfo_to_dict(url)}


def check_version(conn: psycopg.Connection[Any], where: str) -> None:
    """Raises `UnsupportedPostgres`; asks nothing of the server."""
    version = conn.info.server_version  # 180003 is 18.3
    if version < OLDEST_VERSION * 10_000:
        raise UnsupportedPostgres(where, f"{version // 10_000}.{version % 10_000}")


def begin(conn: psycopg.Connection[Any], **settings: str) -> None:
    """Begins a transaction in which these are set."""
    if isinstance(conn, Connection):
        conn.begin(**settings)
    else:
        conn.execute("; ".join([_BEGIN, *_set_locally(settings)]).encode())


def _set_locally(settings: Mapping[str, str]) -> Sequence[str]:
    """As one statement. The values are literals."""
    each = (f"set_config('{name}', {value}, true)" for name, value in settings.items())
    return [f"SELECT {', '.join(each)}"] if settings else []


@contextlib.contextmanager
def one_trip(conn: psycopg.Connection[Any]) -> Iterator[Callable[[], None]]:
    """Statements that are sent together. Their replies are there at its end, which raises the first error.

    After one that fails none is run. What it yields waits for the replies so far, by one more round trip.
    Behind a pooler, and with an old libpq, each reply is waited for by itself.
    """
    if is_pooled(conn) or not psycopg.Pipeline.is_supported():
        yield lambda: None
        return

    def arrive() -> None:
        # psycopg's `sync` can wait for replies to what it has not sent whole.
        conn.execute("SELECT").fetchone()

    failed: psycopg.Error | None = None
    try:
        with conn.pipeline() as pipeline:
            pipeline._communicate_gen = partial(_held, pipeline.command_queue)  # type: ignore[method-assign]
            try:
                yield arrive
            except psycopg.Error as error:
                failed = error  # not raised through `pipeline`, which would log what it finds on leaving
    except psycopg.Error as error:
        cause = error.__context__
        if cause is not None and not isinstance(cause, psycopg.Error):
            raise cause from None  # it interrupts what is waited for: the pipeline then cannot be left either
        failed = failed or error
    if failed is not None:
        if isinstance(conn, Connection):
            conn.forget_prepared()
        raise failed


def _held(commands: deque[Callable[[], None]]) -> Generator[Any, Any, None]:
    """Instead of psycopg's, which sends each statement by itself: they are kept until replies are wanted.

    Neither side is woken for each then: a batch of a few rows costs the worker a tenth less.
    """
    while commands:
        commands.popleft()()
    return
    yield  # which makes it a generator


def is_pooled(conn: psycopg.Connection[Any]) -> bool:
    """Whether a pooler gives its transactions now one session, now another."""
    return isinstance(conn, Connection) and conn.is_pooled


def roll_back(conn: psycopg.Connection[Any]) -> None:
    """Ends the transaction, if there still is one: a broken connection has rolled back by itself."""
    try:
        with contextlib.suppress(psycopg.Error):
            conn.execute("ROLLBACK")
    finally:
        if conn.info.transaction_status is not TransactionStatus.IDLE:
            conn.close()  # interrupted within a statement, say: left open, it would keep its locks


def is_broken(conn: psycopg.Connection[Any]) -> bool:
    """Whether the connection cannot be used any more."""
    return bool(conn.broken or conn.closed)


def milliseconds(seconds: float) -> str:
    """As SET takes it; at least one, since 0 would mean no limit."""
    return f"'{max(1, round(seconds * 1000))}ms'"
