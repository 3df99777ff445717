"""The roles in `deploy/` suffice for the whole job, each right in them is needed, and no more is allowed."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from click.testing import CliRunner, Result
from psycopg import errors as pg_errors
from psycopg import sql
from tests.conftest import SCHEMA
from tests.support.crashing_worker import CrashingWorker
from tests.support.reader import begin_fill
from tests.support.workers import RunningWorker, flags

from writebehind import FlushTimeout, RedisRefused, SessionStore, WriteBehind, WriteRejected
from writebehind.keys import QueueKeys
from writebehind.receipt import Rejection
from writebehind.session import ConnectedSessionPool, Session
from writebehind_worker import postgres, redis_server
from writebehind_worker.apply import Patience
from writebehind_worker.breaker import Breaker
from writebehind_worker.cli import cli
from writebehind_worker.config import Config
from writebehind_worker.dead import Choice, DeadLetters
from writebehind_worker.dead_retry import Sender, make_retry
from writebehind_worker.dead_run import inflight
from writebehind_worker.embedded import EmbeddedServers
from writebehind_worker.flush import Flusher
from writebehind_worker.frozen import FrozenBatch
from writebehind_worker.heartbeat import BacklogSampler, reap_sessions
from writebehind_worker.lease import Lease
from writebehind_worker.ledger import Ledger
from writebehind_worker.metrics import Metrics
from writebehind_worker.owned_queue import OwnedQueue, publish_tables
from writebehind_worker.pause import pause, resume, wait_until_settled
from writebehind_worker.settle import Settlement, settlements
from writebehind_worker.status import read_status
from writebehind_worker.testing.servers import private_servers
from writebehind_worker.testing.wait import wait_until

DEPLOY = Path(__file__).parents[1] / "deploy"
ACL, ROLES = DEPLOY / "redis-acl.conf", DEPLOY / "roles.sql"
KEYS = QueueKeys()  # the files are for the default queue
CACHE = "cache:"
APPLICATION = """
CREATE TABLE users (id bigint PRIMARY KEY, name text, email text);
CREATE TABLE pages (path text PRIMARY KEY, views bigint);
CREATE TABLE secrets (id bigint PRIMARY KEY, name text);
"""


@pytest.fixture(scope="module")
def guarded() -> Iterator[EmbeddedServers]:
    """Servers with the users and roles of the very files."""
    with private_servers({"include": str(ACL)}) as servers:
        with psycopg.connect(servers.postgres_url, autocommit=True) as admin:
            admin.execute(SCHEMA.read_bytes())
            admin.execute(APPLICATION.encode())
            admin.execute(ROLES.read_bytes())
        yield servers


@pytest.fixture
def admin(guarded: EmbeddedServers) -> Iterator[redis.Redis]:
    """The default user of an empty Redis."""
    with redis.Redis.from_url(guarded.redis_url) as client:
        client.flushall()
        yield client


@pytest.fixture
def owner(guarded: EmbeddedServers) -> Iterator[psycopg.Connection[Any]]:
    """The superuser of a database whose tables are empty."""
    with psycopg.connect(guarded.postgres_url, autocommit=True) as conn:
        conn.execute("TRUNCATE users, pages, secrets, writebehind.ledger, writebehind.dead_letters")
        yield conn


def redis_as(guarded: EmbeddedServers, user: str) -> str:
    return guarded.redis_url.replace("//", f"//writebehind-{user}:change-me-{user}@")


def postgres_as(guarded: EmbeddedServers, role: str) -> str:
    return re.sub(r"//[^@]*@", f"//writebehind_{role}:change-me-{role}@", guarded.postgres_url)


def dead(guarded: EmbeddedServers, user: str, command: str, *args: str) -> Result:
    """`writebehind dead …` as this user of both servers."""
    urls = ["--postgres-url", postgres_as(guarded, user)]
    if command in ("retry", "drop"):
        urls += ["--redis-url", redis_as(guarded, user)]
    return CliRunner().invoke(cli, ["dead", command, *args, *urls])


@pytest.fixture
def worker_options(guarded: EmbeddedServers) -> dict[str, Any]:
    return {
        "redis_url": redis_as(guarded, "worker"),
        "postgres_url": postgres_as(guarded, "worker"),
        "lease_ttl_s": 1.0,
        "batch_size": 10,
    }


@pytest.fixture
def wb(guarded: EmbeddedServers, admin: redis.Redis) -> Iterator[WriteBehind]:
    with WriteBehind.from_url(redis_as(guarded, "producer"), prefix=CACHE) as client:
        yield client


# They suffice.


@pytest.mark.usefixtures("owner")
def test_the_whole_job_is_done_under_them(
    guarded: EmbeddedServers, wb: WriteBehind, worker_options: dict[str, Any]
) -> None:
    with RunningWorker(**worker_options) as worker:
        worker.wait_for_role("owner")
        wb.put("users", 1, {"name": "Ada", "email": "ada@example.com"})
        wb.patch("users", 1, {"email": "ada@lovelace.org"})
        wb.increment("pages", "/home", {"views": 2})
        wb.put("users", 2, {"name": "Bob"})
        wb.delete("users", 2).wait(10)
        with wb.batch() as batch:
            for i in range(10, 40):
                batch.put("users", i, {"name": f"name {i}"})
        batch.wait(10)
        with pytest.raises(WriteRejected, match="22P02"):
            wb.put("pages", "/bad", {"views": "many"}).wait(10)
        with redis.Redis.from_url(redis_as(guarded, "raw")) as raw:
            raw.lpush(KEYS.queue, json.dumps({"table": "users", "id": 3, "data": {"name": "Cy"}}))
        with psycopg.connect(postgres_as(guarded, "loader"), autocommit=True) as loader:

            def load(id: int) -> dict[str, Any] | None:
                row = loader.execute("SELECT name, email FROM users WHERE id = %s", [id]).fetchone()
                return None if row is None else dict(zip(("name", "email"), row, strict=True))

            wait_until(lambda: load(3))
            assert wb.get("users", 1, load) == {"name": "Ada", "email": "ada@lovelace.org"}
            assert wb.get("users", 2, load) is None
            wait_until(lambda: wb.invalidate("users", 1))
            assert wb.get("users", 1, load) == {"name": "Ada", "email": "ada@lovelace.org"}
        config = Config(
            redis_url=redis_as(guarded, "operator"), postgres_url=postgres_as(guarded, "operator")
        )
        found = read_status(config)
        assert found.ok, found
        assert found.dead_letters is not None
        assert sum(count.count for count in found.dead_letters) == 1
        assert read_status(Config(redis_url=config.redis_url, postgres_url=worker_options["postgres_url"])).ok


def test_a_mender_sends_again_what_was_rejected_and_drops_the_rest_and_an_operator_sees_it(
    guarded: EmbeddedServers,
    owner: psycopg.Connection[Any],
    wb: WriteBehind,
    worker_options: dict[str, Any],
) -> None:
    owner.execute("ALTER TABLE pages ADD CONSTRAINT closed CHECK (views IS NULL)")
    with RunningWorker(**worker_options):
        try:
            receipts = [wb.increment("pages", f"/{i}", {"views": 1}) for i in range(3)]
            for receipt in receipts:
                with pytest.raises(WriteRejected, match="23514"):
                    receipt.wait(10)
        finally:
            owner.execute("ALTER TABLE pages DROP CONSTRAINT closed")
        letters = [letter["id"] for letter in json.loads(dead(guarded, "operator", "list", "--json").output)]
        assert "/0" in dead(guarded, "operator", "show", str(letters[0])).output
        for command in (["retry", str(letters[0])], ["drop", str(letters[0]), "--yes"]):
            assert dead(guarded, "operator", *command).exit_code == 2

        retried = dead(guarded, "mender", "retry", str(letters[0]), str(letters[1]))
        assert (retried.exit_code, "2 landed" in retried.output) == (0, True), retried.output
        assert dead(guarded, "mender", "drop", "--all", "--yes").exit_code == 0
    assert owner.execute("SELECT path, views FROM pages ORDER BY 1").fetchall() == [("/0", 1), ("/1", 1)]
    assert json.loads(dead(guarded, "mender", "list", "--json").output) == []


def test_the_next_owner_may_end_the_connection_of_one_that_is_stalled(
    owner: psycopg.Connection[Any], wb: WriteBehind, worker_options: dict[str, Any]
) -> None:
    receipts = [wb.increment("pages", "/home", {"views": 1}) for _ in range(15)]
    with CrashingWorker("commit:before:1", flags(**worker_options), signal.SIGSTOP) as stalled:
        stalled.wait_for_pause()
        with RunningWorker(**worker_options):
            receipts[-1].wait(15)
    assert owner.execute("SELECT views FROM pages").fetchall() == [(15,)]


@pytest.mark.usefixtures("owner")
def test_a_redis_that_went_back_is_adopted_under_them(
    admin: redis.Redis, wb: WriteBehind, worker_options: dict[str, Any]
) -> None:
    with RunningWorker(**worker_options):
        wb.put("users", 1, {"name": "Ada"}).wait(10)
    admin.delete(KEYS.acked)
    with RunningWorker(**worker_options) as worker:
        worker.wait_for_role("owner")
        wb.put("users", 1, {"name": "Bob"}).wait(10)
        assert worker.metric("rollbacks_total", server="redis") == 1


# Each right is needed: with any one taken away, a part of the job fails.


def rules(user: str) -> list[str]:
    """The rights of a user in the file: plain ones, and a whole item in parentheses as one."""
    line = next(li for li in ACL.read_text().splitlines() if li.startswith(f"user writebehind-{user} "))
    return re.findall(r"\([^)]*\)|\S+", line)[2:]


def rights(user: str) -> Iterator[tuple[str, list[str]]]:
    """(a right, the rules without it)."""
    every = rules(user)
    for i, rule in enumerate(every):
        if rule.startswith(("+", "~", "%")):
            yield rule, [*every[:i], *every[i + 1 :]]
        elif rule.startswith("("):
            parts = rule[1:-1].split()
            for j, part in enumerate(parts):
                rest = [*parts[:j], *parts[j + 1 :]]
                yield f"{part} of {rule}", [*every[:i], f"({' '.join(rest)})", *every[i + 1 :]]


def grant(admin: redis.Redis, user: str, rules: list[str]) -> None:
    setuser: Any = admin.execute_command
    setuser("ACL", "SETUSER", f"writebehind-{user}", "reset", *rules)


def needless_rights(admin: redis.Redis, user: str, job: Callable[[], None]) -> list[str]:
    """The rights without which the job succeeds all the same."""
    needless = []
    try:
        for right, without in rights(user):
            admin.flushall()
            admin.script_flush()
            grant(admin, user, without)
            try:
                job()
            except (redis.RedisError, RedisRefused, AssertionError):
                continue
            needless.append(right)
    finally:
        grant(admin, user, rules(user))
    admin.flushall()
    job()
    return needless


def produce(wb: WriteBehind) -> None:
    """Everything that a producer does, each time from an empty Redis."""
    wb.put("users", 1, {"n": 1})
    wb.increment("users", 1, {"n": 2})
    wb.patch("users", 1, {"m": 1})
    assert wb.get("users", 1) == {"n": 3, "m": 1}
    receipt = wb.delete("users", 2)
    assert not receipt.is_durable()
    assert not wb.invalidate("users", 1)
    wb.increment("users", 5, {"n": 1})
    with pytest.raises(FlushTimeout):
        wb.get("users", 5, lambda _: {}, timeout=0.001)
    assert wb.get("users", 3, lambda _: {"n": 1}) == {"n": 1}
    assert wb.get("users", 3, lambda _: {"n": 2}) == {"n": 1}, "the loaded row was not cached"
    assert wb.invalidate("users", 3)


@pytest.mark.usefixtures("owner")
def test_a_producer_may_refresh_early_and_with_one_right_more_keep_rows_near(
    guarded: EmbeddedServers, admin: redis.Redis
) -> None:
    url, rows = redis_as(guarded, "producer"), iter([{"n": 1}, {"n": 2}])
    with WriteBehind.from_url(url, prefix=CACHE, refresh_ahead=30, ttl=60) as wb:
        assert wb.get("users", 1, lambda _: next(rows)) == {"n": 1}
        admin.expire(f"{CACHE}users:1", 20)
        assert wb.get("users", 1, lambda _: next(rows)) == {"n": 2}
        assert wb.invalidate_many("users", [1, 2]) == [True, True]
    with WriteBehind.from_url(url, prefix=CACHE, near_cache=10) as wb:
        with pytest.raises(RedisRefused, match="client"):
            wb.get("users", 1)
        grant(admin, "producer", [*rules("producer"), "+client|tracking"])
        try:
            assert [wb.get("users", 1, lambda _: {"n": 3}) for _ in range(3)] == [{"n": 3}] * 3
        finally:
            grant(admin, "producer", rules("producer"))


def kept_session(wb: WriteBehind) -> Session:
    sessions = wb._core.places.own.ways[0]._sessions
    assert isinstance(sessions, ConnectedSessionPool)
    return sessions._kept[-1]


def test_a_producer_needs_all_of_its_rights(guarded: EmbeddedServers, admin: redis.Redis) -> None:
    def job() -> None:
        with WriteBehind.from_url(redis_as(guarded, "producer"), prefix=CACHE, fill_timeout=0.1) as wb:
            produce(wb)
            # The token of a reader who is under way: another finds it by the script, not by looking.
            assert begin_fill(wb, f"{CACHE}users:9", "token").state == "absent"
            assert begin_fill(wb, f"{CACHE}users:9", "token").state == "filling"
            admin.hset(KEYS.producers, kept_session(wb).id, "9:1:1")
            assert wb.redis.hget(KEYS.producers, kept_session(wb).id) == b"9:1:1"

    assert needless_rights(admin, "producer", job) == []


def test_a_producer_with_login_sessions_needs_all_of_its_rights(
    guarded: EmbeddedServers, admin: redis.Redis
) -> None:
    """Those of the comment, beside a producer's own."""
    (more,) = re.findall(r"^# +with sessions: (.*)$", ACL.read_text(), re.MULTILINE)

    def job() -> None:
        grant(admin, "producer", [*rules("producer"), *re.findall(r"\([^)]*\)|\S+", tried[0])])
        with WriteBehind.from_url(redis_as(guarded, "producer"), prefix=CACHE) as wb:
            store = SessionStore(wb, load=lambda _: None, load_ids_of_user=lambda _: [])
            token = store.create("ada")
            admin.set(KEYS.applied, 1 << 52)  # as if it were committed
            token = store.rotate(token)
            store.set(token, "theme", "dark")
            store.create("ada")
            assert admin.zcard(KEYS.sessions) == 1, "what is committed was not removed"
            assert len(store.revoke_all("ada")) == 1
            assert not admin.keys(f"{KEYS.closing('')}*")

    tried = [more]
    needless = []
    try:
        job()
        for match in re.finditer(r"[~+][^\s()]+", more):
            admin.flushall()
            admin.script_flush()
            tried[0] = more[: match.start()] + more[match.end() :]
            try:
                job()
            except (redis.RedisError, RedisRefused, AssertionError):
                continue
            needless.append(f"{match[0]} at {match.start()}")
    finally:
        grant(admin, "producer", rules("producer"))
    assert needless == []


