"""Servers that hold a connection and say nothing: the worker neither waits for ever nor acts twice."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
from redis import Redis
from tests.conftest import SCHEMA
from tests.support.crashing_worker import CrashingWorker
from tests.support.workers import RunningWorker, Workload, flags

from writebehind.keys import QueueKeys
from writebehind.script import Script
from writebehind_worker import postgres, tenure
from writebehind_worker.embedded import EmbeddedServers
from writebehind_worker.embedded.process import processes
from writebehind_worker.pause import pause, resume
from writebehind_worker.testing.proxy import Proxy, proxied_url
from writebehind_worker.testing.servers import private_servers
from writebehind_worker.testing.wait import wait_until

STOP_S = 0.2
MARGIN_S = 4.0  # for a busy machine


def script(name: str) -> Callable[[bytes], bool]:
    found = Script("writebehind_worker", name)
    marks = (found.sha.encode(), found.source)
    return lambda chunk: any(mark in chunk for mark in marks)


def says(*texts: bytes) -> Callable[[bytes], bool]:
    return lambda chunk: any(text in chunk for text in texts)


IN_POSTGRES: dict[str, tuple[Callable[[bytes], bool], Any]] = {
    "connecting": (says(b"application_name"), "before"),
    "taking the ledger": (says(b"epoch = greatest"), "after"),
    "writing": (says(b"json_to_recordset"), "before"),
    "committing, not received": (says(b"COMMIT"), "before"),
    "committing, done": (says(b"COMMIT"), "after"),
}
IN_REDIS: dict[str, tuple[Callable[[bytes], bool], Any]] = {
    "connecting": (says(b"INFO"), "before"),
    "taking the lease": (script("lease"), "after"),
    "claiming": (script("claim"), "after"),
    "acknowledging": (script("acknowledge"), "before"),
    "idle": (says(b"BLMOVE"), "before"),
}


@pytest.fixture
def options(redis_url: str, postgres_url: str, queue: str) -> dict[str, Any]:
    """Short times; batches of 15: a few are in flight."""
    return {
        "redis_url": redis_url,
        "postgres_url": postgres_url,
        "queue": queue,
        "batch_size": 15,
        "lease_ttl_s": 0.5,
        "stop_timeout_s": STOP_S,
        "lock_timeout_s": 0.2,
        "statement_timeout_s": 0.5,
    }


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "REPLY_GRACE_S", 1.0)


@contextmanager
def proxied(options: dict[str, Any], *names: str) -> Iterator[tuple[dict[str, Any], list[Proxy]]]:
    """The options with these URLs led through proxies."""
    urls = [options[name] for name in names]
    proxies = [Proxy.to(url) for url in urls]
    with ExitStack() as stack:
        for proxy in proxies:
            stack.enter_context(proxy)
        led = {n: proxied_url(u, p.port) for n, u, p in zip(names, urls, proxies, strict=True)}
        yield {**options, **led}, proxies


def asked_to_stop_it_ends(worker: CrashingWorker) -> None:
    worker.terminate()
    asked = time.monotonic()
    assert worker.wait_for_end(STOP_S + MARGIN_S) == 0
    assert time.monotonic() - asked < STOP_S + MARGIN_S


@pytest.mark.parametrize("point", IN_POSTGRES)
def test_asked_to_stop_while_postgres_is_silent_it_ends_in_time_and_the_next_finishes(
    point: str, options: dict[str, Any], load: Workload
) -> None:
    load.add(40)
    with proxied(options, "postgres_url") as (led, [proxy]):
        proxy.pause_at(*IN_POSTGRES[point])
        with CrashingWorker(None, flags(**led)) as worker:
            proxy.wait_for_pause()
            asked_to_stop_it_ends(worker)
        with RunningWorker(**options):
            load.check()


@pytest.mark.parametrize("point", IN_REDIS)
def test_asked_to_stop_while_redis_is_silent_it_ends_in_time_and_the_next_finishes(
    point: str, options: dict[str, Any], load: Workload
) -> None:
    load.add(40)
    with proxied(options, "redis_url") as (led, [proxy]):
        proxy.pause_at(*IN_REDIS[point])
        with CrashingWorker(None, flags(**led)) as worker:
            proxy.wait_for_pause()
            asked_to_stop_it_ends(worker)
        with RunningWorker(**options):
            load.check()


def test_asked_to_stop_while_both_are_silent_it_ends_in_time_and_the_next_finishes(
    options: dict[str, Any], load: Workload
) -> None:
    load.add(40)
    with proxied(options, "redis_url", "postgres_url") as (led, proxies):
        proxies[1].pause_at(says(b"COMMIT"), "after")
        with CrashingWorker(None, flags(**led)) as worker:
            proxies[1].wait_for_pause()
            proxies[0].pause()
            asked_to_stop_it_ends(worker)
        with RunningWorker(**options):
            load.check()


@pytest.mark.usefixtures("short_grace")
@pytest.mark.parametrize("point", IN_POSTGRES)
def test_a_silent_postgres_ends_the_ownership_and_another_worker_goes_on(
    point: str, options: dict[str, Any], load: Workload
) -> None:
    load.add(40)
    impatient = {**options, "postgres_url": options["postgres_url"] + "?connect_timeout=2"}
    with proxied(impatient, "postgres_url") as (led, [proxy]):
        proxy.pause_at(*IN_POSTGRES[point])
        with RunningWorker(**led) as silenced:
            proxy.wait_for_pause()
            with RunningWorker(**options):
                load.check()
                wait_until(lambda: silenced.facts["postgres_up"] is False)
                assert not silenced.state.readiness()[0]
            proxy.resume()
            load.add(40)
            load.check()
            assert silenced.state.readiness()[0]


@pytest.mark.usefixtures("short_grace")
def test_an_idle_owner_notices_a_silent_postgres(
    options: dict[str, Any], load: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("writebehind_worker.persist._COUNT_EVERY_S", 0.1)
    with proxied(options, "postgres_url") as (led, [proxy]), RunningWorker(**led) as worker:
        worker.wait_for_role("owner")
        proxy.pause()
        wait_until(lambda: worker.facts["postgres_up"] is False)
        assert "has not answered for 1.5 s" in worker.facts["postgres_reason"]
        proxy.resume()
        load.add(10)
        load.check()


def test_each_statement_has_its_own_time_to_be_answered(postgres_url: str) -> None:
    with postgres.connect(postgres_url, reply_timeout_s=1.5) as conn:
        for _ in range(2):
            conn.execute("SELECT pg_sleep(0.8)")
        with pytest.raises(postgres.NoReply, match="has not answered for"):
            conn.execute("SELECT pg_sleep(60)")
        assert postgres.is_broken(conn)


def test_time_in_which_the_process_itself_was_paused_does_not_count() -> None:
    def statement() -> Generator[str, int, str]:
        while not (yield "read"):
            pass
        return "answer"

    asked = postgres._bounded(statement(), timeout_s=0.15)
    next(asked)
    time.sleep(0.2)
    asked.send(0)  # psycopg has waited for one tick in vain
    with pytest.raises(StopIteration, match="answer"):
        asked.send(1)


def test_a_peer_that_vanished_is_noticed_by_the_kernel(postgres_url: str) -> None:
    """Nobody acknowledges what is sent any more: keepalives while idle, the user time-out while sending."""
    with postgres.connect(postgres_url) as conn, socket.socket(fileno=os.dup(conn.fileno())) as probe:
        assert probe.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        tcp = [
            probe.getsockopt(socket.IPPROTO_TCP, option)
            for option in (
                socket.TCP_KEEPIDLE,
                socket.TCP_KEEPINTVL,
                socket.TCP_KEEPCNT,
                socket.TCP_USER_TIMEOUT,
            )
        ]
    names = ("keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout")
    assert tcp == [postgres.DEFAULTS[name] for name in names]


# A server whose process is paused: its kernel still takes connections and bytes.


@pytest.fixture(scope="module")
def own_pair() -> Iterator[EmbeddedServers]:
    with private_servers() as servers:
        with psycopg.connect(servers.postgres_url, autocommit=True) as conn:
            conn.execute(SCHEMA.read_bytes())
        yield servers


@contextmanager
def stopped(pid: int | None) -> Iterator[None]:
    """SIGSTOP to a server and its children; they go on at the end of the block."""
    assert pid is not None
    family = [pid, *(child for child, parent, _ in processes() if parent == pid)]
    for member in family:
        os.kill(member, signal.SIGSTOP)
    try:
        yield
    finally:
        for member in family:
            os.kill(member, signal.SIGCONT)


@pytest.mark.usefixtures("short_grace")
def test_while_the_postgres_process_is_stopped_workers_wait_and_can_be_stopped(
    own_pair: EmbeddedServers, options: dict[str, Any], queue: str
) -> None:
    own = {**options, "redis_url": own_pair.redis_url, "postgres_url": own_pair.postgres_url}
    with (
        psycopg.connect(own_pair.postgres_url, autocommit=True) as pg,
        Workload(own_pair.redis_url, queue, pg) as load,
        CrashingWorker(None, flags(**own)) as asked,
    ):
        asked.wait_for_log('"owner"')
        with RunningWorker(**own) as waiting:
            waiting.wait_for_role("standby")
            with stopped(own_pair.postgres.pid):
                load.add(40)
                wait_until(lambda: load.redis.llen(load.keys.inflight))
                asked_to_stop_it_ends(asked)
                wait_until(lambda: waiting.facts["postgres_up"] is False, timeout=20)
            load.check()


def others(client: Redis) -> set[str]:
    """The connections that are not the client's own."""
    own = str(client.client_id())
    return {connection["id"] for connection in client.client_list()} - {own}


