"""The command `writebehind`."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Any

import click
import msgspec
import psycopg
from click.core import ParameterSource

from .config import SETTINGS, Config, one_line, redacted
from .dead_cli import dead
from .doctor_cli import doctor_command
from .endpoint import Endpoint
from .errors import ConfigError, FatalError
from .ledger_schema import apply_schema
from .log import configure_logging, get_logger
from .metrics import Metrics
from .options import OWN_SERVERS, config_options
from .pause_cli import pause_command, resume_command
from .state import WorkerState, stall_after_s
from .status import read_status, render

_CONNECT_TIMEOUT_S = 10
# Each answer of Postgres waits for the other thread to let go: at Python's 5 ms, seven times a batch.
_SWITCH_INTERVAL_S = 0.0005


class _OperatorError(click.ClickException):
    exit_code = 2

    def __init__(self, error: FatalError) -> None:
        super().__init__(redacted(f"{error}\nHint: {error.hint}"))


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FatalError as error:
            raise _OperatorError(error) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="writebehind")
def cli() -> None:
    """Brings the writes of a Redis queue to Postgres: exactly once, in order.

    Each option can also be given by the environment variable shown beside it, or in a TOML file
    (--config). A flag wins over the environment, the environment over the file.
    """


@cli.command()
@config_options(*OWN_SERVERS, *SETTINGS)
def run(config: Config, embedded: bool, data_dir: str) -> None:
    """Run the worker until SIGTERM or SIGINT; a second signal ends it at once."""
    _check_embedded(embedded)
    configure_logging(config.log_level, config.log_format)
    servers = _embedded(config, data_dir) if embedded else nullcontext(config)
    with _stop_on_signals() as stop, servers as chosen:
        _run_worker(chosen, stop)


@cli.command()
@config_options("postgres_url")
def init(config: Config) -> None:
    """Create the ledger's tables (schema.sql) in Postgres. Harmless if they are there."""
    click.echo(_init(config))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_options("redis_url", "postgres_url", "queue")
def status(config: Config, as_json: bool) -> None:
    """Show the queue, its owner, the ledger and the dead letters. Exit code 1 if a server is down."""
    found = read_status(config)
    encoded = msgspec.json.format(msgspec.json.encode(found)).decode()
    click.echo(encoded if as_json else render(found))
    sys.exit(0 if found.ok else 1)


@cli.command()
@click.option("--writes", default=60_000, show_default=True, type=click.IntRange(1), help="Writes.")
@click.option("--rows", default=6_000, show_default=True, type=click.IntRange(1), help="Rows.")
def demo(writes: int, rows: int) -> None:
    """Show it at work with servers of its own, a worker killed in between, and check the result."""
    from .demo import run_demo  # noqa: PLC0415 - needs the extra `embedded`

    sys.exit(run_demo(writes, rows))


for command in (dead, doctor_command, pause_command, resume_command):
    cli.add_command(command)


def _run_worker(config: Config, stop: threading.Event) -> None:
    from .worker import Worker  # noqa: PLC0415 - no other command needs it

    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    log, metrics = get_logger(queue=config.queue), Metrics(config.queue)
    state = WorkerState(stall_after_s(config.statement_timeout_s))
    endpoint = None
    if config.metrics_port:
        endpoint = Endpoint(config.metrics_host, config.metrics_port, metrics, state)
        endpoint.start()
    try:
        Worker(config, state, metrics, log).run(stop)
    finally:
        if endpoint:
            endpoint.stop()


def _init(config: Config) -> str:
    """Applies the schema; returns what was done. Raises `FatalError`: waiting is for `run`."""
    try:
        with psycopg.connect(config.postgres_url, connect_timeout=_CONNECT_TIMEOUT_S) as conn:
            created = apply_schema(conn)
            name = conn.info.dbname
    except psycopg.Error as error:
        raise FatalError(
            f"Postgres at {redacted(config.postgres_url)}: {one_line(error)}",
            "check --postgres-url, and that the server runs",
        ) from error
    if created:
        return f"Created the ledger's tables in the database {name!r}, schema writebehind."
    return f"The ledger's tables are there already, in the database {name!r}."


def _check_embedded(embedded: bool) -> None:
    """Refuses flags that contradict each other; a URL of the environment or the file is only passed over."""
    source = click.get_current_context().get_parameter_source
    if not embedded:
        if source("data_dir") is ParameterSource.COMMANDLINE:
            raise ConfigError("--data-dir has no meaning without --embedded", "add --embedded")
        return
    urls = ("redis_url", "postgres_url")
    for name in urls:
        if source(name) is ParameterSource.COMMANDLINE:
            raise ConfigError(
                f"--embedded starts its own servers: {SETTINGS[name].flag} contradicts it",
                "leave one of them out; --no-embedded, where the environment or the file says embedded",
            )
    if ignored := [SETTINGS[name].flag for name in urls if source(name) is not ParameterSource.DEFAULT]:
        click.echo(
            f"The embedded servers are used, not {' and '.join(ignored)} of the environment or the file.",
            err=True,
        )


@contextmanager
def _embedded(config: Config, data_dir: str) -> Iterator[Config]:
    """Servers of our own, with the schema applied; ``config`` with their URLs."""
    from .embedded import (  # noqa: PLC0415 - an extra
        EmbeddedServerError,
        EmbeddedServers,
        default_data_dir,
    )

    servers = EmbeddedServers(Path(data_dir) if data_dir else default_data_dir())
    try:
        servers.start()
    except EmbeddedServerError as error:
        raise FatalError(str(error), "or use your own servers: --redis-url and --postgres-url") from error
    try:
        own = dataclasses.replace(config, redis_url=servers.redis_url, postgres_url=servers.postgres_url)
        _init(own)
        click.echo(f"Redis:    {redacted(own.redis_url)}\nPostgres: {redacted(own.postgres_url)}")
        yield own
    finally:
        servers.stop()


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """An event that the first SIGTERM or SIGINT sets; the second ends the process at once.

    The handler must not set it itself: it runs on the main thread, which may be inside the event's own
    lock just then. A SimpleQueue is made for that.
    """
    stop = threading.Event()
    received: SimpleQueue[int | None] = SimpleQueue()
    asked = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            os._exit(128 + number)  # what a shell reports for this signal
        asked = True
        received.put(number)

    def relay() -> None:
        if received.get() is not None:
            stop.set()

    threading.Thread(target=relay, name="signals", daemon=True).start()
    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        received.put(None)
