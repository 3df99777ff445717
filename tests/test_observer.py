"""What an observer hears of the calls of both clients, and that it cannot break one."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import redis
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tests.support.clients import EitherClient, clients
from tests.support.workers import RunningWorker

from writebehind import (
    AsyncWriteBehind,
    FlushTimeout,
    InvalidWrite,
    Observer,
    QueueFull,
    WriteBehind,
    WriteRejected,
)
from writebehind.observer import METHODS
from writebehind.prometheus import OTHER, PrometheusObserver
from writebehind_worker.testing.wait import wait_until

__all__ = ["clients"]  # a fixture

Connect = Callable[..., Any]


class Heard(Observer):
    """Keeps what it is told, seconds left out."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.seconds: dict[str, list[float]] = {}
        for name in METHODS:
            setattr(self, name, self._listener(name))

    def _listener(self, name: str) -> Callable[..., None]:
        names = list(inspect.signature(getattr(Observer, name)).parameters)[1:]

        def listen(*arguments: Any) -> None:
            given = dict(zip(names, arguments, strict=True))
            if "seconds" in given:
                self.seconds.setdefault(name, []).append(given.pop("seconds"))
            if given.get("error") is not None:
                given["error"] = type(given["error"]).__name__
            self.events.append((name, *given.values()))

        return listen

    def take(self) -> list[tuple[Any, ...]]:
        """What has been heard since."""
        events, self.events = self.events, []
        return events


