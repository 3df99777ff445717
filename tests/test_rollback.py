"""Servers that come back with older data: the files of Redis are put back for real, Postgres from a copy."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql
from structlog.testing import capture_logs
from tests.conftest import SCHEMA
from tests.support.crashing_worker import CrashingWorker
from tests.support.workers import RunningWorker, Workload, flags

from writebehind import OutcomeUnknown
from writebehind_worker.cli import cli
from writebehind_worker.config import SETTINGS
from writebehind_worker.embedded import EmbeddedServers
from writebehind_worker.ledger import RECENT
from writebehind_worker.testing.servers import private_servers
from writebehind_worker.testing.wait import wait_until


@pytest.fixture(scope="module")
def servers_with_a_past() -> Iterator[EmbeddedServers]:
    """A pair of this module's own; each test leaves them running."""
    with private_servers() as servers:
        yield servers


class Past:
    """What Redis held when this was made; ``bring_back`` makes it hold that again."""

    def __init__(self, servers: EmbeddedServers, folder: Path) -> None:
        self._servers, self._copy = servers, folder / uuid.uuid4().hex
        self._redis = servers.data_dir / "redis"
        servers.redis.stop()
        shutil.copytree(self._redis, self._copy)
        servers.redis.start()

    def bring_back(self) -> None:
        self._servers.redis.stop()
        shutil.rmtree(self._redis)
        shutil.copytree(self._copy, self._redis)
        self._servers.redis.start()


@pytest.fixture
def options(servers_with_a_past: EmbeddedServers, queue: str) -> Iterator[dict[str, Any]]:
    name = f"wb_test_{uuid.uuid4().hex[:12]}"
    administer(servers_with_a_past, "CREATE DATABASE {}", name)
    url = urlsplit(servers_with_a_past.postgres_url)._replace(path=f"/{name}").geturl()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SCHEMA.read_bytes())
    redis_url = servers_with_a_past.redis_url
    yield {"redis_url": redis_url, "postgres_url": url, "queue": queue, "batch_size": 10}
    administer(servers_with_a_past, "DROP DATABASE {} WITH (FORCE)", name)


@pytest.fixture
def load(options: dict[str, Any]) -> Iterator[Workload]:
    with (
        psycopg.connect(options["postgres_url"], autocommit=True) as pg,
        Workload(options["redis_url"], options["queue"], pg) as workload,
    ):
        workload.redis.flushall()
        yield workload


@pytest.fixture
def past(servers_with_a_past: EmbeddedServers, tmp_path: Path) -> Callable[[], Past]:
    """Call it at the moment that is to be brought back."""
    return partial(Past, servers_with_a_past, tmp_path)


def administer(servers: EmbeddedServers, statement: str, *names: str) -> None:
    with psycopg.connect(servers.postgres_url, autocommit=True) as admin:
        admin.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def drain(options: dict[str, Any], load: Workload) -> RunningWorker:
    """A worker takes over, does all there is to do, and stops."""
    with RunningWorker(**options) as worker:
        worker.wait_for_role("owner")
        load.wait_until_done()
    return worker


def frozen_by_a_dead_worker(options: dict[str, Any], load: Workload, point: str) -> None:
    with CrashingWorker(point, flags(**options)) as worker:
        worker.wait_for_death()
    load.redis.delete(load.keys.lease)


def test_after_a_plain_restart_nothing_is_lost_and_nothing_is_a_dead_letter(
    options: dict[str, Any], load: Workload, servers_with_a_past: EmbeddedServers
) -> None:
    load.add(30)
    frozen_by_a_dead_worker(options, load, "commit:after:2")
    load.add_raw(10)
    load.add(30)
    with RunningWorker(**options) as worker:
        for stop in (servers_with_a_past.redis.stop, servers_with_a_past.redis.kill):
            stop()
            servers_with_a_past.redis.start()
            load.add(30)
            load.wait_until_done()
        assert worker.metric("rollbacks_total", server="redis") == 0
    load.check()


