"""`writebehind verify` on a cluster: which shards may have the write pending that an entry shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from tests.support.cluster import Cluster, client, cluster, options
from tests.support.fleets import RunningFleet
from tests.support.sharded import divided_in_time, keys, killed_after

from writebehind import WriteBehind
from writebehind.keys import QueueKeys
from writebehind.shards import shard_keys
from writebehind_worker import instant
from writebehind_worker.cache_names import CacheNames
from writebehind_worker.cached_entry import read_entries
from writebehind_worker.catalog import load_catalog
from writebehind_worker.known_tables import KnownTables
from writebehind_worker.pause import pause, resume
from writebehind_worker.postgres import connect
from writebehind_worker.resharding import divide, layout_of, names_in
from writebehind_worker.row_comparison import RowComparison
from writebehind_worker.testing.wait import wait_until
from writebehind_worker.verify import Tally, Verification

__all__ = ["client", "cluster", "keys", "options"]  # fixtures

SHARDS = 3
Verify = Callable[[], tuple[Tally, dict[str, str]]]


@pytest.fixture
def wb(cluster: Cluster, queue: str, users: Any) -> Iterator[WriteBehind]:
    with WriteBehind.from_url(cluster.url, queue=queue, ttl=60) as wb:
        yield wb


@pytest.fixture
def verify(postgres_url: str, client: redis.Redis, keys: QueueKeys) -> Iterator[Verify]:
    """All entries, as `--all --repair` does: what it counts, and what was wrong."""
    with connect(postgres_url) as conn:

        def verify() -> tuple[Tally, dict[str, str]]:
            names, tables = names_in(client, keys, CacheNames()), KnownTables(load_catalog(conn), {})
            one = Verification(client, keys, names, tables, RowComparison(conn))
            found = [difference for page in one.all_names() for difference in one.check(page)]
            assert all(map(one.repair, found))
            return one.tally, {difference.entry.name.decode(): difference.fault for difference in found}

        yield verify


def entry(client: redis.Redis, keys: QueueKeys, queue: str, id: int) -> str:
    """The name of a row's entry in this shard."""
    return QueueKeys(queue).entry(f"users:{id}", layout_of(client, keys).number)


def entries(client: redis.Redis, names: list[str]) -> list[Any]:
    return [(client.hgetall(name), client.pexpiretime(name)) for name in names]


def is_settled(client: redis.Redis, name: str) -> bool:
    return client.pttl(name) > 0


def settled(client: redis.Redis, names: list[str]) -> None:
    wait_until(lambda: all(is_settled(client, name) for name in names))


def test_no_entry_is_judged_by_another_shard_than_its_own(
    client: redis.Redis, keys: QueueKeys, options: dict[str, Any], wb: WriteBehind, verify: Verify
) -> None:
    """Each shard in its turn is slow, and the others have committed earlier writes and later ones."""
    shards = divided_in_time(client, keys, SHARDS)
    with RunningFleet(**options):
        for turn, slow in enumerate(shards):
            pause(client, slow, "slow")
            names: dict[bool, list[str]] = {True: [], False: []}
            for id in range(30 * turn, 30 * turn + 30):
                receipt = wb.put("users", id, {"name": "new"})
                names[receipt.queue == slow.queue].append(entry(client, keys, receipt.queue, id))
            settled(client, names[False])
            stuck = names[False][0]
            client.persist(stuck)
            before = entries(client, names[True])
            tally, found = verify()
            assert names[True] and tally.pending == len(names[True])
            assert found == {stuck: "stuck"}
            assert not client.exists(stuck) and entries(client, names[True]) == before
            resume(client, slow)
            settled(client, names[True])
    assert verify()[0].pending == 0


@pytest.mark.parametrize("killed", ["begin", "close", "open", "switch", "", "drained"])
def test_a_reshard_between_the_read_and_the_judgement_changes_no_pending_entry(
    client: redis.Redis,
    keys: QueueKeys,
    options: dict[str, Any],
    wb: WriteBehind,
    verify: Verify,
    monkeypatch: pytest.MonkeyPatch,
    killed: str,
) -> None:
    """Also where there are shards of the same names again, and all that the former ones held is committed."""
    slow, *_ = divided_in_time(client, keys, SHARDS)
    with RunningFleet(**options):
        pause(client, slow, "slow")
        receipts = [wb.put("users", id, {"name": "new"}) for id in range(20)]
        names = [entry(client, keys, receipt.queue, id) for id, receipt in enumerate(receipts)]
        pending = [n for n, receipt in zip(names, receipts, strict=True) if receipt.queue == slow.queue]
        settled(client, [name for name in names if name not in pending])
        before = entries(client, pending)
        asked = instant._asked

        def then_reshard(*given: Any) -> list[Any]:
            found = asked(*given)
            monkeypatch.setattr(instant, "_asked", asked)
            with ExitStack() as stack:
                if killed and killed != "drained":
                    stack.enter_context(killed_after(killed, monkeypatch))
                divide(client, keys, 2)
            if killed == "drained":
                resume(client, slow)
                wait_until(lambda: not layout_of(client, keys).draining)
                divided_in_time(client, keys, SHARDS)
            return found

        monkeypatch.setattr(instant, "_asked", then_reshard)
        tally, found = verify()
    assert pending and not found
    if killed == "drained":
        assert tally.agree == 20
    else:
        assert tally.pending == len(pending) and entries(client, pending) == before


def test_what_a_shard_holds_that_the_layout_has_forgotten_is_not_judged_by_the_others(
    client: redis.Redis,
    keys: QueueKeys,
    wb: WriteBehind,
    verify: Verify,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The node of the layout goes back, and what is left of the queue has passed that moment."""
    divided_in_time(client, keys, SHARDS)
    receipt = wb.put("users", 1, {"name": "new"})
    name = entry(client, keys, receipt.queue, 1)
    before = entries(client, [name])

    def then_forget(*given: Any) -> list[Any]:
        found = asked(*given)
        client.delete(keys.layout)
        client.hset(keys.clock, "seq", receipt.seq + 2)
        client.set(keys.applied, receipt.seq + 1)
        return found

    asked = instant._asked
    monkeypatch.setattr(instant, "_asked", then_forget)
    tally, found = verify()
    assert (tally.pending, found) == (1, {})
    assert entries(client, [name]) == before


@pytest.mark.parametrize("queue", ["test:judged", "a{test:judged}b"])
def test_which_shards_are_asked_is_told_by_the_name(client: redis.Redis, keys: QueueKeys) -> None:
    def asked(name: str) -> int:
        (one,) = read_entries(client, keys, [name.encode()])
        return len(one.moment.shards)

    shards = divided_in_time(client, keys, SHARDS)
    number = layout_of(client, keys).number
    assert {asked(one.entry("users:1", number)) for one in shards} == {1}
    everyone = len(shards) + 1
    assert {asked(name) for name in ("users:1", "{other}/0/users:1")} == {everyone}
    assert {asked(one.entry("users:1", number - 1)) for one in shards} == {everyone}
    assert {asked(one.entry("users:1", number)) for one in shard_keys(keys.queue, 7)} == {0}
    client.delete(keys.layout, *(one.clock for one in (keys, *shards)))
