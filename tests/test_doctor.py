"""`writebehind doctor`: what is wrong with real servers is found, with its remedy, and nothing else is."""

from __future__ import annotations

import json
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from click.testing import CliRunner, Result
from psycopg.conninfo import make_conninfo
from tests.conftest import SCHEMA
from tests.support.replica import PostgresPair
from tests.support.workers import RunningWorker, WorkerProcess
from tests.test_roles import ACL, ROLES, grant, postgres_as, redis_as, rights, rules

from writebehind.keys import QueueKeys
from writebehind_worker import postgres
from writebehind_worker.cli import cli
from writebehind_worker.config import SETTINGS, Config
from writebehind_worker.doctor import (
    CHECKS,
    SEVERITIES,
    ClockReading,
    Finding,
    Severity,
    clock_findings,
    exit_code,
)
from writebehind_worker.doctor_postgres import examine_postgres
from writebehind_worker.doctor_redis import RedisFacts, examine_redis, redis_findings
from writebehind_worker.embedded import EmbeddedRedis, EmbeddedServers, ServerNotFound
from writebehind_worker.errors import UnsupportedPostgres
from writebehind_worker.redis_rights import missing
from writebehind_worker.redis_server import RedisLink, check
from writebehind_worker.resharding import divide
from writebehind_worker.testing.servers import missing as service_missing
from writebehind_worker.testing.servers import new_data_dir
from writebehind_worker.testing.wait import wait_until

DOCS = Path(__file__).parents[1] / "docs" / "doctor.md"
DOWN: dict[str, Any] = {
    "redis_url": "redis://ada:hunter2@127.0.0.1:1/0",
    "postgres_url": "postgresql://ada:hunter2@127.0.0.1:1/app",
}


@pytest.fixture(scope="module")
def sound() -> Iterator[EmbeddedServers]:
    """Servers as an operator should have them: durable, with the users and roles of the files."""
    folder = new_data_dir()
    try:
        with EmbeddedServers(
            folder, redis_options={"include": str(ACL)}, postgres_options={"max_connections": "20"}
        ) as servers:
            with psycopg.connect(servers.postgres_url, autocommit=True) as admin:
                admin.execute(SCHEMA.read_bytes())
                admin.execute(b"CREATE TABLE users (id bigint PRIMARY KEY, name text)")
                admin.execute(b"CREATE TABLE pages (path text PRIMARY KEY, views bigint)")
                admin.execute(ROLES.read_bytes())
            yield servers
    except ServerNotFound as error:
        service_missing(str(error))
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def urls(sound: EmbeddedServers) -> dict[str, Any]:
    return {"redis_url": sound.redis_url, "postgres_url": sound.postgres_url}


@pytest.fixture
def redis_admin(sound: EmbeddedServers) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(sound.redis_url) as client:
        yield client


@pytest.fixture
def owner(sound: EmbeddedServers) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(sound.postgres_url, autocommit=True) as conn:
        yield conn


def run_doctor(*arguments: str, env: dict[str, str] | None = None, **options: Any) -> Result:
    given = list(arguments)
    for name, value in options.items():
        if isinstance(value, bool):
            given += [SETTINGS[name].flag] if value else []
        else:
            for item in value if isinstance(value, tuple) else (value,):
                given += [SETTINGS[name].flag, str(item)]
    return CliRunner().invoke(cli, ["doctor", *given], env=env)


def doctor(**options: Any) -> dict[str, list[Finding]]:
    """What it finds, by check; its exit code fits."""
    result = run_doctor("--json", **options)
    report = json.loads(result.output)
    findings = [Finding(**finding) for finding in report["findings"]]
    assert result.exit_code == exit_code(findings), result.output
    assert report["worst"] == max((f.severity for f in findings), key=SEVERITIES.index)
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        assert finding.what, finding
        assert finding.remedy or finding.severity in ("ok", "note"), finding
        found.setdefault(finding.check, []).append(finding)
    return found


def bad(found: dict[str, list[Finding]]) -> set[tuple[str, str]]:
    """(check, severity) of what is worse than a note."""
    return {(f.check, f.severity) for fs in found.values() for f in fs if f.severity in ("warning", "fatal")}


def told(client: redis.Redis, name: str) -> str:
    """A setting of the server."""
    return str(client.config_get(name)[name])


@contextmanager
def configured(client: redis.Redis, **settings: Any) -> Iterator[None]:
    """A server's settings, for a while; ``_`` stands for ``-``."""
    settings = {name.replace("_", "-"): value for name, value in settings.items()}
    before = {name: told(client, name) for name in settings}
    for name, value in settings.items():
        client.config_set(name, value)
    try:
        yield
    finally:
        for name, value in reversed(before.items()):
            client.config_set(name, value)


# As a whole.


def test_sound_servers_have_nothing_to_mend(urls: dict[str, Any]) -> None:
    found = doctor(**urls)
    assert tuple(found) == CHECKS
    assert bad(found) == set()
    assert {check for check, them in found.items() if len(them) > 1} == set()
    text = run_doctor(**urls)
    assert text.exit_code == 0
    assert "warning" not in text.output
    assert "mend:" not in text.output
    assert re.search(r"^note: \d, ok: \d\d$", text.output, re.MULTILINE)


