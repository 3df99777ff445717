"""`writebehind pause` and `resume`: for migrations of the tables that are written to."""

from __future__ import annotations

import sys
import time

import click

from writebehind.keys import QueueKeys

from .config import Config
from .connections import reading_redis
from .options import config_options
from .pause import wait_until_settled
from .resharding import is_unused
from .verdict import never_used
from .verify_view import many
from .whole_pause import pause_all, resume_all

_HINT = "check --redis-url and the user's rights; a pause that was begun goes on until `writebehind resume`"


@click.command("pause")
@click.option(
    "--reason",
    default="",
    show_default="that of the pause there is, or none",
    help="Shown wherever it is asked for.",
)
@click.option(
    "--wait",
    "timeout_s",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds to wait until nothing is being written any more.",
)
@config_options("redis_url", "queue")
def pause_command(config: Config, reason: str, timeout_s: float) -> None:
    """Stop writing to Postgres, for a migration say; producers go on, and the queue grows.

    Returns when no batch is being written any more. Exit code 1: the queue is paused, but batches that were
    taken before are not in Postgres yet. `writebehind resume` ends it; no restart does.
    """
    keys = QueueKeys(config.queue)
    with reading_redis(config, _HINT) as client:
        shards = pause_all(client, keys, " ".join(reason.split()))
        deadline = time.monotonic() + timeout_s
        is_strange = is_unused(client, keys)
        frozen = sum(wait_until_settled(client, s, max(0.0, deadline - time.monotonic())) for s in shards)
    if frozen:
        are = "is" if frozen == 1 else "are"
        click.echo(
            f"Paused: nothing more is taken from {config.queue}. But {many(frozen, 'batch', 'batches')} "
            f"taken before {are} not in Postgres after {timeout_s:g} s, and will be when that can be. "
            "Does a worker run? Does Postgres answer? See `writebehind status`. Run `writebehind pause` "
            "again before you migrate.",
            err=True,
        )
        sys.exit(1)
    click.echo(
        f"Paused: nothing is written from {config.queue} until `writebehind resume`. Producers go on; "
        "the queue grows."
    )
    if is_strange:
        click.echo(never_used(config.queue), err=True)


@click.command("resume")
@config_options("redis_url", "queue")
def resume_command(config: Config) -> None:
    """End `writebehind pause`. Harmless where there is none."""
    with reading_redis(config, _HINT) as client:
        was_paused = resume_all(client, QueueKeys(config.queue))
    click.echo(f"Resumed: {config.queue}." if was_paused else f"{config.queue} was not paused.")
