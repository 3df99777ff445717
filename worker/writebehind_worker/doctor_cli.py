"""The command `writebehind doctor`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import click
import msgspec
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from .config import Config, redacted
from .dead_view import printable
from .doctor import SEVERITIES, Finding, clock_findings, exit_code, worst
from .options import config_options

_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "fatal": "bold red"}
_TITLES = {"redis": "Redis", "postgres": "Postgres", "tables": "Tables", "clock": "Clocks"}
_INDENT = 4
_MARK_WIDTH = max(map(len, SEVERITIES)) + 1


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_options(
    "redis_url",
    "postgres_url",
    "queue",
    "tables",
    "allow_eviction",
    "publish_changes",
    "statement_timeout_s",
)
def doctor_command(config: Config, as_json: bool) -> None:
    """Check both servers; say what is wrong and how to mend it. It changes nothing.

    Give it what `run` is given, users and roles too: it looks at what those may do. Exit code 0: nothing
    worse than a note; 1: warnings; 2: something for which `run` refuses to start, or waits.
    """
    findings = examine(config)
    if as_json:
        report = {"worst": worst(findings), "findings": [shown(finding) for finding in findings]}
        click.echo(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        _print(findings)
    sys.exit(exit_code(findings))


def examine(config: Config) -> list[Finding]:
    """Looks at everything. A server that does not answer is a finding; the other one is looked at too."""
    from .doctor_postgres import examine_postgres  # noqa: PLC0415 - with all of the worker
    from .doctor_redis import examine_redis  # noqa: PLC0415

    postgres = examine_postgres(config)
    in_redis, redis_clock = examine_redis(config, counts=postgres.counts)
    return [*in_redis, *postgres.findings, *clock_findings(redis_clock, postgres.clock)]


def shown(finding: Finding) -> Finding:
    """Without passwords; names in it are whatever somebody gave a table."""
    what, remedy = (redacted(" ".join(text.split())) for text in (finding.what, finding.remedy))
    return Finding(finding.check, finding.severity, what, remedy)


def _print(findings: Sequence[Finding]) -> None:
    console = Console(highlight=False, soft_wrap=False)
    for group, them in groupby(findings, key=lambda f: f.check.partition(".")[0]):
        console.print(Text(_TITLES[group], style="bold"))
        for finding in them:
            _print_one(console, shown(finding))
    counts = Counter(finding.severity for finding in findings)
    console.print(Text(", ".join(f"{s}: {counts[s]}" for s in reversed(SEVERITIES) if counts[s])))


def _print_one(console: Console, finding: Finding) -> None:
    mark = Text(f"{finding.severity:<{_MARK_WIDTH}}", style=_STYLES[finding.severity])
    name = finding.check.partition(".")[2].replace("_", " ")
    line = Text.assemble(mark, printable(f"{name}: {finding.what}"))
    lines = [line]
    if finding.remedy and finding.severity != "ok":
        lines.append(Text(printable(f"mend: {finding.remedy}"), style="italic"))
    for text, indent in zip(lines, (2, 2 + _MARK_WIDTH), strict=False):
        if console.is_terminal:
            console.print(Padding(text, (0, 0, 0, indent)))
        else:
            console.print(" " * indent + text.plain, soft_wrap=True, markup=False)
