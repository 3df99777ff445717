"""Moving a table to another queue, while it is written to and read.

    close   its writes wait; what the queue says of it changes with the queue's stamp, so that no client
            is accepted which knows of earlier moves only
    (wait)  until all that the queue had accepted is in Postgres, and no dead letter of the table is open
    decide  from here it goes on to its end
    arrive  the other queue takes its writes, with a stamp of its own
    leave   who comes by the former queue is sent on

So all that the one queue has accepted of a row is in Postgres before the other accepts anything. Each step
is one script that sees one queue, changes nothing unless the queue is still as it was read, and can be
made again: whoever is killed half-way is followed by who runs it to the end. Queues say of a table only what
they have themselves heard: from any of them the chain ends at the one that takes its writes.

A queue may be divided anew meanwhile, for Redis has lost steps of a division. What is decided goes on to its
end; a table that is closed stays where the queue has shards by then, and else waits for the former ones, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import msgspec
from redis import Redis, RedisError

from writebehind.keys import QueueKeys
from writebehind.pauses import pauses
from writebehind.places import MOST_MOVES
from writebehind.script import Script
from writebehind.shards import Assignment, Layout, plain_table

from .errors import FatalError
from .lease import read_lease
from .resharding import is_shard, layout_of, waiting_of

_TABLES = Script("writebehind_worker", "tables")
CLOSED_FOR_S = 8.0
"""Longest that the table's writes wait: clients wait for 10 s."""
_TAKEOVER_S = 15.0  # no longer is a queue without an owner while a worker starts, or takes over

OpenLetters = Callable[[str, str], int]
"""How many dead letters of a table (by queue, and table without schema) could still be sent again."""


def is_served(client: Redis, keys: QueueKeys) -> bool:
    """Whether some worker holds the queue's lease."""
    pipe: Any = client.pipeline(transaction=False)
    lease, (seconds, micros) = pipe.get(keys.lease).time().execute()
    _, until_ms = read_lease(lease)
    return until_ms is not None and until_ms > seconds * 1000 + micros // 1000


class Stop(NamedTuple):
    """A queue on the way to the one that takes a table's writes."""

    keys: QueueKeys
    layout: Layout

    def says(self, table: str) -> Assignment | None:
        """Of the table; ``None``: it never was moved from here, or to here."""
        return self.layout.tables.get(table)


def follow(client: Redis, keys: QueueKeys, table: str) -> Stop:
    """The queue that takes a table's writes, or where they wait.

    Raises:
        FatalError: the queues send on in a circle.
    """
    for _ in range(MOST_MOVES):
        stop = Stop(keys, layout_of(client, keys))
        says = stop.says(plain_table(table))
        if says is None or says.state != "away":
            return stop
        keys = QueueKeys(says.queue)
    raise FatalError(
        f"the queues send the writes of {table} on in a circle, or by more than {MOST_MOVES} queues",
        "look at `tables` in the {…}:layout of each, and report it",
    )


