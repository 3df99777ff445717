"""Each step of a division looks at one slot alone, and somebody who slept makes it at every later moment."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from tests.support.sharded import keys

from writebehind.keys import QueueKeys
from writebehind.shards import shard_keys, stamp
from writebehind_worker.resharding import _Steps, divide, layout_of, still_draining

__all__ = ["keys"]  # a fixture

BEFORE, AFTER, SINCE = 2, 3, 7
STEPS = ["close", "open", "switch", "let go", "end"]


def take(step: _Steps, name: str, keys: QueueKeys) -> list[Any]:
    """One step of the division from BEFORE to AFTER, at each shard where it is theirs: what each answers."""
    if name in ("switch", "end"):
        return [step(name, since=SINCE)]
    if name == "close":
        return [step(name, one.clock) for one in shard_keys(keys.queue, BEFORE)]
    there = list(enumerate(shard_keys(keys.queue, AFTER)))
    if name == "open":
        return [step.open(one, SINCE, stamp(n, AFTER)) for n, one in there]
    return [step(name, one.clock, one.applied) for _, one in there]


def begun(client: redis.Redis, keys: QueueKeys) -> _Steps:
    """Divided in BEFORE shards, and about to be divided in AFTER."""
    divided(client, keys, BEFORE)
    step = _Steps(client, keys, [BEFORE], AFTER)
    assert step.begin()
    return step


def divided(client: redis.Redis, keys: QueueKeys, shards: int) -> None:
    divide(client, keys, shards)
    assert still_draining(client, keys, layout_of(client, keys)) == 0


def everything(client: redis.Redis, keys: QueueKeys) -> dict[bytes, Any]:
    """All that Redis holds of the queue."""
    found = sorted(client.scan_iter(f"*{keys.queue}*", count=1000))
    return {key: client.dump(key) if client.type(key) != b"hash" else client.hgetall(key) for key in found}


@pytest.mark.parametrize(
    ("reached", "late"), [(reached, late) for n, reached in enumerate(STEPS) for late in STEPS[: n + 1]]
)
def test_a_step_that_is_made_again_later_in_the_same_division_changes_nothing(
    redis_client: redis.Redis, keys: QueueKeys, reached: str, late: str
) -> None:
    step = begun(redis_client, keys)
    for name in STEPS[: STEPS.index(reached) + 1]:
        assert all(take(step, name, keys)), name
    before = everything(redis_client, keys)
    take(step, late, keys)
    assert everything(redis_client, keys) == before


@pytest.mark.parametrize("later", [BEFORE, AFTER, 4], ids=["back", "the same again", "another"])
@pytest.mark.parametrize("late", STEPS)
def test_a_step_of_one_who_slept_through_a_division_changes_nothing(
    redis_client: redis.Redis, keys: QueueKeys, late: str, later: int
) -> None:
    step = begun(redis_client, keys)
    divided(redis_client, keys, AFTER)
    if later == AFTER:
        divided(redis_client, keys, BEFORE)
    divide(redis_client, keys, later)  # its shards are held
    before = everything(redis_client, keys)
    answers = take(step, late, keys)
    assert everything(redis_client, keys) == before
    assert not any(answers) or (later == 4 and late == "close"), "these shards are closed by it, to this day"


def test_a_step_of_one_who_slept_while_a_later_division_is_half_made_changes_nothing(
    redis_client: redis.Redis, keys: QueueKeys
) -> None:
    first = begun(redis_client, keys)
    divided(redis_client, keys, AFTER)
    back = _Steps(redis_client, keys, [AFTER], BEFORE)
    assert back.begin()
    for one in shard_keys(keys.queue, AFTER):
        assert back("close", one.clock)
    before = everything(redis_client, keys)
    for late in STEPS[1:]:
        assert not any(take(first, late, keys)), late
    take(first, "close", keys)
    assert everything(redis_client, keys) == before


def test_a_shard_is_not_let_go_by_one_who_has_not_opened_it(
    redis_client: redis.Redis, keys: QueueKeys
) -> None:
    step = begun(redis_client, keys)
    take(step, "close", keys)
    assert not any(take(step, "let go", keys))
    for one in shard_keys(keys.queue, BEFORE):
        assert not step("let go", one.clock, one.applied)
        assert not step.open(one, SINCE, "1of2")


def test_a_division_that_redis_forgot_is_made_by_running_it_again(
    redis_client: redis.Redis, keys: QueueKeys
) -> None:
    divided(redis_client, keys, BEFORE)
    before = redis_client.hgetall(keys.layout)
    step = _Steps(redis_client, keys, [BEFORE], AFTER)
    assert step.begin()
    redis_client.delete(keys.layout)
    redis_client.hset(keys.layout, mapping=before)  # type: ignore[arg-type]  # bytes are fields, too
    assert all(take(step, "close", keys)) and all(take(step, "open", keys))
    assert not any(take(step, "switch", keys))
    divide(redis_client, keys, AFTER)
    assert still_draining(redis_client, keys, layout_of(redis_client, keys)) == 0
    names = [redis_client.hmget(one.clock, "shard", "hold") for one in shard_keys(keys.queue, AFTER)]
    assert names == [[stamp(n, AFTER).encode(), None] for n in range(AFTER)]
