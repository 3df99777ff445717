"""`writebehind verify`: the cache against Postgres, and repair of what differs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
import msgspec

from writebehind.keys import QueueKeys

from . import verify_view
from .cache_names import CacheNames
from .catalog import load_catalog
from .config import Config
from .connections import reading_postgres, reading_redis, refuse_standby
from .errors import FatalError
from .known_tables import KnownTables, read_published
from .meter import Meter
from .nodes import primaries
from .options import config_options
from .resharding import names_in
from .row_comparison import RowComparison
from .row_options import cache_name_options
from .table import Table
from .verify import Difference, Verification

_SHOWN = 20
_SHOWN_AS_JSON = 1000


@click.command("verify")
@cache_name_options
@click.option("--sample", type=click.IntRange(1), help="So many entries, drawn at random.  [default: 1000]")
@click.option("--all", "everything", is_flag=True, help="All entries.")
@click.option("--table", "tables", multiple=True, help="Entries of this table only; repeat it.")
@click.option("--repair", is_flag=True, help="Remove what differs from the cache, so that readers load it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_options("redis_url", "postgres_url", "queue")
def verify_command(
    config: Config,
    prefix: str,
    version: str | None,
    sample: int | None,
    everything: bool,
    tables: tuple[str, ...],
    repair: bool,
    as_json: bool,
) -> None:
    """Compare the cache with Postgres. Writes that are under way are no differences.

    Exit code 0: all that was looked at agrees, or was repaired. 1: differences are left. 2: a server could
    not be asked. It never changes Postgres.
    """
    if sample is not None and everything:
        raise FatalError("--sample and --all contradict each other", "leave one of them out")
    names, keys = CacheNames(prefix, version), QueueKeys(config.queue)
    with reading_redis(config) as client, reading_postgres(config) as conn:
        refuse_standby(conn)
        names = names_in(client, keys, names)
        known = KnownTables(load_catalog(conn), read_published(client, keys))
        only = _chosen(known, tables)
        verification = Verification(client, keys, names, known, RowComparison(conn), only)
        pages = verification.all_names() if everything else verification.sample(sample or 1000)
        shown: list[tuple[Difference, bool]] = []
        with Meter("verify") as meter:
            total, tally = sum(int(node.dbsize()) for node in primaries(client)), verification.tally
            for page in pages:
                for difference in verification.check(page):
                    done = repair and verification.repair(difference)
                    if len(shown) < (_SHOWN_AS_JSON if as_json else _SHOWN):
                        shown.append((difference, done))
                meter.show(
                    tally.entries + tally.unknown_keys,
                    total if everything else None,
                    f"{tally.entries:,} entries looked at, {tally.differ:,} differ",
                )
        now_ms = client.time()[0] * 1000
    shown.sort(key=lambda one: one[0].entry.name)
    if as_json:
        found = verify_view.as_json(tally, shown, now_ms, is_sample=not everything)
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        _print(shown, now_ms, tally.differ)
        for line in verify_view.summary(tally, is_sample=not everything, repair=repair, start=names.start):
            click.echo(line)
    sys.exit(1 if tally.differ > tally.repaired else 0)


def _chosen(known: KnownTables, names: Sequence[str]) -> list[Table]:
    chosen = []
    for name in names:
        table = known.find(name)
        if table is None:
            raise FatalError(f"--table {name}: there is no such table", "spell it as in Postgres' catalog")
        chosen.append(table)
    return chosen


def _print(shown: Sequence[tuple[Difference, bool]], now_ms: int, count: int) -> None:
    for difference, repaired in shown:
        click.echo(verify_view.line(difference, now_ms) + (" - removed" if repaired else ""))
    if count > len(shown):
        click.echo(f"... and {count - len(shown):,} more (--json shows up to {_SHOWN_AS_JSON:,})")