def test_the_session_s_servers_lack_what_they_were_started_without(
    redis_url: str, postgres_url: str, queue: str
) -> None:
    """Whichever they are: from wheels, or the oldest that are supported, in containers."""
    found = doctor(redis_url=redis_url, postgres_url=postgres_url, queue=queue)
    assert found.keys() == {*CHECKS}
    # The user's own may have more to say, and no table yet.
    assert {check for check, severity in bad(found) if severity == "fatal"} == set()
    assert found["redis.rights"][0].severity == "ok"
    assert found["clock.redis"][0].severity == found["clock.postgres"][0].severity == "ok"
    (rights,) = found["tables.rights"]
    assert (rights.severity, "create the tables" in rights.remedy) == ("warning", True), "there is no table"


def test_the_users_of_the_files_are_enough(sound: EmbeddedServers, redis_admin: redis.Redis) -> None:
    found = doctor(redis_url=redis_as(sound, "worker"), postgres_url=postgres_as(sound, "worker"))
    assert bad(found) == set()
    assert found.keys() == {*CHECKS}
    for name in ("redis.appendfsync", "redis.timeout"):
        assert "not told" in found[name][0].what, "CONFIG GET would show passwords: it is not granted"
    with configured(redis_admin, appendonly="no"):
        found = doctor(redis_url=redis_as(sound, "worker"), postgres_url=postgres_as(sound, "worker"))
    assert bad(found) == {("redis.persistence", "warning")}


def test_one_connection_to_redis_is_enough(redis_admin: redis.Redis, urls: dict[str, Any]) -> None:
    before = redis_admin.info("stats")["total_connections_received"]
    doctor(**urls)
    assert redis_admin.info("stats")["total_connections_received"] == before + 1


def test_shards_that_the_user_may_not_look_at(
    sound: EmbeddedServers, redis_admin: redis.Redis, urls: dict[str, Any]
) -> None:
    """As where `deploy/redis-acl.conf` was taken over before the queue was divided."""
    divide(redis_admin, QueueKeys(), 2)
    try:
        (found,) = doctor(**{**urls, "redis_url": redis_as(sound, "worker")})["redis.division"]
        assert found.severity == "fatal"
        assert "{db:write:queue*" in found.remedy
    finally:
        redis_admin.delete(*redis_admin.keys("*db:write:queue*"))


def test_both_servers_down_are_two_findings_without_a_password() -> None:
    found = doctor(**DOWN)
    assert bad(found) == {("redis.connection", "fatal"), ("postgres.connection", "fatal")}
    assert found["clock.redis"][0].severity == "note"
    for result in (run_doctor(**DOWN), run_doctor("--json", **DOWN)):
        assert result.exit_code == 2
        assert "127.0.0.1" in result.output
        assert "hunter2" not in result.output


def test_one_server_down_leaves_the_other_to_be_looked_at(urls: dict[str, Any]) -> None:
    found = doctor(**urls | {"redis_url": DOWN["redis_url"]})
    assert bad(found) == {("redis.connection", "fatal")}
    assert "tables.rights" in found
    found = doctor(**urls | {"postgres_url": DOWN["postgres_url"]})
    assert bad(found) == {("postgres.connection", "fatal")}
    assert "redis.eviction" in found


def test_wrong_passwords_are_told_and_not_shown(sound: EmbeddedServers, urls: dict[str, Any]) -> None:
    wrong = redis_as(sound, "worker").replace("change-me-worker", "hunter2")
    result = run_doctor(**urls | {"redis_url": wrong})
    assert "hunter2" not in result.output
    assert re.search(r"fatal +connection: .*invalid username-password", result.output)
    assert "change-me" not in run_doctor(**urls | {"redis_url": redis_as(sound, "worker")}).output


def test_on_a_terminal_marks_are_coloured_and_remedies_indented(urls: dict[str, Any]) -> None:
    terminal = {"FORCE_COLOR": "1", "COLUMNS": "60", "TERM": "xterm-256color", "NO_COLOR": ""}
    result = run_doctor(env=terminal, **urls | {"redis_url": DOWN["redis_url"]})
    assert "\x1b[1;31mfatal" in result.output
    plain = re.sub(r"\x1b\[[0-9;]*m", "", result.output)
    assert re.search(r"^ {10}mend: check --redis-url", plain, re.MULTILINE)
    assert max(map(len, plain.splitlines())) <= 60


def test_a_table_s_name_cannot_command_the_terminal(
    pg: psycopg.Connection[Any], redis_url: str, postgres_url: str
) -> None:
    pg.execute('CREATE TABLE "a\x1b[31m" (id int)')
    pg.execute('CREATE TABLE "[bold]b" (id int)')
    result = run_doctor(redis_url=redis_url, postgres_url=postgres_url)
    assert "\x1b" not in result.output
    assert r"public.a\x1b[31m" in result.output
    assert "public.[bold]b" in result.output