def test_a_raw_producer_needs_all_of_its_rights(guarded: EmbeddedServers, admin: redis.Redis) -> None:
    def job() -> None:
        with redis.Redis.from_url(redis_as(guarded, "raw")) as client:
            client.lpush(KEYS.queue, "{}")

    assert needless_rights(admin, "raw", job) == []


def calls(admin: redis.Redis, command: str) -> int:
    """How often it has been called since the server was started."""
    return int(admin.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))


def work(url: str, admin: redis.Redis) -> None:
    """Everything that a worker does in Redis, each time from an empty one."""
    with WriteBehind(admin, prefix=CACHE) as wb:
        wb.put("users", 1, {"n": 1})
        rejected = wb.put("users", 2, {"n": 1}).seq
        wb.put("users", 2, {"n": 2})
        wb.increment("users", 3, {"n": 2})
    with redis_server.RedisLink(url) as link:
        client = link.client
        redis_server.check(client, Config(redis_url=url))
        lease = Lease(client, KEYS, "token", "host:1", 10)
        assert lease.take() is None
        assert lease.renew()
        publish_tables(client, KEYS, {})
        queue = OwnedQueue(link, KEYS, "token")
        queue.own(queue.epoch_floor() + 1, 0, generation=1, acked=0)
        queue.count_applied_before(0, 0, lambda: None)
        queue.peek(0.01)
        assert isinstance(queue.claim(10, 1 << 20, 3600.0), float)
        batch = queue.claim(10, 1 << 20, 0.0)
        assert isinstance(batch, FrozenBatch)
        list(queue.read_frozen(batch.id, 1 << 60).messages)
        BacklogSampler(KEYS, Metrics()).sample(client)
        hgets = calls(admin, "hget")
        queue.settle(settlements(batch.messages, {1}))
        assert admin.ttl(f"{CACHE}users:1") > 0, "not settled"
        assert calls(admin, "hget") > hgets, "settled the slow way"
        assert not admin.exists(f"{CACHE}users:3"), "a marker is still there"
        queue.acknowledge([batch.id], batch.applied_seq, batch.id, [Rejection(rejected, "reason")])
        admin.lpush(KEYS.queue, "x" * 2000)
        sorted_before = calls(admin, "sort")
        batch = queue.claim(10, 1 << 20, 0.0)
        assert isinstance(batch, FrozenBatch)
        assert calls(admin, "sort") > sorted_before, "copied the slow way"
        queue.acknowledge([batch.id], 0, batch.id, [])
        client.hset(KEYS.tables, "users", "{}")
        assert reap_sessions(client, KEYS, -10.0) == 1
        assert lease.release()