class Move:
    """One run of the command: ``move`` brings the table there, whatever an earlier run has done of it.

    ``open_letters`` asks Postgres. ``timeout_s``: how long a moment is waited for in which what the queue
    holds gets to Postgres soon. ``unserved``: also to a queue that no worker serves.
    """

    def __init__(
        self,
        client: Redis,
        keys: QueueKeys,
        table: str,
        target: QueueKeys,
        open_letters: OpenLetters,
        timeout_s: float,
        unserved: bool = False,
    ) -> None:
        self._client, self._keys, self._target = client, keys, target
        self._table, self._open_letters = plain_table(table), open_letters
        self._timeout_s, self._unserved = timeout_s, unserved

    def move(self) -> bool:
        """Whether there was anything to do.

        Raises:
            FatalError: it cannot be moved now; it is where it was, and its writes go on.
        """
        stop = follow(self._client, self._keys, self._table)
        finished = self._finish_arrival(stop)
        says = stop.says(self._table)
        if stop.keys == self._target and says is not None and says.state == "closed":
            self._undo(stop)  # somebody was killed, or waits: it stays
            return True
        if stop.keys == self._target and not (says is not None and says.waits):
            return finished
        if says is not None and says.waits and says.queue != self._target.queue:
            raise FatalError(
                f"{self._table} is being moved from {stop.keys.queue!r} to {says.queue!r}",
                f"run `writebehind move --queue {stop.keys.queue} {self._table} {says.queue}` "
                "to its end first",
            )
        if says is None or not says.waits:
            self._check(stop)
            self._wait_for_a_good_moment(stop.keys)
            stop = self._close(stop)
        if _says(stop, self._table).state == "closed":
            stop = self._decided(stop)
        if _says(stop, self._table).state != "open":
            raise _not_as_read(stop.keys)
        self._arrive(stop)
        self._leave(stop)
        return True

    # Before anything is changed.

    def _check(self, stop: Stop) -> None:
        for one in (stop, Stop(self._target, layout_of(self._client, self._target))):
            self._check_whole(one)
        there = follow(self._client, self._target, self._table)
        if there.keys not in (self._target, stop.keys):
            raise FatalError(
                f"{self._table} is in {there.keys.queue!r} for clients of {self._target.queue!r}, and in "
                f"{stop.keys.queue!r} for those of {self._keys.queue!r}",
                f"leave one place: `writebehind move --queue {self._target.queue} {self._table} --back`",
            )
        if not self._unserved:
            self._check_served()
        self._check_letters(stop.keys)

    def _check_served(self) -> None:
        """Else what is written from then on would wait there, and grow."""
        deadline = time.monotonic() + min(_TAKEOVER_S, self._timeout_s)
        if not _in_time(partial(is_served, self._client, self._target), deadline):
            raise FatalError(
                f"no worker serves {self._target.queue!r}: what is written to {self._table} would wait there",
                f"`writebehind run --queue {self._target.queue}`, and run it again; or give --unserved",
            )

    def _check_whole(self, stop: Stop) -> None:
        layout, queue = stop.layout, stop.keys.queue
        if layout.closing is not None or not layout.is_undivided:
            raise FatalError(
                f"queue {queue!r} is divided into shards, or is being divided: its tables cannot be moved",
                f"`writebehind reshard 1 --queue {queue}` first; it can be divided again afterwards",
            )
        if is_shard(self._client, stop.keys):
            raise FatalError(f"{queue!r} is a shard of a queue", "name a queue of its own")
        if moving := [table for table, says in layout.tables.items() if says.waits and table != self._table]:
            target = layout.tables[moving[0]].queue
            raise FatalError(
                f"{moving[0]} is being moved from {queue!r} to {target!r}",
                f"run `writebehind move --queue {queue} {moving[0]} {target}` to its end first",
            )

    def _check_letters(self, keys: QueueKeys) -> None:
        if count := self._open_letters(keys.queue, self._table):
            raise FatalError(
                f"{self._table} has {count} open dead letter{'' if count == 1 else 's'} in {keys.queue!r}: "
                "sent again later, they could undo newer writes of the other queue",
                f"`writebehind dead retry` or `dead drop`, with --queue {keys.queue}, then run it again",
            )

    def _wait_for_a_good_moment(self, keys: QueueKeys) -> None:
        """Until all that there is at one moment is in Postgres a short time later."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            began = time.monotonic()
            seq = int(cast(bytes | None, self._client.hget(keys.clock, "seq")) or 0)
            if not _in_time(partial(self._is_applied, keys, seq), deadline):
                raise FatalError(
                    f"what {keys.queue!r} holds is not in Postgres after {self._timeout_s:g} s, and writes "
                    f"of {self._table} would wait for it",
                    "does a worker serve it? (`writebehind status`, `drain`) Or give a longer --timeout",
                )
            if time.monotonic() - began < CLOSED_FOR_S / 2:
                return
            if time.monotonic() > deadline:
                raise FatalError(
                    f"what {keys.queue!r} holds takes over {CLOSED_FOR_S / 2:g} s to get to Postgres, and "
                    f"the writes of {self._table} would wait for it",
                    "wait for a quiet time, or give its worker a shorter --write-delay meanwhile",
                )

    def _is_applied(self, keys: QueueKeys, seq: int) -> bool:
        pipe: Any = self._client.pipeline(transaction=False)  # as they move on: none is missed
        applied, waiting, frozen = pipe.get(keys.applied).llen(keys.queue).llen(keys.inflight).execute()
        return int(applied or 0) >= seq or not (waiting or frozen)

    # The steps.

    def _close(self, stop: Stop) -> Stop:
        moves = self._next(stop)
        return self._step(stop, Assignment(moves, "closed", self._target.queue), moves)

    def _next(self, stop: Stop) -> int:
        """Of no move in any history of this Redis: who knows one that it has lost is not accepted."""
        seconds, micros = self._client.time()
        return max(stop.layout.moves + 1, seconds * 1_000_000 + micros)

    def _decided(self, stop: Stop) -> Stop:
        """Once all is in Postgres; if that takes too long, or made dead letters, its writes go on here."""
        try:
            if not _in_time(partial(self._is_empty, stop), time.monotonic() + CLOSED_FOR_S):
                raise FatalError(
                    f"what {stop.keys.queue!r} held was not in Postgres after {CLOSED_FOR_S:g} s: "
                    f"{self._table} stays there, and its writes go on",
                    "wait for a quiet time, and run it again",
                )
            self._check_letters(stop.keys)
            self._check_whole(Stop(self._target, layout_of(self._client, self._target)))
        except BaseException:
            with suppress(FatalError, RedisError):
                self._undo(stop)
            raise
        return self._decide(stop)

    def _is_empty(self, stop: Stop) -> bool:
        """Whether all that was there as the table was closed, raw writes too, is in Postgres.

        So must be what former shards held, where the queue was divided anew meanwhile. Raises `FatalError`
        where it has become several shards by that.
        """
        layout = layout_of(self._client, stop.keys)
        if layout.shards > 1:
            self._check_whole(Stop(stop.keys, layout))
        waiting = waiting_of(self._client, stop.keys, f"/{_says(stop, self._table).number}")
        return layout.is_undivided and not waiting

    def _undo(self, stop: Stop) -> None:
        """It is where it was, and takes writes."""
        self._step(stop, Assignment(stop.layout.moves, "here", stop.keys.queue), stop.layout.moves)

    def _decide(self, stop: Stop) -> Stop:
        says = _says(stop, self._table)
        return self._step(stop, Assignment(says.number, "open", says.queue), stop.layout.moves)

    def _arrive(self, stop: Stop) -> None:
        """The other queue takes its writes; it is made anew only where an earlier run has not done it."""
        there = Stop(self._target, layout_of(self._client, self._target))
        here = Assignment(_says(stop, self._table).number, "here", stop.keys.queue)
        if there.says(self._table) == here:
            return
        self._check_whole(there)
        # Read after the other queue: who slept through the rest of the move must not make it once more.
        now = layout_of(self._client, stop.keys).tables.get(self._table)
        if now != _says(stop, self._table):
            raise _not_as_read(stop.keys)
        self._step(there, here, self._next(there))

    def _leave(self, stop: Stop) -> None:
        says = _says(stop, self._table)
        self._step(stop, Assignment(says.number, "away", says.queue), stop.layout.moves)

    def _finish_arrival(self, stop: Stop) -> bool:
        """Who was killed after `arrive` has left the former queue as it was: whether that was so."""
        says = stop.says(self._table)
        if says is None or says.state != "here" or says.queue == stop.keys.queue:
            return False
        former = Stop(QueueKeys(says.queue), layout_of(self._client, QueueKeys(says.queue)))
        found = former.says(self._table)
        if found is None or found.state != "open" or found.queue != stop.keys.queue:
            return False
        self._leave(former)
        return True

    def _step(self, stop: Stop, says: Assignment, moves: int) -> Stop:
        """The queue as it is then: as written, not read, for others may be quicker.

        Raises `FatalError` where it was not as it had been read.
        """
        tables = {**stop.layout.tables, self._table: says}
        done = _TABLES(
            self._client,
            [stop.keys.layout, stop.keys.clock, stop.keys.queue, stop.keys.inflight],
            [
                stop.layout.moves,
                _encoded(stop.layout.tables),
                moves,
                _encoded(tables),
                self._table if says.waits else "",
                int(says.state == "closed"),
            ],
        )
        if not done[0]:
            raise _not_as_read(stop.keys)
        return Stop(stop.keys, replace(stop.layout, moves=moves, tables=tables))


def _in_time(is_so: Callable[[], bool], deadline: float) -> bool:
    """Waits until it is so; whether it came to be before ``deadline``."""
    for pause in pauses():
        if is_so():
            return True
        if time.monotonic() + pause > deadline:
            return False
        time.sleep(pause)
    raise AssertionError


def _not_as_read(keys: QueueKeys) -> FatalError:
    return FatalError(
        f"{keys.queue!r} is not as it was read: somebody else moves a table or divides it, or "
        f"{keys.clock} does not fit {keys.layout}",
        "look at `writebehind status`, and run it again",
    )


def _says(stop: Stop, table: str) -> Assignment:
    return stop.layout.tables[table]


def _encoded(tables: Mapping[str, Assignment]) -> bytes:
    return msgspec.json.encode(tables, order="sorted") if tables else b""
