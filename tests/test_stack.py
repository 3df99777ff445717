"""The pytest plugin, in a folder where there is nothing else; and promises, written as its users would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = """
import psycopg
import pytest


@pytest.fixture
def db(writebehind_stack):
    with psycopg.connect(writebehind_stack.postgres_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE pages (path text PRIMARY KEY, views bigint)")
        yield connection


def views(db):
    return db.execute("SELECT views FROM pages").fetchall()


def test_a_killed_worker_loses_and_doubles_nothing(writebehind_stack, db):
    for n in range(20):
        writebehind_stack.wb.increment("pages", {"path": "/"}, {"views": 1})
        if n == 10:
            writebehind_stack.kill_worker()
    writebehind_stack.start_worker()
    writebehind_stack.drain(20)
    assert views(db) == [(20,)]


def test_a_lost_reply_doubles_nothing(writebehind_stack, db):
    wb = writebehind_stack.wb
    wb.increment("pages", {"path": "/"}, {"views": 1})
    writebehind_stack.drop_reply()
    wb.increment("pages", {"path": "/"}, {"views": 1})
    assert writebehind_stack.replies_dropped == 1
    writebehind_stack.drain()
    assert views(db) == [(2,)]


def test_a_paused_worker_goes_on(writebehind_stack, db):
    writebehind_stack.wb.put("pages", {"path": "a"}, {"views": 1})
    writebehind_stack.drain()
    writebehind_stack.pause_worker()
    writebehind_stack.wb.put("pages", {"path": "a"}, {"views": 2})
    with pytest.raises(AssertionError, match="not drained"):
        writebehind_stack.drain(0.3)
    writebehind_stack.resume_worker()
    writebehind_stack.drain()
    assert views(db) == [(2,)]
"""


def test_a_users_tests_run_with_nothing_but_the_plugin(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-W", "error", "-p"]
    command += ["writebehind_worker.pytest_plugin", str(tmp_path)]
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110)
    assert "3 passed" in done.stdout, done.stdout + done.stderr