class Failing(Observer):
    """Raises whatever it hears."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        for name in METHODS:
            setattr(self, name, self._raiser(name))

    def _raiser(self, name: str) -> Callable[..., None]:
        def fail(*_: Any) -> None:
            self.calls[name] += 1
            raise RuntimeError("of the observer")

        return fail


def message_bytes(redis_client: redis.Redis, queue: str) -> list[int]:
    """Of the items that wait, oldest first, without their `seq`."""
    items: list[Any] = redis_client.lrange(queue, 0, -1)
    return [len(item) - item.index(b'"table"') + 1 for item in reversed(items)]


def test_reads(clients: EitherClient) -> None:
    heard = Heard()
    call = clients.connect(observer=heard)
    row = {"id": 1, "name": "Ädä"}
    assert call("get", "t", 1) is None
    assert heard.take() == [("miss", "t", 1)]
    assert call("get", "t", 1, lambda id: row) == row
    size = len(b"id") + len(b"1") + len(b"name") + len('"Ädä"'.encode())
    assert heard.take() == [("miss", "t", 1), ("loaded", "t", None), ("filled", "t", size)]
    assert call("get", "t", 1, lambda id: row) == row
    assert heard.take() == [("hit", "t", 1)]
    call("get", "t", 2, lambda id: None)
    assert heard.take() == [("miss", "t", 1), ("loaded", "t", None), ("filled", "t", 0)]
    call("get", "t", 2, lambda id: None)
    assert heard.take() == [("negative_hit", "t", 1)]
    call("get_many", "t", [1, 2, 3, 1], lambda ids: {3: {"id": 3}})
    assert heard.take() == [
        ("hit", "t", 1),
        ("negative_hit", "t", 1),
        ("miss", "t", 1),
        ("loaded", "t", None),
        ("filled", "t", 3),
    ]
    call("get_many", "t", [])
    assert heard.take() == []


def test_a_load_that_fails_and_one_that_takes_its_time(clients: EitherClient) -> None:
    heard = Heard()
    call = clients.connect(observer=heard)

    def fail(id: int) -> Any:
        raise LookupError

    def slow(id: int) -> Any:
        time.sleep(0.1)
        return {"id": id}

    with pytest.raises(LookupError):
        call("get", "t", 1, fail)
    assert heard.take() == [("miss", "t", 1), ("loaded", "t", "LookupError")]
    heard.seconds.clear()
    call("get", "t", 1, slow)
    (seconds,) = heard.seconds["loaded"]
    assert 0.09 < seconds < 5


def test_a_load_that_is_cancelled(redis_url: str, queue: str) -> None:
    heard = Heard()

    async def job() -> None:
        async with AsyncWriteBehind.from_url(redis_url, queue=queue, observer=heard) as wb:
            loading = asyncio.Event()

            async def hang(id: int) -> Any:
                loading.set()
                await asyncio.sleep(60)

            task = asyncio.create_task(wb.get(f"{queue}:t", 1, hang))
            await loading.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(job())
    assert heard.take()[1] == ("loaded", f"{queue}:t", "CancelledError")


def test_a_fill_that_lost_its_token(clients: EitherClient, connect: Connect) -> None:
    heard, other = Heard(), connect()
    call = clients.connect(observer=heard)

    def load(id: int) -> Any:
        other.put("t", id, {"id": id, "name": "newer"})
        return {"id": id, "name": "older"}

    assert call("get", "t", 1, load) == {"id": 1, "name": "older"}
    assert heard.take() == [("miss", "t", 1), ("loaded", "t", None), ("fill_lost", "t")]
    assert call("get", "t", 1)["name"] == "newer"
    many = lambda ids: [load(id) for id in ids]  # noqa: E731
    call("get_many", "t", [2, 3], many)
    assert heard.take()[-2:] == [("fill_lost", "t")] * 2


@pytest.mark.parametrize("name", ["get", "get_many"])
def test_a_wait_for_another_reader_s_load(clients: EitherClient, connect: Connect, name: str) -> None:
    heard, loading = Heard(), threading.Event()
    other = connect()
    call = clients.connect(observer=heard)

    def slow(id: int) -> Any:
        loading.set()
        wait_until(lambda: heard.events)
        time.sleep(0.3)
        return {"id": id}

    thread = threading.Thread(target=other.get, args=("t", 1, slow))
    thread.start()
    loading.wait()
    asked: Any = 1 if name == "get" else [1]
    assert call(name, "t", asked, lambda _: pytest.fail("both load"))
    thread.join()
    assert heard.take() == [("miss", "t", 1), ("waited_for_load", "t")]
    assert 0.1 < heard.seconds["waited_for_load"][0] < 5


@pytest.mark.parametrize("name", ["get", "get_many"])
def test_a_wait_for_a_pending_write(
    clients: EitherClient,
    connect: Connect,
    users: psycopg.Connection[Any],
    options: dict[str, Any],
    name: str,
) -> None:
    heard = Heard()
    call = clients.connect(observer=heard)
    connect().patch("users", 1, {"name": "x"})  # of a row that is not cached
    asked: Any = 1 if name == "get" else [1]

    def load(asked: Any) -> Any:
        return {"id": 1} if name == "get" else [{"id": 1}]

    with pytest.raises(FlushTimeout):
        call(name, "users", asked, load, timeout=0.05)
    assert heard.take() == [("miss", "users", 1), ("waited_for_write", "users", "FlushTimeout")]
    with RunningWorker(**options):
        assert call(name, "users", asked, load, timeout=10)
    # The worker removes the marker a moment after the commit: it may have been quicker than our look.
    assert heard.take()[0] == ("miss", "users", 1)
    assert all(0 <= seconds < 10 for seconds in heard.seconds["waited_for_write"])


def test_writes(clients: EitherClient, redis_client: redis.Redis, queue: str) -> None:
    heard = Heard()
    call = clients.connect(observer=heard, max_queue_length=7, max_message_bytes=1000)
    call("put", "t", 1, {"name": "Ada"})
    call("patch", "t", 1, {"name": "A"})
    call("increment", "n", 1, {"n": 1})
    call("delete", "t", 1)

    def fill(batch: Any) -> None:
        batch.put("t", 2, {"name": "B" * 100})
        batch.delete("n", 3)

    clients.batch(fill)
    wrote = heard.take()
    assert [(name, table, op) for name, table, op, _ in wrote] == [
        ("wrote", "t", "put"),
        ("wrote", "t", "patch"),
        ("wrote", "n", "increment"),
        ("wrote", "t", "delete"),
        ("wrote", "t", "put"),
        ("wrote", "n", "delete"),
    ]
    assert [size for *_, size in wrote] == message_bytes(redis_client, queue)
    with pytest.raises(QueueFull):
        clients.batch(fill)
    assert heard.take() == [
        ("write_failed", "t", "put", "QueueFull"),
        ("write_failed", "n", "delete", "QueueFull"),
    ]
    with pytest.raises(InvalidWrite):
        call("put", "t", 1, {"name": "x" * 1000})
    assert heard.take() == [("write_failed", "t", "put", "InvalidWrite")]
    with pytest.raises(InvalidWrite):
        call("put", "t", None, {})
    assert heard.take() == []


def test_a_redis_that_is_gone(clients: EitherClient) -> None:
    heard = Heard()
    given = {"socket_connect_timeout": 0.1, "retry": None}
    call = clients.connect("redis://127.0.0.1:1", observer=heard, redis_options=given)
    with pytest.raises(ConnectionError):
        call("put", "t", 1, {})
    # Its table could not be looked up: nothing was sent, but the application wanted to write.
    assert heard.take() == [("write_failed", "t", "put", "RedisUnavailable")]


def test_an_observer_that_raises_breaks_no_call(
    clients: EitherClient,
    users: psycopg.Connection[Any],
    options: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing = Failing()
    call = clients.connect(observer=failing, max_queue_length=1)
    with caplog.at_level(logging.ERROR, "writebehind"):
        for id in (1, 2, 3):
            assert call("get", "users", id, lambda id: {"id": id}) == {"id": id}
            assert call("get", "users", id) == {"id": id}
        call("put", "users", 1, {"name": "Ada"})
        with pytest.raises(QueueFull):
            call("put", "users", 2, {"name": "Bob"})
    assert failing.calls["hit"] == failing.calls["loaded"] == failing.calls["filled"] == 3
    assert failing.calls["wrote"] == failing.calls["write_failed"] == 1
    said = Counter(record.getMessage().split("'s ")[1].split(" ")[0] for record in caplog.records)
    assert said["hit"] == said["loaded"] == said["wrote"] == 1  # each method once a client
    assert all("of the observer" in str(record.exc_info) for record in caplog.records)
    with RunningWorker(**options):
        wait_until(lambda: users.execute("SELECT name FROM users").fetchall() == [("Ada",)])


class Awaited(Observer):
    """What nobody would await."""

    async def hit(self, table: str, rows: int) -> None:  # type: ignore[override]
        """Never runs."""


@pytest.mark.parametrize("observer", [object(), print, "x", Observer, Awaited()])
def test_what_is_no_observer_is_refused(redis_url: str, observer: Any) -> None:
    with pytest.raises(ValueError, match="observer"):
        WriteBehind.from_url(redis_url, observer=observer)


def test_one_hears_of_many_threads(connect: Connect) -> None:
    registry = CollectorRegistry()
    wb = connect(observer=PrometheusObserver(registry))

    def work() -> None:
        for i in range(50):
            wb.put("t", i, {"n": i})
            wb.get("t", i)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (
        registry.get_sample_value("writebehind_client_lookups_total", {"table": "t", "result": "hit"}) == 400
    )
    assert (
        registry.get_sample_value("writebehind_client_write_bytes_count", {"table": "t", "op": "put"}) == 400
    )


LABELS = ("table", "op", "result", "outcome", "wait", "error", "le")


def scraped(registry: CollectorRegistry) -> dict[tuple[str, tuple[str, ...]], float]:
    """Sample and labels → value, as Prometheus would read it."""
    text = generate_latest(registry).decode()
    return {
        (
            sample.name.removeprefix("writebehind_client_"),
            tuple(sample.labels[n] for n in LABELS if n in sample.labels),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_reads_it(
    clients: EitherClient, connect: Connect, redis_client: redis.Redis, queue: str
) -> None:
    registry = CollectorRegistry()
    call = clients.connect(observer=PrometheusObserver(registry), max_queue_length=2)
    call("get", "t", 1, lambda id: {"id": 1})
    call("get", "t", 1)
    call("get", "t", 2, lambda id: None)
    call("get", "t", 2)

    def lose(id: int) -> Any:
        connect().invalidate("t", id)
        return {"id": id}

    call("get", "t", 3, lose)
    with pytest.raises(ZeroDivisionError):
        call("get", "t", 4, lambda id: 1 // 0)
    call("put", "t", 1, {"name": "x" * 300})
    call("patch", "t", 5, {"name": "x"})
    with pytest.raises(QueueFull):
        call("put", "t", 1, {"name": "x"})
    with pytest.raises(FlushTimeout):
        call("get", "t", 5, lambda id: None, timeout=0.01)
    found = scraped(registry)
    assert found["lookups_total", ("t", "hit")] == 1
    assert found["lookups_total", ("t", "negative")] == 1
    assert found["lookups_total", ("t", "miss")] == 5
    assert found["load_seconds_count", ("t", "ok")] == 3
    assert found["load_seconds_count", ("t", "error")] == 1
    assert found["fill_bytes_count", ("t",)] == 2
    assert found["fill_bytes_sum", ("t",)] == 3
    assert found["lost_fills_total", ("t",)] == 1
    assert found["wait_seconds_count", ("t", "write")] == 1
    assert found["write_bytes_sum", ("t", "put")] == message_bytes(redis_client, queue)[0]
    assert found["write_bytes_bucket", ("t", "put", "256.0")] == 0
    assert found["write_bytes_bucket", ("t", "put", "1024.0")] == 1
    assert found["failed_writes_total", ("t", "put", "QueueFull")] == 1


def test_every_method_is_counted_and_tables_are_bounded() -> None:
    registry = CollectorRegistry()
    observer = PrometheusObserver(registry, max_tables=3)
    for i in range(1000):
        table = f"table {i}"
        observer.hit(table, 2)
        observer.negative_hit(table, 1)
        observer.miss(table, 1)
        observer.loaded(table, 0.1, None)
        observer.refreshed(table, 0.1, ValueError())
        observer.filled(table, 100)
        observer.fill_lost(table)
        observer.waited_for_load(table, 0.1)
        observer.waited_for_write(table, 0.1, None)
        observer.wrote(table, "put", 100)
        observer.write_failed(table, "put", WriteRejected(1, None, "x"))
    found = scraped(registry)
    assert {labels[0] for _, labels in found} == {"table 0", "table 1", "table 2", OTHER}
    assert found["lookups_total", (OTHER, "hit")] == 997 * 2
    assert found["refresh_seconds_count", (OTHER, "error")] == 997
    assert found["wait_seconds_count", (OTHER, "load")] == 997
    assert set(METHODS) <= set(vars(PrometheusObserver))


def test_without_its_packages_the_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import sys

    for module, package in (("prometheus", "prometheus_client"), ("opentelemetry", "opentelemetry")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            patch.delitem(sys.modules, f"writebehind.{module}", raising=False)
            with pytest.raises(ImportError, match=rf"pip install 'writebehind\[{module}\]'"):
                importlib.import_module(f"writebehind.{module}")
