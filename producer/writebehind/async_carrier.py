"""Carries steps to Redis and their replies back, on an event loop."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any, cast

from redis.asyncio import Redis

from .steps import Command, Load, Pause, Pipeline, Step, Steps, T

_LONG = (Pause, Load)


class AsyncCarrier:
    """The way to one Redis, for the async client.

    A call that is cancelled in the middle of a command takes its connection with it: redis-py closes it, so
    that the reply is never taken for another call's.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def run(self, steps: Steps[T]) -> T:
        """Does the steps, and returns what they come to."""
        task = asyncio.current_task()
        cancels = task.cancelling() if task else 0
        try:
            step = next(steps)
            while True:
                try:
                    if type(step) in _LONG and task and task.cancelling() > cancels:
                        # Until Python 3.12 asyncio.wait_for, which redis-py sends with, could swallow it.
                        raise asyncio.CancelledError
                    result = await self._do(step)
                except BaseException as error:  # a cancelled call must let go of what it holds, too
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as done:
            return cast(T, done.value)

    async def close(self) -> None:
        """Lets go of what it keeps besides the client."""

    async def _do(self, step: Step) -> Any:
        if isinstance(step, Command):
            return await self._client.execute_command(*step.arguments)  # type: ignore[no-untyped-call]
        if isinstance(step, Pipeline):
            async with self._client.pipeline(transaction=step.at_once) as pipe:
                for arguments in step.commands:
                    pipe.execute_command(*arguments)
                return await pipe.execute(raise_on_error=not step.keeps_errors)
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        assert isinstance(step, Load)
        loaded = step.function(step.argument)
        return await loaded if inspect.isawaitable(loaded) else loaded
