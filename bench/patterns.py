"""What each pattern of docs/patterns.md costs a call, beside plain redis-py code for the same job."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import redis
import redis.asyncio

from writebehind import AsyncWriteBehind, SessionStore, WriteBehind

from .live import LiveLine
from .load import user
from .percentile import percentile
from .sizes import Sizes
from .stage import Stage

_ROWS = 500
_MANY = 100
_TTL_S = 3600
_TEXT = " ".join(random.Random(11).choices(("alpha", "beta", "gamma", "delta", "epsilon"), k=6000))
_ROW = dict(user(random.Random(12), 1))

Call = Callable[[int], object]
Pair = tuple[Call, Call]
"""By the library, and by hand; each is called with a number that grows."""


@dataclass(frozen=True, slots=True)
class Account:
    """A typed row."""

    id: int
    name: str
    balance: float


def measure(stage: Stage, sizes: Sizes, line: LiveLine) -> dict[str, Any]:
    """For each pattern the microseconds of a call, and how many times those by hand."""
    found: dict[str, Any] = {}
    for name, make in PATTERNS.items():
        stage.empty_redis()
        runs: dict[str, list[list[float]]] = {"writebehind": [], "by hand": []}
        with make(stage.redis_url) as pair:
            counter = itertools.count()
            for _ in range(20):
                pair[0](next(counter)), pair[1](next(counter))
            for number in range(sizes.put_rounds):
                line.show(f"patterns: {name}, round {number + 1} of {sizes.put_rounds}")
                for who, call in zip(runs, pair, strict=True):
                    runs[who].append(_times(call, counter, sizes.put_s / 3))
        found[name] = _figures(runs)
    return found


def _times(call: Call, counter: Iterator[int], seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end or len(times) < 5:
        call(next(counter))
        times.append((time.perf_counter() - began) * 1e6)
    return sorted(times)


def _figures(runs: Mapping[str, list[list[float]]]) -> dict[str, Any]:
    figures: dict[str, Any] = {
        who: {
            "p50_us": round(median(percentile(run, 50) for run in of_one)),
            "p99_us": round(median(percentile(run, 99) for run in of_one)),
        }
        for who, of_one in runs.items()
    }
    pairs = zip(runs["writebehind"], runs["by hand"], strict=True)
    figures["ratio"] = round(median(percentile(a, 50) / percentile(b, 50) for a, b in pairs), 2)
    return figures


@contextmanager
def _both(url: str, **options: Any) -> Iterator[tuple[WriteBehind, Any]]:
    with (
        WriteBehind.from_url(url, queue="bench:patterns", **options) as wb,
        redis.Redis.from_url(url) as by_hand,
    ):
        yield wb, by_hand


@contextmanager
def _cached(url: str, **options: Any) -> Iterator[Pair]:
    with _both(url, **options) as (wb, r):
        for id in range(_ROWS):
            wb.get("users", id, lambda _: _ROW)
            r.set(f"hand:{id}", json.dumps(_ROW), ex=_TTL_S)
        yield lambda n: wb.get("users", n % _ROWS), lambda n: json.loads(r.get(f"hand:{n % _ROWS}") or b"")


@contextmanager
def _missed(url: str) -> Iterator[Pair]:
    with _both(url) as (wb, r):

        def by_hand(n: int) -> object:
            value = r.get(f"hand:{n}")
            if value is None:
                r.set(f"hand:{n}", json.dumps(_ROW), ex=_TTL_S)
                return _ROW
            return json.loads(value)

        yield lambda n: wb.get("users", n, lambda _: _ROW), by_hand


@contextmanager
def _many(url: str) -> Iterator[Pair]:
    with _both(url) as (wb, r):
        ids = list(range(_MANY))
        wb.get_many("users", ids, lambda wanted: dict.fromkeys(wanted, _ROW))
        r.mset({f"hand:{id}": json.dumps(_ROW) for id in ids})
        names = [f"hand:{id}" for id in ids]
        yield (
            lambda _: wb.get_many("users", ids),
            lambda _: [json.loads(value) for value in r.mget(names)],
        )


@contextmanager
def _refreshed(url: str) -> Iterator[Pair]:
    with _both(url, refresh_ahead=60) as (wb, r):
        for id in range(_ROWS):
            wb.get("users", id, lambda _: _ROW)
            r.set(f"hand:{id}", json.dumps(_ROW), ex=_TTL_S)
        yield (
            lambda n: wb.get("users", n % _ROWS, lambda _: _ROW),
            lambda n: json.loads(r.get(f"hand:{n % _ROWS}") or b""),
        )


@contextmanager
def _invalidated(url: str) -> Iterator[Pair]:
    with _both(url) as (wb, r):
        yield lambda n: wb.invalidate("users", n), lambda n: r.delete(f"hand:{n}")


@contextmanager
def _typed(url: str) -> Iterator[Pair]:
    with _both(url) as (wb, r):
        accounts = wb.table(Account, name="accounts")
        rows = [Account(id, "Ada", 12.5) for id in range(_ROWS)]
        for row in rows:
            accounts.get(row.id, lambda id: rows[id])
            r.set(f"hand:{row.id}", json.dumps(asdict(row)), ex=_TTL_S)
        yield (
            lambda n: accounts.get(n % _ROWS),
            lambda n: Account(**json.loads(r.get(f"hand:{n % _ROWS}") or b"")),
        )


@contextmanager
def _locked(url: str) -> Iterator[Pair]:
    with _both(url) as (wb, r):

        def ours(_: int) -> None:
            with wb.lock("a", timeout=30):
                pass

        def by_hand(_: int) -> None:
            with r.lock("a", timeout=30):
                pass

        yield ours, by_hand


@contextmanager
def _limited(url: str) -> Iterator[Pair]:
    with _both(url) as (wb, r):
        limiter = wb.rate_limit("a", 1_000, per=60)

        def by_hand(n: int) -> bool:
            now = time.time()
            with r.pipeline() as piped:
                pipe: Any = piped
                pipe.zremrangebyscore("hand", 0, now - 60).zcard("hand").zadd("hand", {str(n): now}).expire(
                    "hand", 60
                )
                return int(pipe.execute()[1]) < 1_000

        yield lambda _: limiter.acquire().allowed, by_hand


@contextmanager
def _session(url: str) -> Iterator[Pair]:
    with _both(url) as (wb, r):
        store = SessionStore(wb, load=lambda _: None, load_ids_of_user=lambda _: [])
        token = store.create("ada", {"theme": "dark"})
        r.hset("hand", mapping={"user_id": "ada", "theme": "dark"})

        def by_hand(_: int) -> object:
            with r.pipeline() as piped:
                pipe: Any = piped
                return pipe.hgetall("hand").expire("hand", _TTL_S).execute()[0]

        yield lambda _: store.get(token), by_hand


@contextmanager
def _large(url: str, pack: Callable[[bytes], bytes], **options: Any) -> Iterator[Pair]:
    with _both(url, **options) as (wb, r):
        row = {"text": _TEXT}

        def by_hand(n: int) -> None:
            packed = pack(json.dumps(row).encode())
            with r.pipeline(transaction=False) as piped:
                pipe: Any = piped
                pipe.set(f"hand:{n}", packed, ex=_TTL_S).lpush("hand", packed).execute()

        yield lambda n: wb.put("texts", n, row), by_hand


@contextmanager
def _on_a_loop(url: str) -> Iterator[Pair]:
    with asyncio.Runner() as runner:
        wb, r = AsyncWriteBehind.from_url(url, queue="bench:patterns"), redis.asyncio.Redis.from_url(url)

        async def by_hand(n: int) -> None:
            async with r.pipeline(transaction=False) as piped:
                pipe: Any = piped
                pipe.set(f"hand:{n}", json.dumps(_ROW), ex=_TTL_S).lpush("hand", json.dumps(_ROW))
                await pipe.execute()

        yield lambda n: runner.run(wb.put("users", n, _ROW)), lambda n: runner.run(by_hand(n))
        runner.run(wb.close())
        runner.run(r.aclose())


PATTERNS: dict[str, Callable[[str], Any]] = {
    "get, cached": _cached,
    "get, missed and filled": _missed,
    f"get_many, {_MANY} cached": _many,
    "get, with refresh_ahead": _refreshed,
    "get, kept near": partial(_cached, near_cache=1000),
    "invalidate": _invalidated,
    "typed get": _typed,
    "lock and release": _locked,
    "rate limit": _limited,
    "session, get": _session,
    "put of 32 kB": partial(_large, pack=bytes),
    "put of 32 kB, compressed": partial(_large, pack=zlib.compress, compress_above=1024),
    "put, asyncio": _on_a_loop,
}
