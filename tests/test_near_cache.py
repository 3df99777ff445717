"""The near cache: hot rows without a round trip, own writes at once, others' within a bound."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from writebehind import RedisRefused, RedisUnavailable, WriteBehind
from writebehind.near_carrier import NearCarrier
from writebehind_worker.owned_queue import OwnedQueue
from writebehind_worker.redis_server import RedisLink
from writebehind_worker.settle import Settlement
from writebehind_worker.testing.proxy import Proxy, proxied_url
from writebehind_worker.testing.servers import Servers
from writebehind_worker.testing.wait import wait_until

OLD = {"name": "old"}
NEW = {"name": "new"}
Connect = Callable[..., WriteBehind]


@pytest.fixture
def near(connect: Connect) -> WriteBehind:
    return connect(near_cache=100)


@pytest.fixture
def other(connect: Connect) -> WriteBehind:
    """As another process has it."""
    return connect()


def unexpected(_: Any) -> None:
    raise AssertionError("the loader was called")


def cost(client: redis.Redis, call: Callable[[], Any]) -> int:
    """How often the server reads from a socket meanwhile."""

    def packets() -> int:
        stats: dict[str, Any] = client.info("stats")
        return int(stats["total_reads_processed"])

    before = packets()
    call()
    return packets() - before - 1


def keep(wb: WriteBehind, row: dict[str, Any] = OLD, id: int = 1) -> None:
    """The row is cached in Redis and near."""
    assert wb.get("t", id, lambda _: row) == row
    assert wb.get("t", id, unexpected) == row


def near_cache(wb: WriteBehind) -> Any:
    assert isinstance(wb._carrier, NearCarrier)
    return wb._carrier._near


def is_near(wb: WriteBehind, client: redis.Redis, id: int = 1) -> bool:
    return cost(client, lambda: wb.get("t", id)) == 0


def test_a_row_that_is_near_takes_no_round_trip(near: WriteBehind, redis_client: redis.Redis) -> None:
    keep(near)
    assert cost(redis_client, lambda: [near.get("t", 1, unexpected) for _ in range(50)]) == 0
    row = near.get("t", 1)
    assert row is not None
    row["name"] = "spoilt by the caller"
    assert near.get("t", 1) == OLD


def test_many_rows_that_are_near_take_none_and_the_others_one(
    near: WriteBehind, redis_client: redis.Redis
) -> None:
    rows = near.get_many("t", [1, 2, 3], lambda ids: [{"id": id} for id in ids])
    near.get_many("t", [1, 2], unexpected)
    assert cost(redis_client, lambda: near.get_many("t", [1, 2], unexpected)) == 0
    assert cost(redis_client, lambda: near.get_many("t", [1, 2, 3], unexpected)) == 1
    assert near.get_many("t", [1, 2, 3], unexpected) == rows


@pytest.mark.parametrize("op", ["put", "patch", "increment", "delete", "invalidate", "batch"])
def test_own_writes_are_seen_at_once(near: WriteBehind, redis_client: redis.Redis, op: str) -> None:
    keep(near, {"name": "old", "n": 1})
    if op == "batch":
        with near.batch() as batch:
            batch.put("t", 1, {"name": "new", "n": 1})
    elif op in ("delete", "invalidate"):
        getattr(near, op)("t", 1)
    else:
        getattr(near, op)("t", 1, {"n": 2} if op == "increment" else {"name": "new"})
    expected = {
        "put": NEW, "patch": {"name": "new", "n": 1}, "increment": {"name": "old", "n": 3},
        "batch": {"name": "new", "n": 1},
    }  # fmt: skip
    assert near.get("t", 1) == expected.get(op)


def test_a_pending_row_is_not_kept_until_it_is_durable(
    near: WriteBehind, other: WriteBehind, redis_client: redis.Redis, settle: Callable[[int], None]
) -> None:
    receipt = near.put("t", 1, NEW)
    assert near.get("t", 1) == NEW
    assert not is_near(near, redis_client)
    settle(receipt.seq)
    # That it was settled may be heard of after it was read again: then it is kept by the next one.
    wait_until(lambda: near.get("t", 1) == NEW and is_near(near, redis_client), timeout=4)
    settle(other.delete("t", 1).seq)
    wait_until(lambda: near.get("t", 1, unexpected) is None, timeout=4)
    assert not is_near(near, redis_client), "nor is what does not exist"


def test_a_fill_token_and_a_marker_are_not_kept(
    near: WriteBehind, other: WriteBehind, redis_client: redis.Redis, key: str
) -> None:
    redis_client.hset(key, mapping={"@is": "fill", "@token": "another's"})
    redis_client.pexpire(key, 200)
    assert near.get("t", 1) is None
    assert near.get("t", 1, lambda _: OLD) == OLD
    other.invalidate("t", 1)
    other.patch("t", 1, NEW)
    redis_client.expire(key, 60)
    assert near.get("t", 1) is None
    assert not is_near(near, redis_client)


@pytest.mark.parametrize("how", ["put", "patch", "delete", "invalidate", "DEL", "FLUSHDB", "replaced"])
def test_anothers_change_is_seen_within_a_moment(
    connect: Connect, other: WriteBehind, redis_client: redis.Redis, key: str, servers: Servers, how: str
) -> None:
    if how == "FLUSHDB" and not servers.ours:
        pytest.skip("the server is the user's")
    near = connect(near_cache=100, near_cache_ttl=600)  # nothing but the server's word ends it
    keep(near)
    before = near.get("t", 1)
    if how in ("put", "patch"):
        getattr(other, how)("t", 1, NEW)
    elif how in ("delete", "invalidate"):
        getattr(other, how)("t", 1)
    elif how == "replaced":
        redis_client.set(key, "a string")
    else:
        redis_client.flushdb() if how == "FLUSHDB" else redis_client.delete(key)
    wait_until(lambda: near.get("t", 1) != before, timeout=5)
    assert near.get("t", 1) == (NEW if how in ("put", "patch") else None)


def test_a_row_is_not_used_after_it_has_expired(
    near: WriteBehind, redis_client: redis.Redis, key: str
) -> None:
    """The server tells of an expiry when it comes by: that may be late."""

    def now() -> float:
        found: Any = redis_client.time()
        return float(found[0] + found[1] / 1_000_000)

    def uses() -> int:
        """How often a row was near that expires soon; none after its end, whatever the server tells."""
        near.invalidate("t", 1)
        keep(near)
        hear = near_cache(near)._hear
        redis_client.pexpire(key, 300)
        expires_at = now() + 0.3
        wait_until(lambda: not is_near(near, redis_client) or now() > expires_at)
        near.get("t", 1)
        near_cache(near)._hear = lambda: None
        found, asked_at = 0, now()
        while near.get("t", 1) is not None:
            assert asked_at <= expires_at + 0.002  # to Redis itself a key lives on for the last ms
            found, asked_at = found + 1, now()
        near_cache(near)._hear = hear
        return found

    assert any(uses() > 10 for _ in range(5)), "a busy machine has no time for it now and then"
    assert near.get("t", 1, lambda _: NEW) == NEW


def test_a_connection_that_is_half_open_hides_a_change_for_near_cache_ttl_at_most(
    redis_url: str, connect: Connect, other: WriteBehind
) -> None:
    with Proxy.to(redis_url) as proxy:
        near = connect(
            proxied_url(redis_url, proxy.port), near_cache=10, near_cache_ttl=0.5, socket_timeout=0.5
        )

        def hits(id: int) -> int:
            """How often it was near although another has written."""
            keep(near, id=id)
            read_at = time.monotonic()
            proxy.pause()
            other.put("t", id, NEW)
            found, asked_at = 0, read_at
            try:
                while near.get("t", id) == OLD:
                    assert asked_at - read_at <= 0.5
                    found, asked_at = found + 1, time.monotonic()
            except RedisUnavailable:
                pass
            finally:
                proxy.resume()
            wait_until(lambda: near.get("t", id) == NEW)
            return found

        assert any(hits(id) > 10 for id in range(1, 6)), "a busy machine has no time for it now and then"


def test_a_lost_connection_forgets_what_was_read_over_it(
    near: WriteBehind, other: WriteBehind, redis_client: redis.Redis
) -> None:
    keep(near)
    assert is_near(near, redis_client)
    for connection in redis_client.client_list():
        if "t" in connection["flags"]:
            redis_client.client_kill_filter(_id=connection["id"])
    other.put("t", 1, NEW)
    wait_until(lambda: near.get("t", 1) == NEW, timeout=4)


def test_it_comes_back_after_an_outage(redis_url: str, connect: Connect, redis_client: redis.Redis) -> None:
    with Proxy.to(redis_url) as proxy:
        near = connect(proxied_url(redis_url, proxy.port), near_cache=10)
        keep(near)
        proxy.drop_connections()
        assert near.get("t", 1) == OLD
        wait_until(lambda: is_near(near, redis_client), timeout=5)


def test_the_row_that_was_not_used_for_longest_goes_first(
    connect: Connect, redis_client: redis.Redis
) -> None:
    near = connect(near_cache=2)
    for id in (1, 2):
        keep(near, id=id)
    near.get("t", 1)
    keep(near, id=3)
    assert is_near(near, redis_client, 1)
    assert is_near(near, redis_client, 3)
    assert cost(redis_client, lambda: near.get("t", 2)) > 0


def test_a_read_that_a_write_overtakes_is_not_kept(near: WriteBehind, redis_client: redis.Redis) -> None:
    keep(near)
    cache = near_cache(near)
    cache.drop([near.settings.cache_prefix + "t:1"])
    reply = cache._reply

    def overtaken() -> Any:
        answer = reply()
        cache.drop([near.settings.cache_prefix + "t:1"])  # as an own write does as its answer comes
        return answer

    cache._reply = overtaken
    near.get("t", 1)
    assert not cache._rows._kept


def test_a_call_that_is_interrupted_leaves_no_reply_to_the_next(near: WriteBehind) -> None:
    keep(near, OLD, 1)
    keep(near, NEW, 2)
    cache = near_cache(near)
    cache.drop([near.settings.cache_prefix + f"t:{id}" for id in (1, 2)])
    reply = cache._reply

    def interrupted() -> Any:
        cache._reply = reply
        raise KeyboardInterrupt

    cache._reply = interrupted
    with pytest.raises(KeyboardInterrupt):
        near.get("t", 1)
    assert near.get("t", 2) == NEW
    assert near.get("t", 1) == OLD


def test_a_forked_child_has_a_near_cache_of_its_own(near: WriteBehind, other: WriteBehind) -> None:
    keep(near)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            keep(near)
            other.put("t", 1, NEW)
            wait_until(lambda: near.get("t", 1) == NEW, timeout=4)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    wait_until(lambda: near.get("t", 1) == NEW, timeout=4)


@pytest.mark.parametrize("what", ["use", "close"])
def test_a_child_does_not_wait_for_what_another_thread_had_at_the_fork(near: WriteBehind, what: str) -> None:
    keep(near)
    cache = near_cache(near)
    with cache._wire, cache._rows._guard:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.alarm(10)
                if what == "use":
                    with ThreadPoolExecutor(8) as threads:
                        assert list(threads.map(lambda _: near.get("t", 1), range(100))) == [OLD] * 100
                near.close()
                code = 0
            finally:
                os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert near.get("t", 1) == OLD


def test_early_refresh_works_with_it(connect: Connect, redis_client: redis.Redis, key: str) -> None:
    near = connect(near_cache=10, near_cache_ttl=60, refresh_ahead=59, ttl=60, ttl_jitter=0)
    keep(near)
    assert is_near(near, redis_client)
    wait_until(lambda: near.get("t", 1, lambda _: NEW) == NEW)
    assert near.get("t", 1, unexpected) == NEW
    assert redis_client.ttl(key) > 40


def test_readers_and_a_writer_in_threads_never_see_a_row_go_back(
    near: WriteBehind, other: WriteBehind, redis_url: str, key: str
) -> None:
    """A number grows, raised by this client and by another; what this one has seen it never unsees."""
    done, newest = threading.Event(), [0]
    near.get("t", 1, lambda _: {"n": 0})

    def read() -> int:
        seen = reads = 0
        while not done.is_set():
            at_least = newest[0]
            row = near.get("t", 1)
            assert row is not None
            assert row["n"] >= max(seen, at_least), f"{row['n']} after {seen}, written {at_least}"
            seen, reads = row["n"], reads + 1
        return reads

    with (
        RedisLink(redis_url) as link,
        ThreadPoolExecutor(4) as pool,
    ):
        owned = OwnedQueue(link, near.keys, "token")
        readers = [pool.submit(read) for _ in range(4)]
        try:
            for n in range(1, 120):
                by = random.choice((near, near, other))
                receipt = by.put("t", 1, {"n": n})
                if by is near:
                    newest[0] = n
                owned.settle([Settlement(key, 600, receipt.seq)])
                time.sleep(0.001)
        finally:
            done.set()
        assert min(reader.result(20) for reader in readers) > 0


def test_a_user_without_the_right_to_track_is_told_what_lacks(
    connect: Connect, redis_client: redis.Redis, redis_url: str, queue: str, servers: Servers
) -> None:
    if not servers.ours:
        pytest.skip("the server is the user's")
    rights = ["on", ">secret", "~*", "+@all", "-client|tracking"]
    command: Any = redis_client.execute_command
    command("ACL", "SETUSER", "untold", *rights)
    try:
        near = connect(near_cache=10, username="untold", password="secret")
        for _ in range(2):
            with pytest.raises(RedisRefused, match="client"):
                near.get("t", 1)
    finally:
        command("ACL", "DELUSER", "untold")


@pytest.mark.parametrize("options", [{"near_cache": -1}, {"near_cache": True}, {"near_cache_ttl": 0}])
def test_settings_that_make_no_sense_are_refused(redis_client: redis.Redis, options: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        WriteBehind(redis_client, **options)


@pytest.mark.parametrize("protocol", [2, 3])
def test_any_client_will_do(connect: Connect, redis_client: redis.Redis, protocol: int) -> None:
    near = connect(near_cache=10, protocol=protocol)
    keep(near)
    assert is_near(near, redis_client)
