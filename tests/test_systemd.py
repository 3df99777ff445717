"""The unit: what systemd says of it, and the worker under a systemd that is PID 1 of a container.

It is installed by the very commands of docs/deployment.md, with the role of deploy/roles.sql. Built from
this source with Debian's systemd, Redis and PostgreSQL; skipped where there is no engine.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.documents import blocks
from tests.support.engine import PYTHON_IMAGE, ROOT, build, build_worker, docker, running

from writebehind_worker.config import Config
from writebehind_worker.options import read_file
from writebehind_worker.postgres import REPLY_GRACE_S
from writebehind_worker.testing.servers import missing
from writebehind_worker.testing.wait import wait_until

UNIT = ROOT / "deploy/systemd/writebehind@.service"
EXAMPLE = ROOT / "deploy/systemd/example.toml"
DOCUMENT = ROOT / "docs/deployment.md"
MOST_EXPOSED = 1.5
NAME = "writebehind@orders"
REDIS_URL = "redis://127.0.0.1/0?socket_timeout=1.5&socket_connect_timeout=0.5"  # so that a hang shows in 5 s
QUEUE = "db:write:queue"


def setting(name: str) -> str:
    """Of the unit's file; the last one counts."""
    return str(re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.M)[-1])


def test_it_may_stop_for_longer_than_the_longest_statement_takes() -> None:
    config = Config(**read_file(EXAMPLE))
    assert config.stop_timeout_s > config.statement_timeout_s + REPLY_GRACE_S
    assert float(setting("TimeoutStopSec")) > config.stop_timeout_s + 10


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is there on this machine."""
    if shutil.which("systemd-analyze") is None:
        missing("no systemd-analyze: install systemd")
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.M))
    return copy


def analyze(*arguments: str) -> str:
    done = subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def exposure(report: str) -> float:
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", report)
    assert found, report
    return float(found[1])


def test_systemd_finds_nothing_wrong_with_it(unit: Path) -> None:
    assert analyze("verify", str(unit)) == ""


def test_a_mistake_in_it_would_be_found(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("ProtectClock=yes", "ProtectClok=yes"))
    assert "ProtectClok" in analyze("verify", str(unit))


def test_it_may_do_little(unit: Path) -> None:
    assert exposure(analyze("security", "--offline=true", str(unit))) <= MOST_EXPOSED
    unit.write_text(unit.read_text().replace("DynamicUser=yes", ""))
    assert exposure(analyze("security", "--offline=true", str(unit))) > 1.2


# Under a real systemd.


class Machine:
    """A container whose PID 1 is systemd."""

    def __init__(self, container: str) -> None:
        self._container = container

    def run(self, *command: str, stdin: str | None = None, check: bool = True, timeout: float = 60) -> str:
        how = ("--interactive",) if stdin is not None else ()
        return docker("exec", *how, self._container, *command, stdin=stdin, check=check, timeout=timeout)

    def write(self, path: str, text: str, mode: str = "600") -> None:
        self.run("sh", "-c", f"mkdir -p $(dirname {path}) && cat > {path} && chmod {mode} {path}", stdin=text)

    def sql(self, statement: str) -> str:
        return self.as_postgres(f'psql --quiet --tuples-only --no-align --command "{statement}" app')

    def as_postgres(self, command: str) -> str:
        return self.run("su", "postgres", "-c", command)

    def type(self, *lines: str) -> None:
        """What an operator does as root, in the repository."""
        where = "export PATH=/opt/writebehind/bin:$PATH && cd /src"
        for line in lines:
            self.run("sh", "-c", f"{where} && {line}")

    def redis(self, *command: str) -> str:
        return self.run("redis-cli", *command)

    def put(self, *ids: int) -> None:
        """Writes, as any language can."""
        items = [json.dumps({"table": "users", "id": id, "data": {"name": f"name {id}"}}) for id in ids]
        self.redis("lpush", QUEUE, *items)

    def wait_for_rows(self, count: int, timeout: float = 30) -> None:
        wait_until(
            lambda: self.sql("SELECT count(*) FROM users") == str(count),
            timeout,
            interval=0.2,
            message=f"there were not {count} rows",
        )

    def show(self, name: str, unit: str = NAME) -> str:
        """A property of the service."""
        return self.run("systemctl", "show", "--value", "--property", name, unit)

    def wait_for(self, name: str, part: str, timeout: float = 30, unit: str = NAME) -> str:
        return (
            wait_until(
                lambda: part in (value := self.show(name, unit)) and value,
                timeout,
                interval=0.1,
                message=f"{name} was not {part!r} but {self.show(name, unit)!r}; log:\n{self.log()}",
            )
            or ""
        )

    def log(self) -> str:
        return self.run("journalctl", "--no-pager", "--output", "cat", "--unit", NAME, "--lines", "200")

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [line for line in self.log().splitlines() if line.startswith("{")]
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def configure(self, **settings: Any) -> None:
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        text = re.sub(r"^metrics_port.*", "", EXAMPLE.read_text(), flags=re.M)
        self.write("/etc/writebehind/orders.toml", "\n".join([text, *lines, ""]), "644")

    def change(self, text: str, command: str = "restart") -> None:
        """A drop-in with these lines."""
        self.write(f"/run/systemd/system/{NAME}.service.d/test.conf", f"[Service]\n{text}\n", "644")
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", command, NAME)


def documented() -> tuple[list[str], list[str]]:
    """The commands for one instance of the unit, but that which installs the program; for a second one."""
    code = [block.code for block in blocks(DOCUMENT.read_text()) if block.kind == "sh"]
    first = next(text for text in code if "enable --now writebehind@orders\n" in text).splitlines()
    second = next(text for text in code if "enable --now writebehind@orders-2" in text).splitlines()
    assert "pip install" in first[0]
    return first[1:], second


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    worker, tag = build_worker(), "writebehind-systemd:test"
    context = tmp_path_factory.mktemp("systemd")
    shutil.copytree(ROOT / "deploy", context / "deploy")
    for file in (ROOT / "tests/support/systemd").iterdir():
        if file.is_file():
            shutil.copy(file, context)
    build(tag, context / "Dockerfile", context, BASE_IMAGE=PYTHON_IMAGE, WORKER_IMAGE=worker)
    # Not --privileged: that includes a capability which not every engine may give.
    options = (
        *("--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE", "--cgroupns", "host"),
        *("--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"),
        *("--security-opt", "systempaths=unconfined", "--env", "container=docker"),
        *("--tmpfs", "/run", "--tmpfs", "/run/lock", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw"),
    )
    with running(tag, options=options) as container:
        found = Machine(container)
        wait_until(
            lambda: found.run("systemctl", "is-system-running", check=False) in ("running", "degraded"),
            timeout=60,
            interval=0.2,
        )
        wait_until(
            lambda: found.run("su", "postgres", "-c", "pg_isready", check=False).endswith(
                "accepting connections"
            ),
            30,
        )
        found.as_postgres("createdb app")
        found.sql("CREATE TABLE users (id bigint PRIMARY KEY, name text)")
        found.sql("CREATE TABLE pages (path text PRIMARY KEY, views bigint)")
        found.as_postgres("/opt/writebehind/bin/writebehind init --postgres-url postgresql:///app")
        found.as_postgres("psql --quiet --set ON_ERROR_STOP=1 --file /src/deploy/roles.sql app")
        found.type(*documented()[0])
        found.wait_for("StatusText", "owner, 0 waiting")
        found.write("/etc/writebehind/orders.redis_url", REDIS_URL + "\n")
        found.configure()
        found.run("systemctl", "restart", NAME)
        yield found


@pytest.fixture
def rows(machine: Machine) -> int:
    """Rows there are; the worker serves as it did at first."""
    machine.wait_for("StatusText", "owner, 0 waiting")
    return int(machine.sql("SELECT count(*) FROM users"))


@pytest.mark.container
def test_installed_nothing_is_wrong_with_it_and_it_may_do_little(machine: Machine) -> None:
    assert machine.run("systemd-analyze", "verify", f"{NAME}.service") == ""
    assert exposure(machine.run("systemd-analyze", "--no-pager", "security", NAME)) <= MOST_EXPOSED


@pytest.mark.container
def test_it_says_that_it_is_ready_and_what_it_does(machine: Machine, rows: int) -> None:
    assert machine.show("ActiveState") == "active"
    machine.put(1, 2, 3)
    machine.wait_for_rows(rows + 3)
    pid = machine.show("MainPID")
    environment = machine.run("cat", f"/proc/{pid}/environ")
    assert "CREDENTIALS_DIRECTORY=" in environment
    assert "change-me" not in environment + machine.run("cat", f"/proc/{pid}/cmdline") + machine.log()
    assert machine.run("stat", "--format", "%u", f"/proc/{pid}") != "0"


@pytest.mark.container
def test_reloaded_it_takes_another_batch_size_and_refuses_a_wrong_one(machine: Machine, rows: int) -> None:
    pid = machine.show("MainPID")
    machine.configure(batch_size=0)
    machine.run("systemctl", "reload", NAME)
    machine.wait_for("StatusText", "reload refused: --batch-size is 0; allowed: 1 to 100000")
    machine.configure(batch_size=7)
    machine.run("systemctl", "reload", NAME)
    assert wait_until(lambda: machine.events("reloaded"), 20, 0.2)[0]["changed"] == ["batch_size"]
    machine.wait_for("StatusText", "owner, 0 waiting")
    assert machine.show("ActiveState") == "active"
    machine.put(*range(100, 150))
    machine.wait_for_rows(rows + 50)
    assert machine.show("MainPID") == pid
    assert machine.show("NRestarts") == "0"


@pytest.mark.container
def test_without_postgres_it_starts_and_waits_and_says_so(machine: Machine, rows: int) -> None:
    machine.run("systemctl", "stop", "postgresql@15-main")
    machine.wait_for("StatusText", "waiting for Postgres: ")
    machine.run("systemctl", "restart", NAME)  # fails if it never says that it is ready
    machine.wait_for("StatusText", "waiting for Postgres: ")
    assert machine.show("ActiveState") == "active"
    machine.put(200, 201)
    machine.run("systemctl", "start", "postgresql@15-main")
    machine.wait_for_rows(rows + 2)


@pytest.mark.container
@pytest.mark.parametrize("whole", [True, False], ids=["process", "one thread"])
def test_one_that_hangs_is_ended_by_the_watchdog_and_started_again(
    machine: Machine, rows: int, whole: bool
) -> None:
    run = "/opt/writebehind/bin/python /opt/hanging.py run --config /etc/writebehind/orders.toml"
    # Hanging for 5.1 s (statement_timeout + 5 s) is no proof yet; then WatchdogSec.
    machine.configure(statement_timeout=0.1, lock_timeout=0.1, lease_ttl=1)
    machine.change(f"WatchdogSec=2\nTimeoutAbortSec=1\nRestartSec=0\nExecStart=\nExecStart={run}")
    machine.run("systemctl", "reset-failed", NAME)
    machine.wait_for("StatusText", "owner")
    pid = machine.show("MainPID")
    base = 1000 if whole else 2000
    if whole:
        machine.run("sh", "-c", f"kill -STOP {pid}")
    else:
        machine.run("touch", "/run/hang")
    machine.put(base, base + 1)
    if not whole:
        machine.wait_for_rows(rows + 2)
        assert "hangs: finish" in machine.wait_for("StatusText", "hangs")
        machine.run("rm", "/run/hang")
    wait_until(lambda: machine.show("NRestarts") == "1", 30, 0.2, "it was not started again")
    machine.wait_for("StatusText", "owner, 0 waiting")
    assert machine.show("MainPID") != pid
    machine.wait_for_rows(rows + 2)
    log = machine.run("journalctl", "--no-pager", "--output", "cat", "--lines", "300")
    assert "Watchdog timeout" in log
    if not whole:
        assert re.search(r"Fatal Python error: Aborted(.|\n)*hanging.py", log), "where it hangs"
    machine.configure()
    machine.change("")
    assert machine.show("NRestarts") == "0"


@pytest.mark.container
def test_a_stop_finishes_what_is_frozen_and_leaves_nothing_behind(machine: Machine, rows: int) -> None:
    for start in range(10_000, 15_000, 1000):
        machine.put(*range(start, start + 1000))
    machine.run("systemctl", "stop", NAME)
    assert machine.show("Result") == "success"
    assert machine.show("ExecMainStatus") == "0"
    assert machine.events("released")
    assert machine.redis("llen", f"{{{QUEUE}}}:inflight") == "0"
    waiting = int(machine.redis("llen", QUEUE))
    assert int(machine.sql("SELECT count(*) FROM users")) == rows + 5000 - waiting
    machine.run("systemctl", "start", NAME)
    machine.wait_for_rows(rows + 5000)


@pytest.mark.container
def test_a_wrong_configuration_fails_the_start_and_is_tried_again(machine: Machine, rows: int) -> None:
    machine.configure(batch_size=0)
    machine.change("RestartSec=1", "stop")
    said = machine.run("systemctl", "start", NAME, check=False)
    assert "failed" in said
    assert "--batch-size is 0; allowed: 1 to 100000" in machine.log()
    machine.configure()
    machine.put(3000)
    machine.wait_for_rows(rows + 1)
    machine.change("")


@pytest.mark.container
def test_a_second_instance_shares_the_shards_and_takes_over(machine: Machine, rows: int) -> None:
    first, second = documented()
    other = f"{NAME}-2"
    machine.type(first[0])  # the configuration, as it is for one
    machine.run("systemctl", "restart", NAME)
    machine.type(*second)
    try:
        for unit in (NAME, other):
            machine.wait_for("StatusText", "owner, 0 waiting", unit=unit, timeout=60)
        machine.put(20_000)
        machine.wait_for_rows(rows + 1)
        machine.run("systemctl", "stop", NAME)
        machine.put(20_001)
        machine.wait_for_rows(rows + 2)
        assert machine.show("ActiveState", other) == "active"
    finally:
        machine.type("writebehind reshard 1")
        machine.run("systemctl", "disable", "--now", other)
        machine.run("systemctl", "start", NAME)
