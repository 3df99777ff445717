"""`writebehind reshard`: divides a queue into another number of shards, while it is used."""

from __future__ import annotations

import sys
import time

import click

from writebehind.keys import QueueKeys
from writebehind.shards import MAX_SHARDS

from .config import Config
from .connections import reading_redis
from .meter import Meter
from .options import config_options
from .resharding import divide, layout_of, still_draining
from .verify_view import many

_HINT = "check --redis-url and the user's rights; run it again: each of its steps can be made twice"
_POLL_S = 0.1


@click.command("reshard")
@click.argument("shards", type=click.IntRange(1, MAX_SHARDS))
@click.option(
    "--timeout",
    "timeout_s",
    default=600.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds to wait until the former shards are in Postgres.",
)
@config_options("redis_url", "queue")
def reshard_command(config: Config, shards: int, timeout_s: float) -> None:
    """Divide the queue into SHARDS shards, without stopping producers or workers.

    Writes wait for some milliseconds while the shards are exchanged. What the former shards hold goes to
    Postgres first, then what the new ones have taken meanwhile: no row's writes change their order. Exit
    code 1: the former shards are not in Postgres after --timeout seconds; the workers go on by themselves.
    """
    keys = QueueKeys(config.queue)
    with reading_redis(config, _HINT) as client, Meter("reshard") as meter:
        layout = divide(client, keys, shards)
        deadline, most = time.monotonic() + timeout_s, 1
        while (left := still_draining(client, keys, layout)) > 0 and time.monotonic() < deadline:
            most = max(most, left)
            meter.show(most - left, most, f"{many(left, 'write')} of the former shards left")
            time.sleep(_POLL_S)
            layout = layout_of(client, keys)
    if left:
        click.echo(
            f"The queue has {layout.shards} shards, but {many(left, 'write')} of the former ones are not in "
            "Postgres yet: until then nothing of the new ones is written. Is a worker running? "
            "See `writebehind status`.",
            err=True,
        )
        sys.exit(1)
    now = f"{config.queue} has {many(layout.shards, 'shard')}"
    click.echo(f"{now}; all that the former ones had accepted is in Postgres.")
