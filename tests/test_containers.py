"""The image and compose.yaml, built and run; skipped where there is no container engine.

Prometheus is Debian's; Grafana has no package there, and its part is only checked as a configuration.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.support.documents import blocks, commands
from tests.support.engine import (
    POSTGRES_IMAGE,
    PYTHON_IMAGE,
    REDIS_IMAGE,
    ROOT,
    build_worker,
    docker,
    need_engine,
    running,
)

from writebehind_worker.testing.servers import missing
from writebehind_worker.testing.wait import wait_until

COMPOSE = ROOT / "deploy/docker/compose.yaml"
DOCUMENT = ROOT / "docs/deployment.md"
SAFE = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
BUILT = "writebehind:compose-test"
# An index of packages may be reached from the host alone, as in `build`.
NETWORK = "services: {worker: {build: {network: host}}}"
PROMETHEUS = """
FROM {image}
RUN apt-get update -q && apt-get install -y -q --no-install-recommends prometheus >/dev/null \\
 && rm -rf /var/lib/apt/lists/* && mkdir -p /prometheus
ENTRYPOINT ["prometheus"]
"""

pytestmark = pytest.mark.container


@pytest.fixture(scope="module")
def image() -> str:
    return build_worker()


def documented() -> tuple[list[str], list[str]]:
    """The options of `docker run` in the document, for `init` and for the worker; at a port that is free."""
    found = [words for block in blocks(DOCUMENT.read_text()) for words in commands(block.code)]
    init, worker = (words[2:] for words in found if words[:2] == ["docker", "run"])
    assert (init[-2:], worker[-1]) == (["writebehind", "init"], "writebehind")
    return init[:-2], [word.replace("127.0.0.1:9753:", "127.0.0.1::") for word in worker[:-1]]


def state(container: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker("inspect", "--format", "{{json .State}}", container))
    return found


def health(container: str) -> str:
    return str(state(container)["Health"]["Status"])


def test_the_image_holds_what_it_should(image: str) -> None:
    found = json.loads(docker("inspect", "--format", "{{json .Config}}", image))
    assert found["User"] == "65532:65532"
    assert found["Entrypoint"] == ["writebehind"]
    assert found["Cmd"] == ["run"]
    assert found["Healthcheck"]["Test"] == ["CMD", "writebehind", "healthcheck"]
    assert "writebehind, version" in docker("run", "--rm", *SAFE, image, "--version")
    listed = docker("run", "--rm", *SAFE, "--entrypoint", "ls", image, "/opt/writebehind/bin")
    assert "writebehind" in listed.split()
    assert "pip" not in listed


def test_it_runs_read_only_and_stops_in_seconds(image: str) -> None:
    need_engine(REDIS_IMAGE, POSTGRES_IMAGE)
    network = f"writebehind-{uuid.uuid4().hex[:8]}"
    for_init, for_worker = documented()
    assert set(SAFE) <= set(for_worker)
    urls = (
        *("--env", "WRITEBEHIND_REDIS_URL=redis://redis/0"),
        *("--env", "WRITEBEHIND_POSTGRES_URL=postgresql://postgres:test@postgres/postgres"),
    )
    docker("network", "create", network)
    with ExitStack() as stack:
        stack.callback(docker, "network", "rm", network, check=False)
        within = ("--network", network)
        redis = stack.enter_context(running(REDIS_IMAGE, options=(*within, "--network-alias", "redis")))
        often = ("--health-interval", "1s", "--health-start-period", "1s")
        worker = stack.enter_context(running(image, options=(*within, *for_worker, *urls, *often)))
        wait_until(lambda: health(worker) == "healthy", 60, 0.2, "it is healthy while there is no Postgres")
        options = (*within, "--network-alias", "postgres", "--env", "POSTGRES_PASSWORD=test")
        postgres = stack.enter_context(running(POSTGRES_IMAGE, options=options))

        def init() -> bool:
            made = docker("run", *within, *for_init, *urls, image, "init", check=False)
            return "ledger's tables" in made and "Error" not in made

        wait_until(init, 60, 0.5)

        def sql(statement: str) -> str:
            command = ("psql", "-h", "127.0.0.1", "-U", "postgres", "-tAc", statement)
            return docker("exec", "--env", "PGPASSWORD=test", postgres, *command)

        sql("CREATE TABLE users (id bigint PRIMARY KEY, name text)")
        write = json.dumps({"table": "users", "id": 1, "data": {"name": "Ada"}})
        docker("exec", redis, "redis-cli", "lpush", "db:write:queue", write)

        def arrived() -> bool:
            docker(
                "start", worker
            )  # it ends if it has seen no ledger, perhaps only now; else this does nothing
            return sql("SELECT name FROM users") == "Ada"

        wait_until(arrived, 30, 0.2)
        wait_until(lambda: health(worker) == "healthy", 30, 0.2)
        assert docker("exec", worker, "id", "-u") == "65532"
        assert "Read-only file system" in docker("exec", worker, "touch", "/opt/x", check=False)
        assert docker("exec", worker, "writebehind", "healthcheck", "--ready")
        began = time.monotonic()
        docker("stop", "--time", "30", worker)
        assert time.monotonic() - began < 8
        assert state(worker)["ExitCode"] == 0
        assert '"released"' in docker("logs", worker)


# compose.yaml


class Project:
    """`docker compose` with images that are here and ports that are free; ``files`` beside compose.yaml."""

    def __init__(self, *files: Path, **variables: str) -> None:
        self._files = [part for file in (COMPOSE, *files) for part in ("--file", str(file))]
        self._name = f"writebehind-{uuid.uuid4().hex[:8]}"
        ports = dict.fromkeys(
            [f"{s}_PORT" for s in ("REDIS", "POSTGRES", "METRICS", "PROMETHEUS", "GRAFANA")], "0"
        )
        self._environment = {**os.environ, **ports, **variables}

    def __call__(self, *arguments: str, timeout: float = 120) -> str:
        command = ["docker", "compose", *self._files, "--project-name", self._name, *arguments]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def containers(self) -> dict[str, dict[str, Any]]:
        lines = self("ps", "--all", "--format", "json").splitlines()
        return {found["Service"]: found for found in map(json.loads, lines)}

    def sql(self, statement: str) -> str:
        return self(
            *("exec", "-T", "--env", "PGPASSWORD=change-me", "postgres"),
            *("psql", "-h", "127.0.0.1", "-U", "app", "-d", "app", "-tAc", statement),
        )


@pytest.fixture(scope="module")
def compose_is_there() -> None:
    need_engine()
    if "unknown" in docker("compose", "version", check=False):
        missing("no docker compose: install its plugin, version 2")


@pytest.mark.usefixtures("compose_is_there")
def test_the_whole_of_it_is_valid_and_every_file_that_it_names_is_there() -> None:
    project = Project(WORKER_IMAGE="other/worker:1", BASE_IMAGE="other/python:3")
    found = json.loads(project("--profile", "demo", "config", "--format", "json"))
    services = found["services"]
    assert set(services) == {"redis", "postgres", "init", "worker", "load", "prometheus", "grafana"}
    assert services["worker"]["image"] == "other/worker:1"
    assert services["worker"]["build"]["args"]["BASE_IMAGE"] == "other/python:3"
    same = [name for name, service in services.items() if service.get("image") == "other/worker:1"]
    assert sorted(same) == ["init", "load", "worker"]
    assert [name for name in services if "build" in services[name]] == ["worker"], "one name, built once"
    assert [services[name].get("pull_policy") for name in ("init", "load")] == ["never", "never"]
    assert "load" not in json.loads(project("config", "--format", "json"))["services"]
    for service in services.values():
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1"
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                assert volume["read_only"]
                assert Path(volume["source"]).exists(), volume["source"]


@pytest.fixture
def project(compose_is_there: None, tmp_path: Path) -> Iterator[Project]:
    """None of its services has an image of the worker yet."""
    need_engine(PYTHON_IMAGE, REDIS_IMAGE, POSTGRES_IMAGE)
    prometheus = "writebehind-prometheus:test"
    file = PROMETHEUS.format(image=PYTHON_IMAGE)
    docker("build", "--network", "host", "--tag", prometheus, "-", timeout=300, stdin=file)
    docker("rmi", "--force", BUILT, check=False)
    override = tmp_path / "network.yaml"
    override.write_text(NETWORK)
    found = Project(
        override,
        WORKER_IMAGE=BUILT,
        BASE_IMAGE=PYTHON_IMAGE,
        REDIS_IMAGE=REDIS_IMAGE,
        POSTGRES_IMAGE=POSTGRES_IMAGE,
        PROMETHEUS_IMAGE=prometheus,
    )
    try:
        yield found
    except BaseException:
        print(found("logs", "--tail", "50"))
        raise
    finally:
        found("--profile", "demo", "down", "--volumes", "--timeout", "5")
        docker("rmi", "--force", BUILT, check=False)


@pytest.mark.timeout(600)
def test_one_command_starts_it_and_prometheus_sees_live_data(project: Project) -> None:
    services = ("worker", "load", "prometheus")
    project("--profile", "demo", "up", "--detach", "--build", "--quiet-pull", *services, timeout=600)
    wait_until(lambda: project.containers()["worker"]["Health"] == "healthy", 60, 0.5)
    wait_until(lambda: int(project.sql("SELECT count(*) FROM users") or 0) > 100, 60, 0.5)
    assert project.containers()["init"]["ExitCode"] == 0
    address = project("port", "prometheus", "9090")

    def ask(query: str) -> float:
        url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(url, timeout=10) as response:
            results = json.load(response)["data"]["result"]
        return float(results[0]["value"][1]) if results else 0.0

    with urllib.request.urlopen(f"http://{address}/api/v1/rules", timeout=10) as response:
        groups = {group["file"] for group in json.load(response)["data"]["groups"]}
    assert {Path(file).name for file in groups} == {"rules.yaml", "alerts.yaml"}
    wait_until(lambda: ask('sum(rate(writebehind_writes_total{job="writebehind"}[1m]))') > 10, 60, 1)
    assert ask('writebehind_lease_held{queue="db:write:queue"}') == 1
    status = json.loads(project("exec", "-T", "worker", "writebehind", "status", "--json"))
    assert status["redis_error"] is None
    assert status["postgres_error"] is None
    worker = str(project.containers()["worker"]["ID"])
    began = time.monotonic()
    project("stop", "worker")
    assert time.monotonic() - began < 10
    assert state(worker)["ExitCode"] == 0
    assert project("exec", "-T", "redis", "redis-cli", "llen", "{db:write:queue}:inflight") == "0"