@pytest.mark.parametrize(
    ("severities", "code"), [((), 0), (("ok", "note"), 0), (("ok", "warning"), 1), (("fatal", "warning"), 2)]
)
def test_the_exit_code_is_that_of_the_worst(severities: tuple[Severity, ...], code: int) -> None:
    assert exit_code(Finding("redis.role", severity, "") for severity in severities) == code


def test_every_check_is_in_the_documentation() -> None:
    documented = re.findall(r"^\| `(\w+\.\w+)` \|", DOCS.read_text(), re.MULTILINE)
    assert tuple(documented) == CHECKS


# Redis.


@pytest.mark.parametrize(
    ("settings", "check", "severity", "told"),
    [
        ({"maxmemory_policy": "allkeys-lru"}, "redis.eviction", "fatal", "allkeys-lru"),
        ({"maxmemory_policy": "volatile-ttl"}, "redis.eviction", "ok", "only keys with a TTL"),
        ({"appendonly": "no", "save": ""}, "redis.persistence", "warning", "every write"),
        ({"appendonly": "no", "save": "3600 1"}, "redis.persistence", "warning", "last snapshot"),
        ({"appendfsync": "everysec"}, "redis.appendfsync", "note", "up to a second"),
        ({"appendfsync": "no"}, "redis.appendfsync", "warning", "kernel"),
        ({"min_replicas_to_write": 1}, "redis.replicas", "fatal", "NOREPLICAS"),
        ({"maxclients": 2}, "redis.clients", "warning", "of 2 clients"),
        ({"timeout": 6}, "redis.timeout", "warning", "silent for 6 s"),
        ({"timeout": 60}, "redis.timeout", "ok", "60 s"),
    ],
)
def test_a_setting_of_redis(
    settings: dict[str, Any],
    check: str,
    severity: str,
    told: str,
    redis_admin: redis.Redis,
    urls: dict[str, Any],
) -> None:
    with configured(redis_admin, **settings):
        found = doctor(**urls)
    assert found[check][0].severity == severity
    assert told in found[check][0].what
    assert bad(found) <= {(check, severity)}


def test_eviction_that_is_allowed_is_a_warning(redis_admin: redis.Redis, urls: dict[str, Any]) -> None:
    with configured(redis_admin, maxmemory_policy="allkeys-lfu"):
        assert bad(doctor(**urls, allow_eviction=True)) == {("redis.eviction", "warning")}


@pytest.mark.parametrize(("share", "told"), [(0.8, "when it is full"), (0.95, "soon")])
def test_memory_that_is_nearly_used(
    share: float, told: str, redis_admin: redis.Redis, urls: dict[str, Any]
) -> None:
    # Made in the server: the buffer of a large command would be given back while we look.
    redis_admin.setrange("filling", (32 << 20) - 1, "x")
    wait_until(lambda: redis_admin.info("memory")["lazyfree_pending_objects"] == 0)
    used = redis_admin.info("memory")["used_memory"]
    try:
        with configured(redis_admin, maxmemory=int(used / share)):
            found = doctor(**urls)
        assert bad(found) == {("redis.memory", "warning")}
        assert told in found["redis.memory"][0].what
        with configured(redis_admin, maxmemory=used * 2):
            assert doctor(**urls)["redis.memory"][0].severity == "ok"
    finally:
        redis_admin.delete("filling")


def test_a_snapshot_that_could_not_be_written(redis_admin: redis.Redis, urls: dict[str, Any]) -> None:
    obstacle = Path(told(redis_admin, "dir")) / told(redis_admin, "dbfilename")
    with suppress(FileNotFoundError):
        obstacle.unlink()
    (obstacle / "x").mkdir(parents=True)

    def status() -> str:
        return str(redis_admin.info("persistence")["rdb_last_bgsave_status"])

    try:
        redis_admin.bgsave()
        wait_until(lambda: status() == "err")
        found = doctor(**urls)
        assert bad(found) == {("redis.write_errors", "warning")}
        assert "snapshot" in found["redis.write_errors"][0].what
    finally:
        shutil.rmtree(obstacle)
        redis_admin.bgsave()
        wait_until(lambda: status() == "ok")


def test_a_socket_timeout_shorter_than_the_block(urls: dict[str, Any]) -> None:
    found = doctor(**urls | {"redis_url": urls["redis_url"] + "?socket_timeout=0.5"})
    assert bad(found) == {("redis.socket_timeout", "warning")}
    assert "500 ms" in found["redis.socket_timeout"][0].what


@pytest.mark.parametrize("name", ["socket_timeout", "socket_connect_timeout"])
def test_a_url_that_would_wait_without_end(urls: dict[str, Any], name: str) -> None:
    found = doctor(**urls | {"redis_url": f"{urls['redis_url']}?{name}=inf"})
    assert bad(found) == {("redis.socket_timeout", "warning")}
    assert f"{name} of --redis-url" in found["redis.socket_timeout"][0].what


@contextmanager
def another_redis(options: dict[str, str] | None = None) -> Iterator[EmbeddedRedis]:
    folder = new_data_dir()
    server = EmbeddedRedis(folder, options=options or {})
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


