"""All commands. Most have a module of their own, which is imported when it is called: starting is faster."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from .config import redacted
from .errors import FatalError

_ELSEWHERE = {
    "dead": "dead_cli:dead",
    "doctor": "doctor_cli:doctor_command",
    "drain": "drain_cli:drain_command",
    "explain": "explain_cli:explain_command",
    "healthcheck": "healthcheck:healthcheck",
    "move": "move_cli:move_command",
    "pause": "pause_cli:pause_command",
    "reshard": "reshard_cli:reshard_command",
    "resume": "pause_cli:resume_command",
    "top": "top_cli:top",
    "verify": "verify_cli:verify_command",
}
"""Name of a command → its module and its name there."""


class _OperatorError(click.ClickException):
    exit_code = 2

    def __init__(self, error: FatalError) -> None:
        super().__init__(redacted(f"{error}\nHint: {error.hint}"))


class Commands(click.Group):
    """Those added to it, and those of other modules; a `FatalError` of one is shown with its hint."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self.commands, *_ELSEWHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, _, name = _ELSEWHERE[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f".{module}", __package__), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FatalError as error:
            raise _OperatorError(error) from error