@pytest.mark.parametrize("is_paused", [False, True], ids=["idle", "paused"])
def test_an_idle_owner_stays_the_owner_where_redis_closes_silent_connections(
    own_servers: EmbeddedServers, queue: str, monkeypatch: pytest.MonkeyPatch, is_paused: bool
) -> None:
    monkeypatch.setattr(tenure, "TOUCH_EVERY_S", 0.3)
    with psycopg.connect(own_servers.postgres_url, autocommit=True) as pg:
        pg.execute(SCHEMA.read_bytes())
    with (
        Redis.from_url(own_servers.redis_url) as client,
        RunningWorker(
            redis_url=own_servers.redis_url,
            postgres_url=own_servers.postgres_url,
            queue=queue,
            batch_size=2,
        ) as worker,
    ):
        epoch = worker.wait_for_role("owner")["epoch"]
        if is_paused:
            pause(client, QueueKeys(queue), "a test")
        client.config_set("timeout", 3)
        wait_until(lambda: len(others(client)) == 3)  # two, and the heartbeat's
        before = others(client)
        time.sleep(6.5)
        assert others(client) == before
        if is_paused:
            resume(client, QueueKeys(queue))
        client.lpush(queue, *[b'{"table":"none","id":1,"data":{}}'] * 100)  # both connections are needed
        wait_until(lambda: client.llen(queue) == 0 == client.llen(QueueKeys(queue).inflight))
        assert worker.facts["epoch"] == epoch
        assert worker.facts["role"] == "owner"