def claimed(queue: OwnedQueue, link: redis_server.RedisLink, admin: redis.Redis) -> FrozenBatch:
    """A batch of one item, by whom the link has made the owner."""
    assert Lease(link.client, KEYS, "token", "host:1", 10).take() is None
    queue.own(queue.epoch_floor() + 1, 0)
    admin.lpush(KEYS.queue, "{}")
    batch = queue.claim(1, 1 << 20, 0.0)
    assert isinstance(batch, FrozenBatch)
    return batch


@pytest.mark.parametrize("is_put", [False, True])
def test_entries_of_others_that_a_raw_message_names_keep_none_from_being_settled(
    guarded: EmbeddedServers, admin: redis.Redis, is_put: bool
) -> None:
    names = [f"{CACHE}users:1", "others:1", f"{CACHE}text", f"{CACHE}users:2"]
    admin.set(names[2], "no hash")
    for name in (names[0], names[1], names[3]):
        admin.hset(name, mapping={"@seq": "7"})
    entries = [Settlement(name, 60, applied_seq=7, is_put=is_put) for name in names]
    with redis_server.RedisLink(redis_as(guarded, "worker")) as link:
        queue = OwnedQueue(link, KEYS, "token")
        queue.settle(entries)
        assert [admin.ttl(name) for name in names] == [60, -1, -1, 60]
        admin.persist(names[3])
        batch = claimed(queue, link, admin)
        queue.acknowledge([batch.id], 7, batch.id, [Rejection(6, "reason")], entries)
    assert [admin.ttl(name) for name in names] == [60, -1, -1, 60]
    assert (admin.llen(KEYS.inflight), admin.exists(KEYS.processing(batch.id))) == (0, 0)
    assert (admin.get(KEYS.applied), admin.zcard(KEYS.rejected)) == (b"7", 1)


