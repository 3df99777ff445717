"""Dividing a queue into another number of shards, while it is written to and worked off.

    begin, close  no shard takes a write any more, and producers wait
    open          the new shards go on from the highest seq of the old ones; none is claimed from (`hold`)
    switch        producers go to the new shards
    let go, end   once the old ones are in Postgres: the hold is lifted

So all that a row's old shard has accepted is in Postgres before anything of its new shard is. Each step can
be made again: whoever is killed half-way, or runs it twice, changes nothing. The last ones are made by the
workers, too. Each is one script that sees the layout or one shard, never both: they may be on different
nodes of a cluster. What keeps out who slept through another division is its number, in the layout and in
the clock of each shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis
from redis.exceptions import SlotNotCoveredError

from writebehind.keys import QueueKeys
from writebehind.script import Argument, Script
from writebehind.shards import LAYOUT_FIELDS, Layout, read_layout, shard_keys, stamp

from .answers import ask_all
from .cache_names import CacheNames
from .errors import FatalError
from .nodes import REDIS_ERRORS, home, is_clustered, look_up
from .owned_queue import KEYS_VERSION
from .pause import change_copy, copy_of, is_copy
from .redis_number import number_in

_LAYOUT = Script("writebehind_worker", "layout")
_MARK = Script("writebehind_worker", "mark")
_SHARD = Script("writebehind_worker", "shard")
_REPLICATED_MS = 1000
_OF_THE_LAYOUT = ("begin", "again", "switch", "end")


@dataclass(frozen=True, slots=True)
class LostSteps:
    """Why the layout cannot stay as it is, and what it has to be.

    ``known``, ``since``: highest number of a division and highest seq that any shard knows of.
    """

    reason: str
    shards: int
    former: tuple[int, ...]
    known: int
    since: int


def layout_of(client: Redis, keys: QueueKeys) -> Layout:
    """Raises `FatalError` for what is none."""
    try:
        return read_layout(cast(list[bytes | None], client.hmget(keys.layout, LAYOUT_FIELDS)))
    except ValueError as error:
        raise FatalError(
            f"{keys.layout} in Redis does not say into how many shards the queue is divided: {error}",
            "no program of ours writes that: find out what did, and restore it, or ask before you delete it",
        ) from error
    except SlotNotCoveredError:
        look_up(client)  # for the next time
        raise


def is_unused(client: Redis, keys: QueueKeys) -> bool:
    """Whether no producer of ours and no worker has ever used the queue, nor anything waits in it."""
    # By commands that an operator's user may run, too.
    (seq,), (number,) = client.hmget(keys.clock, "seq"), client.hmget(keys.layout, "number")
    return not (seq or number or client.llen(keys.queue) or client.get(keys.epoch))


def is_shard(client: Redis, keys: QueueKeys) -> bool:
    """Whether a queue that is not divided is a shard of one that is; moves of tables are no matter."""
    told = cast(bytes | None, client.hget(keys.clock, "shard"))
    return bool(told) and not cast(bytes, told).startswith(b"/")


def divide(client: Redis, keys: QueueKeys, shards: int) -> Layout:
    """Closes the present shards and opens so many; returns the layout, by which the old ones still drain.

    Raises:
        FatalError: another division is not at its end.
    """
    before = layout_of(client, keys)
    if before.shards == shards and before.closing is None:
        return before
    if before.draining:
        raise FatalError(
            f"the queue is still being divided: writes of its {_counts(before.draining)} former shards wait",
            "let the workers bring them to Postgres (`writebehind drain`), then run it again",
        )
    if moving := [(table, says.queue) for table, says in before.tables.items() if says.waits]:
        raise FatalError(
            f"{moving[0][0]} is being moved to {moving[0][1]!r}",
            f"run `writebehind move --queue {keys.queue} {moving[0][0]} {moving[0][1]}` to its end first",
        )
    # Whoever divides the queue since we looked makes a shard of it, too.
    if before.number == 0 and is_shard(client, keys) and layout_of(client, keys).number == 0:
        raise FatalError(
            f"{keys.queue!r} is itself a shard of a queue", "reshard that queue: --queue with its name"
        )
    step = _Steps(client, keys, [before.shards], shards)
    if not step.begin():
        now = layout_of(client, keys)
        if now.shards == shards and now.closing is None:
            return now  # another worker or command was quicker
        raise FatalError(
            f"the queue is being divided into {now.closing or now.shards} shards",
            f"run `writebehind reshard {now.closing or now.shards}` to its end first",
        )
    moves = layout_of(client, keys).moves  # none begins now
    closed = [step("close", one.clock) for one in shard_keys(keys.queue, before.shards)]
    if before.shards == 1:
        step.mark(keys)
    since = max((number_in(answer[1], f"a seq of {keys.queue}") for answer in closed if answer), default=0)
    opened = [
        step.open(one, since, stamp(number, shards, moves))
        for number, one in enumerate(shard_keys(keys.queue, shards))
    ]
    if not all((*closed, *opened)) or not step("switch", since=since):
        now = layout_of(client, keys)
        if now.shards == shards and now.closing is None:
            return now
        raise FatalError(
            "the queue was divided by somebody else meanwhile",
            "look at `writebehind status`, and run it again",
        )
    return layout_of(client, keys)


def divide_again(client: Redis, keys: QueueKeys, seen: Layout, lost: LostSteps) -> Layout:
    """All former shards are waited for from now on: see lost_steps.py. Returns the layout of now.

    Nothing is done where the layout is another one than that which was seen.
    """
    step = _Steps(client, keys, lost.former, lost.shards, seen.number)
    step("again", since=lost.since, known=lost.known)
    layout = layout_of(client, keys)
    mend(client, keys, layout)
    return layout


def still_draining(client: Redis, keys: QueueKeys, layout: Layout) -> int:
    """Writes of former shards that are not in Postgres. When there are none the present ones are let go."""
    if not layout.draining:
        return 0
    mend(client, keys, layout)  # who finds a former shard closed goes to a present one, which has to be held
    step = _Steps(client, keys, layout.draining, layout.shards, layout.number)
    # Again: a primary that failed over may have lost it, and who has written there since is waited for.
    closed = [step("close", one.clock) for one in _former(keys, layout)]
    if 1 in layout.draining:
        step.mark(keys)
    waiting = sum(waiting_of(client, one, str(layout.number)) for one in _former(keys, layout))
    if waiting == 0 and all(closed):
        copy_to_shards(client, keys, served(keys, layout))
        for one in shard_keys(keys.queue, layout.shards):
            step("let go", one.clock, one.applied)
        step("end")
    return waiting


def mend(client: Redis, keys: QueueKeys, layout: Layout) -> None:
    """Opens the present shards that do not know of it: on a cluster one may go back alone, by a failover.

    Until then producers are refused there.
    """
    shards = shard_keys(keys.queue, layout.shards)
    if layout.closing is not None or not layout.number:
        return
    told = ask_all(client, shards, lambda pipe, one: pipe.hmget(one.clock, "division", "hold"))
    step = _Steps(client, keys, layout.draining, layout.shards, layout.number)
    for number, one in enumerate(shards):
        ((division, hold),) = told[one]
        is_behind = number_in(division, f"division of {one.clock}") < layout.number
        if is_behind:
            step.open(one, _since(client, keys), stamp(number, layout.shards, layout.moves))
        if not layout.draining and (is_behind or hold):
            copy_to_shards(client, keys, served(keys, layout))
            step("let go", one.clock, one.applied)


def served(keys: QueueKeys, layout: Layout) -> list[QueueKeys]:
    """What has to be served: the queue itself, to which anybody may push, and the shards, former ones too."""
    found = {keys.queue: keys}
    for one in (*shard_keys(keys.queue, layout.shards), *_former(keys, layout)):
        found.setdefault(one.queue, one)
    return list(found.values())


def names_in(client: Redis, keys: QueueKeys, names: CacheNames) -> CacheNames:
    """The names as the cache entries have them there: on a cluster those of the present division."""
    if not is_clustered(client):
        return names
    layout = layout_of(client, keys)
    return names.on_cluster(shard_keys(keys.queue, layout.shards), layout.number)


def _former(keys: QueueKeys, layout: Layout) -> Iterator[QueueKeys]:
    for shards in layout.draining:
        yield from shard_keys(keys.queue, shards)


def _since(client: Redis, keys: QueueKeys) -> int:
    """Highest seq that the former shards had given out."""
    return number_in(cast(bytes | None, client.hget(keys.layout, "since")), f"since of {keys.layout}")


def copy_to_shards(client: Redis, keys: QueueKeys, queues: Iterable[QueueKeys]) -> None:
    """A pause of the queue is one of its shards, and its end is one: on a cluster each has to know.

    Whoever does that may be killed within, so that all do it again. Returns when each is seen to know: a
    worker that slept may have brought a copy of an earlier pause back.
    """
    if not is_clustered(client):
        return
    shards = [one for one in queues if one != keys]
    while shards and _copy_once(client, keys, shards):
        pass


def _copy_once(client: Redis, keys: QueueKeys, shards: Sequence[QueueKeys]) -> bool:
    """Whether there was something to be done."""
    told = ask_all(client, shards, lambda pipe, one: pipe.get(one.paused))
    # Asked after the copies: where there is none now, they are of an earlier one.
    whole = cast(bytes | None, client.get(keys.paused))
    wanted = None if whole is None else copy_of(whole)
    copies = [(one, read) for one, (read,) in told.items() if read is None or is_copy(read)]
    others = [(one, read) for one, read in copies if read != wanted]
    for one, read in others:
        change_copy(client, one, read, wanted)
    return bool(others)


def _counts(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))


class _Steps:
    """The steps from one number of shards to another; what one returns is empty where it is not its turn."""

    def __init__(
        self, client: Redis, keys: QueueKeys, before: Sequence[int], after: int, number: int = 0
    ) -> None:
        self._client, self._keys = client, keys
        self._before, self._after, self._number = before, after, number

    def begin(self) -> bool:
        """Whether this division is under way now: it has a number of its own."""
        answer = self("begin")
        self._number = int(answer[1]) if answer else 0
        if answer:
            self._replicate()
        return bool(answer)

    def _replicate(self) -> None:
        """What replicas know of no failover forgets. Those that do not answer soon are not waited for."""
        with suppress(*REDIS_ERRORS), cast(Any, home(self._client, self._keys.clock)).client() as client:
            if replicas := int(client.info("replication")["connected_slaves"]):
                # Once more, for WAIT is about what its own connection has written.
                _LAYOUT(client, [self._keys.layout], self._of_the_layout("begin"))
                client.wait(replicas, _REPLICATED_MS)

    def mark(self, keys: QueueKeys) -> None:
        """What the queue itself holds is what has to be waited for, not what is pushed to it from now on.

        Where it is not its turn any more the next step says so.
        """
        _MARK(self._client, [keys.layout, keys.clock, keys.queue, keys.inflight], [self._number])

    def open(self, shard: QueueKeys, since: int, name: str) -> list[bytes]:
        """Held until it is let go."""
        own_pause = [] if shard == self._keys else [shard.paused]
        keys = [shard.clock, shard.applied, shard.queue, shard.inflight, *own_pause]
        return self("open", *keys, since=since, name=name)

    def __call__(self, step: str, *keys: str, since: int = 0, name: str = "", known: int = 0) -> list[bytes]:
        if step in _OF_THE_LAYOUT:
            done, *rest = _LAYOUT(self._client, [self._keys.layout], self._of_the_layout(step, since, known))
        else:
            before = _counts(self._before)
            shares_entries = int(not is_clustered(self._client))
            of_all: list[Argument] = [step, self._number, before, since, name, KEYS_VERSION]
            arguments = [*of_all, self._after, shares_entries]
            done, *rest = _SHARD(self._client, keys, arguments)
        return [b"done", *rest] if done else []

    def _of_the_layout(self, step: str, since: int = 0, known: int = 0) -> list[Argument]:
        return [step, ",".join(map(str, self._before)), self._after, self._number, since, known]


def waiting_of(client: Redis, shard: QueueKeys, mark: str) -> int:
    """Writes that were there as it was closed and are not known to be in Postgres; all, without that mark.

    In the order in which they move on: one that is claimed meanwhile counts twice, and none is missed.
    """
    # One by one: a cluster's pipeline asks last what is elsewhere in a slot that moves key by key.
    marked, left, last = cast(list[bytes | None], client.hmget(shard.clock, "marked", "left", "last"))
    length = client.llen(shard.queue)
    batches = cast(list[bytes], client.lrange(shard.inflight, 0, -1))
    if marked is not None and marked == mark.encode():
        still = number_in(left, f"left of {shard.clock}")
        length = min(length, still)
        if still == 0:  # ``last`` has the last of them, and batches go to Postgres in their order
            batches = batches[: batches.index(last) + 1] if last is not None and last in batches else []
    numbers = [number_in(batch, f"a batch of {shard.inflight}") for batch in batches]
    return int(length) + sum(max(1, int(client.llen(shard.processing(number)))) for number in numbers)