def test_a_replica_and_its_primary(
    sound: EmbeddedServers, redis_admin: redis.Redis, urls: dict[str, Any]
) -> None:
    with another_redis() as replica, redis.Redis.from_url(replica.url) as client:
        redis_admin.config_set("repl-diskless-sync-delay", 0)
        client.replicaof("127.0.0.1", str(redis_admin.connection_pool.connection_kwargs["port"]))
        wait_until(lambda: redis_admin.info("replication").get("slave0", {}).get("state") == "online")
        found = doctor(**urls | {"redis_url": replica.url})
        assert bad(found) == {("redis.role", "fatal")}
        assert "REPLICAOF" in found["redis.role"][0].remedy
        assert "asynchronous" in doctor(**urls)["redis.replicas"][0].what
        with configured(redis_admin, min_replicas_to_write=1):
            assert doctor(**urls)["redis.replicas"][0].severity == "ok"
        info = redis_admin.info()
    facts = RedisFacts(info, {"min-replicas-to-write": "0"}, [], 5.0)
    assert worst_of(facts)["redis.replicas"] == "note"
    info["slave0"]["lag"] = 11
    assert worst_of(facts)["redis.replicas"] == "warning"


def worst_of(facts: RedisFacts) -> dict[str, str]:
    return {finding.check: finding.severity for finding in redis_findings(facts, Config())}


def test_what_cannot_be_had_here_is_read_from_what_such_a_server_tells(redis_client: redis.Redis) -> None:
    """An older server, a host whose memory is nearly used, a service that tells little."""
    info = redis_client.info()

    def severity(check: str, **changed: Any) -> str:
        return worst_of(RedisFacts(info | changed, {}, None, 5.0))[check]

    assert severity("redis.version", redis_version="6.2.14") == "fatal"
    assert severity("redis.version", redis_version="7.0.0") == "ok"
    assert severity("redis.memory", maxmemory=0, used_memory=80, total_system_memory=100) == "warning"
    assert severity("redis.memory", maxmemory=0, used_memory=70, total_system_memory=100) == "note"
    assert severity("redis.write_errors", aof_last_write_status="err") == "warning"
    little = RedisFacts({"redis_version": "7.2.4"}, {}, None, 5.0)
    assert {*worst_of(little).values()} == {"ok", "note"}


def test_a_cluster_is_refused_by_doctor_and_run(urls: dict[str, Any]) -> None:
    with another_redis({"cluster-enabled": "yes"}) as node:
        options = urls | {"redis_url": node.url}
        found = doctor(**options)
        assert ("redis.cluster", "fatal") in bad(found)
        with WorkerProcess(**options) as worker:
            assert worker.wait() == 2
            assert "Redis Cluster" in worker.log


def test_each_right_of_the_worker_s_user_is_missed_by_name(
    sound: EmbeddedServers, redis_admin: redis.Redis
) -> None:
    keys, url = QueueKeys(), redis_as(sound, "worker")
    unnoticed = []
    try:
        for right, without in rights("worker"):
            if "cache:" in right:  # not known to the worker before a message names one
                continue
            grant(redis_admin, "worker", without)
            with redis.Redis.from_url(url) as client, suppress(redis.exceptions.NoPermissionError):
                if not missing(client, keys):
                    unnoticed.append(right)
    finally:
        grant(redis_admin, "worker", rules("worker"))
    assert unnoticed == []
    with redis.Redis.from_url(url) as client:
        assert missing(client, keys) == []


@pytest.mark.parametrize("right", ["+sort", "+info", "+eval", "+zadd"])
def test_a_right_that_is_missing_in_redis(
    right: str, sound: EmbeddedServers, redis_admin: redis.Redis, urls: dict[str, Any]
) -> None:
    try:
        grant(redis_admin, "worker", [re.sub(re.escape(right) + r"\b", "", rule) for rule in rules("worker")])
        found = doctor(**urls | {"redis_url": redis_as(sound, "worker")})
    finally:
        grant(redis_admin, "worker", rules("worker"))
    assert bad(found) == {("redis.rights", "fatal")}
    assert right[1:].upper() in found["redis.rights"][0].what.upper()


def test_changes_that_may_not_be_published(
    sound: EmbeddedServers, redis_admin: redis.Redis, urls: dict[str, Any]
) -> None:
    asked = urls | {"redis_url": redis_as(sound, "worker"), "publish_changes": True}
    found = doctor(**asked)
    assert bad(found) == {("redis.changes", "warning")}
    assert QueueKeys().changes in found["redis.changes"][0].what
    try:
        grant(redis_admin, "worker", [*rules("worker"), "+publish", f"&{QueueKeys().changes}"])
        assert bad(doctor(**asked)) == set()
    finally:
        grant(redis_admin, "worker", rules("worker"))


# Postgres.


@contextmanager
def changed(owner: psycopg.Connection[Any], statement: str, back: str) -> Iterator[None]:
    owner.execute(statement.encode())
    try:
        yield
    finally:
        owner.execute(back.encode())