@pytest.mark.parametrize("is_put", [False, True])
def test_a_worker_that_may_see_entries_but_not_settle_them_drops_no_batch(
    guarded: EmbeddedServers, admin: redis.Redis, is_put: bool
) -> None:
    """A right that is missing is told: else entries would stay for ever."""
    names = [f"{CACHE}{n}" for n in range(3)]
    for name in names:
        admin.hset(name, mapping={"@seq": "7"})
    own = ["on", ">secret", "~{db:write:queue}:*", f"~{KEYS.queue}", f"~{names[0]}", f"~{names[2]}", "+@all"]
    untyped: Any = admin
    untyped.execute_command("ACL", "SETUSER", "narrow", "reset", *own, f"(+hget +hmget ~{names[1]})")
    url = guarded.redis_url.replace("//", "//narrow:secret@")
    try:
        with redis_server.RedisLink(url) as link:
            queue = OwnedQueue(link, KEYS, "token")
            batch = claimed(queue, link, admin)
            entries = [Settlement(name, 60, applied_seq=7, is_put=is_put) for name in names]
            with pytest.raises(redis.ResponseError, match="No permissions"):
                queue.acknowledge([batch.id], 7, batch.id, [Rejection(6, "reason")], entries)
            assert queue.frozen == 1
    finally:
        admin.acl_deluser("narrow")
    assert [admin.ttl(name) for name in names] == [60, -1, -1]
    assert (admin.llen(KEYS.inflight), admin.exists(KEYS.processing(batch.id))) == (1, 1)
    assert admin.zcard(KEYS.rejected) == 0