def test_what_was_applied_before_redis_went_back_is_kept_as_dead_letters(
    options: dict[str, Any], load: Workload, past: Callable[[], Past]
) -> None:
    drain(options, load)
    old = load.add(35)
    then = past()
    drain(options, load)
    lost = load.add(12)
    drain(options, load)
    generation = load.redis.hget(load.keys.clock, "generation")

    then.bring_back()
    worker = drain(options, load)
    assert load.dead_letters("rollback") == 35
    assert worker.metric("rollbacks_total", server="redis") == 1
    assert worker.metric("writes_total", table="unknown", outcome="rollback") == 35
    assert load.redis.hget(load.keys.clock, "generation") != generation
    for receipt in (old[0], lost[-1]):
        with pytest.raises(OutcomeUnknown):
            receipt.wait(1)
    after = load.add(20)
    worker = drain(options, load)
    assert worker.metric("rollbacks_total", server="redis") == 0
    after[-1].wait(1)
    load.check(dead_letters=35)


def test_redis_goes_back_under_a_worker_that_runs_and_a_producer_that_writes_on(
    options: dict[str, Any], load: Workload, past: Callable[[], Past]
) -> None:
    load.add(25)
    then = past()
    with RunningWorker(**options) as worker:
        load.wait_until_done()
        for _ in range(2):  # a second time, back to before the first
            load.add(15)
            load.wait_until_done()
            then.bring_back()
            load.add(15)
            load.wait_until_done()
        wait_until(lambda: worker.metric("rollbacks_total", server="redis") == 2)
    load.check(dead_letters=50)


def test_raw_items_before_an_applied_one_are_dead_letters_those_after_it_are_applied(
    options: dict[str, Any], load: Workload, past: Callable[[], Past]
) -> None:
    drain(options, load)
    load.add_raw(4)
    load.add(3)
    load.add_raw(4)
    load.add(3)
    then = past()
    drain(options, load)

    then.bring_back()
    load.add_raw(5)
    load.add(5)
    drain(options, load)
    assert load.dead_letters("rollback") == 14
    load.check(dead_letters=14)


@pytest.mark.parametrize("batches_since", [3, RECENT - 2, RECENT - 1, RECENT + 6])
@pytest.mark.parametrize("point", ["claim:after:2", "commit:before:2", "commit:after:2"])
def test_a_frozen_batch_from_the_past_is_not_applied_twice(
    point: str, batches_since: int, options: dict[str, Any], load: Workload, past: Callable[[], Past]
) -> None:
    load.add(5)
    load.add_raw(5)
    load.add(10)
    frozen_by_a_dead_worker(options, load, point)
    assert load.redis.llen(load.keys.inflight)
    then = past()
    drain(options, load)
    load.add(batches_since)
    drain({**options, "batch_size": 1}, load)

    then.bring_back()
    load.redis.delete(load.keys.lease)
    load.add(20)
    drain(options, load)
    load.check(dead_letters=load.dead_letters("rollback"))


@pytest.mark.parametrize("point", ["adopt:before:1", "adopt:after:1", "own:after:2", "commit:before:2"])
def test_killed_while_it_settles_on_a_rolled_back_history_the_next_does_the_same(
    point: str, options: dict[str, Any], load: Workload, past: Callable[[], Past]
) -> None:
    drain(options, load)
    load.add_raw(5)
    load.add(30)
    then = past()
    drain(options, load)

    then.bring_back()
    load.add(5)
    frozen_by_a_dead_worker(options, load, point)
    load.add(5)
    drain(options, load)
    assert load.dead_letters("rollback") == 35
    load.check(dead_letters=35)


def test_a_restart_in_the_middle_of_what_was_rolled_back_changes_nothing(
    options: dict[str, Any], load: Workload, past: Callable[[], Past], servers_with_a_past: EmbeddedServers
) -> None:
    drain(options, load)
    load.add_raw(5)
    load.add(40)
    then = past()
    drain(options, load)

    then.bring_back()
    load.add(5)
    frozen_by_a_dead_worker(options, load, "commit:after:1")  # one batch of them
    assert load.dead_letters("rollback") == 10
    servers_with_a_past.redis.kill()
    servers_with_a_past.redis.start()
    load.add(5)
    drain(options, load)
    load.check(dead_letters=45)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_wiped_redis_is_a_new_history(
    restarted: bool, options: dict[str, Any], load: Workload, servers_with_a_past: EmbeddedServers
) -> None:
    old = load.add(20)
    drain(options, load)
    load.redis.flushall()
    if restarted:
        servers_with_a_past.redis.stop()
        servers_with_a_past.redis.start()
    load.add(20)
    worker = drain(options, load)
    assert worker.metric("rollbacks_total", server="redis") == 1
    worker = drain(options, load)
    assert worker.metric("rollbacks_total", server="redis") == 0
    with pytest.raises(OutcomeUnknown):
        old[0].wait(1)
    load.check()


