"""Either client, called the same way."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from writebehind import AsyncWriteBehind, Receipt, WriteBehind

Make = Callable[..., Any]
"""Makes a client: of another URL if one is given, and with options."""


class Awaited:
    """The async client, called as the sync one is: awaited on one loop, in the caller's context."""

    def __init__(self, runner: asyncio.Runner, url: str, **options: Any) -> None:
        self._runner = runner
        self.wb = AsyncWriteBehind.from_url(url, **options)

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            async def job() -> Any:
                return await getattr(self.wb, name)(*args, **options)

            return self._run(job())

        return call

    def settle(self, receipt: Any) -> None:
        """Waits until it is in Postgres."""
        self._run(receipt.wait(20))

    def write_batch(self, fill: Callable[[Any], object]) -> None:
        """One batch of what ``fill`` puts into it."""

        async def job() -> None:
            async with self.wb.batch() as batch:
                fill(batch)

        self._run(job())

    def write_group(self, fill: Callable[[Any], object], **options: Any) -> Any:
        """One group of what ``fill`` puts into it; its receipt."""

        async def job() -> Any:
            async with self.wb.atomic(**options) as tx:
                fill(tx)
            return tx.receipt

        return self._run(job())

    def _run(self, job: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(job, context=contextvars.copy_context())


class Direct(WriteBehind):
    """The sync client."""

    def settle(self, receipt: Receipt) -> None:
        """Waits until it is in Postgres."""
        receipt.wait(20)

    def write_batch(self, fill: Callable[[Any], object]) -> None:
        """One batch of what ``fill`` puts into it."""
        with self.batch() as batch:
            fill(batch)

    def write_group(self, fill: Callable[[Any], object], **options: Any) -> Any:
        """One group of what ``fill`` puts into it; its receipt."""
        with self.atomic(**options) as tx:
            fill(tx)
        return tx.receipt


@contextmanager
def clients_of(kind: str, url: str, **fixed: Any) -> Iterator[Make]:
    """Makes clients of the ``kind`` sync or async; of this server, and so, unless told otherwise."""
    made: list[Any] = []

    def make(url: str = url, **options: Any) -> Any:
        given = fixed | options
        made.append(Awaited(runner, url, **given) if kind == "async" else Direct.from_url(url, **given))
        return made[-1]

    with asyncio.Runner() as runner:
        try:
            yield make
        finally:
            for one in made:
                one.close()


class EitherClient:
    """Makes clients of one kind; what they do is called by its name."""

    def __init__(self, kind: str, make: Make, redis_url: str) -> None:
        self.kind, self._make, self._url = kind, make, redis_url
        self._last: Any = None

    def connect(self, url: str = "", **options: Any) -> Callable[..., Any]:
        """``call("get", "t", 1)`` of a client that is made so."""
        wb = self._last = self._make(url or self._url, **options)

        def call(name: str, *arguments: Any, **named: Any) -> Any:
            return getattr(wb, name)(*arguments, **named)

        return call

    def batch(self, fill: Callable[[Any], object]) -> None:
        """A batch by the client made last."""
        self._last.write_batch(fill)

    def group(self, fill: Callable[[Any], object], **options: Any) -> Any:
        """A group by the client made last; its receipt."""
        return self._last.write_group(fill, **options)

    def settle(self, receipt: Any) -> None:
        """Waits until it is in Postgres."""
        self._last.settle(receipt)


@pytest.fixture(params=["sync", "async"])
def clients(request: pytest.FixtureRequest, redis_url: str, queue: str) -> Iterator[EitherClient]:
    """Each of the two."""
    with clients_of(request.param, redis_url, queue=queue, prefix=f"{queue}:") as make:
        yield EitherClient(request.param, make, redis_url)
