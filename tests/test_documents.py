"""Each command and code block of the documents works; each link, option and variable in them exists."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import click
import psycopg
import pytest
import redis
from click.testing import CliRunner
from packaging.requirements import Requirement
from prometheus_client import CollectorRegistry
from tests.support.documents import DOCUMENTS, ROOT, Block, anchors, blocks, commands, links, prose, spans
from tests.support.workers import RunningWorker

from writebehind.keys import QueueKeys
from writebehind.prometheus import PrometheusObserver
from writebehind_worker.cli import cli
from writebehind_worker.metrics import Metrics
from writebehind_worker.options import OPTIONS, read_file
from writebehind_worker.received import receive
from writebehind_worker.testing.servers import Servers

EXAMPLE_FILE = ROOT / "deploy" / "writebehind.toml"
OUTPUT = {"text", "console", "mermaid"}
"""Kinds of what is shown, and not run."""

ELSEWHERE = {
    "promql": "tests/test_prometheus.py",
    "yaml": "tests/test_kubernetes.py, tests/test_prometheus.py",
    "yml": "tests/test_kubernetes.py, tests/test_prometheus.py",
    "ini": "tests/test_systemd.py",
    "systemd": "tests/test_systemd.py",
    "dockerfile": "tests/test_containers.py",
    "Dockerfile": "tests/test_containers.py",
}
"""Kinds that another test runs; here they are only known."""

PROGRAMS = {
    "amtool", "apt", "apt-get", "cat", "cd", "chmod", "chown", "cosign", "cp", "curl", "docker", "echo",
    "git", "groupadd", "helm", "install", "journalctl", "jq", "kill", "kubectl", "kustomize", "loginctl",
    "mkdir", "node", "npm", "openssl", "pg_dump", "pg_restore", "podman", "printf", "promtool", "psql",
    "python", "python3", "redis-cli", "scp", "sed", "sh", "ssh", "sudo", "systemctl", "systemd-analyze",
    "systemd-creds", "systemd-run", "useradd", "valkey-cli", "watch",
}  # fmt: skip
"""Other programs that a command may be: only their names are looked at here."""

NOT_RUN = {"run", "demo", "top"}
"""Commands of ours that go on, or take long: they are parsed only. Tests of their own run them."""

MAY_SAY_NO = {"doctor", "drain", "verify", "explain"}
"""Commands whose exit code 1 is an answer."""

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def inner_commands(group: click.Group) -> dict[str, click.Command]:
    """Its commands by name."""
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def options_of(command: click.Command) -> set[str]:
    """All its flags, and those of the commands in it."""
    found = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts) if flag.startswith("--")}
    if isinstance(command, click.Group):
        found = found.union(*(options_of(inner) for inner in inner_commands(command).values()))
    return found | {"--help"}


def leaves(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """Each command that does something, with its name as one types it."""
    if isinstance(command, click.Group):
        for inner, found in inner_commands(command).items():
            yield from leaves(found, f"{name} {inner}".strip())
    else:
        yield name, command


def as_typed(words: list[str]) -> list[str]:
    """The arguments with a file that exists for each ``--config``."""
    typed = list(words)
    for i, word in enumerate(typed):
        if word == "--config" and i + 1 < len(typed):
            typed[i + 1] = str(EXAMPLE_FILE)
    return typed


def parse(words: list[str]) -> str:
    """The name of the command that these arguments of `writebehind` call. Raises `click.ClickException`."""
    command: click.Command = cli
    rest, name = as_typed(words), []
    context = None
    if set(words) & {"--version", "--help", "-h"}:
        return words[0]
    while isinstance(command, click.Group) and rest:
        context = click.Context(command, parent=context, info_name=command.name)
        inner = command.get_command(context, rest[0])
        if inner is None:
            raise click.UsageError(f"there is no command {rest[0]!r}")
        name.append(rest.pop(0))
        command = inner
    if isinstance(command, click.Group):
        raise click.UsageError(f"{' '.join(name)} needs a command")
    command.make_context(" ".join(name), rest, parent=context)
    return " ".join(name)


class Desk:
    """Where a document's blocks are run, one after the other: two servers, a worker, and what came before."""

    def __init__(self, redis_url: str, postgres_url: str, pg: psycopg.Connection[Any], folder: Path) -> None:
        self.redis_url, self.pg, self.folder = redis_url, pg, folder
        self.workers = ExitStack()
        """Of other queues than the default one."""
        self.environment = {
            "WRITEBEHIND_REDIS_URL": redis_url,
            "WRITEBEHIND_POSTGRES_URL": postgres_url,
        }
        self.names: dict[str, Any] = {"__name__": "document"}
        self.runs: dict[str, Callable[[str], None]] = {
            "sql": self.sql,
            "python": self.python,
            "json": self.json,
            "toml": self.toml,
            "redis": self.redis,
            "shell": self.shell,
            "sh": self.shell,
            "bash": self.shell,
            "": self.shell,
        }

    def sql(self, code: str) -> None:
        self.pg.execute(code.encode())

    def python(self, code: str) -> None:
        exec(compile(self._here(code), "document", "exec", dont_inherit=True), self.names)

    def json(self, code: str) -> None:
        """One value, or one a line. What has a table is a message, and a worker has to take it."""
        try:
            values = [json.loads(code)]
        except ValueError:
            values = [json.loads(line) for line in code.splitlines() if line.strip()]
        for value in values:
            if isinstance(value, dict) and "table" in value and "id" in value:
                assert receive(0, json.dumps(value).encode(), clock=1 << 60).fault is None, value

    def toml(self, code: str) -> None:
        path = self.folder / "writebehind.toml"
        path.write_text(code)
        read_file(path)

    def redis(self, code: str) -> None:
        with redis.Redis.from_url(self.redis_url) as client:
            for line in code.splitlines():
                words = shlex.split(line)
                client.execute_command(*words)
                if words[0] == "LPUSH":
                    for body in words[2:]:
                        assert receive(0, body.encode(), clock=1 << 60).fault is None, body

    def shell(self, code: str) -> None:
        for words in commands(code):
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words:
                self._command(words)
        with redis.Redis.from_url(self.redis_url) as client:
            client.delete(QueueKeys().paused)

    def _command(self, words: list[str]) -> None:
        program = words[0].rpartition("/")[2]
        if program == "writebehind":
            self._writebehind(words[1:])
        elif program == "make":
            check_make(words[1:])
        elif program == "pip":
            check_pip(words[1:])
        elif program == "export":
            for word in words[1:]:
                assert word.partition("=")[0] in {*VARIABLES, "PATH"}, word
        elif program == "LPUSH":
            self.redis(shlex.join(words))
        elif program in RUN_HERE and shutil.which(program):
            self._run(words)
        else:
            assert program in PROGRAMS, f"a program that this test does not know: {program}"
            check_options(program, words[1:])

    def _writebehind(self, words: list[str]) -> None:
        name = parse(words)
        if name == "run" and "--queue" in words:
            given = {"redis_url": self.redis_url, "queue": words[words.index("--queue") + 1]}
            given["postgres_url"] = self.environment["WRITEBEHIND_POSTGRES_URL"]
            self.workers.enter_context(RunningWorker(**given))
        if name in NOT_RUN:
            return
        typed = as_typed(words)
        for flag, variable in (
            ("--redis-url", "WRITEBEHIND_REDIS_URL"),
            ("--postgres-url", "WRITEBEHIND_POSTGRES_URL"),
        ):
            if flag in typed:
                typed[typed.index(flag) + 1] = self.environment[variable]
        self.letters()
        done = CliRunner().invoke(cli, typed, env=self.environment, input="y\n")
        allowed = (0, 1) if name.partition(" ")[0] in MAY_SAY_NO else (0,)
        assert done.exit_code in allowed, f"writebehind {shlex.join(words)}: {done.output}"
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception

    def _run(self, words: list[str]) -> None:
        words = [re.sub(r"\$(\w+)", lambda m: self.environment[m[1]], word) for word in words]
        done = subprocess.run(
            words, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False, env=os.environ
        )
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"

    def letters(self) -> None:
        """Two dead letters, 17 and 18, whose cause is mended: a retry of them is applied."""
        self.pg.execute("DELETE FROM writebehind.dead_letters WHERE id IN (17, 18)")
        for id in (17, 18):
            body = json.dumps({"table": "users", "id": id, "data": {"name": "Ada"}}).encode()
            self.pg.execute(
                "INSERT INTO writebehind.dead_letters (id, queue, batch, position, body, table_name, key, "
                "sqlstate, reason) OVERRIDING SYSTEM VALUE VALUES (%s, 'db:write:queue', 1, %s, %s, "
                "'public.users', %s, '23505', 'duplicate key')",
                [id, id, body, f'["{id}"]'],
            )

    def _here(self, code: str) -> str:
        code = code.replace("redis://localhost:6379/0", self.redis_url)
        return code.replace("postgresql://localhost/app", self.environment["WRITEBEHIND_POSTGRES_URL"])


