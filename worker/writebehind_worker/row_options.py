"""Options of the commands that look at cached rows."""

from __future__ import annotations

from collections.abc import Callable

import click

Command = Callable[..., None]


def cache_name_options(command: Command) -> Command:
    """``--prefix`` and ``--version``: what the producers give to `WriteBehind`."""
    for option in (
        click.option(
            "--version", default=None, metavar="TEXT", help="As the producers' WriteBehind(version=…)."
        ),
        click.option("--prefix", default="", metavar="TEXT", help="As the producers' WriteBehind(prefix=…)."),
    ):
        command = option(command)
    return command
