"""A fill never overwrites a newer write: a reader's steps and events in every order, on a real Redis."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from itertools import count, product

import pytest
import redis
from tests.support.orders import EVENTS, Reader, World, check, finish, merges, placings
from tests.support.part import WHOLE, sampled

from writebehind import WriteBehind
from writebehind.cache import RowCache
from writebehind.refresh import Refresh

Connect = Callable[..., WriteBehind]
WRITES = ("put", "patch", "increment", "delete")
STEPS = 4  # of a reader whom nothing disturbs: look, token, load, fill
PARTS = 3  # of the orders of three events, of which there are ten with the same events: all come into each


def sequences(longest: int, parts: Container[int]) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Events, and the reader's step before which each happens; before the first they make a beginning.

    Three events, where a write is among them, between the reader's steps; two also before and behind them.
    """
    yield (), ()
    for length, gaps in ((1, range(STEPS + 1)), (2, range(STEPS + 1)))[:longest]:
        for events in product(EVENTS, repeat=length):
            if not flushes_nothing(events):
                for places in placings(length, gaps):
                    yield events, places
    number = count()
    for events in product(EVENTS, repeat=3) if longest == 3 else ():
        if set(events) & set(WRITES) and not flushes_nothing(events):
            for places in placings(3, range(1, STEPS)):
                if next(number) % PARTS in parts:
                    yield events, places


def flushes_nothing(events: tuple[str, ...]) -> bool:
    """Whether a flush among them finds nothing to do: without it they are the same, and are played, too."""
    is_pending = False
    for event in events:
        if event == "flush" and not is_pending:
            return True
        is_pending = event in WRITES or (is_pending and event != "flush")
    return False


def play(world: World, events: tuple[str, ...], places: tuple[int, ...]) -> None:
    reader = Reader(world)
    for step in range(STEPS):
        for event, place in zip(events, places, strict=True):
            if place == step:
                world.happen(event)
        reader.step()
    for event, place in zip(events, places, strict=True):
        if place >= STEPS:
            world.happen(event)
    finish(reader)
    check(world)


def play_all(
    wb: WriteBehind, client: redis.Redis, due: bool, longest: int = 3, parts: Container[int] = (0,)
) -> int:
    played = 0
    for played, (events, places) in enumerate(sequences(longest, parts), 1):
        world = World(wb, client, played)
        if due:
            wb.get("t", world.id, world.load)
            client.expire(world.key, 20)
        try:
            play(world, events, places)
        except AssertionError as error:
            raise AssertionError(f"{list(zip(places, events, strict=True))}: {error}") from None
    return played


# A third of the orders of three events is enough to find what is known to go wrong (below).
SAMPLE = range(PARTS) if WHOLE else (0,)
ORDERS = 3271 if WHOLE else 1511


@sampled
def test_one_reader_and_up_to_three_events_in_every_order(
    connect: Connect, redis_client: redis.Redis
) -> None:
    assert play_all(connect(), redis_client, due=False, parts=SAMPLE) == ORDERS


@sampled
def test_one_refreshing_reader_and_up_to_three_events_in_every_order(
    connect: Connect, redis_client: redis.Redis
) -> None:
    wb = connect(refresh_ahead=30, ttl=60, ttl_jitter=0)
    assert play_all(wb, redis_client, due=True, parts=SAMPLE) == ORDERS


@pytest.mark.parametrize("due", [False, True], ids=["filling", "refreshing"])
def test_a_near_cache_changes_nothing_of_it(connect: Connect, redis_client: redis.Redis, due: bool) -> None:
    wb = connect(refresh_ahead=30, ttl=60, ttl_jitter=0, near_cache=10_000)
    assert play_all(wb, redis_client, due, longest=2) == 631


@pytest.mark.parametrize("due", [False, True], ids=["filling", "refreshing"])
def test_two_readers_and_an_event_in_every_order(
    connect: Connect, redis_client: redis.Redis, due: bool
) -> None:
    wb, ids = connect(refresh_ahead=30, ttl=60, ttl_jitter=0), count(1)
    happenings = [("put",), ("patch",), ("delete",), ("invalidate",), ("expire",), ("put", "flush", "expire")]
    # Nothing tells the readers apart: who begins is reader 0.
    orders = [order for order in merges(STEPS, STEPS) if order[0] == 0]
    assert len(orders) == 35
    for order, place, events in product(orders, range(1, 2 * STEPS), happenings):
        world = World(wb, redis_client, next(ids))
        if due:
            wb.get("t", world.id, world.load)
            redis_client.expire(world.key, 20)
        readers = [Reader(world), Reader(world)]
        for at, who in enumerate(order):
            if at == place:
                for event in events:
                    world.happen(event)
            readers[who].step()
        try:
            finish(*readers)
            check(world)
        except AssertionError as error:
            raise AssertionError(f"{order}, {events} before {place}: {error}") from None


# The search finds what it is to find.


def test_it_finds_a_fill_that_minds_no_token(
    connect: Connect, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = RowCache._end_fills

    def careless(self, names, token, outcomes):  # type: ignore[no-untyped-def]
        for where in names:
            redis_client.delete(where)
            redis_client.hset(where, mapping={"@is": "fill", "@token": token})
        return (yield from end(self, names, token, outcomes))

    monkeypatch.setattr(RowCache, "_end_fills", careless)
    with pytest.raises(AssertionError, match="the cache answers"):
        play_all(connect(), redis_client, due=False)


def test_it_finds_a_refresh_that_minds_no_seq(
    connect: Connect, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = Refresh.end

    def careless(self, taken, token, outcomes):  # type: ignore[no-untyped-def]
        for where, seq in taken:
            if redis_client.hget(where, "@refresh"):
                redis_client.hset(where, "@seq", seq)
        return (yield from end(self, taken, token, outcomes))

    monkeypatch.setattr(Refresh, "end", careless)
    with pytest.raises(AssertionError, match="the cache answers"):
        play_all(connect(refresh_ahead=30, ttl=60, ttl_jitter=0), redis_client, due=True)