def test_a_worker_whose_user_is_of_an_earlier_version_settles_puts_too(
    guarded: EmbeddedServers, admin: redis.Redis
) -> None:
    """It lacks HGET on entries; a refusal of each would fill the server's log of them."""
    name = f"{CACHE}users:1"
    admin.hset(name, mapping={"@seq": "7"})
    untyped: Any = admin
    untyped.execute_command("ACL", "SETUSER", "earlier", "reset", "on", ">secret", "~*", "+@all", "-hget")
    admin.acl_log_reset()
    try:
        with redis_server.RedisLink(guarded.redis_url.replace("//", "//earlier:secret@")) as link:
            OwnedQueue(link, KEYS, "token").settle([Settlement(name, 60, applied_seq=7, is_put=True)])
        assert admin.acl_log() == []
    finally:
        admin.acl_deluser("earlier")
    assert admin.ttl(name) == 60


def test_a_worker_needs_all_of_its_rights(guarded: EmbeddedServers, admin: redis.Redis) -> None:
    assert needless_rights(admin, "worker", lambda: work(redis_as(guarded, "worker"), admin)) == []


def test_an_operator_needs_all_of_its_rights(
    guarded: EmbeddedServers, owner: psycopg.Connection[Any], admin: redis.Redis
) -> None:
    config = Config(redis_url=redis_as(guarded, "operator"), postgres_url=postgres_as(guarded, "operator"))

    def job() -> None:
        look_at_rows(guarded, "operator", admin)
        admin.delete(KEYS.queue)
        admin.rpush(KEYS.inflight, 1)
        assert read_status(config).ok

    owner.execute("INSERT INTO users VALUES (1); INSERT INTO pages VALUES ('/')")
    assert needless_rights(admin, "operator", job) == []

    for privilege, table in table_grants(owner, "operator"):
        admin.flushall()
        with revoked(owner, privilege, table, "operator"), pytest.raises(AssertionError):
            job()


def look_at_rows(guarded: EmbeddedServers, user: str, admin: redis.Redis) -> None:
    """`explain`, `verify` and `drain`, with one write that waits; from an empty Redis."""
    for name in ("users:1", "pages:/"):
        admin.hset(f"{CACHE}{name}", "@seq", "0")
        admin.expire(f"{CACHE}{name}", 1000)
    explain_row(guarded, user, admin)
    urls = ["--redis-url", redis_as(guarded, user), "--postgres-url", postgres_as(guarded, user)]
    drained = CliRunner().invoke(cli, ["drain", "--timeout", "0", *urls])
    assert "1 in 1 frozen batch" in drained.output
    admin.delete(KEYS.inflight, KEYS.processing(1))
    verified = CliRunner().invoke(cli, ["verify", "--all", "--prefix", CACHE, *urls])
    assert (verified.exit_code, "2 agree" in verified.output) == (0, True), verified.output


def explain_row(guarded: EmbeddedServers, user: str, admin: redis.Redis) -> None:
    """`explain`, with one write in a frozen batch and one in the queue."""
    message = json.dumps({"table": "users", "id": 1, "data": {"name": "x"}})
    admin.rpush(KEYS.inflight, 1)
    admin.rpush(KEYS.processing(1), message)
    admin.rpush(KEYS.queue, message)
    urls = ["--redis-url", redis_as(guarded, user), "--postgres-url", postgres_as(guarded, user)]
    look = CliRunner().invoke(cli, ["explain", "--json", "--prefix", CACHE, "users", "1", *urls])
    assert look.exit_code == 0, look.output
    assert len(json.loads(look.stdout)["pending"]["writes"]) == 2
    admin.delete(KEYS.queue)


def repair_rows(guarded: EmbeddedServers, admin: redis.Redis) -> None:
    """`verify --repair` with something to do, from an empty Redis."""
    admin.hset(f"{CACHE}users:7", "@seq", "0")
    admin.expire(f"{CACHE}users:7", 1000)
    urls = ["--redis-url", redis_as(guarded, "mender"), "--postgres-url", postgres_as(guarded, "mender")]
    repaired = CliRunner().invoke(cli, ["verify", "--repair", "--prefix", CACHE, *urls])
    assert (repaired.exit_code, "1 removed" in repaired.output) == (0, True), repaired.output
    admin.hset(f"{CACHE}pages:/7", "@seq", "0")
    admin.expire(f"{CACHE}pages:/7", 1000)
    repaired = CliRunner().invoke(cli, ["verify", "--repair", "--prefix", CACHE, *urls])
    assert (repaired.exit_code, "1 removed" in repaired.output) == (0, True), repaired.output


@pytest.mark.usefixtures("owner")
def test_an_entry_may_be_of_another_queue_that_may_not_be_read(
    guarded: EmbeddedServers, wb: WriteBehind, admin: redis.Redis
) -> None:
    with WriteBehind.from_url(guarded.redis_url, queue="other", prefix=CACHE) as other:
        other.put("users", 1, {"name": "x"})
    for keys in (KEYS, QueueKeys("other")):
        admin.set(keys.applied, 2**62)
    for user in ("operator", "mender"):
        urls = ["--redis-url", redis_as(guarded, user), "--postgres-url", postgres_as(guarded, user)]
        looked = ["verify", "--all", "--json", "--prefix", CACHE, *urls]
        for arguments in (looked, [*looked, "--repair"]):
            found = CliRunner().invoke(cli, arguments)
            assert found.exit_code == 0, found.output
            assert (json.loads(found.stdout)["pending"], json.loads(found.stdout)["differ"]) == (1, 0)
    urls = ["--redis-url", redis_as(guarded, "operator"), "--postgres-url", postgres_as(guarded, "operator")]
    explain = ["explain", "--json", "--prefix", CACHE, "users", "1"]
    found = CliRunner().invoke(cli, [*explain, *urls])
    assert json.loads(found.stdout)["outcome"] == "pending", found.output
    assert admin.exists(f"{CACHE}users:1")
    urls = ["--redis-url", guarded.redis_url, "--postgres-url", guarded.postgres_url]
    found = CliRunner().invoke(cli, [*explain, *urls])  # who may read all of them can tell
    assert json.loads(found.stdout)["difference"]["fault"] == "stuck", found.output


