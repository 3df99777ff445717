"""The cache entry: every cell of the table of states, against a real Redis."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any, Literal, cast

import psycopg
import pytest
import redis
from tests.support.workers import RunningWorker

from writebehind import FlushTimeout, InvalidWrite, Receipt, RedisRefused, WriteBehind, WriteRejected
from writebehind.script import Script
from writebehind_worker.owned_queue import TOMBSTONE_TTL_S, OwnedQueue
from writebehind_worker.redis_server import RedisLink
from writebehind_worker.settle import Settlement

TTL_S = 600
TABLE, ID = "users", 7
ROW = {"name": "Ada", "age": 36}

_BEGIN_FILL = Script("writebehind", "begin_fill")

Kind = Literal["absent", "row", "marker", "tombstone", "negative", "fill"]


@dataclass(frozen=True)
class Bench:
    """A producer, and a hand that settles as the worker does."""

    wb: WriteBehind
    client: redis.Redis
    owned: OwnedQueue

    @property
    def key(self) -> str:
        return f"{self.wb.keys.queue}:{TABLE}:{ID}"

    def fields(self) -> dict[bytes, bytes]:
        return cast(dict[bytes, bytes], self.client.hgetall(self.key))

    def kind(self) -> Kind:
        fields = self.fields()
        if not fields:
            return "absent"
        return fields.get(b"@is", b"row").decode()  # type: ignore[return-value]

    def row(self) -> dict[str, Any]:
        """The columns shown; only for an entry that is a row."""
        assert self.kind() == "row"
        return {c.decode(): json.loads(v) for c, v in self.fields().items() if not c.startswith(b"@")}

    def seq(self) -> int:
        return int(self.fields()[b"@seq"])

    def ttl(self) -> int:
        """Seconds left; -1: the entry stays, -2: there is none."""
        return int(self.client.ttl(self.key))

    def settle(
        self, receipt: Receipt | int, *, rejected: Receipt | int = 0, ttl_s: int = TTL_S, is_put: bool = False
    ) -> None:
        """``receipt`` was applied, ``rejected`` became a dead letter (0: none)."""
        self.owned.settle([Settlement(self.key, ttl_s, _seq(receipt), _seq(rejected), is_put)])

    def reach(self, state: Kind) -> None:
        """Brings the entry into a state by what an application would do."""
        if state == "row":
            self.wb.put(TABLE, ID, ROW)
        elif state == "marker":
            self.wb.patch(TABLE, ID, {"age": 36})
        elif state == "tombstone":
            self.wb.delete(TABLE, ID)
        elif state == "negative":
            assert self.wb.get(TABLE, ID, load=lambda _: None) is None
        elif state == "fill":
            assert _BEGIN_FILL(self.client, [self.key], ["somebody's", 60_000]) == []
        assert self.kind() == state


def _seq(receipt: Receipt | int) -> int:
    return receipt if isinstance(receipt, int) else receipt.seq


@pytest.fixture
def bench(redis_url: str, redis_client: redis.Redis, queue: str) -> Iterator[Bench]:
    with (
        WriteBehind.from_url(
            redis_url, queue=queue, prefix=f"{queue}:", ttl=TTL_S, ttl_jitter=0, fill_timeout=0.1
        ) as wb,
        RedisLink(redis_url) as link,
    ):
        yield Bench(wb, redis_client, OwnedQueue(link, wb.keys, "token"))


STATES: list[Kind] = ["absent", "row", "marker", "tombstone", "negative", "fill"]
Call = Callable[[WriteBehind], Receipt]
PUT: Call = lambda wb: wb.put(TABLE, ID, {"name": "Bob", "age": 1})  # noqa: E731 - a table of calls
PATCH: Call = lambda wb: wb.patch(TABLE, ID, {"name": "Bob"})  # noqa: E731
INCREMENT: Call = lambda wb: wb.increment(TABLE, ID, {"age": 2})  # noqa: E731
DELETE: Call = lambda wb: wb.delete(TABLE, ID)  # noqa: E731

CALLS = {"put": PUT, "patch": PATCH, "increment": INCREMENT, "delete": DELETE}
AFTER: dict[str, dict[Kind, Kind]] = {
    "put": dict.fromkeys(STATES, "row"),
    "patch": {**dict.fromkeys(STATES, "marker"), "row": "row"},
    "increment": {**dict.fromkeys(STATES, "marker"), "row": "row"},
    "delete": dict.fromkeys(STATES, "tombstone"),
}
SHOWN = {
    "put": {"name": "Bob", "age": 1},
    "patch": {"name": "Bob", "age": 36},
    "increment": {"name": "Ada", "age": 38},
}


@pytest.mark.parametrize("settled", [False, True], ids=["pending", "settled"])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("op", CALLS)
def test_a_write_turns_each_state_into_the_one_of_the_table(
    bench: Bench, op: str, state: Kind, settled: bool
) -> None:
    bench.reach(state)
    if settled and state in ("row", "marker", "tombstone"):
        bench.settle(bench.seq())
        state = bench.kind()  # a settled marker is gone
    receipt = CALLS[op](bench.wb)
    assert bench.kind() == AFTER[op][state]
    assert bench.seq() == receipt.seq
    assert bench.ttl() == -1, "a pending entry must not run out"
    if bench.kind() == "row":
        assert bench.row() == SHOWN[op]
    else:
        assert set(bench.fields()) == {b"@seq", b"@is"}


@pytest.mark.parametrize("op", CALLS)
@pytest.mark.parametrize("then", CALLS)
def test_two_writes_of_one_batch_turn_it_as_two_calls_do(bench: Bench, op: str, then: str) -> None:
    CALLS[op](bench.wb)
    CALLS[then](bench.wb)
    expected = {c: v for c, v in bench.fields().items() if c != b"@seq"}
    bench.client.delete(bench.key)
    with bench.wb.batch() as batch:
        for name in (op, then):
            CALLS[name](batch)  # type: ignore[arg-type]
    assert {c: v for c, v in bench.fields().items() if c != b"@seq"} == expected
    assert bench.seq() == batch.receipts[-1].seq


@pytest.mark.parametrize("state", STATES)
def test_a_durable_write_settles_each_state_as_the_table_says(bench: Bench, state: Kind) -> None:
    bench.reach(state)
    before, ttl_before = bench.fields(), bench.ttl()
    bench.settle(int(before.get(b"@seq", b"1")))
    if state == "marker":
        assert bench.kind() == "absent"
        return
    assert bench.fields() == before
    if state == "row":
        assert TTL_S - 5 <= bench.ttl() <= TTL_S
    elif state == "tombstone":
        assert 0 < bench.ttl() <= TOMBSTONE_TTL_S
    else:
        assert ttl_before - 5 <= bench.ttl() <= ttl_before


@pytest.mark.parametrize("state", ["row", "marker", "tombstone"])
def test_a_durable_write_leaves_an_entry_alone_that_shows_a_newer_one(bench: Bench, state: Kind) -> None:
    bench.wb.put(TABLE, ID, ROW)
    older = bench.seq()
    bench.wb.delete(TABLE, ID)
    bench.reach(state)
    before = bench.fields()
    bench.settle(older)
    assert bench.fields() == before
    assert bench.ttl() == -1


def unexpected(_: Any) -> None:
    raise AssertionError("the loader was called")


def test_get_of_an_absent_entry_loads_and_fills(bench: Bench) -> None:
    asked: list[Any] = []

    def load(id: Any) -> dict[str, Any]:
        asked.append(id)
        return ROW

    assert bench.wb.get(TABLE, ID, load=load) == ROW
    assert asked == [ID]
    assert bench.row() == ROW
    assert TTL_S - 5 <= bench.ttl() <= TTL_S
    assert bench.seq() == 0


@pytest.mark.parametrize("settled", [False, True], ids=["pending", "settled"])
def test_get_of_a_row_answers_with_it(bench: Bench, settled: bool) -> None:
    bench.reach("row")
    if settled:
        bench.settle(bench.seq())
    assert bench.wb.get(TABLE, ID, load=unexpected) == ROW
    assert bench.wb.get(TABLE, ID) == ROW


@pytest.mark.parametrize("state", ["tombstone", "negative"])
def test_get_of_a_row_that_is_gone_answers_none_without_loading(bench: Bench, state: Kind) -> None:
    bench.reach(state)
    assert bench.wb.get(TABLE, ID, load=unexpected) is None


def test_get_of_a_marker_does_not_load_before_its_write_is_applied(bench: Bench) -> None:
    bench.reach("marker")
    with pytest.raises(FlushTimeout):
        bench.wb.get(TABLE, ID, load=unexpected, timeout=0.02)


def test_get_of_a_marker_loads_once_applied_and_does_not_fill(bench: Bench) -> None:
    bench.reach("marker")
    bench.client.set(bench.wb.keys.applied, bench.seq())
    assert bench.wb.get(TABLE, ID, load=lambda _: ROW) == ROW
    assert bench.kind() == "marker"


def test_get_of_a_fill_token_loads_after_its_time(bench: Bench) -> None:
    assert _BEGIN_FILL(bench.client, [bench.key], ["somebody's", 50]) == []
    assert bench.wb.get(TABLE, ID, load=lambda _: ROW) == ROW
    assert bench.row() == ROW


@pytest.mark.parametrize("state", STATES)
def test_get_without_a_loader_only_looks(bench: Bench, state: Kind) -> None:
    bench.reach(state)
    before = bench.fields()
    assert bench.wb.get(TABLE, ID) == (ROW if state == "row" else None)
    assert bench.fields() == before


# Time to live.


def test_a_patch_makes_a_settled_row_pending_again(bench: Bench) -> None:
    bench.reach("row")
    bench.settle(bench.seq())
    receipt = bench.wb.patch(TABLE, ID, {"age": 37})
    assert bench.ttl() == -1
    bench.settle(receipt)
    assert bench.row() == {"name": "Ada", "age": 37}
    assert TTL_S - 5 <= bench.ttl() <= TTL_S


def test_an_increment_makes_a_loaded_row_pending(bench: Bench) -> None:
    bench.wb.get(TABLE, ID, load=lambda _: ROW)
    receipt = bench.wb.increment(TABLE, ID, {"age": -36})
    assert (bench.row()["age"], bench.ttl()) == (0, -1)
    bench.settle(receipt)
    assert bench.ttl() > 0


def test_the_time_to_live_is_that_of_the_write_settled(bench: Bench) -> None:
    bench.reach("row")
    bench.settle(bench.seq(), ttl_s=30)
    assert 25 <= bench.ttl() <= 30


def test_settling_twice_is_harmless(bench: Bench) -> None:
    for state in STATES:
        bench.client.delete(bench.key)
        bench.reach(state)
        seq = int(bench.fields().get(b"@seq", b"1"))
        bench.settle(seq)
        once = bench.fields()
        bench.settle(seq)
        assert bench.fields() == once


def test_many_entries_are_settled_in_one_go(bench: Bench) -> None:
    keys = [f"{bench.wb.keys.queue}:{TABLE}:{id}" for id in range(1201)]
    with bench.wb.batch() as batch:
        for id in range(1201):
            batch.put(TABLE, id, {})
    bench.owned.settle([Settlement(key, TTL_S, r.seq) for key, r in zip(keys, batch.receipts, strict=True)])
    with bench.client.pipeline() as pipe:
        for key in keys:
            pipe.ttl(key)
        assert min(pipe.execute()) > 0


# Increments that HINCRBY refuses, or cannot do exactly.


@pytest.mark.parametrize(
    ("cached", "delta"),
    [
        (5.0, 1),
        (None, 1),
        ("5", 1),
        (True, 1),
        ([5], 1),
        (Decimal("5.50"), 1),
        (2**63 - 1, 1),
        (-(2**63), -1),
        (2**63, -1),
        (5, 2**63),
        (5, 0.5),
        (5, Decimal("1.0")),
        (5, Decimal("1E+1")),
        (-0.0, 1),
    ],
    ids=repr,
)
def test_an_increment_that_redis_cannot_do_exactly_leaves_a_marker(
    bench: Bench, cached: object, delta: Any
) -> None:
    bench.wb.put(TABLE, ID, {"name": "Ada", "n": cached})
    receipt = bench.wb.increment(TABLE, ID, {"n": delta})
    assert bench.kind() == "marker"
    assert (bench.seq(), bench.ttl()) == (receipt.seq, -1)


@pytest.mark.parametrize("deltas", [{"age": 1, "other": 1}, {"other": 1, "age": 1}], ids=["last", "first"])
def test_an_increment_of_a_column_that_is_not_cached_leaves_a_marker(
    bench: Bench, deltas: dict[str, int]
) -> None:
    bench.reach("row")
    receipt = bench.wb.increment(TABLE, ID, deltas)
    assert (bench.kind(), bench.seq()) == ("marker", receipt.seq)
    assert set(bench.fields()) == {b"@seq", b"@is"}, "nothing of the half-done sum is left"


@pytest.mark.parametrize(
    ("cached", "delta"), [(2**63 - 2, 1), (-(2**63) + 1, -1), (0, 0), (5, -7), (2**53, 1)]
)
def test_an_increment_within_64_bits_is_exact(bench: Bench, cached: int, delta: int) -> None:
    bench.wb.put(TABLE, ID, {"n": cached, "m": 1})
    bench.wb.increment(TABLE, ID, {"n": delta, "m": 1})
    assert bench.row() == {"n": cached + delta, "m": 2}


# What is not ours.


def set_string(bench: Bench) -> None:
    bench.client.set(bench.key, '{"name": "set by hand"}', ex=100)


def set_list(bench: Bench) -> None:
    bench.client.rpush(bench.key, "x")


def set_hash(bench: Bench) -> None:
    bench.client.hset(bench.key, "name", '"by hand"')


def set_hash_with_our_field(bench: Bench) -> None:
    bench.client.hset(bench.key, "@seq", "no number")


FOREIGN = [set_string, set_list, set_hash]


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("op", CALLS)
def test_a_write_takes_the_place_of_what_is_not_ours(
    bench: Bench, foreign: Callable[[Bench], None], op: str
) -> None:
    foreign(bench)
    receipt = CALLS[op](bench.wb)
    assert bench.kind() == AFTER[op]["absent"]
    assert (bench.seq(), bench.ttl()) == (receipt.seq, -1)


@pytest.mark.parametrize("foreign", [*FOREIGN, set_hash_with_our_field])
def test_settling_leaves_alone_what_is_not_ours(bench: Bench, foreign: Callable[[Bench], None]) -> None:
    receipt = bench.wb.put(TABLE, ID, ROW)
    bench.client.delete(bench.key)
    foreign(bench)
    before = bench.client.dump(bench.key), bench.ttl()
    bench.settle(receipt, rejected=receipt)
    bench.settle(receipt)
    bench.settle(receipt, is_put=True)
    assert (bench.client.dump(bench.key), bench.ttl()) == before


@pytest.mark.parametrize("foreign", FOREIGN)
def test_get_over_what_is_not_ours_loads_and_does_not_fill(
    bench: Bench, foreign: Callable[[Bench], None]
) -> None:
    foreign(bench)
    before = bench.client.dump(bench.key)
    assert bench.wb.get(TABLE, ID, load=lambda _: ROW) == ROW
    assert bench.wb.get(TABLE, ID) is None
    assert bench.client.dump(bench.key) == before


# Rejected writes.


def test_a_rejected_write_removes_the_entry_that_shows_it(bench: Bench) -> None:
    for state in ("row", "marker", "tombstone"):
        bench.reach(state)
        bench.settle(0, rejected=bench.seq())
        assert bench.kind() == "absent"


def test_a_rejected_write_under_a_pending_patch_goes_when_the_patch_is_settled(bench: Bench) -> None:
    bad = bench.wb.put(TABLE, ID, {"name": "bad", "age": 1})
    newer = bench.wb.patch(TABLE, ID, {"age": 2})
    bench.settle(0, rejected=bad)
    assert bench.wb.get(TABLE, ID, load=unexpected) == {"name": "bad", "age": 2}
    assert bench.ttl() == -1
    bench.settle(newer)
    assert bench.kind() == "absent"


def test_a_dirty_entry_stays_dirty_under_further_patches(bench: Bench) -> None:
    bad = bench.wb.put(TABLE, ID, {"name": "bad", "age": 1})
    second = bench.wb.patch(TABLE, ID, {"age": 2})
    bench.settle(0, rejected=bad)
    third = bench.wb.increment(TABLE, ID, {"age": 1})
    bench.settle(second)
    assert bench.kind() == "row"
    bench.settle(third)
    assert bench.kind() == "absent"


def test_a_put_over_a_dirty_entry_makes_it_clean(bench: Bench) -> None:
    bad = bench.wb.put(TABLE, ID, {"name": "bad", "age": 1})
    bench.wb.patch(TABLE, ID, {"age": 2})
    bench.settle(0, rejected=bad)
    good = bench.wb.put(TABLE, ID, ROW)
    bench.settle(good)
    assert bench.row() == ROW


def test_a_put_that_was_pending_as_an_earlier_write_was_rejected_stays(bench: Bench) -> None:
    """It shows nothing of that one."""
    bad = bench.wb.put(TABLE, ID, {"name": "bad", "age": 1})
    good = bench.wb.put(TABLE, ID, ROW)
    bench.settle(0, rejected=bad)
    assert (bench.row(), bench.ttl()) == (ROW, -1)
    bench.settle(good, is_put=True)
    assert (bench.row(), bench.ttl()) == (ROW, TTL_S)


def test_a_settled_put_gives_a_newer_write_no_time_to_live(bench: Bench) -> None:
    put = bench.wb.put(TABLE, ID, ROW)
    for write in (partial(bench.wb.patch, data={"age": 2}), bench.wb.delete):
        newer = write(TABLE, ID)
        bench.settle(put, is_put=True)
        assert (bench.seq(), bench.ttl()) == (newer.seq, -1)


def test_a_settled_put_makes_no_entry_where_there_is_none(bench: Bench) -> None:
    put = bench.wb.put(TABLE, ID, ROW)
    bench.client.delete(bench.key)
    bench.settle(put, is_put=True)
    assert bench.kind() == "absent"


def test_an_entry_below_a_settled_put_does_not_stay_for_ever(bench: Bench) -> None:
    """A message that somebody pushed names another row's key, and a later seq: else it would."""
    put = bench.wb.put(TABLE, ID, ROW)
    bench.settle(put.seq + 1, is_put=True)
    assert (bench.row(), bench.ttl()) == (ROW, TTL_S)


