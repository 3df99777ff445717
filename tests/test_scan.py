"""What was applied before Redis went back, counted inside Redis as the worker itself would count it."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import redis

from writebehind.keys import QueueKeys
from writebehind_worker import owned_queue
from writebehind_worker.frozen import count_applied_before
from writebehind_worker.owned_queue import OwnedQueue
from writebehind_worker.redis_server import RedisLink

CLOCK = 1000
FOREIGN = [
    b'{"table":"t"}', b'{"seq":7,"table":"t"}', b'{"seq":1001,"table":"t","key":"t:1"}', b"",
    b"\xff", b'{"seq":',
    b'{"seq":12345678901234567,"table":"t","key":"t:1"}', b'{"seq":-1,"table":"t","key":"t:1"}', b'{"seq":1}',
    b' {"seq":3,"table":"t","key":"t:1"}',
]  # fmt: skip


@pytest.fixture
def owned(redis_url: str, queue: str) -> Iterator[OwnedQueue]:
    with RedisLink(redis_url) as link:
        yield OwnedQueue(link, QueueKeys(queue), "token")


def ours(seq: int) -> bytes:
    return b'{"seq":%d,"table":"t","data":{},"key":"t:1"}' % seq


@pytest.mark.parametrize("at_once", [1, 3, 4096])
def test_it_counts_as_the_worker_itself_does(
    at_once: int, owned: OwnedQueue, redis_client: redis.Redis, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owned_queue, "_SCANNED_AT_FIRST", min(at_once, 2))
    monkeypatch.setattr(owned_queue, "_SCANNED_AT_ONCE", at_once)
    chance = random.Random(at_once)
    for _ in range(30):
        seqs = sorted(chance.sample(range(1, CLOCK), chance.randrange(12)))
        items = [ours(seq) for seq in seqs]
        for _ in range(chance.randrange(8)):
            items.insert(chance.randint(0, len(items)), chance.choice(FOREIGN))
        redis_client.delete(queue)
        if items:
            redis_client.lpush(queue, *items)
        for applied_seq in (0, chance.randrange(CLOCK), CLOCK):
            expected, _ = count_applied_before(items, applied_seq, CLOCK)
            assert owned.count_applied_before(applied_seq, CLOCK, lambda: None) == expected, (
                items,
                applied_seq,
            )


def test_it_tells_that_it_goes_on_and_looks_at_fewer_items_where_they_are_large(
    owned: OwnedQueue, redis_client: redis.Redis, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owned_queue, "_SCANNED_BYTES", 100)
    redis_client.lpush(queue, *(ours(seq) for seq in range(1, 201)))
    heard: list[None] = []
    assert owned.count_applied_before(150, CLOCK, lambda: heard.append(None)) == 150
    assert len(heard) > 10
