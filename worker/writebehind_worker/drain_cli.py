"""`writebehind drain`: waits until everything is in Postgres, for deploys and migrations."""

from __future__ import annotations

import sys

import click

from writebehind.keys import QueueKeys

from .config import Config
from .connections import reading_redis
from .drain import Backlog, Rate, drain
from .meter import Meter
from .obstacles import obstacles
from .options import config_options
from .resharding import is_unused
from .status import read_status, shards_of_queue
from .verdict import never_used
from .verify_view import many

_GO_ON = (
    "Producers that go on have perhaps written since: stop them first if it has to stay so; "
    "`writebehind pause` keeps what they write out of Postgres, in the queue."
)


@click.command("drain")
@click.option(
    "--timeout",
    "timeout_s",
    default=600.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds to wait; 0: look once.",
)
@config_options("redis_url", "postgres_url", "queue")
def drain_command(config: Config, timeout_s: float) -> None:
    """Wait until nothing waits in the queue and no batch is frozen, at one instant.

    Exit code 0: it is empty. 1: it is not, after --timeout seconds, or it is paused and would never be.
    2: Redis could not be asked.
    """
    most = 0

    def progress(backlog: Backlog, rate: Rate) -> None:
        nonlocal most
        most = max(most, backlog.pending)
        meter.show(most - backlog.pending, most, f"{many(backlog.pending, 'write')} left, {rate}")

    keys = QueueKeys(config.queue)
    with reading_redis(config) as client, Meter("drain") as meter:
        left = drain(client, keys, timeout_s, progress)
        is_strange = is_unused(client, keys)
    if left.is_empty:
        click.echo(
            f"Empty: at one instant nothing waited in {config.queue} and no batch was frozen. All that had "
            f"been accepted is in Postgres, or in its dead letters. {_GO_ON}"
        )
        if is_strange:
            click.echo(never_used(config.queue), err=True)
        return
    if left.is_endless:
        click.echo(
            f"Not empty, and paused by an operator: {left.paused}. {left}: they stay there until "
            "`writebehind resume`.",
            err=True,
        )
        sys.exit(1)
    why = _obstacles(config) or ["a worker owns the queue, and nothing is known to hold it up"]
    click.echo(f"Not empty after {timeout_s:g} s: {left}. Why: {'; '.join(why)}.", err=True)
    sys.exit(1)


def _obstacles(config: Config) -> list[str]:
    """Of the queue, and of its shards one of each kind: what stops one mostly stops them all."""
    found = {text.partition(":")[0]: text for text in obstacles(read_status(config))}
    for shard in shards_of_queue(config):
        for text in obstacles(read_status(shard)):
            found.setdefault(text.partition(":")[0], f"{shard.queue}: {text}")
    return list(found.values())
