"""A node that was promoted, and forgets it once it has had no replica for `repl-backlog-ttl`."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from tests.support.cluster import Cluster, options
from tests.support.sharded import keys
from tests.support.workers import RunningWorker

from writebehind import OutcomeUnknown, Receipt, WriteBehind
from writebehind.keys import QueueKeys
from writebehind_worker.testing.wait import wait_until

__all__ = ["keys", "options"]  # fixtures


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """It forgets after a second, not after an hour."""
    with Cluster({"repl-backlog-ttl": "1"}) as cluster:
        yield cluster


def lose(cluster: Cluster, place: int, write: Callable[[], Receipt]) -> Receipt:
    """A write that the replica has not received as it takes over; the former primary becomes its replica."""
    successor = cluster.replica_of(place)
    pid = cluster.nodes[successor].pid
    assert pid is not None
    primary: Any = cluster.clients[place]
    assert primary.execute_command("WAIT", 1, 10_000) == 1
    os.kill(pid, signal.SIGSTOP)
    primary.execute_command("CLIENT", "KILL", "TYPE", "replica")
    receipt = write()
    threading.Timer(0.2, os.kill, (pid, signal.SIGCONT)).start()
    cluster.take_over(successor)  # it is told before it wakes up
    cluster.wait_for_replica(place)
    wait_until(cluster.is_whole, 30)
    return receipt


def forgets(cluster: Cluster, place: int) -> None:
    """That it was promoted: its replica is gone for longer than it remembers."""
    cluster.kill(cluster.replica_of(place))
    wait_until(lambda: not str(cluster.clients[place].info()["master_replid2"]).strip("0"), 30)


@pytest.mark.parametrize(
    "is_promoted_elsewhere", [False, True], ids=["there and back", "after the slot moved"]
)
def test_a_write_that_a_promotion_lost_is_not_said_to_be_committed(
    cluster: Cluster,
    options: dict[str, Any],
    keys: QueueKeys,
    users: psycopg.Connection[Any],
    is_promoted_elsewhere: bool,
) -> None:
    """No worker has seen the promotion, nor what came before it."""
    place = cluster.node_of(keys.clock)
    with WriteBehind.from_url(cluster.url, queue=keys.queue, ttl=60) as wb:
        with RunningWorker(**options):
            wb.put("users", 0, {"name": "first"}).wait(30)
        if is_promoted_elsewhere:
            cluster.move_at_once(keys.clock, place := cluster.other_primary(place))
        lost = lose(cluster, place, lambda: wb.put("users", 1, {"name": "lost"}))
        if not is_promoted_elsewhere:
            assert cluster.fail_over(cluster.node_of(keys.clock)) == place
        place = cluster.node_of(keys.clock)
        gone = cluster.replica_of(place)
        forgets(cluster, place)
        wb.put("users", 2, {"name": "later"})
        try:
            with RunningWorker(**options):
                wait_until(lambda: users.execute("SELECT id FROM users WHERE id = 2").fetchone())
                with pytest.raises(OutcomeUnknown):
                    lost.wait(10)
        finally:
            cluster.restart(gone)
    assert users.execute("SELECT id FROM users ORDER BY id").fetchall() == [(0,), (2,)]
