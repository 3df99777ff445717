"""All shards of a queue at one instant, in one transaction of Redis; on a cluster as near to it as can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from redis import Redis

from writebehind.keys import QueueKeys
from writebehind.shards import LAYOUT_FIELDS, Layout, read_layout

from .nodes import is_clustered
from .resharding import layout_of, served

Ask = Callable[[Any, QueueKeys], None]
"""Puts the questions about one shard into a pipeline."""


@dataclass(frozen=True, slots=True)
class Instant:
    """``shards``: the queue itself and all that have to be served; ``replies`` to what was asked of each.

    ``first``: to what was asked before. Errors are replies.
    """

    layout: Layout
    shards: Sequence[QueueKeys]
    first: list[Any]
    replies: list[list[Any]]


def at_one_instant(
    client: Redis, keys: QueueKeys, ask: Ask, first: Callable[[Any], None] = lambda pipe: None
) -> Instant:
    """The layout that the shards are told by is that of the same instant.

    On a cluster no transaction has more than one slot. There ``first`` is asked before the shards, what is
    asked of a shard is answered in that order, and the layout was the same before all of it and after.
    """
    if is_clustered(client):
        return _in_order(client, keys, ask, first)
    while True:
        layout = layout_of(client, keys)
        shards = served(keys, layout)
        pipe: Any = client.pipeline()
        first(pipe)
        ends = [len(pipe)]
        for one in shards:
            ask(pipe, one)
            ends.append(len(pipe))
        *replies, fields = pipe.hmget(keys.layout, LAYOUT_FIELDS).execute(raise_on_error=False)
        if isinstance(fields, Exception):
            raise fields
        if read_layout(fields) == layout:
            parts = [replies[start:end] for start, end in pairwise(ends)]
            return Instant(layout, shards, replies[: ends[0]], parts)


def _in_order(client: Redis, keys: QueueKeys, ask: Ask, first: Callable[[Any], None]) -> Instant:
    while True:
        layout = layout_of(client, keys)
        shards = served(keys, layout)
        before = _asked(client, first)
        replies = [_asked(client, partial(_ask_of, ask, one)) for one in shards]
        if layout_of(client, keys) == layout:
            return Instant(layout, shards, before, replies)


def _ask_of(ask: Ask, one: QueueKeys, pipe: Any) -> None:
    ask(pipe, one)


def _asked(client: Redis, ask: Callable[[Any], None]) -> list[Any]:
    pipe: Any = client.pipeline(transaction=False)
    ask(pipe)
    found: list[Any] = pipe.execute(raise_on_error=False)
    return found