def test_a_rejected_write_and_an_applied_newer_one_of_the_same_batch_remove_the_entry(bench: Bench) -> None:
    bad = bench.wb.put(TABLE, ID, {"name": "bad", "age": 1})
    good = bench.wb.patch(TABLE, ID, {"age": 2})
    bench.settle(good, rejected=bad)
    assert bench.kind() == "absent"


def test_an_applied_write_and_a_rejected_newer_one_of_the_same_batch_remove_the_entry(bench: Bench) -> None:
    good = bench.wb.put(TABLE, ID, ROW)
    bad = bench.wb.patch(TABLE, ID, {"age": -1})
    bench.settle(good, rejected=bad)
    assert bench.kind() == "absent"


def test_a_rejected_write_does_not_touch_an_entry_loaded_since(bench: Bench) -> None:
    bad = bench.wb.put(TABLE, ID, {"name": "bad", "age": 1})
    bench.client.delete(bench.key)
    bench.wb.get(TABLE, ID, load=lambda _: ROW)
    bench.settle(0, rejected=bad)
    assert bench.row() == ROW


@pytest.fixture
def users(pg: psycopg.Connection[Any]) -> str:
    pg.execute("CREATE TABLE users (id int PRIMARY KEY, name text, age int CHECK (age >= 0))")
    return TABLE