def test_redis_is_wiped_while_the_worker_runs(options: dict[str, Any], load: Workload) -> None:
    with RunningWorker(**options) as worker:
        for wipes in (1, 2):
            old = load.add(20)
            load.wait_until_done()
            with capture_logs() as logs:
                load.redis.flushall()
                load.add(20)
                load.check()
            assert worker.metric("rollbacks_total", server="redis") == wipes
            assert any(log["log_level"] == "error" and "went back" in log["event"] for log in logs)
            with pytest.raises(OutcomeUnknown):
                old[0].wait(1)


@pytest.mark.parametrize("runs", [False, True])
def test_postgres_goes_back_it_is_told_and_no_epoch_is_given_out_twice(
    runs: bool, options: dict[str, Any], load: Workload, servers_with_a_past: EmbeddedServers
) -> None:
    name = urlsplit(options["postgres_url"]).path[1:]
    load.add(20)
    drain(options, load)
    load.pg.close()
    administer(servers_with_a_past, "CREATE DATABASE {} TEMPLATE {}", f"{name}_past", name)
    kept = dict(load.counters)
    for _ in range(2):  # epochs, and batches that the past knows nothing of
        lost = load.add(20)
        drain(options, load)
    epoch = int(load.redis.get(load.keys.epoch) or 0)

    def go_back() -> None:
        administer(servers_with_a_past, "DROP DATABASE {} WITH (FORCE)", name)
        administer(servers_with_a_past, "ALTER DATABASE {} RENAME TO {}", f"{name}_past", name)

    if not runs:
        go_back()
    with capture_logs() as logs, RunningWorker(**options) as worker:
        if runs:
            worker.wait_for_role("owner")
            go_back()
        load.counters = kept
        load.add(20)
        load.wait_until_done()
        assert worker.facts["epoch"] > epoch
        assert worker.metric("rollbacks_total", server="postgres") == 1
    assert any(log["log_level"] == "error" and "postgres went back" in log["event"] for log in logs)
    assert int(load.redis.get(load.keys.epoch) or 0) > epoch
    with pytest.raises(OutcomeUnknown):
        lost[0].wait(1)
    with psycopg.connect(options["postgres_url"], autocommit=True) as load.pg:
        assert load.ledger("epoch") > epoch
        assert dict(load.pg.execute("SELECT id, n FROM counters")) == load.counters
        assert load.dead_letters() == 0


def test_postgres_goes_back_with_frozen_batches_these_are_not_lost(
    options: dict[str, Any], load: Workload, servers_with_a_past: EmbeddedServers
) -> None:
    name = urlsplit(options["postgres_url"]).path[1:]
    load.add(20)
    drain(options, load)
    load.pg.close()
    administer(servers_with_a_past, "CREATE DATABASE {} TEMPLATE {}", f"{name}_past", name)
    load.add(30)
    frozen_by_a_dead_worker(options, load, "commit:after:2")  # committed, not acknowledged
    administer(servers_with_a_past, "DROP DATABASE {} WITH (FORCE)", name)
    administer(servers_with_a_past, "ALTER DATABASE {} RENAME TO {}", f"{name}_past", name)
    drain(options, load)
    with psycopg.connect(options["postgres_url"], autocommit=True) as load.pg:
        counters: dict[int, int] = dict(load.pg.execute("SELECT id, n FROM counters"))
        assert load.dead_letters() == 0
        # The first ten had been acknowledged and are gone; those that were still frozen are applied again.
        lost = sum(load.counters.values()) - sum(counters.values())
        assert lost <= sum(range(20, 30))


def test_a_new_ledger_with_an_old_redis_voids_the_receipts_of_before(
    options: dict[str, Any], load: Workload
) -> None:
    receipt = load.add(20)[-1]
    drain(options, load)
    receipt.wait(1)
    load.pg.execute("DELETE FROM writebehind.ledger")
    drain(options, load)
    with pytest.raises(OutcomeUnknown):
        receipt.wait(1)


def test_redis_goes_back_and_then_postgres_forgets_that_it_was_told(
    options: dict[str, Any], load: Workload, past: Callable[[], Past]
) -> None:
    drain(options, load)
    load.add(20)
    then = past()
    drain(options, load)
    told = load.pg.execute("SELECT * FROM writebehind.ledger").fetchall()

    then.bring_back()
    frozen_by_a_dead_worker(options, load, "claim:after:1")  # the new history has been adopted
    columns = (
        "queue, epoch, recent_batches, applied_seq, generations, redis_run_id, rollback_seq, rollback_items"
    )
    load.pg.execute("DELETE FROM writebehind.ledger")
    load.pg.execute(
        f"INSERT INTO writebehind.ledger ({columns}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)", told[0][:8]
    )
    drain(options, load)
    load.check(dead_letters=20)


