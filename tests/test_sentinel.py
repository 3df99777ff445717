"""A primary under three sentinels fails over: what the library, the worker and the commands do about it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis
from click.testing import CliRunner
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry
from tests.support.sentinels import SERVICE, Sentinels
from tests.support.tally import TABLES, Tally, TallyDatabase
from tests.support.workers import RunningWorker, free_port

from writebehind import (
    AsyncWriteBehind,
    Change,
    Changes,
    Missed,
    OutcomeUnknown,
    RedisUnavailable,
    WriteBehind,
)
from writebehind.address import connect, connect_async
from writebehind_worker.cli import cli
from writebehind_worker.redis_server import RedisLink
from writebehind_worker.testing.wait import wait_until


@pytest.fixture
def sentinels() -> Iterator[Sentinels]:
    with Sentinels() as sentinels:
        yield sentinels


@pytest.fixture
def database(pg: psycopg.Connection[Any], queue: str) -> TallyDatabase:
    pg.execute(TABLES)
    return TallyDatabase(pg, queue)


@pytest.fixture
def options(sentinels: Sentinels, postgres_url: str, queue: str) -> dict[str, Any]:
    return {"redis_url": f"{sentinels.url}?socket_timeout=2", "postgres_url": postgres_url, "queue": queue}


@pytest.fixture
def tally(sentinels: Sentinels, queue: str) -> Iterator[Tally]:
    with Tally(f"{sentinels.url}?socket_timeout=2", queue) as tally:
        yield tally


def finish(sentinels: Sentinels, tally: Tally) -> set[int]:
    """Goes on for a while after the promotion; returns what was sent to the new primary."""
    sentinels.wait_for_promotion()
    before = max(tally.ticks)
    tally.wait_for(len(tally.ticks) + 50)
    tally.stop()
    tally.wait_until_drained()
    return {number for number in tally.ticks if number > before + 1}


def test_a_primary_that_is_killed_under_load_loses_nothing_that_was_replicated(
    sentinels: Sentinels, options: dict[str, Any], tally: Tally, database: TallyDatabase
) -> None:
    with RunningWorker(**options) as worker:
        tally.start()
        tally.wait_for(50)
        sentinels.replica_has_all()
        replicated = set(tally.ticks)
        sentinels.kill_primary()
        later = finish(sentinels, tally)
        worker.wait_for_role("owner")
    # What the first primary had not replicated, and was sent again, is a new write: docs/guarantees.md.
    applied = database.applied(tally.resent)
    assert len(tally.resent) <= 3 and replicated | later <= applied
    database.check(applied, tally.resent)


def test_writes_that_wait_for_the_replica_are_never_lost(
    sentinels: Sentinels, options: dict[str, Any], queue: str, database: TallyDatabase
) -> None:
    accepted: set[int] = set()
    stop = threading.Event()

    def write(first: int) -> None:
        url = f"{sentinels.url}?socket_timeout=2"
        with WriteBehind.from_url(url, queue=queue, durability="replicated", durability_timeout=0.2) as wb:
            for number in range(first, first + 1_000_000):
                if stop.is_set():
                    return
                try:
                    wb.increment("tally", number, {"n": 1})
                except RedisUnavailable:
                    continue
                except Exception:  # accepted, but not known to be replicated: it may be lost
                    continue
                accepted.add(number)

    threads = [threading.Thread(target=write, args=(n * 1_000_000,), daemon=True) for n in range(3)]
    with RunningWorker(**options):
        for thread in threads:
            thread.start()
        wait_until(lambda: len(accepted) > 100)
        sentinels.kill_primary()
        sentinels.wait_for_promotion()
        with sentinels.on(sentinels.servers[1]) as client:
            wait_until(lambda: client.info("clients")["connected_clients"] > 6)
        stop.set()
        for thread in threads:
            thread.join(30)
        wait_until(lambda: accepted <= database.applied(), timeout=40)


def test_a_lagging_replica_is_promoted_and_nothing_repeats(
    sentinels: Sentinels, options: dict[str, Any], tally: Tally, database: TallyDatabase
) -> None:
    with RunningWorker(**options, batch_size=20) as worker:
        tally.tick(30)
        tally.wait_until_drained()
        sentinels.lag()
        behind = tally.tick(40)
        wait_until(lambda: behind <= database.applied())
        sentinels.kill_primary()
        sentinels.wait_for_promotion()
        wait_until(lambda: worker.metric("rollbacks_total", server="redis") == 1)
        tally.tick(20)
        tally.wait_until_drained()
        [last] = tally.tick()
        tally.wait_until_drained()
    database.check(set(tally.ticks))
    with pytest.raises(OutcomeUnknown):
        tally.ticks[max(behind)].wait(1)
    assert tally.ticks[last].is_durable()


def test_a_paused_primary_that_comes_back_is_not_written_to(
    sentinels: Sentinels, options: dict[str, Any], tally: Tally, database: TallyDatabase, queue: str
) -> None:
    first = sentinels.servers[0]
    with RunningWorker(**options):
        tally.start()
        tally.wait_for(50)
        sentinels.replica_has_all()
        replicated = set(tally.ticks)
        sentinels.pause_primary()
        sentinels.wait_for_promotion()
        sentinels.resume_primary()
        wait_until(lambda: sentinels.role(first) == "slave", 40, 0.05)
        later = finish(sentinels, tally)
    # What the first primary had not replicated, and was sent again, is a new write: docs/guarantees.md.
    applied = database.applied(tally.resent)
    assert len(tally.resent) <= 3 and replicated | later <= applied
    database.check(applied, tally.resent)


def test_the_worker_waits_while_no_sentinel_answers(queue: str, postgres_url: str) -> None:
    url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{free_port()}/{SERVICE}"
    with RunningWorker(redis_url=url, postgres_url=postgres_url, queue=queue) as worker:
        wait_until(lambda: worker.facts["redis_up"] is False)
        assert "no sentinel names a primary" in worker.facts["redis_reason"]
        assert worker.facts["role"] in ("starting", "standby")
    with (
        WriteBehind.from_url(url, redis_options={"retry": None}) as wb,
        pytest.raises(RedisUnavailable, match="no sentinel names a primary"),
    ):
        wb.put("users", 1, {"name": "Ada"})


def test_a_service_that_the_sentinels_do_not_know_is_named(sentinels: Sentinels) -> None:
    url = sentinels.url.replace(SERVICE, "other")
    with RedisLink(url) as link, pytest.raises(redis.ConnectionError, match="'other'"):
        link.client.ping()


@pytest.fixture
def misled(sentinels: Sentinels) -> list[int]:
    """Ports of sentinels: the first takes the replica for the primary of "misled", unlike the second."""
    ports = [sentinel.port for sentinel in sentinels.sentinels[:2]]
    for port, server in zip(ports, reversed(sentinels.servers), strict=True):
        with redis.Redis("127.0.0.1", port, socket_timeout=5) as client:
            client.sentinel_monitor("misled", "127.0.0.1", server.port, 2)
    return ports


def _misled_url(ports: list[int]) -> str:
    return f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in ports)}/misled"


def test_a_replica_that_a_sentinel_takes_for_the_primary_is_not_read_from(
    sentinels: Sentinels, misled: list[int]
) -> None:
    once = {"retry": Retry(NoBackoff(), 0)}
    with (
        connect(_misled_url(misled[:1]), once) as client,
        pytest.raises(redis.ConnectionError, match="no primary"),
    ):
        client.get("x")
    with connect(_misled_url(misled), once) as client:
        assert client.info("server")["tcp_port"] == sentinels.servers[0].port
    with RedisLink(_misled_url(misled)) as link:
        assert link.client.info("server")["tcp_port"] == sentinels.servers[0].port
        assert link.connections == 1


def test_a_replica_is_not_read_from_on_an_event_loop_either(sentinels: Sentinels, misled: list[int]) -> None:
    async def job() -> None:
        once = {"retry": AsyncRetry(NoBackoff(), 0), "timeout": 5}
        async with connect_async(_misled_url(misled[:1]), once) as client:
            with pytest.raises(redis.ConnectionError, match="no primary"):
                await client.get("x")
        async with connect_async(_misled_url(misled), once) as client:
            assert (await client.info("server"))["tcp_port"] == sentinels.servers[0].port

    asyncio.run(job())


def test_an_account_that_may_not_ask_for_the_role_is_served(sentinels: Sentinels) -> None:
    with sentinels.on(sentinels.servers[0]) as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-role")
    with connect(sentinels.url.replace("://", "://app:secret@"), {}) as client:
        assert client.ping()


def test_every_command_finds_the_primary(
    sentinels: Sentinels, options: dict[str, Any], database: TallyDatabase
) -> None:
    redis_url = ["--redis-url", options["redis_url"], "--queue", options["queue"]]
    both = [*redis_url, "--postgres-url", options["postgres_url"]]
    with RunningWorker(**options) as worker:
        worker.wait_for_role("owner")
        for arguments in (
            ["status", *both],
            ["drain", "--timeout", "5", *both],
            ["pause", "--reason", "test", *redis_url],
            ["resume", *redis_url],
            ["explain", "tally", "1", *both],
            ["verify", *both],
            ["dead", "retry", "--all", *both],
            ["doctor", *both],
            ["reshard", "2", *redis_url],
        ):
            result = CliRunner().invoke(cli, arguments)
            assert result.exit_code in (0, 1), (arguments, result.output)
            assert "Error" not in result.output, (arguments, result.output)


def test_the_async_client_goes_on_after_a_failover(sentinels: Sentinels, queue: str) -> None:
    async def job() -> None:
        url = f"{sentinels.url}?socket_timeout=2"
        async with AsyncWriteBehind.from_url(url, queue=queue, near_cache=10) as wb:
            await wb.put("users", 1, {"name": "Ada"})
            assert await wb.get("users", 1) == {"name": "Ada"}
            sentinels.replica_has_all()
            sentinels.kill_primary()
            await wb.put("users", 1, {"name": "Grace"})  # while there is no primary
            assert await wb.get("users", 1) == {"name": "Grace"}

    asyncio.run(job())


def test_the_near_cache_hears_of_what_others_write_after_a_failover(sentinels: Sentinels, queue: str) -> None:
    url = f"{sentinels.url}?socket_timeout=2"
    with (
        WriteBehind.from_url(url, queue=queue, near_cache=10, near_cache_ttl=3600) as reader,
        WriteBehind.from_url(url, queue=queue) as writer,
    ):
        writer.put("users", 1, {"name": "Ada"})
        assert reader.get("users", 1) == {"name": "Ada"}
        sentinels.replica_has_all()
        sentinels.kill_primary()
        writer.put("users", 1, {"name": "Grace"})
        wait_until(lambda: reader.get("users", 1) == {"name": "Grace"})
        writer.put("users", 1, {"name": "Barbara"})
        wait_until(lambda: reader.get("users", 1) == {"name": "Barbara"})


def test_changes_are_heard_after_a_failover(
    sentinels: Sentinels, options: dict[str, Any], queue: str, database: TallyDatabase
) -> None:
    with (
        RunningWorker(**options, publish_changes=True),
        WriteBehind.from_url(options["redis_url"], queue=queue) as wb,
        wb.changes() as changes,
    ):
        assert isinstance(next(changes), Missed)
        wb.increment("tally", 1, {"n": 1}, wait=20)
        assert _first(changes).id == 1
        sentinels.replica_has_all()
        sentinels.kill_primary()
        assert isinstance(next(changes), Missed)
        wb.increment("tally", 2, {"n": 1})
        assert _first(changes).id == 2


def _first(changes: Changes) -> Change:
    """The next one; an owner that begins says that some may have been missed."""
    return next(change for change in changes if isinstance(change, Change))
