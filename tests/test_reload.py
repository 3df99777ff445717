"""SIGHUP: the configuration is read again; the process and its counters stay, nothing is lost or doubled."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.support.service_manager import Listener, listening
from tests.support.workers import WorkerProcess, Workload

from writebehind import WriteBehind
from writebehind.keys import QueueKeys
from writebehind_worker.testing.wait import wait_until


@pytest.fixture
def port() -> int:
    return free_port()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """Told of by the environment, as systemd does it."""
    with listening() as found:
        for name, value in found.environment().items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def configure(
    tmp_path: Path, redis_url: str, postgres_url: str, queue: str, port: int
) -> Callable[..., Path]:
    """Writes the file: what a test does not say is as it was at first."""
    file = tmp_path / "worker.toml"

    def write(text: str = "", **settings: Any) -> Path:
        given = {
            "redis_url": redis_url,
            "postgres_url": postgres_url,
            "queue": queue,
            "metrics_host": "127.0.0.1",
            "metrics_port": port,
            **settings,
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in given.items()]
        file.write_text("\n".join([*lines, text]))
        return file

    return write


def get(port: int, path: str, host: str = "127.0.0.1") -> str:
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=5) as response:
            return str(response.read().decode())
    except urllib.error.HTTPError as error:
        return str(error.read().decode())


def counted(port: int) -> float:
    """Writes that were applied, by the counters."""
    found = re.findall(
        r'^writebehind_writes_total{.*outcome="applied".*} (\S+)$', get(port, "/metrics"), re.M
    )
    return sum(map(float, found))


def test_another_batch_size_is_taken_and_no_counter_goes_back(
    configure: Callable[..., Path],
    load: Workload,
    port: int,
    listener: Listener,
) -> None:
    with WorkerProcess.told("--config", str(configure(batch_size=7))) as worker:
        worker.wait_for_event("owner")
        load.add(40)
        load.wait_until_done()
        wait_until(lambda: counted(port) == 40)
        epoch = load.ledger("epoch")
        configure(batch_size=1000, log_level="debug")
        worker.terminate(signal.SIGHUP)
        event = worker.wait_for_event("reloaded")
        assert event["changed"] == ["batch_size", "log_level"]
        worker.wait_for_event("owner", count=2)
        assert counted(port) == 40, "the endpoint stays, and what it has counted"
        assert load.ledger("epoch") == epoch + 1
        load.add(40)
        load.check()
        wait_until(lambda: counted(port) == 80)
        assert max(event["writes"] / event["batches"] for event in worker.events("flushed")[-1:]) > 7
        listener.wait_for_status("owner, 0 waiting")
        worker.terminate()
        assert worker.wait() == 0
    assert listener.states() == ["READY", "RELOADING", "READY", "STOPPING"]


@pytest.mark.parametrize("exporter", ["console", "nowhere"])
def test_tracing_may_be_switched_on(
    configure: Callable[..., Path], load: Workload, exporter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", exporter)
    with WorkerProcess.told("--config", str(configure())) as worker:
        worker.wait_for_event("owner")
        configure(tracing=True)
        worker.terminate(signal.SIGHUP)
        if exporter == "console":
            worker.wait_for_event("reloaded")
        else:
            event = worker.wait_for_event("reload refused: the configuration in force stays")
            assert "nowhere" in event["reason"]
        worker.wait_for_event("owner", count=2)
        load.add(4)
        load.check()
        worker.terminate()
        assert worker.wait() == 0
        assert ('"name": "flush ' in worker.log) == (exporter == "console")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batch_size = 0", "--batch-size is 0; allowed: 1 to 100000"),
        ("batchsize = 10", "unknown key 'batchsize'"),
        ("batch_size =", "not a TOML file"),
        (None, "cannot be read"),
        pytest.param("table = " + "[" * 5000 + "]" * 5000, "RecursionError", id="an error that is not ours"),
    ],
)
def test_a_wrong_configuration_is_refused_and_the_old_one_stays(
    configure: Callable[..., Path],
    load: Workload,
    text: str | None,
    said: str,
    listener: Listener,
) -> None:
    file = configure()
    with WorkerProcess.told("--config", str(file)) as worker:
        worker.wait_for_event("owner")
        if text is None:
            file.unlink()
        else:
            configure(text)
        worker.terminate(signal.SIGHUP)
        event = worker.wait_for_event("reload refused: the configuration in force stays")
        assert said in event["reason"]
        assert listener.states() == ["READY", "RELOADING", "READY"]
        assert said in listener.wait_for_status("reload refused")
        load.add(10)
        load.check()
        assert len(worker.events("owner")) == 1
        configure(batch_size=7)
        worker.terminate(signal.SIGHUP)
        worker.wait_for_event("owner", count=2)
        wait_until(lambda: "refused" not in listener.said("STATUS")[-1])


def test_the_endpoint_moves_if_it_is_told_to_and_stays_if_it_cannot(
    configure: Callable[..., Path], load: Workload, port: int
) -> None:
    with WorkerProcess.told("--config", str(configure())) as worker, socket.socket() as taken:
        worker.wait_for_event("owner")
        load.add(10)
        wait_until(lambda: counted(port) == 10)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        configure(metrics_port=taken.getsockname()[1])
        with looking_all_the_time(port) as failures:
            worker.terminate(signal.SIGHUP)
            event = worker.wait_for_event("reload refused: the configuration in force stays")
            assert "cannot listen" in event["reason"]
            worker.wait_for_event("owner", count=2)
        assert failures == []
        assert counted(port) == 10
        other = free_port()
        configure(metrics_port=other)
        worker.terminate(signal.SIGHUP)
        worker.wait_for_event("owner", count=3)
        assert counted(other) == 10
        with pytest.raises(urllib.error.URLError):
            get(port, "/metrics")
        load.add(10)
        load.check()


@contextmanager
def looking_all_the_time(port: int) -> Iterator[list[str]]:
    """What kept the endpoint from answering meanwhile."""
    failures: list[str] = []
    end = threading.Event()

    def look() -> None:
        while not end.is_set():
            try:
                get(port, "/healthz")
            except OSError as error:
                failures.append(str(error))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield failures
    finally:
        end.set()
        thread.join()


def test_the_host_changes_and_the_port_stays(configure: Callable[..., Path], port: int) -> None:
    with WorkerProcess.told("--config", str(configure())) as worker:
        for count, host in enumerate(("0.0.0.0", "127.0.0.1", "127.0.0.2"), start=1):
            worker.wait_for_event("owner", count=count)
            configure(metrics_host=host)
            worker.terminate(signal.SIGHUP)
            worker.wait_for_event("reloaded", count=count)
            get(port, "/healthz", "127.0.0.2" if host == "127.0.0.2" else "127.0.0.1")


@pytest.mark.parametrize("is_served", [False, True])
def test_another_queue_is_taken_up_with_figures_of_its_own(
    is_served: bool,
    configure: Callable[..., Path],
    load: Workload,
    redis_url: str,
    queue: str,
    port: int,
    listener: Listener,
) -> None:
    other, given = f"{queue}:other", {"metrics_port": port if is_served else 0}
    with (
        WriteBehind.from_url(redis_url, queue=other, prefix=f"{other}:") as wb,
        WorkerProcess.told("--config", str(configure(**given))) as worker,
    ):
        worker.wait_for_event("owner")
        load.add(10)
        load.wait_until_done()
        configure(queue=other, **given)
        worker.terminate(signal.SIGHUP)
        assert worker.wait_for_event("reloaded")["changed"] == ["queue"]
        worker.wait_for_event("owner", count=2)
        wb.put("users", 1_000_001, {"name": "of the other queue"})
        wait_until(lambda: load.pg.execute("SELECT FROM users WHERE id = 1000001").fetchone() is not None)
        listener.wait_for_status("owner, 0 waiting")
        if not is_served:  # then it is from the next time
            configure(queue=other)
            worker.terminate(signal.SIGHUP)
            worker.wait_for_event("owner", count=3)
        wait_until(lambda: counted(port) == 1)
        assert f'queue="{other}"' in get(port, "/metrics")
        assert f'queue="{queue}"' not in get(port, "/metrics")
        page = json.loads(get(port, "/status.json"))
        assert page["queue"] == other
        configure()
        worker.terminate(signal.SIGHUP)
        worker.wait_for_event("owner", count=3 if is_served else 4)
        assert counted(port) == 10, "what the first one had counted is still there"
        assert worker.is_alive()


def test_a_url_that_could_not_be_used_is_refused_too(
    configure: Callable[..., Path], load: Workload, postgres_url: str
) -> None:
    with WorkerProcess.told("--config", str(configure())) as worker:
        worker.wait_for_event("owner")
        configure(postgres_url=f"{postgres_url}?connect_timeout=soon")
        worker.terminate(signal.SIGHUP)
        event = worker.wait_for_event("reload refused: the configuration in force stays")
        assert "connect_timeout" in event["reason"]
        load.add(10)
        load.check()


def test_ready_is_said_of_the_last_reload_and_a_refusal_is_told_until_a_later_one_succeeds(
    configure: Callable[..., Path],
    load: Workload,
    postgres_url: str,
    port: int,
    listener: Listener,
) -> None:
    with (
        psycopg.connect(postgres_url) as other,
        WorkerProcess.told("--config", str(configure())) as worker,
    ):
        worker.wait_for_event("owner")
        other.execute("LOCK TABLE users")
        load.add(10)
        wait_until(lambda: load.redis.llen(QueueKeys(load.keys.queue).inflight))
        configure(batch_size=7)
        worker.terminate(signal.SIGHUP)
        wait_until(lambda: "stopping" in get(port, "/readyz"))
        configure("batch_size = 0")
        worker.terminate(signal.SIGHUP)
        worker.wait_for_event("reload refused: the configuration in force stays")
        assert listener.states() == ["READY", "RELOADING", "RELOADING"], "the first one is not done"
        other.rollback()
        worker.wait_for_event("owner", count=2)
        wait_until(lambda: listener.states() == ["READY", "RELOADING", "RELOADING", "READY"])
        assert "--batch-size is 0" in listener.wait_for_status("owner, 0 waiting; reload refused")
        configure()
        worker.terminate(signal.SIGHUP)
        worker.wait_for_event("owner", count=3)
        wait_until(lambda: "refused" not in listener.said("STATUS")[-1])


def test_what_is_frozen_is_finished_first_and_a_stop_does_not_wait_for_it(
    configure: Callable[..., Path], load: Workload, pg: psycopg.Connection[Any], postgres_url: str
) -> None:
    with (
        psycopg.connect(postgres_url) as other,
        WorkerProcess.told("--config", str(configure(stop_timeout=0.5, lease_ttl=1.0))) as worker,
    ):
        worker.wait_for_event("owner")
        other.execute("LOCK TABLE users")
        load.add(10)
        wait_until(lambda: load.redis.llen(QueueKeys(load.keys.queue).inflight))
        worker.terminate(signal.SIGHUP)
        wait_until(lambda: "stopping" in get(int(configure_port(worker)), "/readyz"))
        assert not worker.events("reloaded")
        other.rollback()
        worker.wait_for_event("reloaded")
        load.check()
        other.execute("LOCK TABLE users")
        load.add(10)
        wait_until(lambda: load.redis.llen(QueueKeys(load.keys.queue).inflight))
        worker.terminate(signal.SIGHUP)
        worker.terminate()
        assert worker.wait(5) == 0
        other.rollback()
    with WorkerProcess.told("--config", str(configure())) as next_owner:
        next_owner.wait_for_event("owner")
        load.check()


def configure_port(worker: WorkerProcess) -> str:
    file = Path(worker.arguments[-1])
    return str(re.findall(r"metrics_port = (\d+)", file.read_text())[0])


def test_secrets_are_read_again_too(
    tmp_path: Path, configure: Callable[..., Path], load: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = configure().read_text()
    url = json.loads(re.findall(r"^redis_url = (.*)$", text, re.M)[0])
    file = tmp_path / "without.toml"
    file.write_text("\n".join(line for line in text.splitlines() if not line.startswith("redis_url")))
    (tmp_path / "redis_url").write_text("redis://127.0.0.1:1/0\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with WorkerProcess.told("--config", str(file)) as worker:
        worker.wait_for_event("redis")
        (tmp_path / "redis_url").write_text(url + "\n")
        worker.terminate(signal.SIGHUP)
        assert worker.wait_for_event("reloaded")["changed"] == ["redis_url"]
        worker.wait_for_event("owner")
        load.add(10)
        load.check()