def test_an_operator_repairs_nothing(
    guarded: EmbeddedServers, owner: psycopg.Connection[Any], admin: redis.Redis
) -> None:
    admin.hset(f"{CACHE}users:7", "@seq", "0")
    admin.expire(f"{CACHE}users:7", 1000)
    urls = ["--redis-url", redis_as(guarded, "operator"), "--postgres-url", postgres_as(guarded, "operator")]
    found = CliRunner().invoke(cli, ["verify", "--repair", "--prefix", CACHE, *urls])
    assert (found.exit_code, "deploy/redis-acl.conf" in found.output) == (2, True)
    assert admin.exists(f"{CACHE}users:7")
    assert owner.execute("SELECT FROM users").rowcount == 0


def bury(owner: psycopg.Connection[Any]) -> None:
    """A dead letter of each operation, and one that was pushed without the library."""
    owner.execute("TRUNCATE writebehind.dead_letters")
    ops: dict[str, dict[str, Any]] = {"put": {"n": 1}, "increment": {"n": 2}, "patch": {"m": 1}, "delete": {}}
    item = {"table": "users", "id": 1, "key": f"{CACHE}users:1", "ttl": 60}
    for seq, (op, data) in enumerate([*ops.items(), ("put", {"n": 1})]):
        owner.execute(
            "INSERT INTO writebehind.dead_letters (queue, batch, position, seq, body, reason) "
            "VALUES (%s, 1, %s, %s, %s, 'reason')",
            [KEYS.queue, seq, seq if seq < len(ops) else None, json.dumps(item | {"op": op, "data": data})],
        )


def mend(url: str, letters: DeadLetters) -> None:
    """Everything that a mender does in Redis, each time from an empty one."""
    with redis.Redis.from_url(url) as client:
        sender = Sender(client, KEYS, 100)
        for page in letters.pages(Choice()):
            assert inflight(client, page) == set()
            bodies = letters.bodies(page)
            retries = [make_retry(letter, bodies[letter.id], KEYS, force=False) for letter in page]
            assert [retry is not None and bool(retry.shown) for retry in retries] == [True] * 4 + [False]
            for _ in sender.send(filter(None, retries)):
                pass
        # What a call that was sent again asks, if Redis had become full.
        assert client.hget(KEYS.producers, sender._places.own.ways[0]._sessions._idle[-1].id)


def test_a_mender_needs_all_of_its_rights(
    guarded: EmbeddedServers, owner: psycopg.Connection[Any], admin: redis.Redis
) -> None:
    config = Config(redis_url=redis_as(guarded, "mender"), postgres_url=postgres_as(guarded, "mender"))
    bury(owner)
    with postgres.connect(config.postgres_url) as conn:
        letters = DeadLetters(conn, KEYS.queue)

        def job() -> None:
            explain_row(guarded, "mender", admin)
            admin.delete(KEYS.inflight, KEYS.processing(1))
            repair_rows(guarded, admin)
            mend(config.redis_url, letters)
            with redis.Redis.from_url(config.redis_url) as client:
                pause(client, KEYS, "a migration")
                assert wait_until_settled(client, KEYS, 0) == 0
                assert resume(client, KEYS)
            admin.rpush(KEYS.inflight, 1)
            assert read_status(config).ok

        assert needless_rights(admin, "mender", job) == []
        assert admin.llen(KEYS.queue) == 5

    admin.delete(KEYS.inflight)
    for privilege, table in table_grants(owner, "mender"):
        bury(owner)
        with revoked(owner, privilege, table, "mender"):
            dropped = dead(guarded, "mender", "drop", "--all", "--yes").exit_code == 0
            if dropped and read_status(config).ok:
                with pytest.raises(AssertionError):
                    repair_rows(guarded, admin)


def table_grants(owner: psycopg.Connection[Any], role: str) -> list[tuple[str, str]]:
    """(privilege, quoted table) that a role has been granted."""
    return owner.execute(
        "SELECT privilege_type, format('%%I.%%I', table_schema, table_name) "
        "FROM information_schema.role_table_grants WHERE grantee = %s ORDER BY 2, 1",
        [f"writebehind_{role}"],
    ).fetchall()


@contextmanager
def revoked(owner: psycopg.Connection[Any], privilege: str, table: str, role: str) -> Iterator[None]:
    on, account = sql.SQL(f"{privilege} ON {table}"), sql.Identifier(f"writebehind_{role}")
    owner.execute(sql.SQL("REVOKE {} FROM {}").format(on, account))
    try:
        yield
    finally:
        owner.execute(sql.SQL("GRANT {} TO {}").format(on, account))


