"""The commands `writebehind dead …`: find dead letters, read one, send them again, drop them."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click
import msgspec
from rich.console import Console

from writebehind.keys import QueueKeys

from . import dead_view
from .config import Config
from .dead import Choice, DeadLetters, Letter
from .dead_retry import Watch
from .dead_run import AGAIN, RetryRun, drop_letters, many
from .dead_servers import connected_redis, dead_letters
from .errors import FatalError
from .options import config_options

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SHOWN = 50


def _age(value: str) -> float:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", value)
    if found is None or float(found[1]) == 0:
        raise click.BadParameter(f"{value!r} is no age; write 90s, 15m, 1h or 7d")
    return float(found[1]) * _UNITS_S[found[2]]


def _choice_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option(
            "--newer-than",
            "newer_than_s",
            type=_age,
            metavar="AGE",
            help="First rejected less than so long ago.",
        ),
        click.option(
            "--older-than",
            "older_than_s",
            type=_age,
            metavar="AGE",
            help="First rejected so long ago: 90s, 15m, 1h, 7d.",
        ),
        click.option("--kind", type=click.Choice(["rejected", "rollback"]), help="What became of them."),
        click.option("--sqlstate", help="Postgres' code, such as 23505."),
        click.option("--table", help="users or app.users."),
    ):
        command = option(command)
    return command


_ids = click.argument("ids", nargs=-1, type=click.IntRange(1, (1 << 63) - 1))
_servers = config_options("redis_url", "postgres_url", "queue")
_postgres = config_options("postgres_url", "queue")


@click.group()
def dead() -> None:
    """Find, read, send again or drop the writes that could not be applied."""


@dead.command("list")
@_choice_options
@click.option("--superseded", is_flag=True, help="Those whose row a later write has written, only.")
@click.option("--all", "everything", is_flag=True, help="The open and the superseded ones.")
@click.option("--limit", type=click.IntRange(0), help="Most to show; 0: all.  [default: 50; with --json 0]")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@_postgres
def list_letters(
    config: Config, superseded: bool, everything: bool, limit: int | None, as_json: bool, **given: Any
) -> None:
    """List dead letters, oldest first: the open ones, unless told otherwise.

    A table on a terminal; else a line each, its parts separated by tabs.
    """
    choice = Choice(**given, which="superseded" if superseded else "all" if everything else "open")
    limit = (0 if as_json else _SHOWN) if limit is None else limit
    with dead_letters(config) as letters:
        pages = letters.pages(choice, limit or None)
        if as_json:
            _print_json(pages)
        else:
            _print_table(letters, choice, pages, limit)


@dead.command()
@click.argument("id", type=click.IntRange(1, (1 << 63) - 1))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_postgres
def show(config: Config, id: int, as_json: bool) -> None:
    """Show one dead letter: its body, why it was rejected, and each time before."""
    with dead_letters(config) as letters:
        letter = _the_one(letters, config, id)
        history, body = letters.history(id), letters.body(id)
    if as_json:
        click.echo(_json(dead_view.full_json(letter, history, body)))
    else:
        click.echo(dead_view.full(letter, history, body))


@dead.command()
@_ids
@_choice_options
@click.option("--all", "everything", is_flag=True, help="All that are open.")
@click.option("--force", is_flag=True, help="Superseded ones too; those of kind rollback if asked for.")
@click.option("--body", help="A corrected message (JSON), sent in the place of that of the one letter.")
@click.option(
    "--wait",
    "wait_s",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds to wait for the outcome.",
)
@click.option(
    "--max-queue-length",
    default=1_000_000,
    show_default=True,
    type=click.IntRange(1),
    help="Writes pending at which to stop, as for the producers.",
)
@_servers
def retry(
    config: Config,
    ids: tuple[int, ...],
    everything: bool,
    force: bool,
    body: str | None,
    wait_s: float,
    max_queue_length: int,
    **given: Any,
) -> None:
    """Send dead letters again as new writes, oldest first: by id, by filter, or all.

    Each is applied once at most, however often this is interrupted and run again. One that is rejected
    again stays the same dead letter. Exit code 1 if one was not sent, came back, or has no outcome yet.
    """
    choice = Choice(ids, **given, which="all" if force or ids else "open")
    _must_choose(choice, everything)
    if body is not None and len(ids) != 1:
        raise FatalError("--body corrects one letter", "give its id: writebehind dead retry 17 --body …")
    choice = _without_rollbacks(choice, force)
    with dead_letters(config) as letters, connected_redis(config) as client:
        watch = Watch(letters.connection, force=force)
        run = RetryRun(letters, client, QueueKeys(config.queue), max_queue_length, watch, force, body)
        try:
            run.send(choice)
        finally:
            click.echo(f"Sent {many(len(watch))} again.")
        for line in run.left():
            click.echo(line, err=True)
        ok = not run.left()
        if not ids and not force and (superseded := letters.count(_with(choice, which="superseded"))):
            click.echo(f"{superseded} more are superseded by later writes of their rows (--force).")
        if wait_s > 0 and len(watch):
            outcome = watch.outcome(wait_s)
            click.echo("\n".join(dead_view.outcome(outcome, wait_s)))
            ok = ok and not outcome.returned and not outcome.unknown
    sys.exit(0 if ok else 1)


@dead.command()
@_ids
@_choice_options
@click.option("--superseded", is_flag=True, help="Those whose row a later write has written, only.")
@click.option("--all", "everything", is_flag=True, help="All, the superseded ones too.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_servers
def drop(
    config: Config, ids: tuple[int, ...], superseded: bool, everything: bool, yes: bool, **given: Any
) -> None:
    """Remove dead letters for good: by id, by filter, or all. Asks first."""
    choice = Choice(ids, **given, which="superseded" if superseded else "all")
    _must_choose(choice, everything or superseded)
    with dead_letters(config) as letters, connected_redis(config) as client:
        count = letters.count(choice)
        if count < len(set(ids)):
            click.echo(f"{len(set(ids)) - count} of the {len(set(ids))} are not there.", err=True)
        if count and not yes:
            click.echo("\n".join(dead_view.reasons(letters.reasons(choice))))
            click.confirm(f"Drop {many(count)} for good?", abort=True)
        dropped, left = drop_letters(letters, choice, client)
    click.echo(f"Dropped {many(dropped)}.")
    if left:
        click.echo(f"{many(left)} left: {AGAIN}.", err=True)
    sys.exit(1 if left else 0)


def _must_choose(choice: Choice, everything: bool) -> None:
    if choice.is_everything and not everything:
        raise FatalError("this says not which dead letters", "give ids, a filter (--table, …), or --all")


def _without_rollbacks(choice: Choice, force: bool) -> Choice:
    """What was applied before Redis went back must be asked for, by id or by kind, and forced."""
    if choice.kind == "rollback" and not force:
        raise FatalError(
            "dead letters of kind rollback were applied before Redis went back in time",
            "--force applies them a second time",
        )
    return choice if choice.ids or choice.kind else _with(choice, kind="rejected")


def _with(choice: Choice, **changes: Any) -> Choice:
    return dataclasses.replace(choice, **changes)


def _the_one(letters: DeadLetters, config: Config, id: int) -> Letter:
    for page in letters.pages(Choice((id,))):
        return page[0]
    raise FatalError(
        f"queue {config.queue!r} has no dead letter {id}: it was applied or dropped, or is another queue's",
        "see `writebehind dead list --all`; for another queue give --queue",
    )


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value)).decode()


def _print_json(pages: Iterator[list[Letter]]) -> None:
    mark = "["
    for page in pages:
        for letter in page:
            click.echo(f"{mark}\n{msgspec.json.encode(dead_view.letter_json(letter)).decode()}", nl=False)
            mark = ","
    click.echo("\n]" if mark == "," else "[]")


def _print_table(letters: DeadLetters, choice: Choice, pages: Iterator[list[Letter]], limit: int) -> None:
    found = letters.reasons(choice)
    count, shown = sum(reason.count for reason in found), 0
    now = dt.datetime.now(dt.UTC)
    for page in pages:
        if sys.stdout.isatty():
            Console().print(dead_view.table(page, now))
        else:
            click.echo("\n".join("\t".join(dead_view.cells(letter, now)) for letter in page))
        shown += len(page)
    click.echo("\n".join([many(count) + (", by reason:" if count else "."), *dead_view.reasons(found)]))
    if shown < count:
        click.echo(f"The oldest {shown} are shown; --limit 0 shows all, --limit {2 * limit} more.")
