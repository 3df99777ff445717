"""No password in anything that the command shows, whatever goes wrong; no value of a row in a log."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit

import psycopg
import pytest
import redis
from click.testing import CliRunner
from tests.support.workers import ROOT, WorkerProcess

from writebehind_worker.cli import cli
from writebehind_worker.embedded.process import is_free
from writebehind_worker.testing.proxy import Proxy, proxied_url
from writebehind_worker.testing.wait import wait_until

SECRETS = [
    "hunter2",
    "hünter2 :/?#[]@!$&'()*+,;=%",
    "hunter2@localhost:1/x?password=hunter2",
    "'hunter2\\ \"",
]


def tells_none(text: str) -> None:
    assert "hunter2" not in text, text
    assert "h%C3%BCnter2" not in text, text
    assert "nter2" not in text, text


def with_account(url: str, user: str, password: str) -> str:
    parts = urlsplit(url)
    where = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{user}:{quote(password, safe='')}@{where}").geturl()


@pytest.fixture(params=SECRETS, ids=["plain", "special", "like a URL", "quotes"])
def account(request: pytest.FixtureRequest, redis_client: redis.Redis) -> Iterator[tuple[str, str]]:
    """A user of Redis with that password, which may do everything."""
    redis_client.acl_setuser(
        "secretive", enabled=True, passwords=[f"+{request.param}"], keys=["*"], commands=["+@all"], reset=True
    )
    yield "secretive", request.param
    redis_client.acl_deluser("secretive")


@pytest.fixture
def urls(account: tuple[str, str], redis_url: str, postgres_url: str) -> dict[str, dict[str, str]]:
    """What can be right or wrong → the URLs by their variables."""
    user, password = account
    redis_right = with_account(redis_url, user, password)
    # The tests' own Postgres trusts; elsewhere the password of its URL is the right one.
    own = urlsplit(postgres_url)
    postgres_right = with_account(postgres_url, own.username or "postgres", own.password or password)
    down = "127.0.0.1:1"

    def pair(one: str, two: str) -> dict[str, str]:
        return {"WRITEBEHIND_REDIS_URL": one, "WRITEBEHIND_POSTGRES_URL": two}

    return {
        "right": pair(redis_right, postgres_right),
        "wrong password": pair(with_account(redis_url, user, password + "x"), postgres_right),
        "unknown role": pair(redis_right, with_account(postgres_url, "nobody", password)),
        "refused": pair(
            with_account(f"redis://{down}/0", user, password),
            with_account(f"postgresql://{down}/app", user, password),
        ),
        "no TLS there": pair(
            redis_right.replace("redis:", "rediss:") + "?socket_timeout=0.3",
            f"{postgres_right}?sslmode=require",
        ),
        "unparsable": pair(f"redis:/{user}:{password}@h:x", f"postgresql://{user}:{password}@[h:x"),
        "connection string": pair(
            redis_right, "host=127.0.0.1 port=1 user=u password='{}'".format(password.replace("'", r"\'"))
        ),
    }


CASES = [
    "right",
    "wrong password",
    "unknown role",
    "refused",
    "no TLS there",
    "unparsable",
    "connection string",
]


@pytest.mark.parametrize("case", CASES)
def test_commands_tell_no_password(case: str, urls: dict[str, dict[str, str]], tmp_path: Path) -> None:
    env = urls[case]
    file = tmp_path / "writebehind.toml"
    lines = (f"{name.removeprefix('WRITEBEHIND_').lower()} = {_toml(value)}\n" for name, value in env.items())
    file.write_text("".join(lines))
    for given, source in (([], env), (["--config", str(file)], {})):
        for command in (["status"], ["status", "--json"], ["init"], ["run", "--help"]):
            result = CliRunner().invoke(cli, [*command, *given], env=source)
            tells_none(result.output + repr(result.exception))
            if case == "right":
                assert result.exit_code == 0, result.output


def _toml(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@contextmanager
def running(env: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """``writebehind run`` at the debug level, its port, and the file that has all it says."""
    port = next(port for port in range(14_000 + os.getpid() % 900, 15_000) if is_free(port))
    inherited = {n: v for n, v in os.environ.items() if not n.startswith(("WRITEBEHIND_", "PG"))}
    options = [
        "--log-level",
        "debug",
        "--metrics-port",
        str(port),
        "--stop-timeout",
        "0.2",
        "--lease-ttl",
        "0.5",
    ]
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "writebehind_worker", "run", *options],
            cwd=ROOT, env=inherited | env, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            yield process, port, Path(log.name)
        finally:
            process.terminate()
            process.wait(15)
            tells_none(Path(log.name).read_text())


def page(port: int, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return str(response.read())
    except HTTPError as error:
        with error:
            return str(error.read())


@pytest.mark.parametrize("account", [SECRETS[1]], indirect=True, ids=["special"])
@pytest.mark.parametrize("case", ["right", "wrong password", "refused"])
def test_a_running_worker_tells_no_password(case: str, urls: dict[str, dict[str, str]], queue: str) -> None:
    with running({**urls[case], "WRITEBEHIND_QUEUE": queue}) as (process, port, log):
        wanted = '"owner"' if case == "right" else '"up": false'
        wait_until(lambda: wanted in log.read_text() or process.poll() is not None, timeout=20)
        assert process.poll() is None, log.read_text()
        for path in ("/", "/status.json", "/metrics", "/healthz", "/readyz", "/elsewhere"):
            tells_none(page(port, path))


def test_neither_log_nor_status_nor_metrics_tell_the_values_of_rows(
    redis_url: str, postgres_url: str, queue: str, pg: psycopg.Connection[Any], redis_client: redis.Redis
) -> None:
    pg.execute("CREATE TABLE users (id int PRIMARY KEY, name text UNIQUE, age int CHECK (age > 0))")
    pg.execute("INSERT INTO users VALUES (1, 'hunter2', 1)")
    redis_client.lpush(
        queue,
        '{"table":"users","id":2,"data":{"name":"hunter2"}}',
        '{"table":"users","id":3,"data":{"age":"hunter2"}}',
        '{"table":"users","id":"hunter2","data":{"age":1}}',
        '{"table":"users","id":4,"data":{"name":"hunter2","age":-1}}',
        '{"table":"users","id":5,"data":{"name":"hunter2","nope":1}}',
        'hunter2 {"',
        '{"table":"users","id":6,"data":{"name":"not hunter2"}}',
    )
    held = psycopg.connect(postgres_url)
    held.execute("SELECT FROM users WHERE id = 1 FOR UPDATE")
    redis_client.lpush(queue, '{"table":"users","id":1,"data":{"name":"hunter2 the second"}}')
    options = {"redis_url": redis_url, "queue": queue, "log_level": "debug", "lock_timeout_s": 0.1}
    with (
        Proxy.to(postgres_url) as proxy,
        WorkerProcess(**options, postgres_url=proxied_url(postgres_url, proxy.port)) as worker,
    ):
        worker.wait_for_event("waiting for a lock")
        proxy.drop_reply_after(lambda chunk: b"COMMIT" in chunk)
        held.close()
        worker.wait_for_event("flushed")
        status = CliRunner().invoke(
            cli, ["status", "--redis-url", redis_url, "--postgres-url", postgres_url, "--queue", queue]
        )
        tells_none(status.output)
        tells_none(worker.log)
    count = pg.execute("SELECT count(*) FROM writebehind.dead_letters").fetchone()
    assert count == (6,)
