"""What `writebehind doctor` finds in Postgres, over a connection like the worker's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import resources
from typing import Any, NamedTuple

import msgspec
import psycopg

from .catalog import load_catalog
from .config import Config, one_line, redacted
from .doctor import Check, ClockReading, Finding, duration
from .doctor_tables import TableFacts, choose, table_findings
from .errors import FatalError, LedgerRefused, UnsupportedPostgres
from .former_shards import counts_in_ledger
from .ledger import Ledger
from .ledger_schema import SCHEMA_VERSION
from .postgres import Connection, check_version, connect, is_broken, may_find_standby, roll_back
from .sqlstate import advice
from .table import quoted

_REPLY_TIMEOUT_S = 10.0
_STATEMENT_TIMEOUT_S = 5
_LOCK_TIMEOUT_S = 2
_FREE_CONNECTIONS = 5
_CONNECTIONS_SHARE = 0.9
_SILENT_S = 10.0  # a standby speaks every 5 s, an owner every second
_IN_TRANSACTION_S = 5.0
_OUTSIDE_S = 2.0  # the ledger's row is waited for up to a second
_TESTED = 15

_Step = Callable[[], Iterator[Finding]]


class Server(msgspec.Struct):
    """What the server tells of itself. The settings are those that a new session of the role begins with."""

    role: str
    is_standby: bool
    encoding: str
    search_path: list[str]
    """The schema of the ledger is on the search path, as it is for a role of its name."""
    may_temporary: bool
    backends: int
    role_backends: int
    role_limit: int
    settings: dict[str, str]

    def seconds(self, name: str) -> float | None:
        """A setting in milliseconds; None: this version has none of that name."""
        value = self.settings.get(name)
        return None if value is None else int(value) / 1000


_read_server = msgspec.json.Decoder(Server).decode
_read_facts = msgspec.json.Decoder(TableFacts).decode


class Examined(NamedTuple):
    """What there is to say of Postgres, and what the other looks need.

    ``counts``: numbers of shards of the queue that the ledger knows of.
    """

    findings: list[Finding]
    clock: ClockReading | None
    counts: frozenset[int] = frozenset()


def examine_postgres(config: Config, clock: Callable[[], float] = time.time) -> Examined:
    """Asks the server, some seconds at most. Raises nothing if it does not answer."""
    where, found, counts = redacted(config.postgres_url), list[Finding](), frozenset[int]()
    try:
        with connect(config.postgres_url, _REPLY_TIMEOUT_S) as conn:
            for finding in _examine(conn, config, where):
                found.append(finding)
            with suppress(psycopg.Error):  # what is wrong with the ledger has been said
                counts = frozenset(counts_in_ledger(conn, config.queue))
            reading = min((_clock(conn, clock) for _ in range(3)), key=lambda r: r.error_s)
            return Examined(found, reading, counts)
    except psycopg.Error as error:
        found = [finding for finding in found if finding.check != "postgres.connection"]
        down = Finding("postgres.connection", "fatal", f"{where}: {one_line(error)}", advice(error))
        return Examined([down, *found], None, counts)


def server_findings(server: Server, config: Config) -> Iterator[Finding]:
    """The rules on what the server tells of itself."""
    yield _search_path(server)
    yield _temporary(server)
    yield _connections(server)
    yield _durability(server)
    yield _synchronous_commit(server)
    yield _encoding(server)
    yield from _timeouts(server, config)


def _examine(conn: Connection, config: Config, where: str) -> Iterator[Finding]:
    yield Finding("postgres.connection", "ok", f"{where} answers")
    try:
        check_version(conn, where)
    except UnsupportedPostgres as error:
        yield Finding("postgres.version", "fatal", str(error), error.hint)
        return
    yield _version(conn)
    yield _hosts(config)
    pooler = _pooler(conn)
    yield pooler
    if pooler.severity == "fatal":
        return
    conn.limit(statement_timeout=f"'{_STATEMENT_TIMEOUT_S}s'", lock_timeout=f"'{_LOCK_TIMEOUT_S}s'")
    row = conn.execute(_sql("doctor_server")).fetchone()
    assert row is not None
    server = _read_server(row[0])
    steps: list[tuple[Check, _Step]] = [
        ("postgres.ledger", lambda: _ledger(conn, config, server)),
        ("postgres.owner_role", lambda: _owner_role(conn, config, server)),
        ("postgres.temporary", lambda: server_findings(server, config)),
        ("tables.named", lambda: _tables(conn, config, server)),
    ]
    for check, step in steps:
        try:
            yield from step()
        except psycopg.Error as error:
            if is_broken(conn):
                raise
            what = f"could not be looked at: {one_line(error)}"
            yield Finding(check, "warning", what, "run it again; what else is said holds")


def _sql(name: str) -> str:
    return resources.files(__package__).joinpath("sql", f"{name}.sql").read_text()


def _clock(conn: psycopg.Connection[Any], clock: Callable[[], float]) -> ClockReading:
    before = clock()
    row = conn.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
    after = clock()
    assert row is not None
    return ClockReading(row[0] - (before + after) / 2, (after - before) / 2)


def _version(conn: psycopg.Connection[Any]) -> Finding:
    version = conn.info.parameter_status("server_version")
    if conn.info.server_version < _TESTED * 10_000:
        return Finding("postgres.version", "note", f"PostgreSQL {version}; tested are {_TESTED} and later")
    return Finding("postgres.version", "ok", f"PostgreSQL {version}")


def _hosts(config: Config) -> Finding:
    if may_find_standby(config.postgres_url):
        return Finding(
            "postgres.hosts",
            "warning",
            "the URL has several hosts, and the first that answers is taken, a standby too: after a failover "
            "`run` may wait at the former primary's successor in the list",
            "add target_session_attrs=read-write to --postgres-url",
        )
    return Finding("postgres.hosts", "ok", "the URL leads to a server that can be written to, or to one host")


def _pooler(conn: Connection) -> Finding:
    if not conn.is_pooled:
        return Finding("postgres.pooler", "ok", "no pooler between")
    try:
        conn.begin()
        conn.execute("SELECT")
    except psycopg.Error as error:
        return Finding(
            "postgres.pooler",
            "fatal",
            f"a pooler between, and it lets us begin no transaction: {one_line(error)}",
            "pool_mode = transaction (or session) for this database or user, and RELOAD",
        )
    finally:
        roll_back(conn)
    return Finding("postgres.pooler", "ok", "a pooler between: nothing is kept in a session")


def _ledger(conn: psycopg.Connection[Any], config: Config, server: Server) -> Iterator[Finding]:
    """As `run` does at the start of each tenure."""
    if server.is_standby or server.settings["default_transaction_read_only"] == "on":
        yield Finding(
            "postgres.writable",
            "fatal",
            "it is a standby: `run` waits until it is promoted"
            if server.is_standby
            else "default_transaction_read_only is on for this role, database or server: `run` waits",
            "point --postgres-url at the primary, or name both hosts and target_session_attrs=read-write"
            if server.is_standby
            else f"ALTER ROLE {quoted(server.role)} SET default_transaction_read_only = off",
        )
        yield Finding("postgres.ledger", "note", "not looked at: the server is read-only")
        yield Finding("postgres.ledger_rights", "note", "not looked at: the server is read-only")
        return
    yield Finding("postgres.writable", "ok", "a primary, and writable")
    try:
        Ledger(conn, config.queue).check()
    except FatalError as error:
        yield Finding("postgres.ledger", "fatal", str(error), error.hint)
        yield Finding("postgres.ledger_rights", "note", "not looked at: the ledger cannot be used")
    except LedgerRefused as error:
        yield Finding("postgres.ledger", "note", "not looked at: the role lacks rights")
        yield Finding("postgres.ledger_rights", "fatal", error.reason, error.remedy)
    else:
        yield Finding("postgres.ledger", "ok", f"the ledger's tables are there, version {SCHEMA_VERSION}")
        yield Finding("postgres.ledger_rights", "ok", f"the role {server.role} may use them")


def _owner_role(conn: psycopg.Connection[Any], config: Config, server: Server) -> Iterator[Finding]:
    try:
        row = conn.execute(
            # Of another role's session the start is not shown: a later one may have been given the same pid.
            "SELECT a.usename FROM writebehind.ledger l JOIN pg_stat_activity a ON a.pid = l.owner_pid "
            "AND a.datname = current_database() WHERE l.queue = $1 AND NOT pg_has_role(a.usesysid, 'USAGE')",
            [config.queue],
        ).fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InsufficientPrivilege):
        yield Finding("postgres.owner_role", "note", "not looked at: the ledger cannot be read")
        return
    if row is None:
        yield Finding(
            "postgres.owner_role", "ok", f"the role {server.role} may end a stalled owner's connection"
        )
        return
    yield Finding(
        "postgres.owner_role",
        "warning",
        f"the queue's owner connects as {row[0]}, and {server.role} may not end its connection: if that "
        "worker "
        "stalls inside a transaction, none of this role can take over",
        "let all workers of a queue use one role",
    )


def _search_path(server: Server) -> Finding:
    if "writebehind" not in server.search_path:
        return Finding(
            "postgres.search_path", "ok", "the schema writebehind is not searched for tables without a schema"
        )
    others = ", ".join(quoted(name) for name in server.search_path if name != "writebehind") or "public"
    return Finding(
        "postgres.search_path",
        "warning",
        "the search path has the schema writebehind, as that of a role of this name does: a table that this "
        "role makes without naming a schema may come into it, where no write reaches it, and one of yours "
        "that is called as one of the ledger's is not found",
        f"ALTER ROLE {quoted(server.role)} SET search_path = {others} (if the URL sets it: there); "
        "or a role of another name",
    )


def _temporary(server: Server) -> Finding:
    if server.may_temporary:
        return Finding(
            "postgres.temporary", "ok", "temporary tables may be made: many rows at once go by COPY"
        )
    return Finding(
        "postgres.temporary",
        "note",
        "no right to make temporary tables: many rows at once go as JSON, which is slower",
        f"GRANT TEMPORARY ON DATABASE … TO {quoted(server.role)}",
    )


def _connections(server: Server) -> Finding:
    most = int(server.settings["max_connections"])
    reserved = sum(
        int(server.settings.get(name, "0"))
        for name in ("superuser_reserved_connections", "reserved_connections")
    )
    free = most - reserved - server.backends
    if free < _FREE_CONNECTIONS or server.backends > (most - reserved) * _CONNECTIONS_SHARE:
        return Finding(
            "postgres.connections",
            "warning",
            f"{server.backends} of {most - reserved} connections are in use: the next worker may be turned "
            "away",
            "close connections, put a pooler before those who hold them, or raise max_connections",
        )
    if 0 <= server.role_limit < server.role_backends + 1:
        return Finding(
            "postgres.connections",
            "warning",
            f"the role may have {server.role_limit} connections and has {server.role_backends}: a next "
            "owner could "
            "not connect to end a stalled one",
            f"ALTER ROLE {quoted(server.role)} CONNECTION LIMIT -1, or two for each worker",
        )
    return Finding("postgres.connections", "ok", f"{server.backends} of {most - reserved} are in use")


def _durability(server: Server) -> Finding:
    off = [name for name in ("fsync", "full_page_writes") if server.settings[name] == "off"]
    if not off:
        return Finding("postgres.durability", "ok", "fsync and full_page_writes are on")
    return Finding(
        "postgres.durability",
        "warning",
        f"{' and '.join(off)} off: a crash of the host loses or corrupts what was committed, and it has "
        "left Redis",
        "; ".join(f"ALTER SYSTEM SET {name} = on" for name in off) + "; SELECT pg_reload_conf()",
    )


def _synchronous_commit(server: Server) -> Finding:
    value = server.settings["synchronous_commit"]
    if value in ("off", "local"):
        return Finding(
            "postgres.synchronous_commit",
            "note",
            f"{value}; the worker raises it to on for its own commits: what leaves Redis is durable",
        )
    return Finding("postgres.synchronous_commit", "ok", f"{value}: what leaves Redis is durable")


def _encoding(server: Server) -> Finding:
    if server.encoding == "UTF8":
        return Finding("postgres.encoding", "ok", "UTF8")
    return Finding(
        "postgres.encoding",
        "note",
        f"{server.encoding}: text that it cannot hold becomes a dead letter (22P05)",
        "a database with ENCODING 'UTF8', if such text may come",
    )


def _timeouts(server: Server, config: Config) -> Iterator[Finding]:
    limits: tuple[tuple[Check, float, str, str], ...] = (
        (
            "postgres.statement_timeout",
            _OUTSIDE_S,
            "a batch sets its own, as it does lock_timeout",
            "the taking of the ledger and the reading of the catalog are cut off",
        ),
        (
            "postgres.transaction_timeout",
            config.statement_timeout_s,
            "a batch is one transaction",
            "a batch is one transaction, each of its statements may take --statement-timeout, and one that "
            "takes "
            "longer is rolled back and tried again, for ever perhaps",
        ),
        (
            "postgres.idle_in_transaction_session_timeout",
            _IN_TRANSACTION_S,
            "the worker does not idle inside a transaction",
            "a worker that is held up for so long inside a transaction (a busy host, a pause) loses its "
            "connection and begins again",
        ),
        (
            "postgres.idle_session_timeout",
            _SILENT_S,
            "a standby speaks every 5 s, an owner every second",
            "a standby speaks every 5 s, loses its connection before that and begins again, over and over",
        ),
    )
    for check, least_s, well, ill in limits:
        name = check.removeprefix("postgres.")
        value_s = server.seconds(name)
        if value_s is None:
            yield Finding(check, "ok", "this version has none")
        elif value_s == 0:
            yield Finding(check, "ok", f"0: none; {well}")
        elif value_s >= least_s:
            yield Finding(check, "ok", f"{duration(value_s)}; {well}")
        else:
            yield Finding(
                check,
                "warning",
                f"{duration(value_s)} is short: {ill}",
                f"ALTER ROLE {quoted(server.role)} SET {name} = 0, or {duration(least_s)} and more",
            )


def _tables(conn: psycopg.Connection[Any], config: Config, server: Server) -> Iterator[Finding]:
    catalog = load_catalog(conn)
    tables = list({table.oid: table for table in catalog.tables.values()}.values())
    rows = conn.execute(_sql("doctor_tables"), [[table.oid for table in tables]]).fetchall()
    facts = [_read_facts(row[0]) for row in rows]
    found = {name: catalog.find(name) for name in config.tables}
    named = {table.oid for table in found.values() if table is not None} if config.tables else None
    missing = [name for name, table in found.items() if table is None]
    written = choose(tables, facts, named)
    yield from table_findings(written, quoted(server.role), config.tables, missing, bool(tables))