@pytest.mark.parametrize(
    ("statement", "back", "check", "severity", "told"),
    [
        (
            "REVOKE INSERT ON writebehind.dead_letters FROM writebehind_worker",
            "GRANT INSERT ON writebehind.dead_letters TO writebehind_worker",
            "postgres.ledger_rights", "fatal",
            'GRANT INSERT ON writebehind.dead_letters TO "writebehind_worker"',
        ),
        (
            "REVOKE INSERT ON writebehind.ledger FROM writebehind_worker",
            "GRANT INSERT ON writebehind.ledger TO writebehind_worker",
            "postgres.ledger_rights", "fatal", "GRANT INSERT ON writebehind.ledger",
        ),
        (
            "REVOKE USAGE ON SCHEMA writebehind FROM writebehind_worker",
            "GRANT USAGE ON SCHEMA writebehind TO writebehind_worker",
            "postgres.ledger_rights", "fatal", "GRANT USAGE ON SCHEMA writebehind",
        ),
        (
            "UPDATE writebehind.schema_version SET version = 99",
            "UPDATE writebehind.schema_version SET version = 1",
            "postgres.ledger", "fatal", "upgrade writebehind",
        ),
        (
            "ALTER SCHEMA writebehind RENAME TO elsewhere", "ALTER SCHEMA elsewhere RENAME TO writebehind",
            "postgres.ledger", "fatal", "writebehind init",
        ),
        (
            "ALTER ROLE writebehind_worker SET default_transaction_read_only = on",
            "ALTER ROLE writebehind_worker RESET default_transaction_read_only",
            "postgres.writable", "fatal", "default_transaction_read_only = off",
        ),
        (
            "ALTER ROLE writebehind_worker SET search_path = writebehind, public",
            "ALTER ROLE writebehind_worker RESET search_path",
            "postgres.search_path", "warning", 'SET search_path = "public" (',
        ),
        (
            "CREATE SCHEMA app; GRANT USAGE ON SCHEMA app TO writebehind_worker; "
            "ALTER ROLE writebehind_worker SET search_path = app, writebehind, public",
            "ALTER ROLE writebehind_worker RESET search_path; DROP SCHEMA app",
            "postgres.search_path", "warning", 'SET search_path = "app", "public" (',
        ),
        (
            "REVOKE TEMPORARY ON DATABASE postgres FROM PUBLIC",
            "GRANT TEMPORARY ON DATABASE postgres TO PUBLIC",
            "postgres.temporary", "note", "GRANT TEMPORARY",
        ),
        (
            "ALTER ROLE writebehind_worker CONNECTION LIMIT 1",
            "ALTER ROLE writebehind_worker CONNECTION LIMIT -1",
            "postgres.connections", "warning", "CONNECTION LIMIT",
        ),
        (
            "ALTER ROLE writebehind_worker SET statement_timeout = 1000",
            "ALTER ROLE writebehind_worker RESET statement_timeout",
            "postgres.statement_timeout", "warning", "statement_timeout = 0",
        ),
        (
            "ALTER ROLE writebehind_worker SET idle_in_transaction_session_timeout = '1s'",
            "ALTER ROLE writebehind_worker RESET idle_in_transaction_session_timeout",
            "postgres.idle_in_transaction_session_timeout", "warning", "= 0, or 5 s",
        ),
        (
            "ALTER ROLE writebehind_worker SET idle_session_timeout = '4s'",
            "ALTER ROLE writebehind_worker RESET idle_session_timeout",
            "postgres.idle_session_timeout", "warning", "= 0, or 10 s",
        ),
        (
            "ALTER ROLE writebehind_worker SET transaction_timeout = '29s'",
            "ALTER ROLE writebehind_worker RESET transaction_timeout",
            "postgres.transaction_timeout", "warning", "= 0, or 30 s",
        ),
        (
            "ALTER ROLE writebehind_worker SET synchronous_commit = off",
            "ALTER ROLE writebehind_worker RESET synchronous_commit",
            "postgres.synchronous_commit", "note", "",
        ),
        (
            "REVOKE INSERT, DELETE ON pages FROM writebehind_worker",
            "GRANT INSERT, DELETE ON pages TO writebehind_worker",
            "tables.rights", "warning", 'GRANT INSERT ON public.pages TO "writebehind_worker"',
        ),
        (
            "REVOKE DELETE ON pages FROM writebehind_worker", "GRANT DELETE ON pages TO writebehind_worker",
            "tables.rights", "note", 'GRANT DELETE ON public.pages TO "writebehind_worker"',
        ),
        (
            "REVOKE ALL ON pages, users FROM writebehind_worker",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON pages, users TO writebehind_worker",
            "tables.rights", "warning", "deploy/roles.sql",
        ),
    ],
)  # fmt: skip
def test_what_is_changed_for_the_worker_s_role(
    statement: str, back: str, check: str, severity: str, told: str,
    sound: EmbeddedServers, owner: psycopg.Connection[Any],
) -> None:  # fmt: skip
    worker = {"redis_url": redis_as(sound, "worker"), "postgres_url": postgres_as(sound, "worker")}
    with changed(owner, statement, back):
        found = doctor(**worker)
    assert found[check][0].severity == severity
    assert told in found[check][0].remedy
    assert bad(found) <= {(check, severity)}
    assert bad(doctor(**worker)) == set()


