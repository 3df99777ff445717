"""`explain` and `verify` of rows whose writes go to shards."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from tests.support.fleets import RunningFleet
from tests.support.rows import Rows
from tests.support.sharded import all_queues, wait_until_drained

from writebehind.keys import QueueKeys
from writebehind.route import shard_of
from writebehind.shards import shard_queues
from writebehind_worker.pause import pause
from writebehind_worker.resharding import divide, layout_of, still_draining
from writebehind_worker.testing.wait import wait_until


@pytest.fixture(autouse=True)
def users(pg: psycopg.Connection[Any]) -> None:
    pg.execute("CREATE TABLE users (id bigint PRIMARY KEY, name text CHECK (name <> 'bad'))")
    pg.execute('CREATE TABLE lines ("order" int, line text, n int, PRIMARY KEY (line, "order"))')


def divided(rows: Rows, shards: int) -> None:
    """To its end: nothing waits."""
    divide(rows.client, rows.keys, shards)
    assert still_draining(rows.client, rows.keys, layout_of(rows.client, rows.keys)) == 0


def where(rows: Rows, id: int, shards: int) -> str:
    return shard_queues(rows.queue, shards)[shard_of("users", str(id), shards)]


def flush(rows: Rows, shards: int) -> None:
    """By a fleet."""
    with RunningFleet(**rows.options):
        wait_until_drained(rows.client, all_queues(rows.keys, shards), 30)
        wait_until(lambda: not layout_of(rows.client, rows.keys).draining)


# explain


def test_a_write_is_found_in_its_shard(rows: Rows) -> None:
    divided(rows, 4)
    for id in range(8):
        rows.wb.put("users", id, {"name": "x"})
        found = rows.explain("users", str(id))
        assert found["outcome"] == "pending"
        assert found["queue"] == where(rows, id, 4)
        assert [w["queue"] for w in found["pending"]["writes"]] == [where(rows, id, 4)]
    key = {"order": 7, "line": "a"}
    rows.wb.put("lines", key, {"n": 1})
    assert len(rows.explain("lines", json.dumps(key))["pending"]["writes"]) == 1
    flush(rows, 4)
    for id in range(8):
        found = rows.explain("users", str(id))
        assert (found["outcome"], found["exit_code"]) == ("consistent", 0)
        assert found["queue"] == where(rows, id, 4)
        assert found["ledger"]["applied_seq"] >= found["cache"]["seq"]
    text = rows.run("explain", "users", "1", "--prefix", rows.prefix).output
    assert f"shard        {where(rows, 1, 4)}\n" in text and "the entry's write is committed" in text


def test_what_a_former_shard_has_comes_first(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "first"})
    divide(rows.client, rows.keys, 4)
    rows.wb.put("users", 1, {"name": "second"})
    rows.client.lpush(rows.queue, json.dumps({"table": "users", "id": 1, "data": {"name": "raw"}}))
    found = rows.explain("users", "1")
    queues = [write["queue"] for write in found["pending"]["writes"]]
    assert queues == [rows.queue, rows.queue, where(rows, 1, 4)]
    assert found["obstacles"][0].startswith("it is held until the writes of 1 former shards are in Postgres")
    text = rows.run("explain", "users", "1", "--prefix", rows.prefix).output
    assert f"in {rows.queue}: no write is ahead of it" in text
    pause(rows.client, rows.keys, "a migration")
    assert any("a migration" in obstacle for obstacle in rows.explain("users", "1")["obstacles"])


def test_a_frozen_batch_is_one_of_its_own_shard(rows: Rows) -> None:
    """Batches of two shards may have the same id: what is committed is told by the shard's own ledger."""
    divided(rows, 2)
    shards = shard_queues(rows.queue, 2)
    first, second = (next(n for n in range(99) if where(rows, n, 2) == shard) for shard in shards)
    rows.wb.put("users", first, {"name": "x"})
    flush(rows, 2)
    (batch,) = rows.pg.execute(
        "SELECT recent_batches[1] FROM writebehind.ledger WHERE queue = %s", [where(rows, first, 2)]
    ).fetchone() or (0,)
    rows.wb.put("users", second, {"name": "x"})
    shard = QueueKeys(where(rows, second, 2))
    rows.client.rpush(shard.inflight, batch)
    rows.client.lmove(shard.queue, shard.processing(batch), "RIGHT", "RIGHT")
    found = rows.explain("users", str(second))
    assert found["outcome"] == "pending"
    assert [(w["batch"], w["is_committed"]) for w in found["pending"]["writes"]] == [(batch, False)]


