"""Promises, tested as an application's author would: with the plugin's fixture alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from writebehind_worker.testing.stack import Stack

Connection = psycopg.Connection[Any]


@pytest.fixture
def db(writebehind_stack: Stack) -> Iterator[Connection]:
    with psycopg.connect(writebehind_stack.postgres_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE pages (path text PRIMARY KEY, views bigint)")
        yield connection


def views(db: Connection) -> list[Any]:
    return db.execute("SELECT views FROM pages").fetchall()


def test_a_killed_worker_loses_and_doubles_nothing(writebehind_stack: Stack, db: Connection) -> None:
    for n in range(20):
        writebehind_stack.wb.increment("pages", {"path": "/"}, {"views": 1})
        if n == 10:
            writebehind_stack.kill_worker()
    writebehind_stack.start_worker()
    writebehind_stack.drain(20)
    assert views(db) == [(20,)]


def test_a_lost_reply_doubles_nothing(writebehind_stack: Stack, db: Connection) -> None:
    wb = writebehind_stack.wb
    wb.increment("pages", {"path": "/"}, {"views": 1})
    writebehind_stack.drop_reply()
    wb.increment("pages", {"path": "/"}, {"views": 1})
    assert writebehind_stack.replies_dropped == 1
    writebehind_stack.drain()
    assert views(db) == [(2,)]


def test_a_paused_worker_goes_on(writebehind_stack: Stack, db: Connection) -> None:
    writebehind_stack.wb.put("pages", {"path": "a"}, {"views": 1})
    writebehind_stack.drain()
    writebehind_stack.pause_worker()
    writebehind_stack.wb.put("pages", {"path": "a"}, {"views": 2})
    with pytest.raises(AssertionError, match="not drained"):
        writebehind_stack.drain(0.3)
    writebehind_stack.resume_worker()
    writebehind_stack.drain()
    assert views(db) == [(2,)]
