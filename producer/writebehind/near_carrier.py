"""Carries steps as :class:`Carrier` does, but for looks at rows that are kept near."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from redis import Redis

from .carrier import Carrier
from .near import NearCache
from .script import Argument
from .steps import Command, Pipeline, Step


class NearCarrier(Carrier):
    """A carrier whose looks are answered by a near cache.

    What else names a cache key may change it: then the row is kept no longer, answer or none.
    """

    def __init__(self, client: Redis, near: NearCache) -> None:
        super().__init__(client)
        self._near = near

    def close(self) -> None:
        """Closes the connection that tells of changes."""
        self._near.close()

    def _do(self, step: Step) -> Any:
        if isinstance(step, Command):
            commands: Sequence[Sequence[Argument]] = [step.arguments]
        elif isinstance(step, Pipeline):
            commands = step.commands
        else:
            return super()._do(step)
        if all(command[0] in ("HGETALL", "PTTL") for command in commands):
            names = list(dict.fromkeys(cast(str, command[1]) for command in commands))
            looks = self._near.look(names)
            if looks is not None:
                found = dict(zip(names, looks, strict=True))
                replies = [found[cast(str, c[1])][c[0] == "PTTL"] for c in commands]
                if isinstance(step, Pipeline):
                    return replies
                if isinstance(replies[0], Exception):
                    raise replies[0]
                return replies[0]
        try:
            return super()._do(step)
        finally:
            for command in commands:
                self._near.drop(_keys(command))


def _keys(command: Sequence[Argument]) -> list[str]:
    if command[0] in ("EVALSHA", "EVAL"):
        return [str(key) for key in command[3 : 3 + int(command[2])]]
    return [str(command[1])] if command[0] in ("HGETALL", "PTTL") else []
