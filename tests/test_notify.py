"""What systemd hears, on a real socket; above all, that a hung part of the worker ends the signs of life."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.support.service_manager import Listener, listening
from tests.support.workers import RunningWorker, Workload

from writebehind_worker import postgres, redis_server
from writebehind_worker.config import Config
from writebehind_worker.digest import digest
from writebehind_worker.flush import Flusher
from writebehind_worker.notify import Reporter, ServiceManager, status_line
from writebehind_worker.owned_queue import OwnedQueue
from writebehind_worker.redis_server import RedisLink
from writebehind_worker.state import WorkerState
from writebehind_worker.testing.proxy import Proxy, proxied_url
from writebehind_worker.testing.wait import wait_until
from writebehind_worker.worker import stall_after_s


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as found:
        yield found


@pytest.mark.parametrize("abstract", [True, False])
def test_messages_arrive_at_a_path_and_at_an_abstract_name(tmp_path: Path, abstract: bool) -> None:
    with listening(None if abstract else tmp_path) as listener:
        environment = listener.environment() | {"OTHER": "1"}
        manager = ServiceManager.of(environment)
        assert environment == {"OTHER": "1"}, "a child must not speak for us"
        manager.ready()
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        manager.reloading()
        manager.stopping(2.5)
        first, second, third = listener.messages
    assert first == {"READY": "1"}
    assert second["RELOADING"] == "1"
    assert before <= int(second["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert third == {"STOPPING": "1", "EXTEND_TIMEOUT_USEC": "2500000"}


@pytest.mark.parametrize("path", [None, "", "relative", "vsock:2:1234", "/does/not/exist"])
def test_without_a_listener_nothing_fails(path: str | None) -> None:
    manager = ServiceManager.of({} if path is None else {"NOTIFY_SOCKET": path})
    assert manager.listens == (path == "/does/not/exist")
    manager.ready()
    reporter = Reporter(manager, WorkerState(), lambda: 0)
    reporter.start()
    reporter.stop("the end")


@pytest.mark.parametrize(
    ("variables", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_ours_only_if_it_names_us(
    variables: dict[str, str], watchdog_s: float | None
) -> None:
    environment = {"NOTIFY_SOCKET": "@nobody", **variables}
    assert ServiceManager.of(environment).watchdog_s == watchdog_s
    assert environment == {}


def known(**facts: Any) -> dict[str, Any]:
    return WorkerState().facts() | {"role": "owner", "redis_up": True, "postgres_up": True, **facts}


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        (known(), "owner, 12 waiting"),
        (known(role="starting"), "starting"),
        (known(role="standby", owner="other:1"), "standby, the owner is other:1"),
        (known(role="standby"), "standby, others have all shards"),
        (known(role="stopping", postgres_up=False), "stopping"),
        (
            known(postgres_up=False, postgres_reason="Postgres: refused; start it"),
            "waiting for Postgres: refused; start it",
        ),
        (known(role="starting", redis_up=False), "waiting for Redis: it does not answer"),
        (
            known(paused="paused by an operator: a column"),
            "owner, 12 waiting; paused by an operator: a column",
        ),
        (known(held="users 42"), "owner, 12 waiting; waiting for a lock: users 42"),
        (
            known(breaker="every write to users is refused"),
            "owner, 12 waiting; every write to users is refused",
        ),
    ],
)
def test_the_status_line(facts: dict[str, Any], line: str) -> None:
    assert status_line(facts, 12) == line


def test_signs_of_life_end_when_one_part_hangs_although_others_go_on(listener: Listener) -> None:
    clock = Clock()
    state = WorkerState(stall_after_s=60, clock=clock)
    state.progress("finish")
    reporter = Reporter(ServiceManager.of(listener.environment(watchdog_s=0.1)), state, lambda: 0)
    reporter.start()
    try:
        wait_until(lambda: len(listener.said("WATCHDOG")) >= 3)
        clock.now += 61
        state.progress("loop")
        status = listener.wait_for_status("hangs")
        assert status == "hangs: finish has made no progress for 61 s"
        fed = len(listener.said("WATCHDOG"))
        time.sleep(0.5)  # ten times as long as between two signs
        assert len(listener.said("WATCHDOG")) == fed
        state.ended("finish")
        wait_until(lambda: len(listener.said("WATCHDOG")) > fed)
    finally:
        reporter.stop()


def test_the_status_is_sent_when_it_changes_and_the_last_words_stay(listener: Listener) -> None:
    state = WorkerState()
    manager = ServiceManager.of(listener.environment())
    manager.watchdog_s = 0.05  # so that it looks often
    reporter = Reporter(manager, state, lambda: 3)
    reporter.start()
    listener.wait_for_status("starting")
    for up in (True, False):
        state.redis_is(True)
        state.postgres_is(up, None if up else "Postgres: two\nlines")
        state.role_is("owner")
        listener.wait_for_status("3 waiting" if up else "waiting for Postgres: two lines")
    reporter.remark = "reload refused"
    listener.wait_for_status("two lines; reload refused")
    reporter.stop("the ledger's tables are missing")
    assert listener.said("STATUS") == [
        "starting",
        "owner, 3 waiting",
        "waiting for Postgres: two lines",
        "waiting for Postgres: two lines; reload refused",
        "the ledger's tables are missing",
    ]


def test_a_status_that_cannot_be_told_ends_no_signs_of_life(
    listener: Listener, capsys: pytest.CaptureFixture[str]
) -> None:
    state, goes_wrong = WorkerState(), True
    state.redis_is(True)
    state.postgres_is(True)
    state.role_is("owner")

    def waiting() -> int:
        if goes_wrong:
            raise KeyError("no such queue")
        return 3

    reporter = Reporter(ServiceManager.of(listener.environment(watchdog_s=0.1)), state, waiting)
    reporter.start()
    try:
        wait_until(lambda: len(listener.said("WATCHDOG")) >= 5)
        goes_wrong = False
        listener.wait_for_status("owner, 3 waiting")
        state.held_is("users \ud800")
        assert (
            listener.wait_for_status("waiting for a lock") == "owner, 3 waiting; waiting for a lock: users ?"
        )
        state.held_is("x" * 1_000_000)
        fed = len(listener.said("WATCHDOG"))
        wait_until(lambda: len(listener.said("WATCHDOG")) > fed + 2)
    finally:
        reporter.stop("the end \ud800")
    assert listener.said("STATUS")[-1] == "the end ?"
    logged = "".join(capsys.readouterr())
    assert logged.count("the status for systemd could not be told") == 1, "once"


# Of a real worker.


@pytest.fixture
def options(redis_url: str, postgres_url: str, queue: str) -> dict[str, Any]:
    """Several batches for 40 writes: one alone would be read by the part that claims."""
    return {"redis_url": redis_url, "postgres_url": postgres_url, "queue": queue, "batch_size": 10}


HANGS = {
    "loop": (Flusher, "flush_at_once"),
    "finish": (OwnedQueue, "acknowledge"),
    "claim": (OwnedQueue, "claim"),
    "read": ("writebehind_worker.tenure", "digest"),
}


@pytest.mark.parametrize("part", HANGS)
def test_a_part_of_the_worker_that_hangs_is_told_though_the_others_live(
    part: str, options: dict[str, Any], load: Workload, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, name = HANGS[part]
    hangs, goes_on = threading.Event(), threading.Event()
    whole: Any = digest if isinstance(where, str) else getattr(where, name)

    def hang(*args: Any, **kwargs: Any) -> Any:
        if not goes_on.is_set() and (part != "claim" or load.redis.llen(load.keys.queue)):
            hangs.set()
            goes_on.wait(30)
        return whole(*args, **kwargs)

    monkeypatch.setattr(
        f"{where}.{name}" if isinstance(where, str) else where,
        *((hang,) if isinstance(where, str) else (name, hang)),
    )
    with RunningWorker(**options) as worker:
        worker.wait_for_role("owner")
        worker.state._stall_after_s = 2.5  # each part comes round within a second or so
        manager = ServiceManager.of(listener.environment(watchdog_s=0.2))
        reporter = Reporter(manager, worker.state, lambda: 0)
        reporter.start()
        time.sleep(1)
        assert "hangs" not in " ".join(listener.said("STATUS"))
        load.add(40)
        assert hangs.wait(10)
        listener.wait_for_status(f"hangs: {part} has made no progress")
        fed = len(listener.said("WATCHDOG"))
        assert fed > 0
        time.sleep(0.5)
        assert len(listener.said("WATCHDOG")) == fed
        goes_on.set()
        wait_until(lambda: len(listener.said("WATCHDOG")) > fed)
        reporter.stop()
        load.check()


def longest_silence(worker: RunningWorker, seconds: float) -> float:
    """Of all that the worker says of its progress in this time."""
    until, longest = time.monotonic() + seconds, 0.0
    while time.monotonic() < until:
        longest = max(longest, worker.state.health()[1]["since_progress_s"])
        time.sleep(0.02)
    return longest


def test_a_worker_that_waits_within_its_own_bounds_does_not_stall() -> None:
    for statement_timeout_s in (0.1, 30.0, 3600.0):
        config = Config(statement_timeout_s=statement_timeout_s)
        assert stall_after_s(config) >= statement_timeout_s + postgres.REPLY_GRACE_S + 20
    assert stall_after_s(Config()) == 60
    two = "host=a,b connect_timeout=100"
    assert postgres.longest_connect_s(two) == 2 * 2 * 100
    assert stall_after_s(Config(postgres_url=two)) > 400
    assert stall_after_s(Config(postgres_url="host=a connect_timeout=0")) > 130, "psycopg's own bound"


@pytest.mark.parametrize(
    ("query", "least_s"),
    [
        ("socket_timeout=120", 120.0),
        ("socket_connect_timeout=100", 200.0),  # of two addresses
        ("socket_timeout=120&socket_connect_timeout=100", 320.0),
    ],
)
@pytest.mark.parametrize("url", ["redis://a/0", "rediss://a/0"])
def test_what_the_url_of_redis_says_is_waited_for(url: str, query: str, least_s: float) -> None:
    assert stall_after_s(Config(redis_url=f"{url}?{query}")) >= least_s + 20


@pytest.mark.parametrize("name", ["socket_timeout", "socket_connect_timeout"])
@pytest.mark.parametrize("value", ["inf", "1e12", "0", "-1", "nan"])
def test_redis_is_waited_for_without_end_nowhere(name: str, value: str) -> None:
    url = f"redis://a/0?{name}={value}"
    assert stall_after_s(Config(redis_url=url)) == 60
    with RedisLink(url) as link:
        assert link.client.connection_pool.connection_kwargs[name] == 5


@pytest.mark.parametrize("role", ["owner", "standby", "starting"])
def test_a_redis_that_holds_its_connections_and_never_answers_is_waited_for(
    role: str, options: dict[str, Any], load: Workload
) -> None:
    with Proxy.to(options["redis_url"]) as proxy, ExitStack() as stack:
        url = proxied_url(options["redis_url"], proxy.port) + "?socket_timeout=1.5&socket_connect_timeout=0.3"
        if role == "standby":
            stack.enter_context(RunningWorker(**options)).wait_for_role("owner")
        if role == "starting":
            proxy.pause()
        worker = stack.enter_context(RunningWorker(**{**options, "redis_url": url}))
        worker.wait_for_role(role)
        proxy.pause()
        silence = longest_silence(worker, 4)
        assert 1 < silence <= redis_server.longest_silence_s(url) + 1
        assert silence < stall_after_s(worker.config) - 20
        proxy.resume()
        load.add(10)
        load.check()


def test_a_postgres_that_takes_connections_and_never_answers_is_waited_for(
    options: dict[str, Any], load: Workload
) -> None:
    with Proxy.to(options["postgres_url"]) as proxy:
        proxy.pause()
        url = proxied_url(options["postgres_url"], proxy.port) + "?connect_timeout=2"
        with RunningWorker(**{**options, "postgres_url": url}) as worker:
            silence = longest_silence(worker, 5)
            assert 1.5 < silence <= postgres.longest_connect_s(url) + 1
            assert silence < stall_after_s(worker.config) - 20
            assert "timeout expired" in worker.facts["postgres_reason"]
            assert not worker.state.readiness()[0]
            proxy.resume()
            load.add(10)
            load.check()


def test_a_commit_that_is_not_answered_is_no_stall_longer_than_its_bound(
    options: dict[str, Any], load: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "REPLY_GRACE_S", 1.0)
    with Proxy.to(options["postgres_url"]) as proxy:
        url = proxied_url(options["postgres_url"], proxy.port)
        with RunningWorker(**{**options, "postgres_url": url, "statement_timeout_s": 1.0}) as worker:
            worker.wait_for_role("owner")
            proxy.pause_at(lambda chunk: b"COMMIT" in chunk, "before")
            load.add(10)
            proxy.wait_for_pause()
            silence = longest_silence(worker, 2.5)
            assert 1.5 < silence < 2 + 2, "the claiming side does not hide it, and it is bounded"
            proxy.resume()
            load.check()


def test_whatever_comes_from_postgres_is_progress(postgres_url: str) -> None:
    heard: list[int] = []
    with postgres.connect(postgres_url, heard=lambda: heard.append(1)) as conn:
        for _ in range(3):
            before = len(heard)
            conn.execute("SELECT 1")
            assert len(heard) > before
