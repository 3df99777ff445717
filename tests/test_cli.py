"""The command line: what each command does, its exit codes, and its errors."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg.conninfo import make_conninfo

from writebehind_worker.__main__ import _EXTRA
from writebehind_worker.cli import _check_embedded, cli
from writebehind_worker.config import Config
from writebehind_worker.ledger_schema import apply_schema, schema_sql
from writebehind_worker.options import OPTIONS, OWN_SERVERS, config_options

DOWN_POSTGRES = "postgresql://ada:hunter2@127.0.0.1:1/app"


def invoke(*args: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, list(args), env=env, prog_name="writebehind")


def python(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def empty_database(postgres_url: str) -> Iterator[str]:
    name = f"empty_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        yield make_conninfo(postgres_url, dbname=name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("command", ["run", "init", "status", "demo", "dead", "top"])
def test_every_command_is_listed_and_has_help(command: str) -> None:
    assert re.search(rf"^  {command} ", invoke("--help").output, re.MULTILINE)
    assert invoke(command, "--help").exit_code == 0


def test_version() -> None:
    assert re.fullmatch(r"writebehind, version \d+\.\d+\.\d+\n", invoke("--version").output)


def test_run_has_every_option() -> None:
    shown = re.sub(r"\s+", "", invoke("run", "--help").output)
    for setting in OPTIONS.values():
        assert setting.flag in shown
        assert f"[envvar:{setting.variable};" in shown


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--batch-size", "0"], "--batch-size is 0; allowed: 1 to 100000\nHint: "),
        (["--batch-size", "many"], "--batch-size"),
        (["--data-dir", "/tmp"], "--embedded"),
        (["--embedded", "--redis-url", "redis://h"], "--redis-url contradicts"),
        (["--redis-url", "redis://:hunter2@h:x/0"], "redis://:***@h:x/0"),
        (["--config", "/does/not/exist.toml"], "does not exist"),
    ],
)
def test_a_wrong_option_ends_with_code_2_and_says_why(args: list[str], said: str) -> None:
    result = invoke("run", *args)
    assert result.exit_code == 2
    assert said in result.output
    assert "hunter2" not in result.output


def check_embedded(*args: str, env: dict[str, str]) -> Result:
    """What `run` says of these options before it starts anything."""

    @click.command()
    @config_options(*OWN_SERVERS, "redis_url", "postgres_url")
    def command(config: Config, embedded: bool, data_dir: str) -> None:
        _check_embedded(embedded)

    return CliRunner().invoke(command, list(args), env=env)


def test_embedded_of_the_environment_is_contradicted_by_a_flag_too() -> None:
    result = invoke("run", "--redis-url", "redis://h", env={"WRITEBEHIND_EMBEDDED": "1"})
    assert result.exit_code == 2
    assert "--redis-url contradicts" in result.output
    assert "--no-embedded" in result.output


def test_one_line_says_that_urls_set_elsewhere_are_not_used(tmp_path: Path) -> None:
    file = tmp_path / "w.toml"
    file.write_text("postgres_url = 'host=h password=hunter2'\n")
    env = {"WRITEBEHIND_REDIS_URL": "redis://:hunter2@h"}
    both = check_embedded("--embedded", "--config", str(file), env=env)
    assert (both.exit_code, both.stdout) == (0, "")
    assert both.stderr == (
        "The embedded servers are used, not --redis-url and --postgres-url of the environment or the file.\n"
    )
    one = check_embedded("--embedded", env=env)
    assert "used, not --redis-url of" in one.stderr
    assert check_embedded("--embedded", env={}).output == ""
    assert check_embedded("--config", str(file), env=env).output == ""


def test_a_folder_of_the_environment_without_embedded_is_no_error() -> None:
    result = check_embedded(env={"WRITEBEHIND_DATA_DIR": "/anywhere"})
    assert (result.exit_code, result.output) == (0, "")


def test_a_wrong_variable_is_named() -> None:
    result = invoke("run", env={"WRITEBEHIND_BATCH_SIZE": "many"})
    assert result.exit_code == 2
    assert "--batch-size" in result.output


def test_a_file_of_run_serves_the_other_commands_too(tmp_path: Path) -> None:
    file = tmp_path / "w.toml"
    file.write_text(f"postgres_url = '{DOWN_POSTGRES}'\nbatch_size = 10\n")
    result = invoke("init", "--config", str(file))
    assert result.exit_code == 2
    assert "127.0.0.1:1/app" in result.output


def test_init_creates_the_ledger_once(empty_database: str) -> None:
    first = invoke("init", "--postgres-url", empty_database)
    assert first.exit_code == 0, first.output
    assert "Created the ledger's tables" in first.output
    second = invoke("init", "--postgres-url", empty_database)
    assert second.exit_code == 0
    assert second.output.startswith("The ledger's tables are there already, in the database 'empty_")
    with psycopg.connect(empty_database) as conn:
        conn.execute("SELECT 1 FROM writebehind.ledger, writebehind.dead_letters")


def test_many_inits_at_the_same_time_all_succeed(empty_database: str) -> None:
    together = threading.Barrier(8)

    def init() -> bool:
        with psycopg.connect(empty_database) as conn:
            together.wait(30)
            return apply_schema(conn)

    with ThreadPoolExecutor(8) as pool:
        created = [future.result() for future in [pool.submit(init) for _ in range(8)]]
    assert sorted(created) == [False] * 7 + [True]


def test_init_without_the_right_says_which_one(empty_database: str) -> None:
    role = f"r_{uuid.uuid4().hex}"
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'hunter2'")
        try:
            url = make_conninfo(empty_database, user=role, password="hunter2")
            result = invoke("init", "--postgres-url", url)
        finally:
            admin.execute(f"DROP ROLE {role}")
    assert result.exit_code == 2
    assert f"role '{role}' may not create the ledger" in result.output
    assert "GRANT CREATE ON DATABASE" in result.output
    assert "hunter2" not in result.output


def test_init_does_not_wait_for_a_server_that_is_down() -> None:
    result = invoke("init", "--postgres-url", DOWN_POSTGRES)
    assert result.exit_code == 2
    assert "Error: Postgres at postgresql://ada:***@127.0.0.1:1/app" in result.output
    assert "\nHint: check --postgres-url" in result.output
    assert "hunter2" not in result.output


def test_the_schema_is_the_repository_s() -> None:
    assert schema_sql() == (Path(__file__).parents[1] / "schema.sql").read_text()


@pytest.mark.parametrize(
    ("module", "arguments"),
    [(m, a) for m in sorted(_EXTRA) for a in (["--help"], ["top"], ["run"]) if (m, a) != ("rich", ["run"])],
)
def test_without_the_extra_it_says_how_to_install_it(module: str, arguments: list[str]) -> None:
    process = python(
        f"import sys; sys.modules['{module}'] = None; sys.argv[1:] = {arguments}\n"
        "from writebehind_worker.__main__ import main; main()"
    )
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "pip install 'writebehind[worker]'" in stderr
    assert "Traceback" not in stderr


SERVE = """
import sys
from writebehind_worker.signals import Signals
with Signals() as signals:
    print("ready", flush=True)
    signals.stop.wait()
    print("stopping", flush=True)
    if "linger" in sys.argv:
        sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_stops_in_order_and_the_second_at_once(number: signal.Signals) -> None:
    reader, writer = os.pipe()  # stdin that never ends: a stop that takes for ever
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, "linger"], stdin=reader, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    os.close(reader)
    os.close(writer)


def test_after_one_signal_it_ends_with_code_0() -> None:
    process = python(SERVE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