def test_a_role_named_as_our_schema(sound: EmbeddedServers, owner: psycopg.Connection[Any]) -> None:
    with changed(owner, "CREATE ROLE writebehind LOGIN SUPERUSER", "DROP ROLE writebehind"):
        url = make_conninfo(sound.postgres_url, user="writebehind")
        (finding,) = doctor(redis_url=redis_as(sound, "worker"), postgres_url=url)["postgres.search_path"]
    assert (finding.severity, "ALTER ROLE" in finding.remedy) == ("warning", True)


def test_the_right_to_insert_is_not_needed_once_the_queue_is_in_the_ledger(
    sound: EmbeddedServers, owner: psycopg.Connection[Any]
) -> None:
    with (
        changed(
            owner,
            "INSERT INTO writebehind.ledger (queue) VALUES ('db:write:queue')",
            "TRUNCATE writebehind.ledger",
        ),
        changed(
            owner,
            "REVOKE INSERT ON writebehind.ledger FROM writebehind_worker",
            "GRANT INSERT ON writebehind.ledger TO writebehind_worker",
        ),
    ):
        assert bad(doctor(redis_url=sound.redis_url, postgres_url=postgres_as(sound, "worker"))) == set()


def test_run_waits_for_what_doctor_calls_fatal(
    sound: EmbeddedServers, owner: psycopg.Connection[Any], queue: str
) -> None:
    url = postgres_as(sound, "worker")
    grants = "UPDATE, INSERT ON writebehind.dead_letters"
    with changed(owner, f"REVOKE {grants} FROM writebehind_worker", f"GRANT {grants} TO writebehind_worker"):
        (finding,) = doctor(redis_url=sound.redis_url, postgres_url=url, queue=queue)[
            "postgres.ledger_rights"
        ]
        with RunningWorker(redis_url=sound.redis_url, postgres_url=url, queue=queue) as worker:
            reason = wait_until(lambda: worker.facts["postgres_reason"])
            assert finding.what in reason
            assert finding.remedy in reason
            owner.execute(f"GRANT {grants} TO writebehind_worker".encode())
            worker.wait_for_role("owner")


def test_a_worker_of_another_role_owns_the_queue(
    sound: EmbeddedServers, owner: psycopg.Connection[Any], queue: str
) -> None:
    options = {"redis_url": sound.redis_url, "queue": queue}
    with changed(
        owner,
        "CREATE ROLE other LOGIN PASSWORD 'x'; GRANT writebehind_operator TO other; "
        "GRANT ALL ON ALL TABLES IN SCHEMA public, writebehind TO other",
        "DROP OWNED BY other; DROP ROLE other",
    ):
        others = make_conninfo(sound.postgres_url, user="other", password="x")
        with RunningWorker(**options, postgres_url=postgres_as(sound, "worker")) as worker:
            worker.wait_for_role("owner")
            assert bad(doctor(**options, postgres_url=others)) == {("postgres.owner_role", "warning")}
            assert bad(doctor(**options, postgres_url=postgres_as(sound, "worker"))) == set()
            assert bad(doctor(**options, postgres_url=sound.postgres_url)) == set()


def test_connections_that_are_nearly_used_up(sound: EmbeddedServers, urls: dict[str, Any]) -> None:
    held = [psycopg.connect(sound.postgres_url) for _ in range(14)]
    try:
        assert bad(doctor(**urls)) == {("postgres.connections", "warning")}
    finally:
        for conn in held:
            conn.close()


def test_another_encoding(owner: psycopg.Connection[Any], urls: dict[str, Any]) -> None:
    with changed(
        owner,
        "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0",
        "DROP DATABASE latin WITH (FORCE)",
    ):
        found = doctor(**urls | {"postgres_url": make_conninfo(urls["postgres_url"], dbname="latin")})
    assert found["postgres.encoding"][0].severity == "note"
    assert ("postgres.ledger", "fatal") in bad(found)


def test_a_server_that_does_not_write_through(servers: Any, redis_url: str, postgres_url: str) -> None:
    if not servers.ours:
        pytest.skip("the servers are the user's, who wants them durable")
    (finding,) = doctor(redis_url=redis_url, postgres_url=postgres_url)["postgres.durability"]
    assert finding.severity == "warning"
    assert "fsync and full_page_writes off" in finding.what


def test_a_standby(urls: dict[str, Any]) -> None:
    with PostgresPair() as pair:
        with psycopg.connect(pair.primary.url, autocommit=True) as conn:
            conn.execute(SCHEMA.read_bytes())
            conn.execute("CREATE TABLE users (id int PRIMARY KEY)")
        pair.catch_up()
        found = doctor(**urls | {"postgres_url": pair.standby.url})
    assert bad(found) == {("postgres.writable", "fatal"), ("postgres.durability", "warning")}
    assert "standby" in found["postgres.writable"][0].what


