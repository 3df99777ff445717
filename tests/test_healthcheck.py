"""`writebehind healthcheck`, against the endpoint itself."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from writebehind_worker.cli import cli
from writebehind_worker.endpoint import Endpoint
from writebehind_worker.metrics import Metrics
from writebehind_worker.state import WorkerState


@pytest.fixture
def state() -> WorkerState:
    return WorkerState()


@pytest.fixture(params=["127.0.0.1", "0.0.0.0", "::1", "::"])
def endpoint(request: pytest.FixtureRequest, state: WorkerState) -> Iterator[tuple[str, int]]:
    if ":" in request.param:
        try:
            with socket.create_server(("::1", 0), family=socket.AF_INET6):
                pass
        except OSError:
            pytest.skip("no IPv6 here")
    served = Endpoint(request.param, 0, Metrics("q"), state)
    served.start()
    yield request.param, served.port
    served.stop()


def check(host: str, port: int, *more: str) -> tuple[int, str]:
    given = ["healthcheck", "--metrics-host", host, "--metrics-port", str(port), *more]
    result = CliRunner().invoke(cli, given)
    return result.exit_code, result.output


def test_a_worker_that_makes_progress_is_healthy_and_one_that_hangs_is_not(
    endpoint: tuple[str, int], state: WorkerState
) -> None:
    code, text = check(*endpoint)
    assert code == 0
    assert '"ok": true' in text
    state.begin(stall_after_s=-1)
    code, text = check(*endpoint)
    assert code == 1
    assert '"stalled": "loop"' in text


def test_whether_it_is_ready_and_why_not(endpoint: tuple[str, int], state: WorkerState) -> None:
    state.postgres_is(False, "Postgres: refused")
    code, text = check(*endpoint, "--ready")
    assert code == 1
    assert text.startswith("it is not known whether redis answers; Postgres: refused; the worker is starting")
    state.redis_is(True)
    state.postgres_is(True)
    state.role_is("standby", owner="other")
    assert check(*endpoint, "--ready")[0] == 0


def test_where_nobody_answers_it_says_where_it_asked() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        code, text = check("127.0.0.1", port)
    assert code == 1
    assert text.startswith(f"No worker answers on 127.0.0.1:{port}: ")


def test_something_else_on_the_port_is_no_worker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def speak() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"-ERR unknown command\r\n")

        thread = threading.Thread(target=speak)
        thread.start()
        code, text = check("127.0.0.1", port)
        thread.join()
    assert code == 1
    assert text.startswith("No worker answers on ")


def test_without_a_port_it_says_what_to_do() -> None:
    code, text = check("127.0.0.1", 0)
    assert code == 2
    assert "--metrics-port is 0" in text
