"""A receipt tells when its write is in Postgres, why it is not, or that nobody can tell any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import msgspec
import psycopg
import pytest
import redis
from tests.support.workers import RunningWorker

from writebehind import FlushTimeout, OutcomeUnknown, Receipt, WriteBehind, WriteRejected
from writebehind.receipt import REJECTED_BOUND, Rejection
from writebehind_worker.testing.wait import wait_until


@pytest.fixture
def wb(redis_url: str, queue: str) -> Iterator[WriteBehind]:
    with WriteBehind.from_url(redis_url, queue=queue, prefix=f"{queue}:") as wb:
        yield wb


@pytest.fixture(autouse=True)
def users(pg: psycopg.Connection[Any]) -> None:
    pg.execute("CREATE TABLE users (id int PRIMARY KEY, name text, age int CHECK (age >= 0))")


@pytest.fixture
def worker(
    redis_url: str, postgres_url: str, queue: str
) -> Callable[[], AbstractContextManager[RunningWorker]]:
    return lambda: RunningWorker(redis_url=redis_url, postgres_url=postgres_url, queue=queue)


def apply_up_to(receipt: Receipt, wb: WriteBehind) -> None:
    """What the worker writes when it acknowledges."""
    wb.redis.set(wb.keys.applied, receipt.seq)


def reject(wb: WriteBehind, *rejections: Rejection) -> None:
    wb.redis.zadd(wb.keys.rejected, {msgspec.json.encode(r): r.seq for r in rejections})


# With a worker.


def test_wait_returns_when_the_row_is_in_postgres(
    wb: WriteBehind, worker: Callable[[], RunningWorker], pg: psycopg.Connection[Any]
) -> None:
    with worker():
        for n in range(20):
            wb.put("users", n, {"name": f"user {n}"}).wait(10)
            row = pg.execute("SELECT name FROM users WHERE id = %s", [n]).fetchone()
            assert row == (f"user {n}",)


def test_wait_returns_at_once_for_a_write_committed_long_ago(
    wb: WriteBehind, worker: Callable[[], RunningWorker]
) -> None:
    receipt = wb.put("users", 1, {"name": "Ada"})
    with worker():
        wb.put("users", 2, {}).wait(10)
    assert receipt.is_durable() is True
    receipt.wait(0)
    receipt.wait()


def test_wait_raises_with_the_reason_and_the_sqlstate_of_a_rejected_write(
    wb: WriteBehind, worker: Callable[[], RunningWorker], pg: psycopg.Connection[Any]
) -> None:
    with worker():
        good = wb.put("users", 1, {"name": "Ada", "age": 36})
        bad = wb.put("users", 2, {"name": "Bob", "age": -1})
        later = wb.put("users", 3, {"name": "Eve"})
        with pytest.raises(WriteRejected) as caught:
            bad.wait(10)
        good.wait(10)
        later.wait(10)
    assert (caught.value.seq, caught.value.sqlstate) == (bad.seq, "23514")
    assert "users_age_check" in caught.value.reason
    assert "23514" in str(caught.value)
    for _ in range(2):
        with pytest.raises(WriteRejected):
            bad.is_durable()
    assert pg.execute("SELECT id FROM users ORDER BY id").fetchall() == [(1,), (3,)]


REASONS: dict[str, Callable[[WriteBehind], Receipt]] = {
    "42P01": lambda wb: wb.put("no_such_table", 1, {"a": 1}),
    "42703": lambda wb: wb.put("users", 1, {"no_such_column": 1}),
    "22P02": lambda wb: wb.put("users", 1, {"age": "no number"}),
    "22003": lambda wb: wb.put("users", 1, {"age": 2**31}),
    "23514": lambda wb: wb.put("users", 1, {"age": -1}),
}


def test_every_reason_of_a_rejection_comes_back(wb: WriteBehind, worker: Callable[[], RunningWorker]) -> None:
    receipts = {sqlstate: write(wb) for sqlstate, write in REASONS.items()}
    with worker():
        for sqlstate, receipt in receipts.items():
            with pytest.raises(WriteRejected) as caught:
                receipt.wait(10)
            assert (caught.value.seq, caught.value.sqlstate) == (receipt.seq, sqlstate)
            assert caught.value.reason
        wb.put("users", 9, {}).wait(10)


KEYS: dict[str, list[Any]] = {
    "users": ["no number", "1.5", 1.5, True, 2**31, 2**63, 10**50, "1\0", {"id": 1, "x": 2}, {"x": 1}],
    "words": ["nul\0", "x" * 20, {"no": "x"}],
    "tokens": ["no uuid", 7, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1"],
    "flags": ["maybe", 2],
    "days": ["2024-02-30", 7, "yesterdays"],
    "pairs": [1, "1:2", {"a": 1}, {"a": 1, "b": "x"}, {"a": "x", "b": 1}, {"a": 1, "b": 2, "c": 3}],
}


@pytest.fixture
def keyed(pg: psycopg.Connection[Any]) -> None:
    """The tables of KEYS."""
    pg.execute("""
        CREATE TABLE words (word varchar(10) PRIMARY KEY, n int);
        CREATE TABLE tokens (token uuid PRIMARY KEY, n int);
        CREATE TABLE flags (flag bool PRIMARY KEY, n int);
        CREATE TABLE days (day date PRIMARY KEY, n int);
        CREATE TABLE pairs (a int, b int, n int, PRIMARY KEY (a, b));
        ALTER TABLE users ADD n int;
    """)


@pytest.mark.usefixtures("keyed")
@pytest.mark.parametrize("table", KEYS)
def test_a_write_whose_key_postgres_cannot_read_is_rejected_and_takes_nothing_along(
    wb: WriteBehind, worker: Callable[[], RunningWorker], pg: psycopg.Connection[Any], table: str
) -> None:
    good: list[Receipt] = []
    bad: list[Receipt] = []
    for key in KEYS[table]:
        good.append(wb.put("users", 1000 + len(good), {"n": 1}))
        bad += [write(table, key, {"n": 1}) for write in (wb.put, wb.patch, wb.increment)]
    with worker():
        for receipt in good:
            receipt.wait(5)
        for receipt in bad:
            with pytest.raises(WriteRejected):
                receipt.wait(5)
    assert pg.execute("SELECT count(*) FROM users").fetchone() == (len(good),)


@pytest.mark.usefixtures("keyed")
def test_a_delete_whose_key_postgres_cannot_read_takes_nothing_along(
    wb: WriteBehind, worker: Callable[[], RunningWorker], pg: psycopg.Connection[Any]
) -> None:
    """Rejected or not: Postgres need not read a key where it finds that there is nothing to delete."""
    good: list[Receipt] = []
    for table, keys in KEYS.items():
        for key in keys:
            good.append(wb.put("users", 1000 + len(good), {"n": 1}))
            wb.delete(table, key)
    with worker():
        for receipt in good:
            receipt.wait(5)
    assert pg.execute("SELECT count(*) FROM users").fetchone() == (len(good),)


def test_a_patch_of_a_row_that_is_not_there_is_rejected(
    wb: WriteBehind, worker: Callable[[], RunningWorker]
) -> None:
    with worker(), pytest.raises(WriteRejected, match="was rejected"):
        wb.patch("users", 404, {"name": "x"}).wait(10)


def test_a_batch_waits_for_all_of_its_writes(
    wb: WriteBehind, worker: Callable[[], RunningWorker], pg: psycopg.Connection[Any]
) -> None:
    with wb.batch() as batch:
        for n in range(500):
            batch.put("users", n, {"name": "x"})
    with worker():
        batch.wait(10)
        assert pg.execute("SELECT count(*) FROM users").fetchone() == (500,)


def test_a_batch_raises_for_the_first_of_its_writes_that_was_rejected(
    wb: WriteBehind, worker: Callable[[], RunningWorker], pg: psycopg.Connection[Any]
) -> None:
    before = wb.put("users", 100, {"age": -1})
    with wb.batch() as batch:
        for n in range(10):
            batch.put("users", n, {"age": -1 if n in (3, 7) else n})
    with worker():
        with pytest.raises(WriteRejected) as caught:
            batch.wait(10)
        assert caught.value.seq == batch.receipts[3].seq
        for n, receipt in enumerate(batch.receipts):
            if n in (3, 7):
                with pytest.raises(WriteRejected):
                    receipt.wait(10)
            else:
                receipt.wait(10)
        with pytest.raises(WriteRejected):
            before.wait(10)
    assert pg.execute("SELECT count(*) FROM users").fetchone() == (8,)


def test_a_receipt_of_before_a_wipe_of_redis_says_that_nobody_can_tell(
    wb: WriteBehind, worker: Callable[[], RunningWorker], redis_client: redis.Redis, queue: str
) -> None:
    lost = wb.put("users", 1, {})
    for key in redis_client.keys(f"*{queue}*"):
        redis_client.delete(key)
    with pytest.raises(OutcomeUnknown):
        lost.wait(10)
    with worker():
        wb.put("users", 2, {}).wait(10)
        with pytest.raises(OutcomeUnknown, match=str(lost.seq)):
            lost.wait(10)


# Without one.


def test_wait_gives_up_after_its_time(wb: WriteBehind) -> None:
    receipt = wb.put("users", 1, {})
    with wb.batch() as batch:
        batch.put("users", 2, {})
    for wait in (receipt.wait, batch.wait):
        started = time.monotonic()
        with pytest.raises(FlushTimeout, match=r"0\.05 s"):
            wait(0.05)
        assert time.monotonic() - started < 5
        with pytest.raises(FlushTimeout):
            wait(0)
    assert receipt.is_durable() is False
    assert isinstance(FlushTimeout(), TimeoutError)


def test_a_write_is_not_durable_before_all_up_to_it_are(wb: WriteBehind) -> None:
    first, second = wb.put("users", 1, {}), wb.put("users", 2, {})
    apply_up_to(first, wb)
    assert first.is_durable() is True
    assert second.is_durable() is False


def test_waiting_without_a_limit_ends_with_the_commit(wb: WriteBehind) -> None:
    receipt = wb.put("users", 1, {})
    with ThreadPoolExecutor(1) as pool:
        started = threading.Event()

        def wait() -> None:
            started.set()
            receipt.wait()

        waiting = pool.submit(wait)
        started.wait(5)
        assert not waiting.done()
        apply_up_to(receipt, wb)
        waiting.result(timeout=5)


def test_a_wait_under_way_notices_a_new_generation(wb: WriteBehind, redis_client: redis.Redis) -> None:
    receipt = wb.put("users", 1, {})
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(receipt.wait, 10)
        redis_client.hset(wb.keys.clock, "generation", receipt.generation + 1)
        with pytest.raises(OutcomeUnknown, match=str(receipt.generation + 1)):
            waiting.result(timeout=5)


def test_a_new_generation_makes_the_outcome_unknown_even_if_more_is_applied(
    wb: WriteBehind, redis_client: redis.Redis
) -> None:
    with wb.batch() as batch:
        batch.put("users", 1, {})
    (receipt,) = batch.receipts
    apply_up_to(receipt, wb)
    redis_client.hset(wb.keys.clock, "generation", receipt.generation + 1)
    for wait in (receipt.wait, batch.wait):
        with pytest.raises(OutcomeUnknown):
            wait(1)
    newer = wb.put("users", 1, {})
    assert newer.generation == receipt.generation + 1
    assert newer.is_durable() is False


def test_a_rejection_that_may_have_been_forgotten_makes_the_outcome_unknown(wb: WriteBehind) -> None:
    old = wb.put("users", 1, {})
    new = wb.put("users", 2, {})
    apply_up_to(new, wb)
    start = old.seq + 1
    reject(wb, *(Rejection(start + n, "bad") for n in range(REJECTED_BOUND - 1)))
    assert old.is_durable() is True, "nothing has been forgotten yet"
    reject(wb, Rejection(start + REJECTED_BOUND, "bad"))
    with pytest.raises(OutcomeUnknown, match="dead list"):
        old.wait(1)


def test_a_rejection_names_its_reason_without_a_sqlstate_where_postgres_never_saw_the_write(
    wb: WriteBehind,
) -> None:
    receipt = wb.put("users", 1, {})
    apply_up_to(receipt, wb)
    reject(wb, Rejection(receipt.seq - 1, "another's"), Rejection(receipt.seq + 1, "another's"))
    assert receipt.is_durable() is True
    reject(wb, Rejection(receipt.seq, "not ours to write"))
    with pytest.raises(WriteRejected, match="not ours to write") as caught:
        receipt.wait(1)
    assert (caught.value.seq, caught.value.sqlstate) == (receipt.seq, None)
    assert "SQLSTATE" not in str(caught.value)


def test_a_receipt_says_what_it_stands_for(wb: WriteBehind, queue: str) -> None:
    receipt = wb.put("users", 1, {})
    assert receipt.queue == queue
    assert repr(receipt) == f"Receipt(queue={queue!r}, generation={receipt.generation}, seq={receipt.seq})"


def test_many_threads_may_wait_for_one_receipt(
    wb: WriteBehind, worker: Callable[[], RunningWorker], redis_client: redis.Redis
) -> None:
    receipt = wb.put("users", 1, {})
    with ThreadPoolExecutor(8) as pool, worker():
        for waiting in [pool.submit(receipt.wait, 10) for _ in range(8)]:
            waiting.result(timeout=15)
    wait_until(lambda: not redis_client.llen(wb.keys.queue))
