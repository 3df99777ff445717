"""The sentence that `writebehind status` opens with: is my data safe, and how far behind is it?"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from writebehind_worker.status import DeadLetterCount, FrozenBatchStatus, LedgerStatus, QueueStatus, Status
from writebehind_worker.verdict import verdict


def status(ledger: LedgerStatus | None = None, dead: int = 0, **of_queue: Any) -> Status:
    usual: dict[str, Any] = {
        "length": 0,
        "frozen": (),
        "oldest_age_s": None,
        "owner": "host:42",
        "lease_remaining_s": 5.0,
        "epoch": 7,
        "seq": 1,
        "generation": "1",
        "applied": 1,
        "acked": 1,
        "paused": None,
    }
    letters = (DeadLetterCount("row", "23505", dead, None),) if dead else ()
    queue = QueueStatus(**usual | of_queue)
    return Status("q", queue, None, ledger or LedgerStatus(epoch=7), letters, None)


WAITING: dict[str, Any] = {"length": 3, "frozen": (FrozenBatchStatus(1, 2),), "oldest_age_s": 4.2}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (status(), "Every accepted write is settled."),
        (
            status(LedgerStatus(), is_used=False, lease_remaining_s=None),
            "Nothing has used q in this Redis so far. Or is --queue, or --redis-url, another one?",
        ),
        (
            status(LedgerStatus(), is_used=False, lease_remaining_s=None, paused="migration"),
            "Nothing has used q in this Redis so far. Or is --queue, or --redis-url, another one? "
            "It is paused.",
        ),
        (
            status(is_used=False, lease_remaining_s=None),
            "Every accepted write is settled, but no worker brings any to Postgres.",
        ),
        (status(dead=2), "Nothing waits. Of those refused 2 are dead letters: see writebehind dead list."),
        (
            status(lease_remaining_s=None),
            "Every accepted write is settled, but no worker brings any to Postgres.",
        ),
        (
            status(**WAITING),
            "5 writes wait in Redis, the oldest for 4.2 s, and a worker brings them to Postgres.",
        ),
        (
            status(dead=1, **WAITING | {"lease_remaining_s": -3.0}),
            "5 writes wait in Redis, the oldest for 4.2 s, and no worker brings any to Postgres."
            " Of those refused 1 is a dead letter: see writebehind dead list.",
        ),
        (
            status(**WAITING | {"paused": "migration"}),
            "5 writes wait in Redis, the oldest for 4.2 s, and the queue is paused.",
        ),
        (
            status(LedgerStatus(epoch=7, waiting_for="put of public.users waits for a lock"), **WAITING),
            "5 writes wait in Redis, the oldest for 4.2 s, and the oldest batch waits: put of public.users"
            " waits for a lock.",
        ),
        (status(length=1), "1 write waits in Redis, and a worker brings it to Postgres."),
    ],
)
def test_it_answers_both_questions(found: Status, expected: str) -> None:
    assert verdict(found) == expected


def test_a_server_that_is_down_is_said() -> None:
    no_postgres = Status("q", status(**WAITING).redis, None, None, None, "down")
    assert verdict(no_postgres) == "5 writes wait in Redis, the oldest for 4.2 s, and Postgres takes none."
    no_redis = Status("q", None, "down", LedgerStatus(), (), None)
    assert verdict(no_redis).startswith("Not known: Redis does not answer.")


def test_of_a_queue_with_shards_it_is_that_of_all() -> None:
    def shard(number: int, dead: int = 0, **of_queue: Any) -> Status:
        return dataclasses.replace(status(dead=dead, **of_queue), queue=f"q:{number}of4")

    assert verdict(status(), [shard(1), shard(2)]) == "Every accepted write is settled."
    assert verdict(status(), [shard(1, length=2, oldest_age_s=1.0), shard(2, **WAITING)]) == (
        "7 writes wait in Redis, the oldest for 4.2 s, and workers bring them to Postgres."
    )
    none: dict[str, Any] = {"lease_remaining_s": None}
    assert verdict(status(), [shard(1, **none, **WAITING), shard(2)]) == (
        "5 writes wait in Redis, the oldest for 4.2 s, and no worker brings any to Postgres (q:1of4)."
    )
    assert verdict(status(**none), [shard(1, **none), shard(2, **none)]) == (
        "Every accepted write is settled, but no worker brings any to Postgres."
    )
    many = [shard(n, **none) for n in range(1, 5)]
    assert verdict(status(dead=1), [*many, shard(5, dead=2, paused="x")]) == (
        "Nothing waits, but no worker brings any to Postgres (q:1of4, q:2of4, q:3of4 and 1 more); the queue "
        "is paused (q:5of4). Of those refused 3 are dead letters: see writebehind dead list."
    )
    lost = dataclasses.replace(shard(2), redis=None, redis_error="it hangs")
    assert verdict(status(), [shard(1), lost]).startswith("Not known: Redis does not answer.")
