"""The examples of web sessions, driven as by browsers; in the middle Redis loses all it has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psycopg
import pytest
import redis
from examples import fastapi_sessions, flask_sessions
from tests.support.workers import RunningWorker

from writebehind.keys import QueueKeys
from writebehind_worker.testing.servers import Servers
from writebehind_worker.testing.wait import wait_until

TABLE = (Path(__file__).parents[1] / "examples" / "sessions.sql").read_bytes()
HOST = "https://shop.example"


class Answer(NamedTuple):
    status: int
    body: Any
    cookie: str


class Browser:
    """Cookies of its own; ``post(path, json)`` is what the framework's test client does."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def get(self, path: str) -> Answer:
        return self._read(self._client.get(path))

    def post(self, path: str, **body: str) -> Answer:
        return self._read(self._client.post(path, json=body))

    def _read(self, response: Any) -> Answer:
        body = response.json() if callable(response.json) else response.json
        return Answer(response.status_code, body, response.headers.get("set-cookie", ""))


class FlaskClient:
    """Flask's test client, asked over https."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def get(self, path: str) -> Any:
        return self._client.get(path, base_url=HOST)

    def post(self, path: str, json: Any) -> Any:
        return self._client.post(path, base_url=HOST, json=json)


class LoopClient:
    """An async client, run on one event loop with its application."""

    def __init__(self, client: httpx.AsyncClient, runner: asyncio.Runner) -> None:
        self._client, self._runner = client, runner

    def get(self, path: str) -> Any:
        return self._runner.run(self._client.get(path))

    def post(self, path: str, json: Any) -> Any:
        return self._runner.run(self._client.post(path, json=json))


@pytest.fixture
def table(pg: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    pg.execute(TABLE)
    return pg


@pytest.fixture(params=["fastapi", "flask"])
def browser(
    request: pytest.FixtureRequest,
    table: psycopg.Connection[Any],
    redis_url: str,
    postgres_url: str,
    queue: str,
) -> Iterator[Callable[[], Browser]]:
    """Makes browsers that look at one application."""
    with ExitStack() as stack:
        if request.param == "flask":
            site = flask_sessions.make_app(redis_url, postgres_url, queue)
            stack.callback(site.extensions["writebehind"].close)
            yield lambda: Browser(FlaskClient(site.test_client()))
        else:
            app = fastapi_sessions.make_app(redis_url, postgres_url, queue)
            runner = stack.enter_context(asyncio.Runner())
            lifespan = app.router.lifespan_context(app)
            runner.run(lifespan.__aenter__())
            stack.callback(lambda: runner.run(lifespan.__aexit__(None, None, None)))

            def make() -> Browser:
                client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HOST)
                stack.callback(lambda: runner.run(client.aclose()))
                return Browser(LoopClient(client, runner))

            yield make


def test_a_site_whose_redis_loses_all_it_has(
    browser: Callable[[], Browser],
    table: psycopg.Connection[Any],
    redis_client: redis.Redis,
    queue: str,
    options: dict[str, Any],
    servers: Servers,
) -> None:
    if not servers.ours:
        pytest.skip("all keys of a Redis that is not ours are not removed")
    keys = QueueKeys(queue)
    desk, phone, bobs, left = browser(), browser(), browser(), browser()
    with RunningWorker(**options):
        assert desk.get("/me").status == 401
        assert desk.post("/theme", theme="dark").status == 401
        assert desk.post("/login", user="ada", password="x").status == 403
        for one, user, password in (
            (desk, "ada", "lovelace"),
            (phone, "ada", "lovelace"),
            (left, "ada", "lovelace"),
            (bobs, "bob", "the builder"),
        ):
            answer = one.post("/login", user=user, password=password)
            assert answer.status == 200
            flags = answer.cookie.lower()
            assert flags.startswith("__host-session=")
            for flag in ("secure", "httponly", "samesite=lax", "path=/"):
                assert flag in flags
            assert "domain" not in flags
        assert desk.post("/theme", theme="dark").status == 200
        assert left.post("/logout").status == 200
        before = desk.get("/me")
        assert before.body["theme"] == "dark"
        wait_until(lambda: not redis_client.llen(queue) + redis_client.llen(keys.inflight))

        redis_client.flushall()
        assert desk.get("/me") == before
        assert (phone.get("/me").body["theme"], bobs.get("/me").body["user"]) == ("light", "bob")
        assert left.get("/me").status == 401
        assert phone.post("/theme", theme="blue").status == 200

        assert desk.post("/password").body == {"ended": 1}
        assert desk.get("/me").body == before.body
        assert phone.get("/me").status == 401
        assert phone.post("/login", user="ada", password="lovelace").status == 200
        ended = phone.post("/logout-everywhere")
        assert ended.body["ended"] >= 2
        assert [one.get("/me").status for one in (desk, phone, left, bobs)] == [401, 401, 401, 200]
        wait_until(lambda: not redis_client.llen(queue) + redis_client.llen(keys.inflight))
    assert table.execute("SELECT user_id FROM sessions").fetchall() == [("bob",)]