def test_an_old_postgres_is_refused_by_doctor_and_run(
    monkeypatch: pytest.MonkeyPatch, urls: dict[str, Any], queue: str
) -> None:
    monkeypatch.setattr(postgres, "OLDEST_VERSION", 99)  # there is none to be had from a wheel
    found = doctor(**urls)
    assert bad(found) == {("postgres.version", "fatal")}
    worker = RunningWorker(**urls, queue=queue)
    worker.start()
    wait_until(lambda: not worker._thread.is_alive())
    with pytest.raises(UnsupportedPostgres, match="needs 12 or later"):
        worker.stop()


# Tables.


@pytest.fixture
def app(
    pg: psycopg.Connection[Any], redis_url: str, postgres_url: str, queue: str
) -> Iterator[Callable[..., dict[str, list[Finding]]]]:
    """Runs statements as the owner, and the doctor as a role that may write to every table then."""
    role = f"r_{uuid.uuid4().hex[:12]}"
    pg.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'".encode())
    pg.execute(f"GRANT USAGE ON SCHEMA writebehind TO {role}".encode())
    url = make_conninfo(postgres_url, user=role, password="x")

    def run(statements: str, *, after: str = "", **options: Any) -> dict[str, list[Finding]]:
        pg.execute(statements.encode())
        pg.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public, writebehind TO {role}".encode())
        pg.execute(after.replace("ROLE", role).encode())
        return doctor(redis_url=redis_url, postgres_url=url, queue=queue, **options)

    yield run
    pg.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


USERS = "CREATE TABLE users (id bigint PRIMARY KEY, name text);"
EVENTS = "CREATE TABLE events (id bigint, at date, {}) PARTITION BY RANGE (at);"
JUNE = "CREATE TABLE june PARTITION OF events FOR VALUES FROM ('2026-06-01') TO ('2026-07-01');"
SKIP = "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"


@pytest.mark.parametrize(
    ("statements", "check", "severity", "told"),
    [
        ("CREATE TABLE log (line text);", "tables.primary_keys", "warning", "public.log"),
        (EVENTS.format("v int") + JUNE, "tables.conflict_targets", "warning", "0 of 1 partitions"),
        (
            EVENTS.format("v int").replace("bigint", "bigint NOT NULL").replace("date", "date NOT NULL")
            + JUNE + "ALTER TABLE ONLY events ADD PRIMARY KEY (id, at)",
            "tables.conflict_targets", "warning", "not valid",
        ),
        (EVENTS.format("PRIMARY KEY (id, at)") + JUNE, "tables.conflict_targets", "ok", "is id, at"),
        (EVENTS.format("PRIMARY KEY (id, at)") + JUNE, "tables.partitions", "note", "no DEFAULT"),
        (EVENTS.format("PRIMARY KEY (id, at)"), "tables.partitions", "warning", "without any partition"),
        (
            EVENTS.format("PRIMARY KEY (id, at)") + JUNE + "CREATE TABLE rest PARTITION OF events DEFAULT",
            "tables.partitions", "ok", "every row",
        ),
        (
            USERS + "CREATE TABLE admins (PRIMARY KEY (id)) INHERITS (users)",
            "tables.partitions", "warning", "inherit",
        ),
        (
            "CREATE TABLE slow (id int PRIMARY KEY DEFERRABLE)", "tables.conflict_targets", "note",
            "deferrable",
        ),
        (
            USERS + SKIP + "CREATE TRIGGER t BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION skip()",
            "tables.triggers", "note", "public.users (t)",
        ),
        (
            USERS + SKIP + "CREATE TRIGGER t AFTER UPDATE ON users FOR EACH ROW EXECUTE FUNCTION skip()",
            "tables.triggers", "ok", "",
        ),
        (
            EVENTS.format("PRIMARY KEY (id, at)") + JUNE + SKIP
            + "CREATE TRIGGER t BEFORE INSERT ON june FOR EACH ROW EXECUTE FUNCTION skip()",
            "tables.triggers", "note", "public.events (t)",
        ),
        (
            USERS + "CREATE RULE r AS ON INSERT TO users DO ALSO NOTIFY seen", "tables.rules", "warning",
            "public.users (r)",
        ),
        (
            USERS + "ALTER TABLE users ENABLE ROW LEVEL SECURITY", "tables.row_security", "warning",
            "no policy",
        ),
        (
            USERS + "ALTER TABLE users ENABLE ROW LEVEL SECURITY;"
            "CREATE POLICY p ON users USING (name = current_user)",
            "tables.row_security", "warning", "each row",
        ),
        (
            USERS + "ALTER TABLE users ENABLE ROW LEVEL SECURITY;"
            "CREATE POLICY p ON users USING (true) WITH CHECK (true)",
            "tables.row_security", "ok", "no row of public.users",
        ),
        (
            USERS + "ALTER TABLE users ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON users USING (true);"
            "CREATE POLICY q ON users AS RESTRICTIVE FOR INSERT WITH CHECK (id > 0)",
            "tables.row_security", "warning", "each row",
        ),
        (
            "CREATE TABLE items (id bigint PRIMARY KEY, n serial)", "tables.sequences", "warning",
            "items_n_seq of public.items",
        ),
        (
            "CREATE TABLE items (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY)", "tables.sequences",
            "ok", "",
        ),
        (
            "CREATE TABLE sums (id int PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 2) STORED)",
            "tables.generated_columns", "note", "public.sums",
        ),
        (
            USERS + "CREATE TABLE mails (id int PRIMARY KEY, u bigint REFERENCES users ON DELETE CASCADE)",
            "tables.cascades", "note", "public.users;",
        ),
        (
            USERS + "CREATE TABLE mails (id int PRIMARY KEY, u bigint REFERENCES users)",
            "tables.references", "note", "refer to other tables: public.mails;",
        ),
        ("CREATE UNLOGGED TABLE fast (id int PRIMARY KEY)", "tables.unlogged", "warning", "public.fast"),
    ],
)  # fmt: skip
def test_a_table(
    statements: str, check: str, severity: str, told: str, app: Callable[..., dict[str, list[Finding]]]
) -> None:
    found = app(statements)
    assert [f.severity for f in found[check]] == [severity]
    assert told in found[check][0].what
    tables = {(c, s) for c, s in bad(found) if c.startswith("tables.")}
    assert tables <= {(check, severity), ("tables.partitions", "warning"), ("tables.references", "note")}
    assert found["tables.rights"][0].severity == "ok"


