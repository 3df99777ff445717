"""Carries steps to Redis and their replies back, in the caller's thread."""

from __future__ import annotations

import time
from typing import Any, cast

from redis import Redis

from .steps import Command, Load, Pause, Pipeline, Step, Steps, T


class Carrier:
    """The way to one Redis, for the sync client. Thread-safe, and safe to fork, as redis-py's client is."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    def run(self, steps: Steps[T]) -> T:
        """Does the steps, and returns what they come to."""
        try:
            step = next(steps)
            while True:
                try:
                    result = self._do(step)
                except BaseException as error:  # an interrupted call must let go of what it holds, too
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as done:
            return cast(T, done.value)

    def close(self) -> None:
        """Lets go of what it keeps besides the client."""

    def _do(self, step: Step) -> Any:
        kind = type(step)
        if kind is Command:
            command: Command = step  # type: ignore[assignment]
            session = command.session
            client = self._client if session is None or session.client is None else session.client
            return client.execute_command(*command.arguments)  # type: ignore[no-untyped-call]
        if isinstance(step, Pipeline):
            with self._client.pipeline(transaction=step.at_once) as pipe:
                for arguments in step.commands:
                    pipe.execute_command(*arguments)  # type: ignore[no-untyped-call]
                return pipe.execute(raise_on_error=not step.keeps_errors)
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        assert isinstance(step, Load)
        return step.function(step.argument)