def test_a_letter_of_a_former_shard_is_one_of_the_row(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "bad"})
    divide(rows.client, rows.keys, 4)
    flush(rows, 4)
    found = rows.explain("users", "1")
    assert (found["outcome"], len(found["dead_letters"])) == ("rejected", 1)


def test_what_vanished_from_a_shard_is_not_said_to_wait(rows: Rows) -> None:
    divided(rows, 4)
    rows.wb.put("users", 1, {"name": "x"})
    rows.client.delete(where(rows, 1, 4))
    found = rows.explain("users", "1")
    assert found["outcome"] == "differs"
    assert "neither in the queue nor in Postgres" in found["verdict"]


# verify


@pytest.mark.parametrize("draining", [False, True])
def test_a_write_that_any_shard_has_is_pending_and_one_that_is_settled_is_not(
    rows: Rows, draining: bool
) -> None:
    divided(rows, 4)
    for id in range(8):
        rows.wb.put("users", id, {"name": "x"})
    flush(rows, 4)
    for id in range(8):
        rows.client.persist(rows.name(f"users:{id}"))
    rows.wb.put("users", 20, {"name": "x"})
    if draining:
        divide(rows.client, rows.keys, 3)
        rows.wb.put("users", 21, {"name": "x"})
    found = rows.verify()
    assert found["pending"] + found["differ"] == found["entries"] == 9 + draining
    names = {d["key"].removeprefix(rows.prefix) for d in found["differences"]}
    assert names <= {f"users:{id}" for id in range(8)}  # some could be pending, as far as is known
    flush(rows, 3 if draining else 4)
    found = rows.verify("--repair")
    assert {d["key"].removeprefix(rows.prefix) for d in found["differences"]} == {
        f"users:{id}" for id in range(8)
    }
    assert {d["fault"] for d in found["differences"]} == {"stuck"}
    assert (found["agree"], found["repaired"]) == (1 + draining, 8)


# status and drain


def test_what_holds_a_shard_up_is_told(rows: Rows) -> None:
    rows.pg.execute("INSERT INTO users VALUES (1, 'x')")
    rows.wb.put("users", 1, {"name": "y"})
    divide(rows.client, rows.keys, 2)
    rows.wb.put("users", 1, {"name": "z"})
    held = "held until the writes of 1 former shards are in Postgres"
    options = {**rows.options, "lock_timeout_s": 0.1}
    with psycopg.connect(rows.options["postgres_url"]) as other, RunningFleet(**options) as fleet:
        other.execute("SELECT FROM users FOR UPDATE")
        wait_until(lambda: len(fleet.owned()) == 3)
        assert f"{where(rows, 1, 2)}: 1 write waits in Redis" in (text := rows.run("status").output)
        assert f"it is {held}" in text
        other.rollback()
        wait_until(lambda: not layout_of(rows.client, rows.keys).draining)
        rows.run("drain", "--timeout", "20")
        assert held not in rows.run("status").output
        other.execute("SELECT FROM users FOR UPDATE")
        rows.wb.put("users", 1, {"name": "again"})
        ledger = "SELECT waiting_for FROM writebehind.ledger WHERE waiting_for IS NOT NULL"
        wait_until(lambda: rows.pg.execute(ledger).fetchone())
        text = rows.run("drain", "--timeout", "0").output
        assert f"Why: {where(rows, 1, 2)}: the oldest batch waits: put of public.users" in text
        other.rollback()
