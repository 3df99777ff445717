"""Which queue a table's writes go to: the client's own, or the one that the table has been moved to."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress

from .division import CLOSED_FOR_S, Division, MakeEnqueue, Shards
from .enqueue import Enqueue
from .errors import FlushTimeout, RedisRefused
from .keys import QueueKeys
from .pauses import pauses
from .shards import Assignment, plain_table, shards_of
from .steps import Pause, Steps

MOST_MOVES = 16  # that are followed in one look; a chain is as long as its table had queues


class TableMoved(Exception):
    """A row's writes may be in another queue than they were taken for: look at its entry again."""


class Places:
    """The queues that a client knows: its own, and those where tables of it are. See :class:`Division`."""

    def __init__(
        self, keys: QueueKeys, shards: int | None, make: MakeEnqueue, *, is_clustered: bool = False
    ) -> None:
        self.is_clustered, self._make = is_clustered, make
        self.own = Division(keys, shards, make, is_clustered=is_clustered)
        self._known: dict[str, Division] = {keys.queue: self.own}

    def way(self, table: str, key: str | Mapping[str, str], route: str | None = None) -> Enqueue:
        """Into the shard of a row, or of a routing value if there is one.

        Of a table that is being moved: where it was. See :meth:`waits`.
        """
        shards = self.own.now
        if shards.layout.tables:
            return View(self).way(table, key, route)
        return shards.way(table, key, route)

    @property
    def is_one(self) -> bool:
        """Whether all writes go one way, as far as is known."""
        shards = self.own.now
        return len(shards.ways) == 1 and not shards.layout.tables

    def close(self) -> None:
        """Lets go of the connections that idle sessions keep."""
        for division in list(self._known.values()):
            for way in division.ways:
                way.close()

    def division(self, queue: str) -> Division:
        """Of one of the queues. Nothing is asked: who writes there finds out how it is divided."""
        found = self._known.get(queue)
        if found is None:
            made = Division(QueueKeys(queue), None, self._make, is_clustered=self.is_clustered)
            made.forget()
            found = self._known.setdefault(queue, made)
        return found

    def of(self, table: str) -> Division:
        """Where a table's writes go."""
        return self.division(View(self).queue(table))

    def look_again(self, table: str) -> Steps[None]:
        """A shard is not what it was taken for: asks Redis, and waits while the table is being moved.

        Raises:
            ShardsDiffer: there are not as many as this client was told.
            RedisRefused: the shards, or the table, were not opened in time.
        """
        deadline = time.monotonic() + CLOSED_FOR_S
        for pause in pauses():
            queue, found = self.own.queue, None
            for _ in range(MOST_MOVES):
                division = self.division(queue)
                yield from division.look_again()
                found = _left(division.now, table)
                if found is None:
                    return
                if found.waits:
                    break
                queue = found.queue
            if time.monotonic() + pause > deadline:
                raise _not_opened(table, queue, found)
            yield Pause(pause)

    def have_changed(self, table: str) -> Steps[bool]:
        """Asks Redis whether a table's writes go to others by now."""
        before = View(self).queue(table)
        changed = yield from self.have_heard(table)
        if View(self).waits(table):
            changed = True
            with suppress(RedisRefused):
                yield from self.look_again(table)
        return changed or View(self).queue(table) != before

    def confirm(self, table: str, keys: QueueKeys) -> Steps[None]:
        """Asks Redis whether the entry of a row, read before, shows a write to this shard.

        Else another queue's ``applied`` would be waited for, which says nothing of it.

        Raises :class:`TableMoved` where that is not so, or not known yet.
        """
        if self.is_clustered:
            return  # no table is moved there
        queue = self.own.queue
        for _ in range(MOST_MOVES):
            try:
                layout = yield from self.division(queue).read()
            except RedisRefused:  # a user that was set up for an earlier version may not look
                return
            found = layout.tables.get(plain_table(table))
            if found is None or found.state == "here":
                if keys.queue == queue or shards_of(queue, keys.queue) is not None:
                    return
                break
            if found.waits:
                break
            queue = found.queue
        with suppress(RedisRefused):
            yield from self.have_heard(table)
        raise TableMoved(table)

    def have_heard(self, table: str) -> Steps[bool]:
        """Knows what Redis says of a table at this moment, without waiting; whether that was not known."""
        queue, changed = self.own.queue, False
        for _ in range(MOST_MOVES):
            division = self.division(queue)
            changed |= yield from division.have_changed()
            found = _left(division.now, table)
            if found is None or found.waits:
                break
            queue = found.queue
        return changed


class View:
    """What is known at one moment of where tables are, whatever another thread hears meanwhile."""

    def __init__(self, places: Places) -> None:
        self._places, self._now = places, {places.own.queue: places.own.now}
        self._first = places.own.queue

    def way(self, table: str, key: str | Mapping[str, str], route: str | None = None) -> Enqueue:
        """See :meth:`Places.way`."""
        return self._shards(table)[1].way(table, key, route)

    def queue(self, table: str) -> str:
        """Where a table's writes go."""
        return self._shards(table)[0]

    def waits(self, table: str) -> bool:
        """Whether a table is being moved: no write to it may be sent."""
        found = _left(self._shards(table)[1], table)
        return found is not None

    def _shards(self, table: str) -> tuple[str, Shards]:
        queue, shards = self._first, self._now[self._first]
        for _ in range(MOST_MOVES):
            found = _left(shards, table)
            if found is None or found.waits:
                break
            queue = found.queue
            if queue not in self._now:
                self._now[queue] = self._places.division(queue).now
            shards = self._now[queue]
        return queue, shards


def _left(shards: Shards, table: str) -> Assignment | None:
    """What the queue says of a table that is not, or not only, its own."""
    if not shards.layout.tables:
        return None
    found = shards.layout.tables.get(plain_table(table))
    return None if found is None or found.state == "here" else found


def _not_opened(table: str, queue: str, found: Assignment | None) -> RedisRefused:
    target = "another queue" if found is None else found.queue
    return RedisRefused(
        f"{plain_table(table)} is being moved from {queue!r} to {target!r}, and takes no writes until that "
        f"is done: run `writebehind move --queue {queue} {plain_table(table)} {target}` again, it may have "
        "been ended"
    )


def not_settled(table: str, timeout: float) -> FlushTimeout:
    """The error of a reader while a table is being moved."""
    return FlushTimeout(
        f"{table}: a write to this row was not committed within {timeout} s: the table is being moved to "
        "another queue"
    )
