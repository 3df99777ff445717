"""Carries steps as :class:`AsyncCarrier` does, but for looks at rows that are kept near."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

from .async_carrier import AsyncCarrier
from .async_near import AsyncNearCache
from .near_steps import answer, commands_of, looked_at, touched
from .steps import Step


class AsyncNearCarrier(AsyncCarrier):
    """See :class:`NearCarrier`."""

    def __init__(self, client: Redis, near: AsyncNearCache) -> None:
        super().__init__(client)
        self._near = near

    async def close(self) -> None:
        """Closes the connection that tells of changes."""
        await self._near.close()

    async def _do(self, step: Step) -> Any:
        commands = commands_of(step)
        if commands is None:
            return await super()._do(step)
        names = looked_at(commands)
        if names:
            looks = await self._near.look(names)
            if looks is not None:
                return answer(step, commands, looks)
        try:
            return await super()._do(step)
        finally:
            self._near.drop(touched(commands))
