"""Either client, called the same way."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from writebehind import AsyncWriteBehind, WriteBehind


class EitherClient:
    """Makes clients of one kind; what they do is called plainly."""

    def __init__(self, kind: str, redis_url: str, queue: str) -> None:
        self.kind, self._url = kind, redis_url
        self._given = {"queue": queue, "prefix": f"{queue}:"}
        self._runner = asyncio.Runner()
        self._made: list[Any] = []

    def connect(self, url: str = "", **options: Any) -> Callable[..., Any]:
        """``call("get", "t", 1)`` of a client that is made so."""
        maker: Any = WriteBehind if self.kind == "sync" else AsyncWriteBehind
        wb = maker.from_url(url or self._url, **(self._given | options))
        self._made.append(wb)

        def call(name: str, *arguments: Any, **named: Any) -> Any:
            return self.run(getattr(wb, name)(*arguments, **named))

        return call

    def batch(self, fill: Callable[[Any], object]) -> None:
        """A batch by the client made last."""
        wb = self._made[-1]
        if self.kind == "sync":
            with wb.batch() as batch:
                fill(batch)
            return

        async def send() -> None:
            async with wb.batch() as batch:
                fill(batch)

        self.run(send())

    def run(self, result: Any) -> Any:
        """What is awaited of it, in the caller's context; of the sync client it is there already."""
        if isinstance(result, Coroutine):
            return self._runner.run(result, context=contextvars.copy_context())
        return result

    def close(self) -> None:
        for wb in self._made:
            self.run(wb.close())
        self._runner.close()


@pytest.fixture(params=["sync", "async"])
def clients(request: pytest.FixtureRequest, redis_url: str, queue: str) -> Iterator[EitherClient]:
    """Each of the two."""
    found = EitherClient(request.param, redis_url, queue)
    yield found
    found.close()