def test_a_worker_settles_what_it_has_committed_and_drops_what_was_rejected(
    bench: Bench, users: str, redis_url: str, postgres_url: str
) -> None:
    good = bench.wb.put(users, ID, ROW)
    bad = bench.wb.put(users, 8, {"name": "Bob", "age": -1})
    with RunningWorker(redis_url=redis_url, postgres_url=postgres_url, queue=bench.wb.keys.queue):
        good.wait(10)
        with pytest.raises(WriteRejected):
            bad.wait(10)
    assert bench.row() == ROW
    assert TTL_S - 10 <= bench.ttl() <= TTL_S
    assert not bench.client.exists(bench.key.replace(":7", ":8"))
    assert bench.wb.get(users, 8, load=lambda _: None) is None


@pytest.mark.parametrize("ttl_s", [2**31, 10**16, 10**30])
def test_no_time_to_live_of_a_message_can_stop_the_worker(
    bench: Bench, users: str, redis_url: str, postgres_url: str, ttl_s: int
) -> None:
    """EXPIRE refuses what overflows 64 bits of milliseconds, and settling must not fail."""
    wb = bench.wb
    wb.put(users, ID, ROW)
    item = bench.client.lpop(wb.keys.queue)
    assert isinstance(item, bytes)
    longer = item.replace(b'"ttl":%d' % TTL_S, b'"ttl":%d' % ttl_s)
    assert longer != item
    bench.client.lpush(wb.keys.queue, longer)
    after = wb.put(users, 8, ROW)
    with RunningWorker(redis_url=redis_url, postgres_url=postgres_url, queue=wb.keys.queue):
        after.wait(3)


