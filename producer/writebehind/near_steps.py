"""Which steps a near cache answers, and which keys the others may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from .near_rows import Look
from .script import Argument
from .steps import Command, Pipeline, Step

Commands = Sequence[Sequence[Argument]]


def commands_of(step: Step) -> Commands | None:
    """What it asks Redis; ``None`` if it asks nothing."""
    if isinstance(step, Command):
        return [step.arguments]
    return step.commands if isinstance(step, Pipeline) else None


def looked_at(commands: Commands) -> list[str]:
    """The cache keys, each once, of commands that only look at rows; none if one does more."""
    if all(command[0] in ("HGETALL", "PTTL") for command in commands):
        return list(dict.fromkeys(cast(str, command[1]) for command in commands))
    return []


def answer(step: Step, commands: Commands, looks: Mapping[str, Look]) -> Any:
    """The result of a step that only looks at rows. Raises what Redis answered to a single command."""
    replies = [looks[cast(str, command[1])][command[0] == "PTTL"] for command in commands]
    if isinstance(step, Pipeline):
        return replies
    if isinstance(replies[0], Exception):
        raise replies[0]
    return replies[0]


def touched(commands: Commands) -> list[str]:
    """The keys that they name, and may change."""
    return [key for command in commands for key in _keys(command)]


def _keys(command: Sequence[Argument]) -> list[str]:
    if command[0] in ("EVALSHA", "EVAL"):
        return [str(key) for key in command[3 : 3 + int(command[2])]]
    return [str(command[1])] if command[0] in ("HGETALL", "PTTL") else []
