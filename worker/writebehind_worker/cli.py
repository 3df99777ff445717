"""The command `writebehind`."""

from __future__ import annotations

import dataclasses
import faulthandler
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import click
import msgspec
import psycopg
from click.core import ParameterSource

from .commands import Commands
from .config import SETTINGS, Config, one_line, redacted
from .errors import ConfigError, FatalError
from .ledger_schema import apply_schema
from .log import configure_logging
from .notify import ServiceManager
from .options import OWN_SERVERS, config_options, config_reader
from .signals import Signals

_CONNECT_TIMEOUT_S = 10
# Each answer of Postgres waits for the other thread to let go: at Python's 5 ms, seven times a batch.
_SWITCH_INTERVAL_S = 0.0005
# Reading makes and frees tuples by the thousand: at Python's 700, cycles are searched for all the time.
_YOUNG_OBJECTS = 20_000


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="writebehind", prog_name="writebehind")
def cli() -> None:
    """Brings the writes of a Redis queue to Postgres: exactly once, in order.

    Each option can also be given by the environment variable shown beside it, or in a TOML file
    (--config); the two URLs also as files in $CREDENTIALS_DIRECTORY, redis_url and postgres_url. A flag wins
    over the environment, the environment over such a file, and all of them over the TOML file.
    """


@cli.command()
@config_options(*OWN_SERVERS, *SETTINGS)
def run(config: Config, embedded: bool, data_dir: str) -> None:
    """Run the worker until SIGTERM or SIGINT; a second signal ends it at once.

    SIGHUP reads the configuration again, and the worker goes on by it; a wrong one is refused, and the one in
    force stays. On a terminal, and with --embedded, it stops the worker.
    """
    _check_embedded(embedded)
    configure_logging(config.log_level, config.log_format)
    faulthandler.enable()  # a watchdog ends a process that hangs by SIGABRT: the log then shows where
    manager = ServiceManager.of(os.environ)
    is_on_terminal = sys.stdin is not None and sys.stdin.isatty()
    read = None if embedded or is_on_terminal else config_reader()
    servers = _embedded(config, data_dir) if embedded else nullcontext(config)
    with Signals() as signals, servers as chosen:
        _serve(chosen, manager, signals, read)


@cli.command()
@config_options("postgres_url")
def init(config: Config) -> None:
    """Create the ledger's tables (schema.sql) in Postgres, or bring them to this version."""
    click.echo(_init(config))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_options("redis_url", "postgres_url", "queue")
def status(config: Config, as_json: bool) -> None:
    """Whether the data is safe and how far behind it is: the queue, its owner, the ledger, the dead letters.

    Exit code 1 if a server is down.
    """
    from .status import read_status, render, shards_of_queue  # noqa: PLC0415 - no other command needs them
    from .verdict import verdict  # noqa: PLC0415

    present = shards_of_queue(config)
    found = read_status(config, [shard.queue for shard in present])
    shards = {s.queue: s for s in map(read_status, present)}
    opening = verdict(found, [*shards.values()])
    if as_json:
        answer = {"verdict": opening, **msgspec.to_builtins(found)}
        if shards:
            answer["shards"] = [{"verdict": verdict(s), **msgspec.to_builtins(s)} for s in shards.values()]
        click.echo(msgspec.json.format(msgspec.json.encode(answer)).decode())
    elif shards:
        click.echo(f"{opening}\n\n{config.queue} has {len(shards)} shards; see each by --queue.")
        for name, one in {config.queue: found, **shards}.items():
            click.echo(f"{name}: {verdict(one)}")
        for table, place in (found.redis.tables if found.redis else {}).items():
            click.echo(f"elsewhere: {table}: {place}")
    else:
        click.echo(f"{opening}\n\n{render(found)}")
    sys.exit(0 if all(s.ok for s in (found, *shards.values())) else 1)


@cli.command()
@click.option("--writes", default=60_000, show_default=True, type=click.IntRange(1), help="Writes.")
@click.option("--rows", default=6_000, show_default=True, type=click.IntRange(1), help="Rows.")
def demo(writes: int, rows: int) -> None:
    """Show it at work with servers of its own, a worker killed in between, and check the result."""
    from .demo import run_demo  # noqa: PLC0415 - needs the extra `embedded`

    sys.exit(run_demo(writes, rows))


def _serve(
    config: Config, manager: ServiceManager, signals: Signals, read: Callable[[], Config] | None
) -> None:
    """Until it is told to stop; ``read`` reads the configuration again, ``None``: SIGHUP stops, too."""
    from .service import Service  # noqa: PLC0415 - no other command needs it

    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.set_threshold(_YOUNG_OBJECTS)
    service = Service(config, manager)

    def reload() -> None:
        if read is None:
            service.stop()
            return
        service.reloading()
        try:
            service.reload(read())
        except Exception as error:  # systemd waits for an answer, whatever it is
            service.refuse(error)

    signals.call(service.stop, reload)
    service.run()


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