def flush_all(url: str) -> int:
    """One batch with every operation on every table; how many of its writes were refused."""
    items = [
        {"op": op, "table": table, "id": i, "data": data}
        for table, column in (("users", "name"), ("pages", "views"))
        for i, (op, data) in enumerate(
            [("put", {column: "1"}), ("patch", {column: "2"}), ("put", {column: "3"}), ("delete", {})]
        )
    ]
    items += [{"op": "put", "table": "pages", "id": "x", "data": {"views": "many"}}]
    items += [{"op": "put", "table": "pages", "id": "x", "data": {"views": 1}}]
    bodies = [json.dumps({"id": 0} | item).encode() for item in items]
    with postgres.connect(url) as conn:
        ledger = Ledger(conn, KEYS.queue)
        ledger.check()
        row = ledger.take("host:1", 0)
        ledger.adopt(row.epoch, [1], "run", 0, 0)
        flusher = Flusher(
            conn,
            ledger,
            row,
            tables=(),
            lock_timeout_s=1,
            statement_timeout_s=5,
            breaker=Breaker(),
            publish=lambda _: None,
        )
        first = flusher.flush(FrozenBatch(row.epoch << 32 | 1, bodies, 0), Patience())
        flusher.flush(FrozenBatch(row.epoch << 32 | 2, bodies[-1:], 0), Patience())
        ledger.buried(first.last_batch)
        return len(first.buried)


def test_the_worker_role_needs_all_of_its_grants(
    guarded: EmbeddedServers, owner: psycopg.Connection[Any]
) -> None:
    url, needless = postgres_as(guarded, "worker"), []
    refused = flush_all(url)
    for privilege, table in table_grants(owner, "worker"):
        owner.execute("TRUNCATE users, pages, writebehind.ledger, writebehind.dead_letters")
        with revoked(owner, privilege, table, "worker"):
            try:
                if flush_all(url) == refused:
                    needless.append((privilege, table))
            except Exception as error:
                assert "LedgerRefused" in repr(error), (privilege, table)
    assert needless == []


# No more is allowed.

FORBIDDEN: dict[str, list[tuple[Any, ...]]] = {
    "producer": [
        ("FLUSHALL",), ("FLUSHDB",), ("CONFIG", "GET", "*"), ("KEYS", "*"), ("SCAN", 0), ("INFO",),
        ("GET", KEYS.lease), ("SET", KEYS.lease, "x"), ("SET", KEYS.applied, 1), ("GET", KEYS.acked),
        ("LRANGE", KEYS.queue, 0, -1), ("LPOP", KEYS.queue), ("RPOP", KEYS.queue), ("DEL", KEYS.queue),
        ("DEL", KEYS.clock), ("DEL", KEYS.producers), ("HSET", KEYS.tables, "users", "{}"),
        ("ZADD", KEYS.rejected, 1, "x"), ("LRANGE", KEYS.processing(1), 0, -1), ("LPUSH", KEYS.inflight, 1),
        ("HGETALL", "session:1"), ("GET", "session:1"), ("RENAME", "cache:a", "cache:b"), ("ACL", "LIST"),
        ("EVAL", "return redis.call('GET', KEYS[1])", 1, KEYS.lease),
        ("EVAL", f"return redis.call('RPOP', '{KEYS.queue}')", 0),
    ],
    "raw": [
        ("LRANGE", KEYS.queue, 0, -1), ("LLEN", KEYS.queue), ("RPUSH", KEYS.queue, "{}"),
        ("EVAL", "return 1", 0), ("LPUSH", KEYS.inflight, 1), ("LPUSH", "other", "{}"),
    ],
    "worker": [
        ("FLUSHALL",), ("CONFIG", "SET", "maxmemory", 0), ("KEYS", "*"), ("SCAN", 0), ("ACL", "LIST"),
        ("GET", "session:1"), ("HGETALL", "session:1"), ("HGETALL", "cache:users:1"), ("DEL", KEYS.queue),
        ("LPUSH", KEYS.queue, "{}"), ("SHUTDOWN",),
    ],
    "operator": [
        ("FLUSHALL",), ("SET", KEYS.lease, "x"), ("DEL", KEYS.lease), ("LPUSH", KEYS.queue, "{}"),
        ("LPOP", KEYS.queue), ("HSET", "cache:users:1", "name", "x"), ("DEL", "cache:users:1"),
        ("HGETALL", "session:1"), ("KEYS", "*"), ("EVAL", "return 1", 0),
    ],
    "mender": [
        ("FLUSHALL",), ("KEYS", "*"), ("ACL", "LIST"), ("SET", KEYS.lease, "x"), ("DEL", KEYS.lease),
        ("SET", KEYS.applied, 1), ("LPOP", KEYS.queue), ("DEL", KEYS.queue),
        ("DEL", KEYS.clock), ("LPUSH", KEYS.inflight, 1), ("RPOP", KEYS.inflight),
        ("DEL", KEYS.processing(1)), ("HSET", KEYS.tables, "users", "{}"), ("ZADD", KEYS.rejected, 1, "x"),
        ("HGETALL", "session:1"), ("GET", "session:1"), ("DEL", "session:1"),
        ("EVAL", f"return redis.call('RPOP', '{KEYS.queue}')", 0),
    ],
}  # fmt: skip


@pytest.mark.parametrize("user", FORBIDDEN)
def test_a_user_of_redis_may_do_no_more(user: str, guarded: EmbeddedServers, admin: redis.Redis) -> None:
    with redis.Redis.from_url(redis_as(guarded, user)) as client:
        for command in FORBIDDEN[user]:
            with pytest.raises(redis.ResponseError, match=r"(?i)permission|ACL failure"):
                client.execute_command(*command)
    assert admin.dbsize() == 0