def test_only_what_is_named_is_looked_at(app: Callable[..., dict[str, list[Finding]]]) -> None:
    found = app(USERS + "CREATE TABLE log (line text)", tables=("users",))
    assert not [c for c, _ in bad(found) if c.startswith("tables.")]
    assert found["tables.rights"][0].what.endswith("public.users")
    found = app("", tables=("users", "log", "public.usres"))
    tables = {(c, s) for c, s in bad(found) if c.startswith("tables.")}
    assert tables == {("tables.named", "warning"), ("tables.primary_keys", "warning")}
    assert "public.usres" in found["tables.named"][0].what


def test_what_the_role_may_not_write_is_its_owner_s_matter_unless_named(
    app: Callable[..., dict[str, list[Finding]]],
) -> None:
    statements = USERS + "CREATE TABLE log (line text)"
    found = app(statements, after="REVOKE ALL ON log FROM ROLE")
    assert not [c for c, _ in bad(found) if c.startswith("tables.")]
    found = app("", after="REVOKE ALL ON log FROM ROLE", tables=("log",))
    assert ("tables.rights", "warning") in bad(found)


def test_run_goes_on_without_a_named_table_and_says_so(
    pg: psycopg.Connection[Any], redis_client: redis.Redis, redis_url: str, postgres_url: str, queue: str
) -> None:
    pg.execute(USERS + "CREATE TABLE log (line text)")
    redis_client.lpush(queue, '{"table":"log","id":1,"data":{"line":"x"}}')
    redis_client.lpush(queue, '{"table":"users","id":1,"data":{"name":"x"}}')
    with WorkerProcess(
        redis_url=redis_url, postgres_url=postgres_url, queue=queue, tables=("users", "log", "usres")
    ) as worker:
        event = worker.wait_for_event(
            "--table names tables that cannot be written to; see `writebehind doctor`"
        )
        assert event["tables"] == {"log": "it has no primary key", "usres": "it does not exist"}
        wait_until(lambda: pg.execute("SELECT FROM users").rowcount == 1)
    assert pg.execute("SELECT FROM writebehind.dead_letters").rowcount == 1


# Clocks.


@pytest.mark.parametrize(("shift_s", "told"), [(5.0, "5 s behind"), (-5.0, "5 s ahead of")])
def test_a_host_whose_clock_is_wrong(shift_s: float, told: str, urls: dict[str, Any]) -> None:
    config = Config(**urls)

    def clock() -> float:
        return time.time() + shift_s

    readings = examine_redis(config, clock)[1], examine_postgres(config, clock)[1]
    for finding in clock_findings(*readings):
        assert finding.severity == "warning"
        assert told in finding.what


def test_a_slow_answer_is_no_wrong_clock() -> None:
    (slow, _) = clock_findings(ClockReading(1.4, 0.5), None)
    (wrong, unknown) = clock_findings(ClockReading(1.6, 0.5), None)
    assert (slow.severity, wrong.severity, unknown.severity) == ("ok", "warning", "note")


def test_run_refuses_what_doctor_calls_fatal_in_redis(redis_admin: redis.Redis, urls: dict[str, Any]) -> None:
    with (
        configured(redis_admin, maxmemory_policy="allkeys-lru"),
        closing(RedisLink(urls["redis_url"]).client) as c,
    ):
        (finding,) = doctor(**urls)["redis.eviction"]
        with pytest.raises(Exception, match="allkeys-lru") as caught:
            check(c, Config(**urls))
    assert str(caught.value) == finding.what
