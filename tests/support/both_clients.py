"""Both clients, called alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from writebehind import AsyncWriteBehind, Receipt, WriteBehind

Make = Callable[..., Any]


class Awaited:
    """The async client, called as the sync one is: each call is awaited on one loop."""

    def __init__(self, runner: asyncio.Runner, url: str, **options: Any) -> None:
        self._runner = runner
        self.wb = AsyncWriteBehind.from_url(url, **options)

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            async def job() -> Any:
                return await getattr(self.wb, name)(*args, **options)

            return self._runner.run(job())

        return call

    def settle(self, receipt: Any) -> None:
        """Waits until it is in Postgres."""

        async def job() -> None:
            await receipt.wait(20)

        self._runner.run(job())


class Direct(WriteBehind):
    """The sync client."""

    def settle(self, receipt: Receipt) -> None:
        """Waits until it is in Postgres."""
        receipt.wait(20)


@contextmanager
def clients(kind: str, url: str, **fixed: Any) -> Iterator[Make]:
    """Makes clients of the ``kind`` sync or async, with these options unless told otherwise."""
    made: list[Any] = []

    def make(**options: Any) -> Any:
        given = fixed | options
        made.append(Awaited(runner, url, **given) if kind == "async" else Direct.from_url(url, **given))
        return made[-1]

    with asyncio.Runner() as runner:
        yield make
        for one in made:
            one.close()
