"""What the nodes of a cluster answer about queues: each is asked once, however many of them it has."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.exceptions import ClusterDownError, RedisClusterException

from writebehind.cluster import is_no_answer
from writebehind.keys import QueueKeys

from .nodes import SLOT_MOVES, is_clustered, look_up

Ask = Callable[[Any, QueueKeys], None]
"""Puts the questions about one queue, or shard, into a pipeline."""


@dataclass(frozen=True, slots=True)
class Answers:
    """``replies`` to what was asked of each; errors are replies. ``took_s``: how long those took.

    Left out are those whose node does not answer, or is another one by now.
    """

    replies: Mapping[QueueKeys, Sequence[Any]]
    took_s: float


def ask_nodes(client: Redis, queues: Sequence[QueueKeys], ask: Ask, *, follow: bool = False) -> Answers:
    """Raises what a single server does. A client of all nodes looks who is there where one did not answer.

    ``follow``: where a slot has moved, or moves, the other node is asked.
    """
    if not is_clustered(client):
        began = time.monotonic()
        return Answers(_asked(client, queues, ask), time.monotonic() - began)
    found: dict[QueueKeys, Sequence[Any]] = {}
    took_s = 0.0
    for node, those in _by_node(client, queues):
        began = time.monotonic()
        if replies := _answered(node, those, ask):
            took_s += time.monotonic() - began
            moved = [one for one, told in replies.items() if _has_moved(told)] if follow else []
            found |= replies | (_answered(client, moved, ask) if moved else {})
    found = {one: told for one, told in found.items() if not _has_moved(told)}
    is_down = any(isinstance(reply, ClusterDownError) for told in found.values() for reply in told)
    if is_down or len(found) < len(queues):  # another one may have the slot by now
        look_up(client)
    return Answers(found, took_s)


def ask_all(client: Redis, queues: Sequence[QueueKeys], ask: Ask) -> Mapping[QueueKeys, Sequence[Any]]:
    """What each answers; raises where one does not.

    Of a pipeline of all nodes redis-py sends what gets no answer again, command by command: a node that is
    silent would be waited for as often as it has queues.
    """
    found = dict(ask_nodes(client, queues, ask, follow=True).replies)
    for one in queues:
        if one not in found:  # as patiently as the client is; if it comes back, so are the others there
            found |= _asked(client, [one], ask)
    raise_first(found)
    return found


def raise_first(replies: Mapping[QueueKeys, Sequence[Any]]) -> None:
    """Raises the first error that is a reply."""
    for reply in (reply for told in replies.values() for reply in told):
        if isinstance(reply, Exception):
            raise reply


def _answered(client: Redis, queues: Sequence[QueueKeys], ask: Ask) -> dict[QueueKeys, Sequence[Any]]:
    """Nothing where there is no answer."""
    try:
        return _asked(client, queues, ask)
    except Exception as error:
        if not is_no_answer(error):
            raise
        return {}


def _asked(client: Redis, queues: Sequence[QueueKeys], ask: Ask) -> dict[QueueKeys, Sequence[Any]]:
    pipe: Any = client.pipeline(transaction=False)
    ends = [0]
    for one in queues:
        ask(pipe, one)
        ends.append(len(pipe))
    replies = pipe.execute(raise_on_error=False)
    return {one: replies[start:end] for one, start, end in zip(queues, ends, ends[1:], strict=False)}


def _has_moved(replies: Sequence[Any]) -> bool:
    return any(isinstance(reply, SLOT_MOVES) for reply in replies)


def _by_node(client: Any, queues: Sequence[QueueKeys]) -> Iterator[tuple[Redis, list[QueueKeys]]]:
    """Each primary, with what it has as far as the client knows."""
    there: dict[str, tuple[Any, list[QueueKeys]]] = {}
    for one in queues:
        with suppress(RedisClusterException):  # no node has its slot
            node = client.get_node_from_key(one.clock)
            there.setdefault(node.name, (node, []))[1].append(one)
    for node, those in there.values():
        yield client.get_redis_connection(node), those