RUN_HERE = {"psql", "redis-cli"}
"""Other programs that are run where they are on the PATH."""

VARIABLES = {setting.variable for setting in OPTIONS.values()} | {
    "WRITEBEHIND_CONFIG",
    "WRITEBEHIND_TEST_FLEET_SECONDS",
    "WRITEBEHIND_TEST_REDIS_URL",
    "WRITEBEHIND_TEST_POSTGRES_URL",
}


SUBCOMMANDS = {"docker": 1, "kubectl": 1, "systemctl": 0}
"""How many words after a program's name and its own options belong to the name of a command."""


def check_options(program: str, arguments: list[str]) -> None:
    """Its long options are in its help, where the program is on the PATH."""
    used = {word.partition("=")[0] for word in arguments if re.match(r"--[a-z]", word)}
    if program == "docker" and "run" in arguments:  # what follows the image is for what runs in it
        used -= {word for word in arguments[arguments.index("writebehind") :] if word.startswith("--")}
    if not used or not shutil.which(program):
        return
    names = [word for word in arguments if word.isalpha()]
    path = names[: SUBCOMMANDS.get(program, 0)]
    inner = [[program, *path, "--help"]]
    if names[:1] == ["compose"]:
        if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
            return  # a plugin that is not there
        inner += [["docker", "compose", *names[-1:], "--help"]]
    if program == "kubectl":
        inner += [["kubectl", *names[1:4], "--help"], ["kubectl", "options"]]
    shown = ""
    for command in inner:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        shown += done.stdout + done.stderr
    if "is not a docker command" in shown or "unknown command" in shown:
        return  # a plugin that is not there
    assert not {option for option in used if not re.search(rf"{option}\b", shown)}, (program, path)


