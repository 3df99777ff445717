"""Carries steps as :class:`Carrier` does, but for looks at rows that are kept near."""

from __future__ import annotations

from typing import Any

from redis import Redis

from .carrier import Carrier
from .near import NearCache
from .near_steps import answer, commands_of, looked_at, touched
from .steps import Step


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
        commands = commands_of(step)
        if commands is None:
            return super()._do(step)
        names = looked_at(commands)
        if names:
            looks = self._near.look(names)
            if looks is not None:
                return answer(step, commands, looks)
        try:
            return super()._do(step)
        finally:
            self._near.drop(touched(commands))
