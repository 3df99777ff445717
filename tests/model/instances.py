"""The instances that are searched: those in which every promise must hold, and those with a rule left out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from . import cache, protocol
from .protocol import Item
from .search import Found, search

_PUT, _ADD = Item("a"), Item("b", "increment")
_RAW_ADD = Item("b", "increment", raw=True)
_THREE = (_PUT, _ADD, _PUT)
_PROTOCOL = protocol.Instance("", _THREE, waiting=2)

_PUT_ROW, _ADD_TO_ROW, _DELETE = cache.Write("put"), cache.Write("increment"), cache.Write("delete")
_BAD_ADD = cache.Write("increment", is_bad=True)

Instance = protocol.Instance | cache.Instance


@dataclass(frozen=True)
class LeftOut:
    """Rules left out, and the kind of violation that must follow."""

    rules: tuple[str, ...]
    instance: Instance
    violation: str


def run(instance: Instance) -> Found:
    """Searches all of it, or until the first violation."""
    if isinstance(instance, cache.Instance):
        entry = cache.Cache(instance)
        return search(entry.start(), entry.steps, entry.broken, entry.stuck)
    model = protocol.Protocol(instance)
    return search(model.start(), model.steps, model.broken, model.stuck)


HOLDING: tuple[Instance, ...] = (
    replace(
        _PROTOCOL,
        name="a Postgres failover, a suspicion, a lost reply",
        postgres_failovers=1,
        suspicions=1,
        lost_replies=1,
    ),
    replace(
        _PROTOCOL,
        name="a kill, two suspicions, a lost reply",
        waiting=3,
        kills=1,
        suspicions=2,
        lost_replies=1,
    ),
    replace(_PROTOCOL, name="two Redis failovers", redis_failovers=2),
    replace(_PROTOCOL, name="a Redis failover, a suspicion", redis_failovers=1, suspicions=1),
    replace(_PROTOCOL, name="a failover of each server", redis_failovers=1, postgres_failovers=1),
    replace(
        _PROTOCOL,
        name="batches of two, a kill, two suspicions",
        items=(_PUT, _ADD, _PUT, _ADD),
        waiting=3,
        batch_size=2,
        kills=1,
        suspicions=2,
    ),
    replace(_PROTOCOL, name="a Redis failover, a kill", redis_failovers=1, kills=1),
    replace(_PROTOCOL, name="a Redis failover, a lost reply", redis_failovers=1, lost_replies=1),
    replace(
        _PROTOCOL,
        name="the ledger remembers two batches, a Redis failover, a kill",
        items=(_PUT, _ADD, _ADD),
        waiting=3,
        recent_batches=2,
        redis_failovers=1,
        kills=1,
    ),
    replace(
        _PROTOCOL,
        name="raw and sequenced writes in batches of two, a Redis failover, a kill",
        items=(_RAW_ADD, _PUT, _RAW_ADD, _PUT),
        waiting=3,
        batch_size=2,
        redis_failovers=1,
        kills=1,
    ),
    replace(
        _PROTOCOL,
        name="raw and sequenced writes in batches of two, a suspicion, a lost reply",
        items=(_RAW_ADD, _PUT, _RAW_ADD, _PUT),
        waiting=3,
        batch_size=2,
        suspicions=1,
        lost_replies=1,
    ),
    replace(
        _PROTOCOL,
        name="raw and sequenced writes in batches of two, a Postgres failover, a kill",
        items=(_RAW_ADD, _PUT, _RAW_ADD, _PUT),
        waiting=3,
        batch_size=2,
        postgres_failovers=1,
        kills=1,
    ),
    replace(
        _PROTOCOL,
        name="calls sent again, a suspicion, a lost reply",
        waiting=0,
        resends=2,
        suspicions=1,
        lost_replies=1,
    ),
    replace(_PROTOCOL, name="a kill, a suspicion, a lost reply", kills=1, suspicions=1, lost_replies=1),
    replace(
        _PROTOCOL, name="calls sent again, a kill, a suspicion", waiting=0, resends=2, kills=1, suspicions=1
    ),
    cache.Instance("cache: add, add, put", (_ADD_TO_ROW, _ADD_TO_ROW, _PUT_ROW)),
    cache.Instance("cache: put, add, put", (_PUT_ROW, _ADD_TO_ROW, _PUT_ROW)),
    cache.Instance("cache: delete, add, put", (_DELETE, _ADD_TO_ROW, _PUT_ROW)),
    cache.Instance("cache: put, a rejected add, add", (_PUT_ROW, _BAD_ADD, _ADD_TO_ROW)),
    cache.Instance("cache: put, delete, add", (_PUT_ROW, _DELETE, _ADD_TO_ROW)),
    cache.Instance("cache: put, put, two gets each", (_PUT_ROW, _PUT_ROW), gets=2, late_settles=0),
)
"""Searched without a violation; the largest first."""

QUICK = (HOLDING[8], *HOLDING[10:13], HOLDING[-3])
"""Those that the tests search, in some seconds: every kind of fault, and the cache."""


def _without(*rules: str, violation: str, **changes: object) -> LeftOut:
    changed = replace(_PROTOCOL, name="", without=frozenset(rules), **changes)  # type: ignore[arg-type]
    return LeftOut(rules, changed, violation)


def _cache_without(rule: str, *writes: cache.Write, violation: str) -> LeftOut:
    return LeftOut((rule,), cache.Instance("", writes, without=frozenset({rule})), violation)


LEFT_OUT: tuple[LeftOut, ...] = (
    _without("frozen in Redis", violation="lost"),
    _without("frozen batches", items=(_RAW_ADD, _RAW_ADD), kills=1, violation="repeated"),
    _without("frozen batches", "skipping by seq", kills=1, violation="repeated"),
    _without("ledger", kills=1, violation="repeated"),
    _without(
        "membership",
        items=(_PUT, _ADD),
        waiting=1,
        batch_size=2,
        redis_failovers=1,
        suspicions=1,
        violation="lost",
    ),
    _without("ordered recovery", items=(_PUT, _PUT), kills=1, violation="order"),
    _without("commit before acknowledge", violation="lost"),
    _without("fence", suspicions=1, recent_batches=1, violation="repeated"),
    _without(
        "what came before",
        items=(_PUT, _ADD, _ADD),
        waiting=3,
        recent_batches=2,
        redis_failovers=1,
        violation="repeated",
    ),
    _without("epoch floor", postgres_failovers=1, suspicions=1, violation="lost"),
    _without("reading again after COMMIT", lost_replies=1, violation="lost"),
    _without(
        "reading again after a claim",
        "checking inflight",
        items=(_PUT, _PUT),
        lost_replies=1,
        violation="stuck",
    ),
    _without("reading again after acknowledge", "acknowledging the oldest", lost_replies=1, violation="lost"),
    _without("checking inflight", redis_failovers=1, lost_replies=1, violation="stuck"),
    _without("epoch in Redis", "lease", "checking inflight", "fence", suspicions=1, violation="order"),
    _without("connection", redis_failovers=1, violation="unsaid"),
    _without("skipping by seq", redis_failovers=1, violation="repeated"),
    _without("count in the ledger", redis_failovers=1, kills=1, violation="repeated"),
    _without("sessions", waiting=0, resends=1, violation="repeated"),
    _cache_without("pending without TTL", _PUT_ROW, _ADD_TO_ROW, violation="went back"),
    _cache_without("own token", _ADD_TO_ROW, _PUT_ROW, violation="went back"),
    _cache_without("a write ends the fill", _ADD_TO_ROW, _ADD_TO_ROW, violation="went back"),
    _cache_without("marker", _ADD_TO_ROW, violation="went back"),
    _cache_without("waiting at a marker", _ADD_TO_ROW, violation="went back"),
    _cache_without("tombstone", _PUT_ROW, _DELETE, violation="went back"),
    _cache_without("settle after COMMIT", _ADD_TO_ROW, _ADD_TO_ROW, violation="went back"),
    _cache_without("settle compares seq", _PUT_ROW, _PUT_ROW, violation="went back"),
    _cache_without("left to a later write only", _PUT_ROW, violation="stale"),
    _cache_without("a rejection is told", _PUT_ROW, _BAD_ADD, _ADD_TO_ROW, violation="stale"),
    _cache_without("dirty", _PUT_ROW, _BAD_ADD, _ADD_TO_ROW, violation="stale"),
    _cache_without("only a put cleans", _PUT_ROW, _BAD_ADD, _ADD_TO_ROW, violation="stale"),
    _cache_without("invalidate waits", _PUT_ROW, violation="went back"),
)
"""Each rule alone, or together with those that back it up."""
QUICK_LEFT_OUT = tuple(
    left for left in LEFT_OUT if left.rules not in {("membership",), ("count in the ledger",)}
)
"""Those that the tests search: the two others take seconds."""
