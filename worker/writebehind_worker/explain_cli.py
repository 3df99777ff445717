"""`writebehind explain`: where the writes of one row are now."""

from __future__ import annotations

import sys

import click
import msgspec

from . import explain_view
from .cache_names import CacheNames
from .config import Config
from .explain import Explainer
from .meter import Meter
from .options import config_options
from .row_options import cache_name_options

_EXIT_CODES: dict[explain_view.Outcome, int] = {
    "consistent": 0,
    "pending": 0,
    "rejected": 1,
    "differs": 1,
    "unknown": 2,
}


@click.command("explain")
@click.argument("table")
@click.argument("id")
@cache_name_options
@click.option("--key", "cache_key", metavar="TEXT", help="The cache key itself, where it is another.")
@click.option(
    "--scan",
    "limit",
    default=100_000,
    show_default=True,
    type=click.IntRange(0),
    help="Writes of the queue to look at, the newest; 0: all. Frozen batches are looked at in any case.",
)
@click.option("--values", "with_values", is_flag=True, help="Show the columns' values, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_options("redis_url", "postgres_url", "queue")
def explain_command(
    config: Config,
    table: str,
    id: str,
    prefix: str,
    version: str | None,
    cache_key: str | None,
    limit: int,
    with_values: bool,
    as_json: bool,
) -> None:
    """Show where the writes of one row are: cache, queue, batches, ledger, dead letters, Postgres.

    ID is a scalar, or a JSON object of the key's columns: '{"tenant": 1, "user": 2}'. A negative one stands
    after a --. It only reads.

    Exit code 0: the writes are in Postgres, or on their way. 1: one was rejected, or the cache differs from
    Postgres. 2: a server could not be asked.
    """
    with Meter("explain") as meter:

        def progress(done: int, total: int) -> None:
            meter.show(
                done, total if not limit else min(total, limit), f"{done:,} of {total:,} writes looked at"
            )

        found = Explainer(
            config,
            table,
            id,
            CacheNames(prefix, version),
            cache_key=cache_key,
            limit=limit or None,
            with_values=with_values,
            progress=progress,
        ).explain()
    if as_json:
        made = explain_view.as_json(found, with_values=with_values)
        click.echo(msgspec.json.format(msgspec.json.encode(made)).decode())
    else:
        click.echo(explain_view.render(found, with_values=with_values))
    sys.exit(_EXIT_CODES[explain_view.verdict(found)[0]])
