"""Once a write is durable, its entry has a time to live, or is gone: from each state, by each client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis
from tests.support.clients import Make, clients_of
from tests.support.workers import RunningWorker

from writebehind import WriteBehind
from writebehind.keys import QueueKeys
from writebehind_worker.testing.wait import wait_until

LONG = "said again and again, " * 50
ROW = {"id": 1, "body": LONG, "n": 1}


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, redis_url: str, queue: str) -> Iterator[Make]:
    with clients_of(request.param, redis_url, queue=queue, prefix=f"{queue}:", fill_timeout=0.2) as make:
        yield make


def reach(wb: Any, state: str) -> None:
    """Brings the entry of row 1 into this state."""
    if state == "row":
        wb.put("docs", 1, {"body": LONG, "n": 1})
    elif state == "loaded":
        wb.get("docs", 1, lambda _: ROW)
    elif state == "marker":
        wb.increment("docs", 1, {"n": 1})
    elif state == "tombstone":
        wb.delete("docs", 1)
    elif state == "negative":
        wb.get("docs", 1, lambda _: None)


STATES = ("absent", "row", "loaded", "marker", "tombstone", "negative", "filling")


@pytest.mark.parametrize("above", [None, 0], ids=["plain", "compressed"])
def test_every_entry_has_a_time_to_live_once_its_write_is_durable(
    client: Make,
    redis_client: redis.Redis,
    queue: str,
    pg: psycopg.Connection[Any],
    options: dict[str, Any],
    above: int | None,
) -> None:
    pg.execute("CREATE TABLE docs (id int PRIMARY KEY, body text, n int CHECK (n < 1000))")
    wb = client(compress_above=above, ttl=100)
    entry, applied, reached = f"{queue}:docs:1", QueueKeys(queue).applied, set()
    with RunningWorker(**options):
        for state in STATES:
            for op, data in (
                ("put", {"body": LONG, "n": 2}),
                ("patch", {"body": LONG * 2}),
                ("increment", {"n": 3}),
                ("delete", None),
                ("put", {"n": 5000}),
                ("patch", {"body": LONG, "n": 5000}),
            ):
                redis_client.delete(entry)
                pg.execute("INSERT INTO docs VALUES (1, 'x', 0) ON CONFLICT (id) DO UPDATE SET n = 0")
                if state == "filling":
                    redis_client.hset(entry, mapping={"@is": "fill", "@token": "another's"})
                    redis_client.pexpire(entry, 200)
                reach(wb, state)
                receipt = wb.delete("docs", 1) if op == "delete" else getattr(wb, op)("docs", 1, data)
                wait_until(lambda seq=receipt.seq: int(redis_client.get(applied) or 0) >= seq)  # type: ignore[misc]
                left = redis_client.ttl(entry)
                reached.add((state, op, left == -2))
                assert left == -2 or 0 < left <= 100, (state, op, left, redis_client.hgetall(entry))
    assert len({(state, op) for state, op, _ in reached}) == len(STATES) * 4
    assert not redis_client.exists(queue)


@pytest.mark.parametrize("forged_n", [1, 5000], ids=["applied", "rejected"])
@pytest.mark.parametrize("own_n", [2, 6000], ids=["its own applied", "its own rejected"])
@pytest.mark.parametrize("state", ["row", "marker", "tombstone"])
def test_an_entry_does_not_stay_pending_because_a_raw_message_names_it_with_a_later_seq(
    redis_url: str,
    redis_client: redis.Redis,
    queue: str,
    pg: psycopg.Connection[Any],
    options: dict[str, Any],
    state: str,
    own_n: int,
    forged_n: int,
) -> None:
    pg.execute("CREATE TABLE docs (id int PRIMARY KEY, body text, n int CHECK (n < 1000))")
    pg.execute("INSERT INTO docs VALUES (1, 'x', 0)")
    entry = f"{queue}:docs:1"
    wb = WriteBehind.from_url(redis_url, queue=queue, prefix=f"{queue}:", ttl=100)
    if state == "row":
        wb.put("docs", 1, {"n": own_n})
    elif state == "marker":
        wb.increment("docs", 1, {"n": own_n})
    else:
        wb.delete("docs", 1)
    later = wb.put("docs", 2, {"n": 1}).seq
    forged = {"seq": later, "table": "docs", "id": 3, "data": {"n": forged_n}, "key": entry}
    redis_client.lpush(queue, json.dumps(forged, separators=(",", ":")))
    with RunningWorker(**options):
        wait_until(lambda: redis_client.ttl(entry) != -1)  # gone, or on its way
    wb.close()
