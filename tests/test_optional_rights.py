"""What deploy/redis-acl.conf adds for locks and rate limits suffices, and each right in it is needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from writebehind import Durability, DurabilityNotReached, RateLimit, RedisRefused, WriteBehind
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
