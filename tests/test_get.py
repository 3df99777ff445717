"""Reading: a miss loads once and fills, and a fill never overwrites what was written meanwhile."""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
import redis
from tests.support.reader import begin_fill
from tests.support.workers import RunningWorker

from writebehind import FlushTimeout, InvalidLoad, RedisFull, WriteBehind
from writebehind.script import Script
from writebehind_worker.testing.servers import Servers
from writebehind_worker.testing.wait import wait_until

OLD = {"name": "old"}
NEW = {"name": "new"}

_BEGIN_FILL = Script("writebehind", "begin_fill")


@pytest.fixture
def wb(connect: Callable[..., WriteBehind]) -> WriteBehind:
    return connect()


def unexpected(_: Any) -> None:
    raise AssertionError("the loader was called")


# The mutex.


def test_200_readers_of_one_missing_row_load_it_once(wb: WriteBehind, redis_client: redis.Redis) -> None:
    looks_before, loads = looks(redis_client), []

    def load(id: int) -> dict[str, Any]:
        loads.append(id)
        wait_until(lambda: looks(redis_client) > looks_before + 400, message="the others did not wait")
        return {"id": id}

    with ThreadPoolExecutor(200) as pool:
        rows = list(pool.map(lambda _: wb.get("t", 1, load), range(200)))
    assert rows == [{"id": 1}] * 200
    assert loads == [1]


def test_who_waits_for_a_load_is_served_soon_after_it(wb: WriteBehind) -> None:
    loaded_at = 0.0

    def load(id: int) -> dict[str, Any]:
        nonlocal loaded_at
        time.sleep(0.3)
        loaded_at = time.monotonic()
        return {"id": id}

    def read(id: int) -> float:
        wb.get("t", id, load)
        return time.monotonic() - loaded_at

    def is_soon(id: int) -> bool:
        """Half of them are served within half of the load's time."""
        with ThreadPoolExecutor(10) as pool:
            return sorted(pool.map(read, [id] * 10))[5] < 0.15

    assert any(is_soon(id) for id in range(10)), "a busy machine spoils a few, not all"


def looks(client: redis.Redis) -> int:
    """How often the server was asked for an entry."""
    stats: dict[str, Any] = client.info("commandstats")
    return int(stats.get("cmdstat_hgetall", {}).get("calls", 0))


def test_readers_of_different_rows_do_not_wait_for_each_other(wb: WriteBehind) -> None:
    def load(id: int) -> dict[str, Any]:
        return {"id": id, "next": wb.get("t", id + 1, load) if id < 20 else None}

    first = wb.get("t", 1, load)
    assert first is not None
    assert first["next"]["next"]["id"] == 3