def check_make(words: list[str]) -> None:
    """Its targets and variables are in the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, given, _ = word.partition("=")
        if given:
            assert re.search(rf"^{name} \?=", makefile, re.MULTILINE), f"make has no variable {name}"
        else:
            assert re.search(rf"^{name}:", makefile, re.MULTILINE), f"make has no target {name}"


def check_pip(words: list[str]) -> None:
    """What it would install are the project's extras; from a checkout, as no index has the project.

    An extra of what is installed is found there, but for a later version pip asks the index.
    """
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    for word in words:
        if "writebehind" in word or word.startswith("."):
            asked = Requirement("writebehind" + word.removeprefix("writebehind").removeprefix("."))
            assert asked.extras <= extras, word
            assert word.startswith(".") or not {"--upgrade", "-U"} & {*words}, "name a checkout"


@pytest.fixture
def desk(
    servers: Servers, redis_url: str, postgres_url: str, pg: psycopg.Connection[Any], tmp_path: Path
) -> Iterator[Desk]:
    if not servers.ours:
        pytest.skip("the default queue of a Redis that is not ours is left alone")
    with RunningWorker(redis_url=redis_url, postgres_url=postgres_url):
        desk = Desk(redis_url, postgres_url, pg, tmp_path)
        with desk.workers:
            yield desk


TABLES = """
CREATE TABLE IF NOT EXISTS users (id bigint PRIMARY KEY, name text, email text);
CREATE TABLE IF NOT EXISTS pages (path text PRIMARY KEY, views bigint);
"""


def kinds(path: Path) -> set[str]:
    return {block.kind for block in blocks(path.read_text())}


@pytest.mark.parametrize(
    "path",
    [path for path in DOCUMENTS if kinds(path) - OUTPUT - set(ELSEWHERE)],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_block_works(path: Path, desk: Desk) -> None:
    found = blocks(path.read_text())
    if not any(block.kind == "sql" and "CREATE TABLE users" in block.code for block in found):
        desk.sql(TABLES)
    for block in found:
        if block.kind in OUTPUT or block.kind in ELSEWHERE:
            continue
        assert block.kind in desk.runs, f"{path.name}:{block.line}: no test knows a block of {block.kind!r}"
        try:
            desk.runs[block.kind](block.code)
        except Exception as error:
            raise AssertionError(f"{path.name}:{block.line}: {error}") from error


@each_document
def test_every_block_has_a_kind_that_is_known(path: Path) -> None:
    known = OUTPUT | set(ELSEWHERE) | {"sql", "python", "json", "toml", "redis", "shell", "sh", "bash", ""}
    assert kinds(path) <= known
    for kind in kinds(path) & set(ELSEWHERE):
        tests = ELSEWHERE[kind].split(", ")
        assert any((ROOT / test).is_file() for test in tests), f"who runs blocks of {kind}?"


@pytest.mark.parametrize(
    "path", [*DOCUMENTS, ROOT / "CHANGELOG.md", ROOT / "THIRD_PARTY.md"], ids=lambda p: p.name
)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in links(path.read_text()):
        parts = urlsplit(target)
        if parts.scheme:
            assert parts.scheme == "https", target
            continue
        there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        assert there.exists(), f"{path.name}: {target} is not there"
        assert there.is_relative_to(ROOT), target
        if parts.fragment:
            assert unquote(parts.fragment) in anchors(there.read_text()), (
                f"{path.name}: {target}: no such heading"
            )


@each_document
def test_every_document_is_in_the_index(path: Path) -> None:
    index = ROOT / "docs" / "README.md"
    if path != index:
        listed = {(index.parent / target.partition("#")[0]).resolve() for target in links(index.read_text())}
        assert path in listed


def test_every_command_and_option_is_in_a_document() -> None:
    text = "\n".join(path.read_text() for path in DOCUMENTS)
    configured = EXAMPLE_FILE.read_text()
    missing = []
    for name, command in leaves(cli):
        if not re.search(rf"\b{name}\b", text):
            missing.append(name)
        for parameter in command.params:
            flags = [flag for flag in parameter.opts if flag.startswith("--")]
            setting = OPTIONS.get(parameter.name or "")
            if not flags or (setting and f"{setting.key} = " in configured):
                continue
            if not any(re.search(rf"(?<![\w-]){flag}(?![\w-])", text) for flag in flags):
                missing.append(f"{name} {flags[0]}")
    assert missing == []


@each_document
def test_no_document_has_an_option_that_does_not_exist(path: Path) -> None:
    """In code spans: of a command that is named with it, or of any command of ours."""
    known = options_of(cli)
    for span in spans(path.read_text()):
        if span.startswith("writebehind ") and "…" not in span and "|" not in span:
            words = shlex.split(span)[1:]
            if words and words[0] in inner_commands(cli):
                used = {word.partition("=")[0] for word in words if word.startswith("--") and word != "--"}
                assert used <= known, span
        elif span.startswith("--") and span != "--":
            assert span.split()[0].partition("=")[0] in known, span


@each_document
def test_every_variable_exists(path: Path) -> None:
    named = set(re.findall(r"WRITEBEHIND_[A-Z][A-Z_]*[A-Z]", path.read_text()))
    assert named <= VARIABLES


@each_document
def test_metrics_that_are_named_exist(path: Path) -> None:
    registry = CollectorRegistry()
    PrometheusObserver(registry)
    known = {metric.name for r in (registry, Metrics("q").registry) for metric in r.collect()}
    for name in re.findall(r"`(writebehind_[a-z_]+)(?:\{[^`]*)?`", prose(path.read_text())):
        plain = re.sub(r"_(total|bucket|count|sum|created)$", "", name)
        assert plain in known or name in known or name in NO_METRICS, name


NO_METRICS = {
    "writebehind_worker",
    "writebehind_loader",
    "writebehind_operator",
    "writebehind_mender",
    "writebehind_stack",
}
"""Roles of Postgres, a package, and a fixture."""


# What this file relies on.


def test_blocks_links_and_headings_are_read() -> None:
    text = "# A `b` c!\n[x](y.md#z) `[no](no.md)`\n```sql\n# no\n[n](n)\n```\n"
    text += "## Other\n~~~~\n```\n~~~~\n## Other\n"
    assert blocks(text) == [Block("sql", "# no\n[n](n)\n", 4), Block("", "```\n", 9)]
    assert links(text) == ["y.md#z"]
    assert anchors(text) == {"a-b-c", "other", "other-1"}
    assert spans("`a\nb` ``c ` d``") == ["a b", "c ` d"]
    with pytest.raises(ValueError, match="not closed"):
        blocks("```\nx")


def test_shell_code_is_read_as_a_shell_would() -> None:
    code = "A=1 b 'c d' # e\nf \\\n  g | h; i && j\n$ k \"#l\"\ncat <<EOF\nno\nEOF\n"
    assert list(commands(code)) == [
        ["A=1", "b", "c d"], ["f", "g"], ["h"], ["i"], ["j"], ["k", "#l"], ["cat"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("shell", "writebehind status --jason\n"),
        ("shell", "writebehind stats\n"),
        ("shell", "writebehind dead\n"),
        ("shell", "writebehind run --batch-size many\n"),
        ("shell", "writebehind dead show 99\n"),
        ("shell", "make tests\n"),
        ("shell", "make chaos SECOND=1\n"),
        ("shell", "pip install 'writebehind[workers]'\n"),
        ("shell", "pip install --upgrade 'writebehind[worker]'\n"),
        ("shell", "export WRITEBEHIND_REDIS=x\n"),
        ("shell", "rm -rf /\n"),
        ("redis", 'LPUSH db:write:queue \'{"tabel":"users","id":1}\'\n'),
        ("json", '{"table":"users","id":1,"op":"putt","data":{}}\n'),
        ("json", "{'a': 1}\n"),
        ("toml", "batch_sise = 1\n"),
        ("sql", "SELECT * FROM nowhere\n"),
        ("python", "from writebehind import Nothing\n"),
    ],
)
def test_what_does_not_work_is_found(kind: str, code: str, desk: Desk) -> None:
    desk.sql(TABLES)
    with pytest.raises(Exception):  # noqa: B017 - of many kinds
        desk.runs[kind](code)
