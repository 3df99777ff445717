"""The page docs/operations-rows.md: each command line in it is run, and prints what stands there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import redis
from click.testing import CliRunner
from tests.conftest import ROOT
from tests.support.rows import Rows

from writebehind import WriteBehind
from writebehind.keys import DEFAULT_QUEUE
from writebehind_worker.cli import cli
from writebehind_worker.pause import pause, resume
from writebehind_worker.testing.servers import Servers

PAGE = ROOT / "docs" / "operations-rows.md"
SCHEMA = """
CREATE TABLE users (id bigint PRIMARY KEY, name text, email text UNIQUE);
CREATE TABLE lines ("order" bigint, line int, quantity int, PRIMARY KEY ("order", line));
"""


@pytest.fixture
def page(
    servers: Servers,
    redis_url: str,
    postgres_url: str,
    redis_client: redis.Redis,
    pg: psycopg.Connection[Any],
) -> Iterator[Rows]:
    """The default queue without a prefix, as an operator types the commands."""
    if not servers.ours:
        pytest.skip("the default queue of a Redis that is not ours is left alone")
    pg.execute(SCHEMA.encode())
    options = {"redis_url": redis_url, "postgres_url": postgres_url, "queue": DEFAULT_QUEUE}
    with WriteBehind.from_url(redis_url) as wb:
        yield Rows(options, redis_client, pg, wb, "")


def commands() -> Iterator[tuple[str, str]]:
    """(command line, what it prints) of the page."""
    for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = part.partition("\n")
            yield line, output


def steps(page: Rows) -> Iterator[tuple[str, Callable[[], object]]]:
    """What the page's commands begin with, in order, and what happens before each."""
    wb, pg = page.wb, page.pg

    def waiting() -> None:
        for i in range(1, 4):
            wb.put("users", 39 + i, {"name": "Ada", "email": f"ada{i}@example.com"})
        wb.patch("users", 42, {"name": "Ada Lovelace"})

    def rejected() -> None:
        wb.put("users", 43, {"name": "Bob", "email": "ada1@example.com"})
        page.flush()

    def changed() -> None:
        pg.execute("UPDATE users SET name = 'Eve' WHERE id = 42")

    def composite() -> None:
        wb.put("lines", {"order": 7, "line": 2}, {"quantity": 1})

    def differing() -> None:
        page.flush()
        pg.execute("DELETE FROM lines")
        wb.put("users", 50, {"name": "Cy"})

    def paused() -> None:
        pause(page.client, page.keys, "adding a column")

    def drained() -> None:
        resume(page.client, page.keys)
        page.flush()

    yield "explain users 42", waiting
    yield "explain users 42", page.flush
    yield "explain users 43", rejected
    yield "explain users 42", changed
    yield "explain lines", composite
    yield "verify --all", differing
    yield "verify --all --repair", lambda: None
    yield "drain", paused
    yield "drain", drained


def shape(text: str) -> str:
    """Without the numbers, which are others each time, and without blanks at the ends of lines."""
    return "\n".join(re.sub(r"\d[\d,.]*", "0", line).rstrip() for line in text.strip().splitlines())


def test_the_page_shows_what_the_commands_print(page: Rows) -> None:
    environment = {f"WRITEBEHIND_{name.upper()}": str(value) for name, value in page.options.items()}
    told = list(commands())
    for (line, output), (begin, prepare) in zip(told, steps(page), strict=True):
        program, *arguments = shlex.split(line)
        assert line.startswith(f"writebehind {begin}")
        assert program == "writebehind"
        prepare()
        result = CliRunner().invoke(cli, arguments, env=environment)
        print(f"$ {line}\n{result.output}")
        assert shape(output) == shape(result.output), line
