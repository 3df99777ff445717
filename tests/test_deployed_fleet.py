"""Two workers, started as Kubernetes or systemd would, share the shards of a queue and drain it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.support.documents import blocks, commands
from tests.support.kubernetes import ROOT, configuration, deployment, pod_of, worker
from tests.support.service_manager import Listener, listening
from tests.support.shard_history import check_history
from tests.support.sharded import Run, all_queues, keys, rows, run, wait_until_drained
from tests.support.workers import free_port
from tests.test_fleet import are_balanced, owners

from writebehind import WriteBehind
from writebehind.keys import QueueKeys
from writebehind_worker.options import read_file
from writebehind_worker.testing.wait import wait_until

__all__ = ["keys", "rows", "run"]  # fixtures

OVERLAY = "overlays/fleet"
UNIT = (ROOT / "deploy/systemd/writebehind@.service").read_text(encoding="utf-8")
PROGRAM = [sys.executable, "-m", "writebehind_worker"]
SHARDS = 4


@dataclass(frozen=True)
class Start:
    """How a worker is started, and who waits for its word, if somebody does."""

    arguments: list[str]
    environment: Mapping[str, str]
    stop_s: float
    listener: Listener | None = None


@contextmanager
def started(start: Start, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with nothing else of ours in its environment; killed at the end."""
    inherited = {n: v for n, v in os.environ.items() if not n.startswith(("WRITEBEHIND_", "PG"))}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*PROGRAM, *start.arguments],
            env=inherited | dict(start.environment),
            stdout=file,
            stderr=file,
            cwd=ROOT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def status_of(url: str) -> int:
    """What an endpoint answers; 0: nothing."""
    with suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
        return int(response.status)
    return 0


def share_and_take_over(
    starts: list[Start], folder: Path, wb: WriteBehind, pg: psycopg.Connection[Any], run: Run
) -> None:
    """Both work, at one; one is stopped as its manager does it, and the other has all."""
    whole, count = QueueKeys(wb.keys.queue), dict[int, int]()
    queues = all_queues(whole, SHARDS)

    def write() -> None:
        with wb.batch() as batch:
            for id in range(200):
                count[id] = count.get(id, 0) + 1
                batch.increment("rows", id, {"n": 1})
                batch.put("rows", id, {"v": count[id]})

    run("reshard", str(SHARDS))
    write()
    with ExitStack() as stack:
        processes = [
            stack.enter_context(started(start, folder / f"{n}.log")) for n, start in enumerate(starts)
        ]
        try:
            for start in starts:
                port = start.environment["WRITEBEHIND_METRICS_PORT"]
                for path in probes():
                    wait_until(lambda u=f"http://127.0.0.1:{port}{path}": status_of(u) == 200, 40)  # type: ignore[misc]
                wait_until(lambda s=start: s.listener is None or "READY" in s.listener.states(), 40)  # type: ignore[misc]
            wait_until(lambda: are_balanced(wb.redis, queues, len(starts)), 40)
            write()
            wait_until_drained(wb.redis, queues, 40)
            processes[0].terminate()
            assert processes[0].wait(starts[0].stop_s) == 0
            write()
            wait_until(lambda: are_balanced(wb.redis, queues, 1), 40)
            assert all(name.endswith(f":{processes[1].pid}") for name in owners(wb.redis, queues))
            wait_until_drained(wb.redis, queues, 40)
        except AssertionError as error:
            logs = "\n".join((folder / f"{n}.log").read_text() for n in range(len(starts)))
            raise AssertionError(f"{error}; logs:\n{logs}") from error
    check_history(pg, [count])


def probes() -> set[str]:
    """The paths that Kubernetes asks; of a worker under systemd the same are there."""
    container = worker(OVERLAY)
    return {container[name]["httpGet"]["path"] for name in ("livenessProbe", "readinessProbe")}


@pytest.fixture
def elsewhere(queue: str) -> Callable[[], dict[str, str]]:
    """What differs in a test: its queue, and a port that is free."""
    return lambda: {"WRITEBEHIND_QUEUE": queue, "WRITEBEHIND_METRICS_PORT": str(free_port())}


def test_two_pods_of_the_fleet(
    connect: Callable[..., WriteBehind],
    rows: psycopg.Connection[Any],
    run: Run,
    options: dict[str, Any],
    elsewhere: Callable[[], dict[str, str]],
    tmp_path: Path,
) -> None:
    """The rendered container's arguments and variables, its ConfigMap as a file, its Secret's values."""
    container = worker(OVERLAY)
    configuration(tmp_path)
    secrets = {"redis-url": options["redis_url"], "postgres-url": options["postgres_url"]}
    given = {}
    for variable in container["env"]:
        where = variable.get("value") or secrets[variable["valueFrom"]["secretKeyRef"]["key"]]
        given[variable["name"]] = where.replace("/etc/writebehind/", f"{tmp_path}/")
    assert container["command"] == ["writebehind"]
    grace_s = float(pod_of(deployment(OVERLAY))["terminationGracePeriodSeconds"])
    starts = [Start(container["args"], given | elsewhere(), grace_s) for _ in range(2)]
    share_and_take_over(starts, tmp_path, connect(), rows, run)


def test_two_instances_of_the_unit_as_the_document_makes_them(
    connect: Callable[..., WriteBehind],
    rows: psycopg.Connection[Any],
    run: Run,
    options: dict[str, Any],
    elsewhere: Callable[[], dict[str, str]],
    tmp_path: Path,
) -> None:
    """Its commands make the files; what the unit's lines say is done here, as no systemd runs."""
    etc = tmp_path / "etc"
    instances = made_by_the_document(etc, options)
    assert len(instances) == len(set(instances)) == 2
    files = [read_file(etc / f"{name}.toml") for name in instances]
    assert files[0]["queue"] == files[1]["queue"]
    assert files[0]["metrics_port"] != files[1]["metrics_port"]
    with ExitStack() as stack:
        starts = []
        for name in instances:
            listener = stack.enter_context(listening())
            folder = tmp_path / f"credentials-{name}"
            folder.mkdir()
            for secret, source in re.findall(r"^LoadCredential=(\w+):(\S+)$", here(UNIT, etc, name), re.M):
                (folder / secret).write_bytes(Path(source).read_bytes())
            (line,) = re.findall(r"^ExecStart=\S+/writebehind (.+)$", here(UNIT, etc, name), re.M)
            given = {"CREDENTIALS_DIRECTORY": str(folder)} | listener.environment() | elsewhere()
            stop_s = float(re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.M)[-1])
            starts.append(Start(line.split(), given, stop_s, listener))
        share_and_take_over(starts, tmp_path, connect(), rows, run)


def here(text: str, etc: Path, instance: str) -> str:
    return text.replace("%i", instance).replace("/etc/writebehind/", f"{etc}/")


def made_by_the_document(etc: Path, options: dict[str, Any]) -> list[str]:
    """Runs the commands of docs/deployment.md that make files in /etc/writebehind; the instances' names."""
    etc.mkdir()
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    shell = [block.code for block in blocks(text) if block.kind == "sh"]
    instances: list[str] = []
    for code in shell:
        for line in code.splitlines():
            if "/etc/writebehind/" in line:
                done = re.sub(r"redis://[^']+", options["redis_url"], here(line, etc, ""))
                done = re.sub(r"postgresql://[^']+", options["postgres_url"], done)
                subprocess.run(["sh", "-ec", done], cwd=ROOT, check=True, timeout=20)
        for words in commands(code):
            if words[:2] == ["systemctl", "enable"]:
                instances += [word.removeprefix("writebehind@") for word in words[2:] if "@" in word]
    return instances
