"""The HTTP endpoint, and the state that it tells."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator

import pytest

from writebehind_worker.course import Course
from writebehind_worker.endpoint import Endpoint
from writebehind_worker.errors import FatalError
from writebehind_worker.metrics import Metrics
from writebehind_worker.state import WorkerState


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(clock: Clock) -> WorkerState:
    return WorkerState(stall_after_s=60, clock=clock)


@pytest.fixture
def endpoint(state: WorkerState) -> Iterator[Endpoint]:
    served = Endpoint("127.0.0.1", 0, Metrics("q"), state)
    served.start()
    yield served
    served.stop()


def request(endpoint: Endpoint, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.headers.get("Content-Type", ""), response.read()
    finally:
        connection.close()


def make_ready(state: WorkerState) -> None:
    state.redis_is(True)
    state.postgres_is(True)
    state.role_is("owner", epoch=3, owner="host:1")


def test_metrics_are_served_in_prometheus_form(endpoint: Endpoint) -> None:
    status, content_type, body = request(endpoint, "/metrics")
    assert status == 200
    assert content_type.startswith("text/plain; version=")
    assert b'writebehind_queue_length{queue="q"} 0.0' in body


def test_a_query_string_is_ignored(endpoint: Endpoint) -> None:
    assert request(endpoint, "/metrics?name=x")[0] == 200


def test_head_answers_without_a_body(endpoint: Endpoint) -> None:
    status, _, body = request(endpoint, "/healthz", "HEAD")
    assert (status, body) == (200, b"")


def test_other_paths_are_not_found(endpoint: Endpoint) -> None:
    assert request(endpoint, "/nothing")[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"])
def test_other_methods_are_not_allowed(endpoint: Endpoint, method: str) -> None:
    assert request(endpoint, "/metrics", method)[0] == 405


def test_requests_are_not_logged(endpoint: Endpoint, capfd: pytest.CaptureFixture[str]) -> None:
    request(endpoint, "/metrics")
    request(endpoint, "/nothing", "POST")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_loop_that_stalls_is_not_healthy(endpoint: Endpoint, state: WorkerState, clock: Clock) -> None:
    clock.now += 60
    assert request(endpoint, "/healthz")[0] == 200
    clock.now += 1
    status, content_type, body = request(endpoint, "/healthz")
    assert (status, content_type) == (503, "application/json")
    assert json.loads(body) == {"ok": False, "since_progress_s": 61.0, "stalled": "loop"}
    state.progress()
    assert request(endpoint, "/healthz")[0] == 200


def test_ready_once_both_servers_answer_and_it_has_a_role(endpoint: Endpoint, state: WorkerState) -> None:
    status, _, body = request(endpoint, "/readyz")
    assert status == 503
    assert json.loads(body)["reasons"] == [
        "it is not known whether redis answers",
        "it is not known whether postgres answers",
        "the worker is starting: who holds the lease is not known",
    ]
    make_ready(state)
    status, _, body = request(endpoint, "/readyz")
    assert status == 200
    assert json.loads(body)["epoch"] == 3


def test_a_standby_is_ready(state: WorkerState) -> None:
    make_ready(state)
    state.role_is("standby", owner="other:1")
    assert state.readiness()[0]


def test_a_worker_that_lost_the_lease_is_not_ready_until_it_knows_who_holds_it(state: WorkerState) -> None:
    make_ready(state)
    state.role_is("starting")
    ready, facts = state.readiness()
    assert (ready, facts["owner"], facts["epoch"]) == (False, None, None)
    assert facts["reasons"] == ["the worker is starting: who holds the lease is not known"]
    state.role_is("standby", owner="other:1")
    assert state.readiness()[0]


def test_a_worker_that_stops_stays_so(state: WorkerState) -> None:
    make_ready(state)
    assert state.role_is("stopping")
    assert not state.role_is("owner", epoch=4)  # it had just taken over
    assert state.readiness()[1]["reasons"] == ["the worker is stopping"]


def test_readiness_says_why_not(state: WorkerState) -> None:
    make_ready(state)
    state.postgres_is(False, "Postgres is read-only")
    state.breaker_is("1000 writes in a row to users were rejected: 42703")
    state.role_is("starting")
    ready, facts = state.readiness()
    assert not ready
    assert facts["reasons"] == [
        "Postgres is read-only",
        "the worker is starting: who holds the lease is not known",
        "1000 writes in a row to users were rejected: 42703",
    ]


def test_only_a_change_is_reported_as_one(state: WorkerState) -> None:
    assert state.redis_is(True)
    assert not state.redis_is(True)
    assert state.redis_is(False, "connection refused")
    assert not state.redis_is(False, "timed out")
    assert state.facts()["redis_reason"] == "timed out"
    assert state.role_is("owner", epoch=1)
    assert not state.role_is("owner", epoch=1)
    assert state.role_is("owner", epoch=2)
    assert state.held_is("users 42")
    assert not state.held_is("users 42")
    assert state.held_is(None)


def test_starting_and_stopping_twice_is_harmless(endpoint: Endpoint) -> None:
    port = endpoint.port
    endpoint.start()
    assert endpoint.port == port
    endpoint.stop()
    endpoint.stop()
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.1", port, timeout=10).connect()


def test_a_port_in_use_says_what_to_do(endpoint: Endpoint, state: WorkerState) -> None:
    second = Endpoint("127.0.0.1", endpoint.port, Metrics(), state)
    with pytest.raises(FatalError, match=rf"cannot listen on 127.0.0.1:{endpoint.port}") as caught:
        second.start()
    assert "--metrics-port" in caught.value.hint


def test_it_moves_only_where_it_can_and_stays_otherwise(endpoint: Endpoint, state: WorkerState) -> None:
    before, metrics, course = endpoint.port, Metrics("other"), Course()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(FatalError, match="cannot listen"):
        endpoint.move("127.0.0.1", taken.getsockname()[1], metrics, course)
    assert endpoint.port == before, "it was not bound anew"
    assert b'queue="q"' in request(endpoint, "/metrics")[2]
    with pytest.raises(FatalError, match="cannot listen"):
        endpoint.move("a" * 70 + ".example", 1, metrics, course)
    assert endpoint.port == before
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    endpoint.move("127.0.0.1", port, metrics, course)
    assert endpoint.port == port
    assert b'queue="other"' in request(endpoint, "/metrics")[2]
    assert course.silent_s(time.monotonic()) is not None
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", before))
