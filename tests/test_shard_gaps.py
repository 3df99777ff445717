"""Shards where somebody else acts between two steps: a division, a kill, another worker."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
import redis
from tests.support.fleets import RunningFleet
from tests.support.sharded import Run, divided, keys, killed_after, rows, run
from tests.test_shard_faults import where

from writebehind import WriteBehind, WriteRejected, division
from writebehind.keys import QueueKeys
from writebehind.message import make_write
from writebehind.route import shard_of
from writebehind.shards import Layout
from writebehind_worker import drain, instant, whole_pause
from writebehind_worker.fleet import Fleet
from writebehind_worker.pause import pause
from writebehind_worker.resharding import divide, layout_of
from writebehind_worker.testing.wait import wait_until

__all__ = ["keys", "rows", "run"]  # fixtures

Connect = Callable[..., WriteBehind]


# The fleet.


@pytest.mark.parametrize("step", ["begin", "open"])
def test_a_division_whose_command_was_killed_is_finished_by_the_workers(
    connect: Connect,
    redis_client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    wb = connect()
    wb.put("rows", 1, {"v": 1})
    with killed_after(step, monkeypatch):
        divide(redis_client, keys, 3)
    with ExitStack() as stack:
        for _ in range(2):  # both try to
            stack.enter_context(RunningFleet(**options))
        wb.put("rows", 1, {"v": 2}).wait(20)
        assert layout_of(redis_client, keys).shards == 3
    assert rows.execute("SELECT v FROM rows").fetchall() == [(2,)]


def test_a_worker_for_which_nothing_is_left_is_ready(
    redis_client: redis.Redis, keys: QueueKeys, options: dict[str, Any]
) -> None:
    divide(redis_client, keys, 2)
    with ExitStack() as stack:
        fleets = [stack.enter_context(RunningFleet(**options)) for _ in range(4)]

        def are_balanced() -> bool:
            return sorted(len(fleet.owned()) for fleet in fleets) == [0, 1, 1, 1]

        wait_until(are_balanced)
        wait_until(lambda: all(fleet.state.readiness()[0] for fleet in fleets) and are_balanced())


def test_a_worker_that_slept_through_divisions_knows_of_the_letters_of_former_shards(
    connect: Connect,
    redis_client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows.execute("ALTER TABLE rows ADD CONSTRAINT small CHECK (n < 100)")
    wb, look_after = connect(), Fleet._look_after
    with RunningFleet(**options) as sleeper:
        wait_until(lambda: sleeper.owned() == {keys.queue})
        sleeps = True

        def unless_asleep(self: Fleet, *args: Any) -> None:
            if not (sleeps and self is sleeper.fleet):
                look_after(self, *args)

        monkeypatch.setattr(Fleet, "_look_after", unless_asleep)
        with RunningFleet(**options):
            run("reshard", "4")
            with pytest.raises(WriteRejected):
                wb.put("rows", 1, {"v": 1, "n": 100}, wait=20)
            run("reshard", "1")
        epoch = sleeper.state.facts()["epoch"]
        sleeps = False
        wait_until(
            lambda: sleeper.state.facts()["role"] == "owner" and sleeper.state.facts()["epoch"] != epoch
        )
        wb.put("rows", 1, {"v": 2, "n": 2}, wait=20)
        rows.execute("ALTER TABLE rows DROP CONSTRAINT small")
        run("dead", "retry", "--all")
        run("drain", "--timeout", "20")
    assert rows.execute("SELECT v, n FROM rows").fetchall() == [(2, 2)]


def test_an_error_that_ends_a_shard_as_it_is_let_go_ends_the_process() -> None:
    class Ending:
        """Whose error is there only just before it is seen to have ended."""

        is_ending, error = True, None

        def end(self) -> None: ...

        @property
        def has_ended(self) -> bool:
            self.error = ValueError("late")
            return True

    fleet = RunningFleet(redis_url="redis://unused", postgres_url="postgresql://unused").fleet
    fleet._serving["q"] = Ending()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="late"):
        fleet._end_those(["q"])


# Clients.


def test_a_row_s_writes_stay_together_while_another_thread_hears_of_a_division(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    wb = connect()
    core, choose = wb._core, shard_of
    core.places.own.are(Layout(2))
    rows = [n % 7 for n in range(70)]

    def hears(table: str, key: Any, shards: int) -> int:
        found = choose(table, key, shards)
        if key == "5":
            core.places.own.are(Layout(3))
        return found

    monkeypatch.setattr(division, "shard_of", hears)
    parts = core.parts([make_write("put", "rows", n, {}) for n in rows])
    owners = [{number for number, part in enumerate(parts) if n in {rows[p] for p in part}} for n in range(7)]
    assert all(len(owner) == 1 for owner in owners)


# Commands.


def test_a_pause_waits_for_the_shards_that_were_made_just_before_it(
    redis_client: redis.Redis, keys: QueueKeys, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:

    def after_a_division(client: redis.Redis, *args: Any) -> None:
        divided(client, keys, 2)
        shard = where(keys, 1, 2)  # a worker of it has claimed a batch
        client.rpush(shard.processing(1), "{}")
        client.rpush(shard.inflight, 1)
        pause(client, *args)

    monkeypatch.setattr(whole_pause, "pause", after_a_division)
    assert "1 batch taken before" in run("pause", "--wait", "0", code=1)


def test_a_drain_is_of_the_shards_that_there_are_at_that_instant(
    connect: Connect, redis_client: redis.Redis, keys: QueueKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    wb, look = connect(), layout_of

    def before_a_division(client: redis.Redis, keys: QueueKeys) -> Any:
        found = look(client, keys)
        if found.number == 0:
            divided(client, keys, 2)
            wb.put("rows", 1, {"v": 1})
        return found

    monkeypatch.setattr(instant, "layout_of", before_a_division)
    assert drain.read_backlog(redis_client, keys).waiting == 1


def test_a_letter_waits_for_the_batch_of_its_own_shard_only(
    redis_client: redis.Redis,
    keys: QueueKeys,
    connect: Connect,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    run: Run,
) -> None:
    rows.execute("ALTER TABLE rows ADD CONSTRAINT small CHECK (n < 100)")
    divided(redis_client, keys, 2)
    with RunningFleet(**options), pytest.raises(WriteRejected):
        connect().put("rows", 1, {"n": 100}, wait=20)
    ((batch,),) = rows.execute("SELECT batch FROM writebehind.dead_letters")
    mine = where(keys, 1, 2)
    (other,) = {QueueKeys(f"{keys.queue}:{n}of2") for n in (1, 2)} - {mine}
    redis_client.rpush(other.inflight, batch)  # the same id: each shard counts for itself
    assert "Sent 1 dead letter again" in run("dead", "retry", "--all", "--wait", "0")
    redis_client.delete(mine.queue)
    redis_client.rpush(mine.inflight, batch)
    assert "their batch is still being finished" in run("dead", "retry", "--all", "--wait", "0", code=1)


def test_a_raw_letter_of_a_former_shard_is_sent_to_a_queue_that_is_served(
    redis_client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    rows: psycopg.Connection[Any],
    run: Run,
) -> None:
    divide(redis_client, keys, 4)
    shard = where(keys, 1, 4)
    with RunningFleet(**options) as fleet:
        redis_client.lpush(shard.queue, json.dumps({"table": "rows", "id": 1, "data": {"lacks": 1}}))
        wait_until(lambda: rows.execute("SELECT count(*) FROM writebehind.dead_letters").fetchone() == (1,))
        run("reshard", "1")
        wait_until(lambda: fleet.owned() == {keys.queue})
        rows.execute("ALTER TABLE rows ADD COLUMN lacks int")
        run("dead", "retry", "--all", queue=shard.queue)
        wait_until(lambda: rows.execute("SELECT lacks FROM rows").fetchall() == [(1,)])