# Columns.


def test_columns_that_begin_with_our_sign_are_columns_like_any_other(bench: Bench) -> None:
    row = {"@seq": 1, "@is": "fill", "@": 2, "@@": 3, "@token": "x", "name": "Ada", "@dirty": None}
    receipt = bench.wb.put(TABLE, ID, row)
    assert bench.wb.get(TABLE, ID) == row
    assert (bench.seq(), bench.kind()) == (receipt.seq, "row")
    bench.wb.patch(TABLE, ID, {"@is": "marker", "@@": 4})
    bench.wb.increment(TABLE, ID, {"@seq": 1, "@": 1})
    assert bench.wb.get(TABLE, ID) == row | {"@is": "marker", "@@": 4, "@seq": 2, "@": 3}
    bench.client.delete(bench.key)
    assert bench.wb.get(TABLE, ID, load=lambda _: row) == row
    assert bench.wb.get(TABLE, ID, load=unexpected) == row


def test_a_row_of_as_many_columns_as_postgres_allows_is_cached(bench: Bench) -> None:
    row = {f"column_{i}": i for i in range(1600)}
    bench.wb.put(TABLE, ID, row)
    bench.wb.patch(TABLE, ID, dict.fromkeys(row, "x"))
    assert bench.wb.get(TABLE, ID) == dict.fromkeys(row, "x")
    bench.client.delete(bench.key)
    assert bench.wb.get(TABLE, ID, load=lambda _: row) == row
    bench.wb.increment(TABLE, ID, dict.fromkeys(row, 1))
    assert bench.wb.get(TABLE, ID, load=unexpected) == {c: n + 1 for c, n in row.items()}


