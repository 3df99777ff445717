"""What deploy/redis-acl.conf adds for locks and rate limits suffices, and each right in it is needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from tests.support.fleets import RunningFleet

from writebehind import Durability, DurabilityNotReached, RateLimit, RedisRefused, WriteBehind
from writebehind.keys import QueueKeys
from writebehind_worker.moving import Move
from writebehind_worker.resharding import divide
from writebehind_worker.testing.servers import private_servers

ACL = Path(__file__).parents[1] / "deploy" / "redis-acl.conf"
RIGHTS = dict(re.findall(r"^#   (locks|rates)  (~.*)$", ACL.read_text(), re.MULTILINE))


def use_locks(wb: WriteBehind) -> None:
    with wb.lock("a", timeout=20) as lock:
        assert lock.owned()
        lock.extend(20)


def use_rates(wb: WriteBehind) -> None:
    for _ in range(2):
        wb.rate_limit("a", 1, per=60).acquire()


USES: dict[str, Callable[[WriteBehind], object]] = {"locks": use_locks, "rates": use_rates}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with private_servers({"include": str(ACL)}) as servers:
        yield servers.redis_url


def rules(added: str) -> list[str]:
    line = next(
        line for line in ACL.read_text().splitlines() if line.startswith("user writebehind-producer ")
    )
    return re.findall(r"\([^)]*\)|\S+", f"{line.removeprefix('user writebehind-producer ')} {added}")


def works(url: str, use: Callable[[WriteBehind], object], added: str) -> bool:
    with redis.Redis.from_url(url) as admin:
        admin.flushall()
        admin.execute_command("ACL", "SETUSER", "app", "reset", *rules(added))
    with WriteBehind.from_url(url.replace("//", "//app:change-me-producer@"), prefix="cache:") as wb:
        try:
            use(wb)
        except RedisRefused:
            return False
    return True


@pytest.mark.parametrize("what", USES)
def test_an_application_needs_all_of_them(what: str, url: str) -> None:
    added = RIGHTS[what]
    assert works(url, USES[what], added)
    for right in re.finditer(r"[+~][^ )]+", added):
        less = added[: right.start()] + added[right.end() :]
        assert not works(url, USES[what], less.replace("()", "")), f"without {right[0]} at {right.start()}"


@pytest.mark.parametrize(("durability", "right"), [("replicated", "+wait"), ("fsynced", "+waitaof")])
def test_durability_needs_a_right_of_its_own(url: str, durability: Durability, right: str) -> None:
    assert re.search(
        rf"^# With `durability`.*{durability}.*{re.escape(right)}\b", ACL.read_text(), re.MULTILINE
    )

    def write(wb: WriteBehind) -> None:
        try:
            wb.put("users", 1, {}, durability=durability, wait=0.05)
        except DurabilityNotReached as error:
            if "permission" in str(error).lower():
                raise RedisRefused from error

    assert works(url, write, right)
    assert not works(url, write, "")


def test_a_write_under_a_limit_is_let_in_and_without_the_right_refused(url: str) -> None:
    def write(wb: WriteBehind) -> None:
        limited = WriteBehind(wb.redis, prefix="cache:", admit=lambda *_: RateLimit("a", 5, per=60))
        limited.put("users", 1, {})

    assert works(url, write, RIGHTS["rates"])
    assert not works(url, write, "")
    assert works(url, lambda wb: wb.put("users", 1, {}), "")


def test_with_shards_the_rights_of_the_comment_suffice(
    url: str, options: dict[str, Any], pg: psycopg.Connection[Any]
) -> None:
    """With the names widened as it says: a client finds the shards, and a worker makes and serves them."""
    added = dict(re.findall(r"^#   (shards|shards of a producer)  (\S.*)$", ACL.read_text(), re.MULTILINE))

    def grant(user: str, more: str) -> str:
        (line,) = (li for li in ACL.read_text().splitlines() if li.startswith(f"user writebehind-{user} "))
        text = f"{line.removeprefix(f'user writebehind-{user} ')} {more}"
        text = re.sub(r"db:write:queue\}?", lambda name: f"{name[0].removesuffix('}')}*", text)
        with redis.Redis.from_url(url) as admin:
            admin.execute_command("ACL", "SETUSER", user, "reset", *re.findall(r"\([^)]*\)|\S+", text))
        return url.replace("//", f"//{user}:change-me-{user}@")

    with redis.Redis.from_url(url) as admin:
        admin.flushall()
    pg.execute("CREATE TABLE users (id int PRIMARY KEY, n int)")
    producer, worker = grant("producer", added["shards of a producer"]), grant("worker", added["shards"])
    served = {**options, "redis_url": worker, "queue": "db:write:queue"}
    with WriteBehind.from_url(producer, prefix="cache:") as wb, RunningFleet(**served):
        wb.put("users", 0, {"n": 1}, wait=20)
        with redis.Redis.from_url(worker) as operator:
            bulk = QueueKeys("db:write:queue:bulk")
            for target in (bulk, wb.keys):
                assert Move(operator, wb.keys, "users", target, lambda *_: 0, 20, target == bulk).move()
            wb.put("users", 0, {"n": 1}, wait=20)
            divide(operator, wb.keys, 3)
        for id in range(9):
            wb.put("users", id, {"n": 2}, wait=20)
        wb.increment("users", 99, {"n": 3})
        assert wb.get("users", 99, lambda _: {"n": 3}, timeout=20) == {"n": 3}
    assert pg.execute("SELECT count(*), sum(n) FROM users").fetchone() == (10, 21)