FORBIDDEN_SQL = {
    "worker": [
        "SELECT * FROM secrets", "INSERT INTO secrets VALUES (1)", "CREATE TABLE mine (id int)",
        "CREATE TABLE writebehind.mine (id int)", "CREATE SCHEMA mine", "DROP TABLE users", "TRUNCATE users",
        "ALTER TABLE users ADD x int", "DELETE FROM writebehind.ledger", "DROP SCHEMA writebehind CASCADE",
        "TRUNCATE writebehind.dead_letters", "CREATE ROLE mine", "SELECT * FROM pg_authid",
        "SELECT pg_read_file('/etc/passwd')", "COPY users TO PROGRAM 'cat'",
    ],
    "loader": [
        "INSERT INTO users VALUES (1)", "UPDATE users SET name = ''", "DELETE FROM users",
        "SELECT * FROM secrets", "SELECT * FROM writebehind.ledger", "SELECT * FROM writebehind.dead_letters",
        "CREATE TABLE mine (id int)",
    ],
    "operator": [
        "SELECT * FROM secrets", "INSERT INTO users VALUES (1)", "UPDATE users SET name = ''",
        "DELETE FROM users", "UPDATE writebehind.ledger SET epoch = 0", "DELETE FROM writebehind.ledger",
        "INSERT INTO writebehind.ledger (queue) VALUES ('q')", "CREATE TABLE mine (id int)",
        "DELETE FROM writebehind.dead_letters",
    ],
    "mender": [
        "SELECT * FROM secrets", "UPDATE users SET name = ''", "DELETE FROM users",
        "UPDATE writebehind.ledger SET epoch = 0", "DELETE FROM writebehind.ledger",
        "UPDATE writebehind.dead_letters SET body = ''",
        "INSERT INTO writebehind.dead_letters (queue) VALUES ('q')", "TRUNCATE writebehind.dead_letters",
        "CREATE TABLE mine (id int)",
    ],
}  # fmt: skip


@pytest.mark.usefixtures("owner")
@pytest.mark.parametrize("role", FORBIDDEN_SQL)
def test_a_role_of_postgres_may_do_no_more(role: str, guarded: EmbeddedServers) -> None:
    with psycopg.connect(postgres_as(guarded, role), autocommit=True) as conn:
        for statement in FORBIDDEN_SQL[role]:
            with pytest.raises(pg_errors.InsufficientPrivilege):
                conn.execute(statement.encode())


def test_a_role_cannot_end_the_sessions_of_another(
    guarded: EmbeddedServers, owner: psycopg.Connection[Any]
) -> None:
    with (
        psycopg.connect(postgres_as(guarded, "worker"), autocommit=True) as conn,
        pytest.raises(pg_errors.InsufficientPrivilege),
    ):
        conn.execute("SELECT pg_terminate_backend(%s)", [owner.info.backend_pid])


def test_a_write_to_a_table_that_was_not_granted_is_a_dead_letter_and_holds_up_nothing(
    owner: psycopg.Connection[Any], wb: WriteBehind, worker_options: dict[str, Any]
) -> None:
    with RunningWorker(**worker_options):
        refused, good = wb.put("secrets", 1, {"name": "x"}), wb.put("users", 1, {"name": "Ada"})
        good.wait(10)
        with pytest.raises(WriteRejected, match=r"permission denied.*42501"):
            refused.wait(10)
    assert owner.execute("SELECT FROM secrets").rowcount == 0


# Who lacks a right is told which, and nothing is left half done.


def test_a_producer_without_a_right_is_refused_by_name_and_nothing_is_written(
    guarded: EmbeddedServers, admin: redis.Redis
) -> None:
    def snapshot() -> dict[Any, Any]:
        return {key: admin.dump(key) for key in admin.scan_iter()}

    try:
        for right, without in rights("producer"):
            grant(admin, "producer", rules("producer"))
            admin.flushall()
            with WriteBehind.from_url(redis_as(guarded, "producer"), prefix=CACHE) as wb:
                wb.put("users", 1, {"n": 1})
                grant(admin, "producer", without)
                for call in (
                    lambda: wb.put("users", 1, {"n": 1}),
                    lambda: wb.increment("users", 1, {"n": 1}),
                    lambda: wb.patch("users", 2, {"n": 1}),
                    lambda: wb.delete("users", 1),
                    lambda: wb.get("users", 7, lambda _: None),
                    lambda: wb.invalidate("users", 7),
                ):
                    before = snapshot()
                    try:
                        call()
                    except RedisRefused as error:
                        assert re.search("may not run|(?i:no permissions)", str(error)), right
                        assert snapshot() == before, right
    finally:
        grant(admin, "producer", rules("producer"))


def test_a_worker_without_a_right_waits_and_says_which(
    guarded: EmbeddedServers, admin: redis.Redis, wb: WriteBehind, worker_options: dict[str, Any]
) -> None:
    without = [rule.replace(" +ltrim", "") for rule in rules("worker")]
    receipt = wb.put("users", 1, {"name": "Ada"})
    try:
        grant(admin, "worker", without)
        with RunningWorker(**worker_options) as worker:
            reason = wait_until(lambda: worker.facts["redis_reason"])
            assert "LTRIM" in reason
            assert not list(admin.scan_iter(KEYS.processing(0)[:-1] + "*")), "half a batch was frozen"
            grant(admin, "worker", rules("worker"))
            receipt.wait(10)
    finally:
        grant(admin, "worker", rules("worker"))