def test_postgres_goes_back_and_then_redis_to_a_history_that_it_had_forgotten(
    options: dict[str, Any], load: Workload, past: Callable[[], Past]
) -> None:
    load.add(5)
    drain(options, load)
    load.add(20)
    then = past()
    load.pg.execute("DELETE FROM writebehind.ledger")  # the ledger alone: what is applied stays
    drain(options, load)

    then.bring_back()
    drain(options, load)
    load.check(dead_letters=20)


def test_what_is_left_of_a_rollback_survives_another_adoption(
    options: dict[str, Any], load: Workload
) -> None:
    """Killed in the middle of the episode, and then Postgres goes back too: the count goes on."""
    load.add(20)
    drain(options, load)
    load.pg.execute("UPDATE writebehind.ledger SET rollback_seq = applied_seq, rollback_items = 7")
    load.redis.set(load.keys.acked, 1 << 40)  # a batch that the ledger has never seen
    with RunningWorker(**options) as worker:
        worker.wait_for_role("owner")
        wait_until(lambda: worker.metric("rollbacks_total", server="postgres") == 1)
        assert load.ledger("rollback_items") == 7
        load.add(10)  # newer than the episode, and so applied, not counted against it
        load.wait_until_done()
    assert load.ledger("rollback_items") == 0
    load.check()


def test_redis_is_restarted_under_a_standby_it_learns_of_the_new_process(
    options: dict[str, Any], load: Workload, servers_with_a_past: EmbeddedServers
) -> None:
    with RunningWorker(**options) as owner:
        owner.wait_for_role("owner")
        with RunningWorker(**options) as standby:
            standby.wait_for_role("standby")
            servers_with_a_past.redis.stop()
            servers_with_a_past.redis.start()
            owner.stop()
            standby.wait_for_role("owner")
            load.add(10)
            load.check()
    assert load.ledger("redis_run_id") == load.redis.info("server")["run_id"]


def test_a_plain_restart_applies_raw_items_whatever_they_look_like(
    options: dict[str, Any], load: Workload, servers_with_a_past: EmbeddedServers
) -> None:
    load.add(20)
    drain(options, load)
    load.add_raw(1)
    load.redis.lpush(load.keys.queue, '{"seq":1,"table":"users","id":1,"data":{"name":"forged"}}')
    load.add_raw(1)
    servers_with_a_past.redis.stop()
    servers_with_a_past.redis.start()
    drain(options, load)
    load.check(dead_letters=1)
    assert load.dead_letters("rollback") == 0


def test_a_rollback_with_a_committed_batch_in_flight_is_told_once(
    options: dict[str, Any], load: Workload, past: Callable[[], Past]
) -> None:
    load.add(10)
    frozen_by_a_dead_worker(options, load, "commit:after:1")
    then = past()
    load.add(20)
    drain(options, load)
    then.bring_back()
    worker = drain(options, load)
    assert worker.metric("rollbacks_total", server="redis") == 1
    receipt = load.add(10)[-1]
    worker = drain(options, load)
    assert worker.metric("rollbacks_total", server="redis") == 0
    receipt.wait(1)


def test_retries_that_redis_brings_back_are_not_applied_again(
    options: dict[str, Any], load: Workload, past: Callable[[], Past]
) -> None:
    drain(options, load)
    load.pg.execute("ALTER TABLE counters ADD CONSTRAINT closed CHECK (n < 0)")
    load.add(20)
    load.add_raw(20)
    drain(options, load)
    load.pg.execute("ALTER TABLE counters DROP CONSTRAINT closed")
    servers = [part for name in ("redis_url", "postgres_url", "queue") for part in flag(name, options)]
    result = CliRunner().invoke(cli, ["dead", "retry", "--all", "--wait", "0", *servers])
    assert "Sent 33 dead letters again." in result.output
    then = past()
    drain(options, load)
    load.check()

    then.bring_back()
    assert load.pending == 33
    drain(options, load)
    load.check()


def flag(name: str, options: dict[str, Any]) -> tuple[str, str]:
    return SETTINGS[name].flag, options[name]