def test_a_loader_that_raises_gives_up_its_token(
    wb: WriteBehind, redis_client: redis.Redis, key: str
) -> None:
    with pytest.raises(ZeroDivisionError):
        wb.get("t", 1, lambda _: {"n": 1 // 0})
    assert not redis_client.exists(key)
    assert wb.get("t", 1, lambda _: OLD) == OLD


def test_readers_who_wait_for_a_loader_that_raises_go_on_themselves(
    connect: Callable[..., WriteBehind], redis_client: redis.Redis
) -> None:
    patient = connect(client_name="patient")

    with ThreadPoolExecutor(1) as pool:

        def fail(_: Any) -> None:
            waiting.append(pool.submit(patient.get, "t", 1, lambda _: OLD))
            wait_until(lambda: has_looked("patient", redis_client))
            raise RuntimeError("the database is away")

        waiting: list[Any] = []
        with pytest.raises(RuntimeError):
            connect().get("t", 1, fail)
        assert waiting[0].result(timeout=20) == OLD


def has_looked(name: str, client: redis.Redis) -> bool:
    return any(c["name"] == name and c["cmd"] == "hgetall" for c in client.client_list())


@pytest.mark.parametrize("value", [float("nan"), object()], ids=["nan", "object"])
def test_a_loaded_value_without_a_json_form_is_refused_and_gives_up_the_token(
    wb: WriteBehind, redis_client: redis.Redis, key: str, value: object
) -> None:
    with pytest.raises(InvalidLoad, match=r"t\.n"):
        wb.get("t", 1, lambda _: {"n": value})
    assert not redis_client.exists(key)


def test_a_crashed_reader_delays_the_others_by_the_fill_timeout_at_most(
    connect: Callable[..., WriteBehind], redis_client: redis.Redis, key: str
) -> None:
    wb = connect(fill_timeout=0.3)
    started = time.monotonic()
    token_of_the_dead = begin_fill(wb, key, "token of the dead")
    assert token_of_the_dead.state == "absent"
    assert redis_client.pttl(key) in {*range(301), -2}
    assert wb.get("t", 1, lambda _: OLD) == OLD
    assert 0.25 < time.monotonic() - started < 5


def test_a_loader_slower_than_the_fill_timeout_does_not_fill(
    connect: Callable[..., WriteBehind], redis_client: redis.Redis, key: str
) -> None:
    wb, quick = connect(fill_timeout=0.05), connect()

    def slow(_: Any) -> dict[str, str]:
        wait_until(lambda: not redis_client.exists(key))
        assert quick.get("t", 1, lambda _: NEW) == NEW
        return OLD

    assert wb.get("t", 1, slow) == OLD
    assert wb.get("t", 1, unexpected) == NEW


# What exists not.


def test_a_row_that_does_not_exist_is_remembered_for_a_while(
    connect: Callable[..., WriteBehind], redis_client: redis.Redis, key: str
) -> None:
    wb = connect(negative_ttl=7)
    assert wb.get("t", 1, lambda _: None) is None
    assert wb.get("t", 1, unexpected) is None
    assert 5 <= redis_client.ttl(key) <= 7


def test_a_row_that_was_missing_is_seen_as_soon_as_it_is_written(wb: WriteBehind) -> None:
    assert wb.get("t", 1, lambda _: None) is None
    wb.put("t", 1, NEW)
    assert wb.get("t", 1, unexpected) == NEW


def test_get_without_a_loader_asks_only_the_cache(
    wb: WriteBehind, redis_client: redis.Redis, key: str
) -> None:
    assert wb.get("t", 1) is None
    assert not redis_client.exists(key)
    wb.put("t", 1, NEW)
    assert wb.get("t", 1) == NEW
    wb.delete("t", 1)
    assert wb.get("t", 1) is None


# A fill and what happens meanwhile.


def test_a_write_between_loading_and_filling_is_kept(wb: WriteBehind) -> None:
    def load(_: Any) -> dict[str, str]:
        wb.put("t", 1, NEW)
        return OLD

    wb.get("t", 1, load)
    assert wb.get("t", 1, unexpected) == NEW


def test_a_fill_after_a_write_has_come_and_gone_is_dropped(
    wb: WriteBehind, redis_client: redis.Redis, key: str, settle: Callable[[int], None]
) -> None:
    def load(_: Any) -> dict[str, str]:
        settle(wb.put("t", 1, NEW).seq)
        redis_client.delete(key)  # as if its time had run out
        return OLD

    wb.get("t", 1, load)
    assert not redis_client.exists(key)


def test_a_fill_after_a_marker_has_come_and_gone_is_dropped(
    wb: WriteBehind, redis_client: redis.Redis, key: str, settle: Callable[[int], None]
) -> None:
    def load(_: Any) -> dict[str, str]:
        settle(wb.patch("t", 1, NEW).seq)
        assert not redis_client.exists(key)
        return OLD

    wb.get("t", 1, load)
    assert not redis_client.exists(key)


def test_a_fill_after_a_delete_does_not_bring_the_row_back(wb: WriteBehind) -> None:
    def load(_: Any) -> dict[str, str]:
        wb.delete("t", 1)
        return OLD

    wb.get("t", 1, load)
    assert wb.get("t", 1, unexpected) is None


def test_a_negative_fill_does_not_hide_a_write(wb: WriteBehind) -> None:
    def load(_: Any) -> None:
        wb.put("t", 1, NEW)

    wb.get("t", 1, load)
    assert wb.get("t", 1, unexpected) == NEW


def test_a_fill_after_an_invalidation_is_dropped(
    wb: WriteBehind, redis_client: redis.Redis, key: str
) -> None:
    def load(_: Any) -> dict[str, str]:
        assert wb.invalidate("t", 1) is True
        return OLD

    wb.get("t", 1, load)
    assert not redis_client.exists(key)


def test_a_fill_does_not_take_the_place_of_another_readers_token(
    wb: WriteBehind, redis_client: redis.Redis, key: str
) -> None:
    def load(_: Any) -> dict[str, str]:
        wb.invalidate("t", 1)
        assert _BEGIN_FILL(redis_client, [key], ["another's", 60_000]) == []
        return OLD

    wb.get("t", 1, load)
    assert redis_client.hget(key, "@token") == b"another's"


def test_a_loader_that_raises_leaves_a_write_alone(wb: WriteBehind) -> None:
    def load(_: Any) -> None:
        wb.put("t", 1, NEW)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        wb.get("t", 1, load)
    assert wb.get("t", 1, unexpected) == NEW


def test_a_fill_does_not_overwrite_what_is_not_ours(
    wb: WriteBehind, redis_client: redis.Redis, key: str
) -> None:
    def load(_: Any) -> dict[str, str]:
        redis_client.set(key, "by hand")
        return OLD

    assert wb.get("t", 1, load) == OLD
    assert redis_client.get(key) == b"by hand"


# Markers.


def test_a_reader_of_a_marker_waits_for_the_worker_and_then_loads(
    wb: WriteBehind,
    pg: psycopg.Connection[Any],
    redis_client: redis.Redis,
    redis_url: str,
    postgres_url: str,
) -> None:
    pg.execute("CREATE TABLE t (id int PRIMARY KEY, name text, n int)")
    pg.execute("INSERT INTO t VALUES (1, 'old', 1)")
    receipt = wb.patch("t", 1, NEW)

    def load(id: int) -> dict[str, Any]:
        assert int(redis_client.get(wb.keys.applied) or 0) >= receipt.seq
        row = pg.execute("SELECT id, name, n FROM t WHERE id = %s", [id]).fetchone()
        assert row is not None
        return dict(zip(("id", "name", "n"), row, strict=True))

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(wb.get, "t", 1, load, timeout=10)
        with RunningWorker(redis_url=redis_url, postgres_url=postgres_url, queue=wb.keys.queue):
            assert reading.result(timeout=10) == {"id": 1, "name": "new", "n": 1}
            wait_until(lambda: not redis_client.exists(f"{wb.keys.queue}:t:1"))


def test_a_reader_of_a_marker_gives_up_where_no_worker_runs(wb: WriteBehind) -> None:
    wb.increment("t", 1, {"n": 1})
    started = time.monotonic()
    with pytest.raises(FlushTimeout, match="t: "):
        wb.get("t", 1, unexpected, timeout=0.1)
    assert time.monotonic() - started < 5
    with pytest.raises(FlushTimeout):
        wb.get("t", 1, unexpected, timeout=0)


def test_a_put_meanwhile_does_not_make_the_reader_of_a_marker_wait_for_it(
    wb: WriteBehind, redis_client: redis.Redis
) -> None:
    marker = wb.increment("t", 1, {"n": 1})
    wb.increment("t", 2, {"n": 1})
    redis_client.set(wb.keys.applied, marker.seq)
    assert wb.get("t", 1, lambda _: OLD, timeout=0) == OLD


# Forms of values.

PYTHON = {
    "price": Decimal("1.50"),
    "born": dt.date(1815, 12, 10),
    "seen": dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
    "token": UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    "blob": b"\x01",
    "big": 10**30,
    "json": {"a": [1, 2.5, None, True]},
    "none": None,
}
JSON = {
    "price": 1.5,
    "born": "1815-12-10",
    "seen": "2024-01-01T00:00:00Z",
    "token": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    "blob": "\\x01",
    "big": 10**30,
    "json": {"a": [1, 2.5, None, True]},
    "none": None,
}


def same_instants(row: dict[str, Any] | None) -> dict[str, Any]:
    assert row is not None
    return row | {"seen": dt.datetime.fromisoformat(row["seen"])}


def test_values_have_their_json_forms_whether_loaded_cached_or_written(wb: WriteBehind) -> None:
    loaded = wb.get("t", 1, lambda _: PYTHON)
    cached = wb.get("t", 1, unexpected)
    wb.put("t", 2, PYTHON)
    written = wb.get("t", 2, unexpected)
    assert same_instants(loaded) == same_instants(JSON)
    assert loaded == cached == written
    assert [type(v) for v in (loaded or {}).values()] == [type(v) for v in (cached or {}).values()]


def test_numbers_are_made_of_their_text_by_parse_float(connect: Callable[..., WriteBehind]) -> None:
    wb = connect(parse_float=Decimal)
    exact = Decimal("0.1000000000000000000000000000000001")
    for row in (wb.get("t", 1, lambda _: {"n": exact, "in": [exact], "i": 10**30}), wb.get("t", 1)):
        assert row == {"n": exact, "in": [exact], "i": 10**30}
        assert isinstance(row["n"], Decimal)
        assert isinstance(row["i"], int)


@pytest.mark.parametrize("row", [(1, "Ada"), [1], "Ada", {"n": object()}, {1: "Ada"}])
def test_a_loader_that_gives_no_row_is_told_so(wb: WriteBehind, row: Any) -> None:
    with pytest.raises(InvalidLoad, match="dict_row" if isinstance(row, tuple) else "loader"):
        wb.get("users", 1, lambda _: row)
    with pytest.raises(InvalidLoad):
        wb.get_many("users", [1, 2], lambda ids: [row, row])
    assert wb.get("users", 1, lambda _: {"name": "Ada"}) == {"name": "Ada"}


def test_a_loader_may_give_any_mapping(wb: WriteBehind) -> None:
    class Row(dict[str, Any]):
        pass

    assert wb.get("t", 1, lambda _: Row(name="Ada")) == {"name": "Ada"}


def test_the_loader_gets_the_id_as_it_was_given(wb: WriteBehind) -> None:
    ids: list[Any] = [7, "8", UUID(int=9), {"a": 1, "b": "x"}]
    seen: list[Any] = []
    for id in ids:
        wb.get("t", id, lambda id: seen.append(id))
    assert seen == ids


def test_rows_of_another_version_or_prefix_are_not_read(
    connect: Callable[..., WriteBehind], queue: str
) -> None:
    connect().put("t", 1, OLD)
    for options in ({"version": 2}, {"prefix": f"{queue}:other:"}):
        other = connect(**options)
        assert other.get("t", 1) is None
        other.put("t", 1, NEW)
    assert connect().get("t", 1) == OLD
    assert connect(version="2").get("t", 1) == NEW


# Invalidation.


@pytest.mark.parametrize("op", ["put", "patch", "delete"])
def test_a_pending_entry_cannot_be_invalidated(
    wb: WriteBehind, redis_client: redis.Redis, key: str, settle: Callable[[int], None], op: str
) -> None:
    receipt = wb.delete("t", 1) if op == "delete" else getattr(wb, op)("t", 1, NEW)
    before = redis_client.dump(key)
    assert wb.invalidate("t", 1) is False
    assert redis_client.dump(key) == before
    settle(receipt.seq)
    assert wb.invalidate("t", 1) is True
    assert not redis_client.exists(key)


def test_a_loaded_row_and_a_missing_one_can_be_invalidated(wb: WriteBehind) -> None:
    assert wb.invalidate("t", 1) is True
    for loaded in (OLD, None):
        wb.get("t", 1, lambda _, loaded=loaded: loaded)  # type: ignore[misc]
        assert wb.invalidate("t", 1) is True
        assert wb.get("t", 1, lambda _: NEW) == NEW
        wb.invalidate("t", 1)


def test_a_loaded_row_that_was_patched_cannot_be_invalidated_until_settled(
    wb: WriteBehind, settle: Callable[[int], None]
) -> None:
    wb.get("t", 1, lambda _: OLD)
    receipt = wb.patch("t", 1, NEW)
    assert wb.invalidate("t", 1) is False
    assert wb.get("t", 1, unexpected) == NEW
    settle(receipt.seq)
    assert wb.invalidate("t", 1) is True


# A Redis that is full, or holds something else.


@contextmanager
def full(client: redis.Redis) -> Iterator[None]:
    """Redis is at its bound and evicts nothing."""
    before: Any = client.config_get("maxmemory*")
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", before["maxmemory"])
        client.config_set("maxmemory-policy", before["maxmemory-policy"])


@pytest.fixture
def ours(servers: Servers) -> None:
    """The server's settings may be changed."""
    if not servers.ours:
        pytest.skip("the server is the user's")


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("known", [False, True], ids=["script new", "script known"])
def test_reading_goes_on_where_redis_is_full(
    wb: WriteBehind, redis_client: redis.Redis, key: str, known: bool
) -> None:
    wb.put("t", 2, NEW)
    redis_client.script_flush()
    if known:
        wb.get("t", 3, lambda _: OLD)
    with full(redis_client):
        assert wb.get("t", 1, lambda _: OLD) == OLD
        assert wb.get("t", 1, lambda _: None) is None
        assert wb.get("t", 2, unexpected) == NEW
        assert wb.invalidate("t", 1) is True
    assert not redis_client.exists(key)


@pytest.mark.usefixtures("ours")
def test_a_redis_that_becomes_full_while_loading_does_not_spoil_the_answer(
    wb: WriteBehind, redis_client: redis.Redis, key: str
) -> None:
    full_redis = full(redis_client)

    def load(_: Any) -> dict[str, str]:
        full_redis.__enter__()
        return OLD

    try:
        assert wb.get("t", 1, load) == OLD
    finally:
        full_redis.__exit__(None, None, None)
    assert 0 < redis_client.pttl(key) <= 5000, "the token runs out by itself"


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("op", ["put", "patch", "increment", "delete"])
def test_a_write_to_a_full_redis_is_refused_and_writes_nothing(
    wb: WriteBehind, redis_client: redis.Redis, key: str, op: str
) -> None:
    wb.put("t", 1, {"n": 1})
    before = redis_client.dump(key), redis_client.hgetall(wb.keys.clock)
    with full(redis_client), pytest.raises(RedisFull) as caught:
        wb.delete("t", 1) if op == "delete" else getattr(wb, op)("t", 1, {"n": 2})
    assert isinstance(caught.value.__cause__, redis.RedisError)
    assert (redis_client.dump(key), redis_client.hgetall(wb.keys.clock)) == before
    assert redis_client.llen(wb.keys.queue) == 1
    wb.put("t", 1, {"n": 3})
    assert redis_client.llen(wb.keys.queue) == 2


def test_a_value_of_another_type_at_the_cache_key_is_passed_by(
    wb: WriteBehind, redis_client: redis.Redis, key: str
) -> None:
    for store in (
        lambda: redis_client.set(key, json.dumps(OLD)),
        lambda: redis_client.rpush(key, "x"),
        lambda: redis_client.zadd(key, {"x": 1}),
    ):
        redis_client.delete(key)
        store()
        before = redis_client.dump(key)
        assert wb.get("t", 1) is None
        assert wb.get("t", 1, lambda _: NEW) == NEW
        assert redis_client.dump(key) == before
    wb.put("t", 1, NEW)
    assert wb.get("t", 1, unexpected) == NEW


def test_concurrent_writers_and_readers_never_see_a_counter_go_back(
    connect: Callable[..., WriteBehind],
    pg: psycopg.Connection[Any],
    redis_client: redis.Redis,
    redis_url: str,
    postgres_url: str,
    key: str,
) -> None:
    """A writer raises a number; entries come and go all the time; readers must see it grow."""
    pg.execute("CREATE TABLE t (id int PRIMARY KEY, n int)")
    wb, lock, done = connect(), threading.Lock(), threading.Event()
    written = 0

    def load(_: Any) -> dict[str, Any] | None:
        with lock:
            row = pg.execute("SELECT n FROM t WHERE id = 1").fetchone()
        return None if row is None else {"n": row[0]}

    def read() -> int:
        reads, highest = 0, 0
        while not done.is_set():
            at_least = written
            row = wb.get("t", 1, load, timeout=10)
            seen = 0 if row is None else row["n"]
            assert seen >= max(highest, at_least), f"{seen} after {highest}, written {at_least}"
            highest, reads = seen, reads + 1
            wb.invalidate("t", 1)
        return reads

    with (
        RunningWorker(redis_url=redis_url, postgres_url=postgres_url, queue=wb.keys.queue),
        ThreadPoolExecutor(3) as pool,
    ):
        readers = [pool.submit(read) for _ in range(3)]
        try:
            for n in range(1, 301):
                receipt = wb.put("t", 1, {"n": n}) if n % 3 == 1 else wb.increment("t", 1, {"n": 1})
                written = n
                if n % 10 == 0:
                    receipt.wait(10)
        finally:
            done.set()
        assert min(reader.result(timeout=20) for reader in readers) > 0