@pytest.mark.parametrize("op", ["put", "patch", "increment"])
def test_a_write_of_more_columns_than_a_script_can_hold_is_all_or_nothing(bench: Bench, op: str) -> None:
    """A script that fails keeps what it has written: it must not come so far."""
    wb, queue = bench.wb, bench.wb.keys.queue
    wb.put(TABLE, ID, ROW)
    wb.put(TABLE, 8, {"c0": 0})
    before = bench.fields()
    try:
        with wb.batch() as batch:
            batch.patch(TABLE, ID, {"age": 1})
            getattr(batch, op)(TABLE, 8, {f"c{i}": i for i in range(10_000)})
    except (InvalidWrite, RedisRefused):
        assert bench.client.llen(queue) == 2
        assert bench.fields() == before
        assert wb.get(TABLE, 8) == {"c0": 0}
    else:
        assert bench.client.llen(queue) == 4
        assert bench.seq() == batch.receipts[0].seq


def test_a_loaded_row_of_more_columns_than_a_script_can_hold_never_stays_for_ever(bench: Bench) -> None:
    row = {f"c{i}": i for i in range(10_000)}
    assert bench.wb.get(TABLE, ID, load=lambda _: row) == row
    assert bench.ttl() != -1


def test_a_row_without_columns_is_a_row(bench: Bench) -> None:
    bench.wb.put(TABLE, ID, {})
    assert bench.wb.get(TABLE, ID, load=unexpected) == {}
    bench.client.delete(bench.key)
    assert bench.wb.get(TABLE, ID, load=lambda _: {}) == {}
    assert bench.wb.get(TABLE, ID, load=unexpected) == {}
