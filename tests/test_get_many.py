"""Many rows at once: one look for what is cached, one load for what is not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from tests.support.reader import begin_fill

from writebehind import InvalidLoad, WriteBehind
from writebehind_worker.testing.wait import wait_until


@pytest.fixture
def wb(connect: Callable[..., WriteBehind]) -> WriteBehind:
    return connect()


def rows(ids: list[int]) -> dict[int, Any]:
    return {id: {"id": id} for id in ids}


def test_what_is_missing_is_loaded_by_one_call_and_kept(wb: WriteBehind) -> None:
    asked: list[list[int]] = []

    def load(ids: list[int]) -> dict[int, Any]:
        asked.append(ids)
        return rows([id for id in ids if id != 3])

    wb.put("t", 1, {"id": "put"})
    wb.delete("t", 2)
    expected = [{"id": "put"}, None, None, {"id": 4}, {"id": 4}]
    assert wb.get_many("t", [1, 2, 3, 4, 4], load) == expected
    assert wb.get_many("t", [1, 2, 3, 4, 4], load) == expected
    assert asked == [[3, 4]]
    assert wb.get_many("t", [4, 5]) == [{"id": 4}, None]


def test_what_is_cached_takes_one_round_trip(wb: WriteBehind, redis_client: redis.Redis) -> None:
    wb.get_many("t", list(range(50)), rows)
    before = packets(redis_client)
    assert wb.get_many("t", list(range(50)), rows) == [{"id": id} for id in range(50)]
    assert packets(redis_client) - before == 2  # ours, and that of the look itself


def packets(client: redis.Redis) -> int:
    stats: dict[str, Any] = client.info("stats")
    return int(stats["total_reads_processed"])


def test_composite_ids_are_tuples_to_the_loader(wb: WriteBehind) -> None:
    ids = [{"order": 7, "line": n} for n in range(3)]

    def load(wanted: list[dict[str, int]]) -> dict[tuple[int, ...], Any]:
        return {(w["order"], w["line"]): {"line": w["line"]} for w in wanted}

    assert wb.get_many("lines", ids, load) == [{"line": n} for n in range(3)]


@pytest.mark.parametrize(
    "loaded", [{"1": {}}, [{}], {1: {}, 3: {}}, None, "ab"], ids=["type", "few", "other", "none", "text"]
)
def test_a_load_that_does_not_fit_the_ids_is_refused_and_nothing_is_cached(
    wb: WriteBehind, redis_client: redis.Redis, queue: str, loaded: Any
) -> None:
    with pytest.raises(InvalidLoad):
        wb.get_many("t", [1, 2], lambda _: loaded)
    assert not redis_client.exists(f"{queue}:t:1", f"{queue}:t:2")


def test_rows_that_another_loads_are_waited_for(
    wb: WriteBehind, connect: Callable[..., WriteBehind], queue: str
) -> None:
    other = connect()
    asked: list[list[int]] = []

    def slow(ids: list[int]) -> dict[int, Any]:
        asked.append(ids)
        wait_until(lambda: waits(wb, queue) > 3, message="the other did not wait")
        return rows(ids)

    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(other.get_many, "t", [1, 2], slow)
        wait_until(lambda: bool(asked))
        assert wb.get_many("t", [1, 2, 3], rows) == [{"id": 1}, {"id": 2}, {"id": 3}]
        begun.result(5)
    assert asked == [[1, 2]]


def waits(wb: WriteBehind, queue: str) -> int:
    stats: dict[str, Any] = wb.redis.info("commandstats")
    return int(stats.get("cmdstat_hgetall", {}).get("calls", 0))


def test_two_readers_who_hold_what_the_other_wants_do_not_wait_for_each_other(
    connect: Callable[..., WriteBehind],
) -> None:
    with ThreadPoolExecutor(8) as pool:
        wants = [list(range(n, n + 40)) for n in range(8)] + [list(range(n + 40, n, -1)) for n in range(8)]
        clients = [connect() for _ in range(8)]
        found = pool.map(lambda n: clients[n % 8].get_many("t", wants[n], rows), range(16))
        assert list(found) == [[{"id": id} for id in wanted] for wanted in wants]


def test_a_crashed_reader_delays_by_the_fill_timeout_at_most(
    connect: Callable[..., WriteBehind], queue: str
) -> None:
    wb = connect(fill_timeout=0.3)
    assert begin_fill(wb, f"{queue}:t:1", "token of the dead").state == "absent"
    assert wb.get_many("t", [1, 2], rows) == [{"id": 1}, {"id": 2}]


def test_a_loader_that_raises_gives_up_all_tokens(
    wb: WriteBehind, redis_client: redis.Redis, queue: str
) -> None:
    with pytest.raises(ZeroDivisionError):
        wb.get_many("t", [1, 2], lambda _: 1 // 0)
    assert not redis_client.exists(f"{queue}:t:1", f"{queue}:t:2")


def test_something_else_at_a_key_is_loaded_past(
    wb: WriteBehind, redis_client: redis.Redis, queue: str
) -> None:
    redis_client.set(f"{queue}:t:1", "a string")
    assert wb.get_many("t", [1, 2], rows) == [{"id": 1}, {"id": 2}]
    assert redis_client.get(f"{queue}:t:1") == b"a string"


def test_nothing_asked_is_nothing_loaded(wb: WriteBehind) -> None:
    assert wb.get_many("t", [], lambda _: 1 // 0) == []
