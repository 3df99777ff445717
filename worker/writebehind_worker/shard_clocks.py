"""What shards say of themselves in their clocks: all of them, or those whose nodes answer soon."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis, RedisError

from writebehind.keys import QueueKeys
from writebehind.shards import shard_keys

from .answers import ask_all, ask_nodes
from .redis_number import NotOurs, number_in

Clocks = Mapping[int, Sequence["Clock"]]
"""By the number of shards, the clock of each."""

NODE_TIMEOUT_S = 1.0
"""How long a node is waited for while others have work."""


@dataclass(frozen=True, slots=True)
class Clock:
    """What a shard says of itself, and whether anything is in it.

    ``into``: of one that was closed, how many there were to be instead; 0 where it never was.
    """

    division: int
    is_closed: bool
    is_open: bool
    seq: int
    holds: bool
    into: int = 0


_NOTHING = Clock(0, is_closed=False, is_open=False, seq=0, holds=False)


@dataclass(frozen=True, slots=True)
class Heard:
    """``silent``: shards of which nothing was heard, whose clocks say nothing here. ``whole``: numbers of
    shards of which each was heard. ``took_s``: how long those took that were. ``errors``: what some answered
    instead; `NotOurs` where somebody else has written there.
    """

    clocks: Clocks
    silent: frozenset[QueueKeys]
    whole: frozenset[int]
    took_s: float
    errors: Mapping[QueueKeys, Exception]


def read_clocks(client: Redis, keys: QueueKeys, counts: Iterable[int]) -> Clocks:
    """Of the shards of each of these numbers. Raises where one does not answer."""
    every = _every(keys, counts)
    told = ask_all(client, [one for those in every.values() for one in those], _ask)
    return {shards: [_clock(keys, one, *told[one]) for one in those] for shards, those in every.items()}


def hear_clocks(client: Redis, keys: QueueKeys, counts: Iterable[int], *, contents: bool = False) -> Heard:
    """Each node is asked once: of one that does not answer nothing is heard. ``contents``: what they hold."""
    every = _every(keys, counts)
    shards = [one for those in every.values() for one in those]
    answers = ask_nodes(client, shards, _ask_with_contents if contents else _ask, follow=True)
    found: dict[QueueKeys, Clock] = {}
    errors: dict[QueueKeys, Exception] = {}
    for one, replies in answers.replies.items():
        try:
            found[one] = _heard_clock(keys, one, replies)
        except RedisError as error:
            errors[one] = error
    silent = frozenset(shards) - found.keys()
    clocks = {count: [found.get(one, _NOTHING) for one in those] for count, those in every.items()}
    whole = frozenset(count for count, those in every.items() if silent.isdisjoint(those))
    return Heard(clocks, silent, whole, answers.took_s, errors)


def _every(keys: QueueKeys, counts: Iterable[int]) -> dict[int, list[QueueKeys]]:
    return {shards: shard_keys(keys.queue, shards) for shards in sorted(counts)}


def _ask(pipe: Any, one: QueueKeys) -> None:
    pipe.hmget(one.clock, "division", "shard", "seq", "into")


def _ask_with_contents(pipe: Any, one: QueueKeys) -> None:
    _ask(pipe, one)
    pipe.llen(one.queue).llen(one.inflight)


def _heard_clock(keys: QueueKeys, one: QueueKeys, replies: Sequence[Any]) -> Clock:
    """Raises what one of the replies is, or `NotOurs`."""
    for reply in replies:
        if isinstance(reply, Exception) and str(reply).startswith("WRONGTYPE"):
            raise NotOurs(f"a key of {one.queue} in Redis is none of ours: {reply}") from reply
        if isinstance(reply, Exception):
            raise reply
    told, *content = replies
    return _clock(keys, one, told, content)


def _clock(
    keys: QueueKeys, one: QueueKeys, told: Sequence[bytes | None], content: Sequence[int] = ()
) -> Clock:
    """The queue itself is one shard, unless it is closed; and to it anybody may push."""
    is_queue, (division, shard, seq, into) = one == keys, told
    is_closed = shard == b"closed"
    is_open = not is_closed and (is_queue or bool(shard))
    return Clock(
        number_in(division, f"division of {one.clock}"),
        is_closed,
        is_open,
        number_in(seq, f"seq of {one.clock}"),
        not is_queue and any(content),
        number_in(into, f"into of {one.clock}"),
    )
