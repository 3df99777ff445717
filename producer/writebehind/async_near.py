"""The near cache of a client on an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any

from redis.asyncio import Redis

from .async_near_wire import AsyncNearWire
from .forks import begins_anew_in_a_child
from .near_rows import AWAY_S, QUEUE_S, Look, NearRows

_FORMER: list[Any] = []  # closed here they would be lost to the event loop that they are of


class AsyncNearCache:
    """See :class:`NearCache`. Of one event loop, on which it connects when it is first asked."""

    def __init__(self, client: Redis, rows: int, ttl_s: float) -> None:
        self._pool, self._size = client.connection_pool, (rows, ttl_s)
        self._wire: AsyncNearWire | None = None
        self._start_anew()
        begins_anew_in_a_child(self, AsyncNearCache._start_anew)

    async def look(self, names: Sequence[str]) -> dict[str, Look] | None:
        """See :meth:`NearCache.look`."""
        if self._wire is not None:
            if not self._wire.is_of(asyncio.get_running_loop()):
                self._start_anew()  # nobody hears on the former one
            else:
                await self._wire.hear()
        found = self._rows.find(names)
        if len(found) == len(names):
            return found
        wire = await self._opened()
        if wire is None:
            return None
        found.update(self._rows.find(names))  # another may have brought it
        missing = [name for name in names if name not in found]
        if missing:
            answer = await wire.ask(missing)
            if answer is None:
                return None
            found.update(answer)
        return found

    def drop(self, names: Iterable[str]) -> None:
        """Keeps these no longer, nor what is being read of them at this moment."""
        self._rows.drop(names)

    async def close(self) -> None:
        """Closes the connection."""
        wire, self._wire = self._wire, None
        if wire is not None and wire.is_of(asyncio.get_running_loop()):
            await wire.close()

    async def _opened(self) -> AsyncNearWire | None:
        """The connection; ``None`` if it cannot be had now. Raises what Redis answers to tracking."""
        wire = self._wire
        if wire is None or wire.is_lost:
            if wire is not None and not wire.refused and time.monotonic() < wire.lost_at + AWAY_S:
                return None
            wire = self._wire = AsyncNearWire(self._pool, self._rows)
            await asyncio.wait({wire.opened})  # as long as the client's timeouts allow
        elif not wire.is_open:
            await asyncio.wait({wire.opened}, timeout=QUEUE_S)
        if wire.refused:
            raise wire.refused
        return wire if wire.is_open else None

    def _start_anew(self) -> None:
        """As new: in a forked child, or on another event loop."""
        if self._wire is not None:
            _FORMER.append(self._wire)
        self._wire, self._rows = None, NearRows(*self._size)
