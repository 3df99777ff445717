"""Shards: each row's writes go to one of them, however many there are, and while that number changes."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from tests.support.fleets import RunningFleet
from tests.support.shard_history import check_history
from tests.support.sharded import Run, all_queues, keys, killed_after, rows, run, wait_until_drained

from writebehind import ShardsDiffer, WriteBehind, WriteRejected
from writebehind.keys import QueueKeys
from writebehind.route import shard_of
from writebehind.shards import shard_queues
from writebehind_worker.errors import FatalError
from writebehind_worker.lease import own_name
from writebehind_worker.resharding import divide, layout_of, still_draining
from writebehind_worker.share import fair_share, is_last
from writebehind_worker.testing.proxy import Proxy, proxied_url
from writebehind_worker.testing.wait import wait_until

__all__ = ["keys", "rows", "run"]  # fixtures

Connect = Callable[..., WriteBehind]


# Which shard.


@given(st.integers(-(10**30), 10**30), st.integers(2, 1024))
def test_all_spellings_of_a_number_are_one_row(number: int, shards: int) -> None:
    spelt = [f"{number}", f" {number:+d} ", f"{number:+032d}", f"{number}.0", f"{number}.000"]
    assert len({shard_of("t", text, shards) for text in spelt}) == 1


@given(st.uuids(), st.integers(2, 1024))
def test_all_spellings_of_a_uuid_are_one_row(value: Any, shards: int) -> None:
    spelt = [str(value), str(value).upper(), f"{{{value}}}", value.hex]
    assert len({shard_of(table, text, shards) for text in spelt for table in ("t", "app.t")}) == 1


def test_rows_are_spread_evenly_and_stay_where_they_are() -> None:
    for shards in (2, 3, 16):
        for key in (str, lambda n: f"user-{n}", lambda n: {"b": str(n), "a": str(n % 7)}):
            found = Counter(shard_of("users", key(n), shards) for n in range(10_000))
            assert len(found) == shards
            assert max(found.values()) < 1.2 * 10_000 / shards
    # Written down elsewhere: another program, another version must find the same.
    assert [shard_of("users", str(n), 16) for n in range(8)] == PINNED


PINNED = [11, 13, 7, 1, 2, 4, 14, 8]


@given(st.sets(st.text(min_size=1), min_size=1, max_size=20), st.integers(0, 100))
def test_shares_add_up_and_differ_by_one_at_most(workers: set[str], queues: int) -> None:
    shares = [fair_share(workers, worker, queues) for worker in workers]
    assert sum(shares) == queues
    assert max(shares) - min(shares) <= 1
    [last] = [worker for worker in workers if is_last(workers, worker)]
    assert fair_share(workers, last, queues) == min(shares)


# Clients.


def test_a_client_finds_out_by_itself(connect: Connect, redis_client: redis.Redis, keys: QueueKeys) -> None:
    wb = connect()
    wb.put("t", 0, {"v": 0})
    divide(redis_client, keys, 4)
    for n in range(1, 41):
        wb.put("t", n, {"v": n})
    lengths = [redis_client.llen(name) for name in shard_queues(keys.queue, 4)]
    assert sum(lengths) == 40 and min(lengths) > 0
    assert redis_client.llen(keys.queue) == 1
    assert wb.get_many("t", range(41)) == [{"v": n} for n in range(41)]
    with wb.batch() as batch:
        for n in range(40):
            batch.put("t", n, {"v": -n})
    assert [receipt.seq for receipt in batch.receipts] != sorted(receipt.seq for receipt in batch.receipts)
    assert len({receipt.queue for receipt in batch.receipts}) == 4
    assert wb.get("t", 7) == {"v": -7}
    assert not wb.invalidate("t", 7)


def test_a_batch_that_one_shard_refuses_sends_only_the_rest_again(
    connect: Connect, redis_client: redis.Redis, keys: QueueKeys
) -> None:
    divide(redis_client, keys, 2)
    wb = connect()
    first = wb.put("t", 0, {}).queue
    (second,) = {*shard_queues(keys.queue, 2)} - {first}
    broken = QueueKeys(second).producers
    redis_client.set(broken, "of others")
    batch = wb.batch()
    with pytest.raises(Exception, match="WRONGTYPE"), batch:
        for n in range(20):
            batch.increment("t", n, {"n": 1})
    accepted = len(batch.receipts)
    assert 0 < accepted < 20 and len(batch) == 20 - accepted
    redis_client.delete(broken)
    with batch:
        pass
    assert len(batch.receipts) == 20 and len(batch) == 0
    assert sum(redis_client.llen(name) for name in shard_queues(keys.queue, 2)) == 21


def test_a_client_that_was_told_another_number_says_so(
    connect: Connect, redis_client: redis.Redis, keys: QueueKeys
) -> None:
    with pytest.raises(ShardsDiffer, match="has 1 shards"):
        connect(shards=4).put("t", 1, {})
    divide(redis_client, keys, 4)
    for told in (1, 2):
        with pytest.raises(ShardsDiffer, match="shards=4"):
            connect(shards=told).put("t", 1, {})
    connect(shards=4).put("t", 1, {})
    assert sum(redis_client.llen(name) for name in shard_queues(keys.queue, 4)) == 1


@pytest.mark.parametrize("shards", [0, -1, 1025, 1.5, True, "2"])
def test_an_odd_number_is_refused(connect: Connect, shards: Any) -> None:
    with pytest.raises(ValueError, match="shards must be"):
        connect(shards=shards)


# Dividing.


def test_nothing_of_the_new_shards_is_written_before_the_old_ones_are(
    connect: Connect,
    redis_client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
) -> None:
    wb = connect()
    receipts = [wb.put("rows", n, {"v": 1}) for n in range(50)]
    layout = divide(redis_client, keys, 4)
    assert layout.draining == (1,)
    receipts += [wb.put("rows", n, {"v": 2}) for n in range(50)]
    patched = wb.patch("rows", 3, {"n": 5})
    assert still_draining(redis_client, keys, layout) == 50
    with pytest.raises(FatalError, match="former shards"):
        divide(redis_client, keys, 2)
    with RunningFleet(**options):
        for receipt in (*receipts, patched):
            receipt.wait(20)
        assert not layout_of(redis_client, keys).draining
    assert rows.execute("SELECT count(*), min(v), max(n) FROM rows").fetchone() == (50, 2, 5)


def test_a_marker_of_before_is_known_to_be_committed_after(
    connect: Connect,
    redis_client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
) -> None:
    wb, reader = connect(), connect()
    reader.get("rows", 1)
    wb.increment("rows", 1, {"n": 1})
    divide(redis_client, keys, 3)
    wb.put("rows", 2, {"v": 1})
    with RunningFleet(**options):
        assert wb.get("rows", 1, lambda _: {"n": 1}, timeout=20) == {"n": 1}
        assert reader.get("rows", 1, lambda _: {"n": 1}, timeout=20) == {"n": 1}


@pytest.mark.parametrize("step", ["begin", "close", "open", "switch", "let go"])
def test_who_is_killed_half_way_is_followed_by_who_does_the_rest(
    connect: Connect,
    redis_client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    wb = connect()
    wb.put("rows", 1, {"v": 1})
    with killed_after(step, monkeypatch):
        layout = divide(redis_client, keys, 3)
        with RunningFleet(**options):
            wb.put("rows", 1, {"v": 2}).wait(2)  # by "let go" the fleet dies of it
        still_draining(redis_client, keys, layout)
    divide(redis_client, keys, 3)
    with RunningFleet(**options):
        wb.put("rows", 1, {"v": 3}).wait(20)
    assert rows.execute("SELECT v FROM rows").fetchall() == [(3,)]
    assert layout_of(redis_client, keys).shards == 3


def test_the_commands_see_all_shards(
    connect: Connect,
    redis_client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    run: Run,
) -> None:
    wb = connect()
    run("reshard", "4")
    for n in range(40):
        wb.put("rows", n, {"v": n})
    text = run("status")
    assert text.startswith("40 writes wait in Redis, the oldest for ")
    assert "and no worker brings any to Postgres.\n" in text.partition("4 shards")[0]
    waiting = {n: int(w) for n, w in re.findall(r"^(\S+): (\d+) writes wait in Redis", text, re.MULTILINE)}
    assert waiting.keys() == set(shard_queues(keys.queue, 4)) and sum(waiting.values()) == 40
    told = json.loads(run("status", "--json"))
    assert sum(shard["redis"]["length"] for shard in told["shards"]) == 40
    assert told["verdict"].startswith("40 writes wait in Redis")
    assert "40 writes in the queue" in run("drain", "--timeout", "0", code=1)
    run("pause", "--reason", "a migration")
    with RunningFleet(**options) as fleet:
        wait_until(lambda: len(fleet.owned()) == 5)
        wait_until(lambda: "paused by an operator" in (fleet.state.facts()["paused"] or ""))
        run("drain", "--timeout", "20", code=1)
        assert rows.execute("SELECT count(*) FROM rows").fetchone() == (0,)
        assert "Resumed" in run("resume")
        run("drain", "--timeout", "30")
        assert rows.execute("SELECT count(*) FROM rows").fetchone() == (40,)
        text = fleet.metrics.text().decode()
        assert text.count("# HELP writebehind_writes_total") == 1
        applied = re.findall(r'writebehind_writes_total{.*?queue="([^"]+)".*?} (\S+)', text)
        assert sum(float(value) for _, value in applied) == 40 and len(applied) == 4
        assert fleet.metrics.figures().applied == 40
        assert "has 1 shard;" in run("reshard", "1")
        wb.put("rows", 1, {"v": 7}).wait(20)
        assert "paused" not in run("status")
        wait_until(lambda: b'of4"' not in fleet.metrics.text())  # former shards would page: no owner
        held = re.compile(r"^writebehind_lease_held{.*?} (\S+)", re.MULTILINE)
        wait_until(lambda: held.findall(fleet.metrics.text().decode()) == ["1.0"])


def test_a_dead_letter_of_a_former_shard_is_retried_where_its_row_is_now(
    connect: Connect,
    redis_client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    run: Run,
) -> None:
    rows.execute("ALTER TABLE rows ADD CHECK (n < 100)")
    wb = connect()

    def open_letters() -> dict[str, int]:
        """By the queue that tells of them."""
        told = re.findall(
            r'^writebehind_dead_letters_open\{.*queue="(.*?)".*\} (\S+)$', fleet.metrics.text().decode(), re.M
        )
        found = Counter[str]()
        for name, count in told:
            found[name] += int(float(count))
        return dict(found)

    with RunningFleet(**options) as fleet:
        run("reshard", "3")
        for n in range(12):
            with pytest.raises(WriteRejected):
                wb.put("rows", n, {"v": 1, "n": 100}, wait=20)
        run("reshard", "2")
        wb.put("rows", 3, {"v": 2, "n": 2}, wait=20)  # supersedes the letter
        rows.execute("ALTER TABLE rows DROP CONSTRAINT rows_n_check")
        assert len(json.loads(run("dead", "list", "--json"))) == 11
        wait_until(lambda: open_letters() == {keys.queue: 11})  # no owner of theirs tells of them any more
        assert sum(one["count"] for one in json.loads(run("status", "--json"))["dead_letters"]) == 11
        run("dead", "retry", "--all")
        run("drain", "--timeout", "20")
    found = dict(rows.execute("SELECT id, n FROM rows ORDER BY id"))
    assert found == {n: 2 if n == 3 else 100 for n in range(12)}
    assert rows.execute("SELECT count(*) FROM writebehind.dead_letters").fetchone() == (1,)


def test_a_worker_that_was_told_another_number_stops(
    redis_client: redis.Redis, keys: QueueKeys, options: dict[str, Any], connect: Connect
) -> None:
    with RunningFleet(**options, shards=3) as first:
        wait_until(lambda: len(first.owned()) == 4)
        assert layout_of(redis_client, keys).shards == 3
    fleet = RunningFleet(**options, shards=2)
    with pytest.raises(FatalError, match="has 3 shards, and this worker was told 2"), fleet:
        fleet._thread.join(20)


def test_each_serves_its_share_and_takes_over_from_who_is_gone(
    redis_client: redis.Redis, keys: QueueKeys, options: dict[str, Any]
) -> None:
    divide(redis_client, keys, 7)
    all_of_them = {keys.queue, *shard_queues(keys.queue, 7)}

    def are_shared(*fleets: RunningFleet) -> bool:
        owned = [fleet.owned() for fleet in fleets]
        sizes = {len(those) for those in owned}
        return set().union(*owned) == all_of_them and max(sizes) - min(sizes) <= 1

    with RunningFleet(**options) as first:
        wait_until(lambda: are_shared(first))
        with RunningFleet(**options) as second:
            wait_until(lambda: are_shared(first, second))
            third = RunningFleet(**options)
            with third:
                wait_until(lambda: are_shared(first, second, third))
            wait_until(lambda: are_shared(first, second))
        wait_until(lambda: are_shared(first))
        assert redis_client.zcard(keys.fleet) == 1


def test_who_leaves_is_followed_at_once(
    redis_client: redis.Redis, keys: QueueKeys, options: dict[str, Any]
) -> None:
    divide(redis_client, keys, 4)
    all_of_them = {keys.queue, *shard_queues(keys.queue, 4)}
    given = {**options, "lease_ttl_s": 100.0}  # of which nothing has run out when the test is over
    with RunningFleet(**given) as first:
        with RunningFleet(**given) as second:
            wait_until(lambda: len(first.owned()) + len(second.owned()) == 5 and len(second.owned()) >= 2)
        wait_until(lambda: first.owned() == all_of_them)


def test_each_tells_of_every_queue_that_it_could_serve_whether_it_reaches_the_servers(
    redis_client: redis.Redis, keys: QueueKeys, options: dict[str, Any], redis_url: str, postgres_url: str
) -> None:
    """Of those that another serves, too: else it would seem to be cut off for ever, or never."""
    divide(redis_client, keys, 3)

    def told(fleet: RunningFleet, server: str) -> set[str]:
        text = fleet.metrics.text().decode()
        return set(re.findall(rf"^writebehind_{server}_up{{.*?}} (\S+)", text, re.MULTILINE))

    def are_up(*fleets: RunningFleet) -> bool:
        return all(told(fleet, server) == {"1.0"} for fleet in fleets for server in ("redis", "postgres"))

    with Proxy.to(redis_url) as redis_proxy, Proxy.to(postgres_url) as postgres_proxy:
        cut = {
            **options,
            "redis_url": proxied_url(redis_url, redis_proxy.port),
            "postgres_url": proxied_url(postgres_url, postgres_proxy.port),
        }
        with (
            RunningFleet(**options) as first,
            RunningFleet(**options) as second,
            RunningFleet(**cut) as third,
        ):
            wait_until(lambda: sum(len(one.owned()) for one in (first, second, third)) == 4)
            wait_until(lambda: third.owned() and are_up(first, second, third))
            assert third.state.facts()["owner"] == own_name()
            postgres_proxy.refuse()
            postgres_proxy.drop_connections()
            wait_until(lambda: told(third, "postgres") == {"0.0"})
            wait_until(lambda: len(first.owned()) + len(second.owned()) == 4 and are_up(first, second))
            assert told(third, "redis") == {"1.0"}
            redis_proxy.refuse()
            redis_proxy.drop_connections()
            wait_until(lambda: told(third, "redis") == {"0.0"})
            redis_proxy.accept()
            postgres_proxy.accept()
            wait_until(lambda: third.owned() and are_up(first, second, third))


def test_a_worker_without_postgres_leaves_its_share_to_the_others(
    redis_client: redis.Redis, keys: QueueKeys, options: dict[str, Any], postgres_url: str
) -> None:
    divide(redis_client, keys, 3)
    with Proxy.to(postgres_url) as proxy:
        cut = {**options, "postgres_url": proxied_url(postgres_url, proxy.port)}
        with RunningFleet(**cut) as first, RunningFleet(**options) as second:
            wait_until(lambda: len(first.owned()) == len(second.owned()) == 2)
            proxy.refuse()
            proxy.drop_connections()
            wait_until(lambda: len(second.owned()) == 4)
            assert not first.state.readiness()[0]
            proxy.accept()
            wait_until(lambda: len(first.owned()) == len(second.owned()) == 2)


def test_the_number_changes_under_load_and_nothing_is_lost_repeated_or_out_of_order(
    connect: Connect,
    redis_client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
) -> None:
    done = threading.Event()
    written: list[dict[int, int]] = []

    def write(number: int) -> None:
        """Rows of its own: to each an ever larger number, and one more each time."""
        wb, chance = connect(), random.Random(number)
        count: dict[int, int] = {}
        written.append(count)
        while not done.is_set():
            id = number * 100 + chance.randrange(30)
            count[id] = count.get(id, 0) + 1
            with wb.batch() as batch:
                batch.increment("rows", id, {"n": 1})
                batch.put("rows", id, {"v": count[id]})

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(RunningFleet(**options))
        for thread in threads:
            thread.start()
        for shards in (4, 2, 7, 1, 3):
            wait_until(lambda: not layout_of(redis_client, keys).draining, timeout=40)
            time.sleep(0.3)
            divide(redis_client, keys, shards)
        done.set()
        for thread in threads:
            thread.join()
        wait_until_drained(redis_client, all_queues(keys, 3), timeout=40)
    assert sum(map(len, written)) > 60
    check_history(rows, written)
