"""Login sessions: none is lost to a flush of Redis, none that was revoked comes back."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from tests.support.rows import Rows
from tests.support.workers import RunningWorker

from writebehind import (
    AsyncSessionStore,
    AsyncWriteBehind,
    FlushTimeout,
    InvalidLoad,
    InvalidWrite,
    LoginSession,
    Observer,
    QueueFull,
    RateLimit,
    RedisFull,
    RedisRefused,
    SessionEnded,
    SessionStore,
    WriteBehind,
)
from writebehind.login_session import Lifetime
from writebehind.script import Script
from writebehind_worker.testing.proxy import Proxy, proxied_url
from writebehind_worker.testing.servers import Servers
from writebehind_worker.testing.wait import wait_until

TABLE = """
CREATE TABLE sessions (
    id text PRIMARY KEY,
    user_id text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    theme text NOT NULL DEFAULT 'light',
    credit numeric,
    cart jsonb
);
CREATE INDEX ON sessions (user_id);
"""
HOUR = dt.timedelta(hours=1)


@dataclass
class Site:
    """A store, and what stands behind it."""

    store: SessionStore
    wb: WriteBehind
    client: redis.Redis
    pg: psycopg.Connection[Any]
    options: dict[str, Any]
    loads: list[str]

    def work_off(self) -> None:
        """Brings all that waits to Postgres."""
        with RunningWorker(**self.options):
            wait_until(
                lambda: not self.client.llen(self.wb.keys.queue) + self.client.llen(self.wb.keys.inflight)
            )

    def flush(self) -> None:
        """Redis loses all that the queue and the cache have there."""
        for key in self.client.scan_iter(f"*{self.wb.keys.queue}*"):
            self.client.delete(key)

    def queued(self) -> list[dict[str, Any]]:
        """The messages that wait, oldest first."""
        return [json.loads(item) for item in reversed(self.client.lrange(self.wb.keys.queue, 0, -1))]

    def key(self, token: str) -> str:
        """The session's cache entry."""
        return f"{self.wb.settings.prefix}sessions:{digest(token)}"

    def end_in(self, token: str, left: dt.timedelta) -> None:
        """As if so much were left of the session's life."""
        end = dt.datetime.now(dt.UTC) + left
        self.client.hset(self.key(token), "expires_at", json.dumps(end.isoformat()))

    def live(self, token: str | None) -> LoginSession:
        session = self.store.get(token)
        assert session is not None
        return session

    def ids(self) -> set[str]:
        return {id for (id,) in self.pg.execute("SELECT id FROM sessions")}


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class Loaders:
    """What an application would give; each call has a connection of its own."""

    def __init__(self, postgres_url: str) -> None:
        self._url, self.loads = postgres_url, list[str]()

    def load(self, id: str) -> dict[str, Any] | None:
        self.loads.append(id)
        with psycopg.connect(self._url, row_factory=psycopg.rows.dict_row) as connection:
            return connection.execute("SELECT * FROM sessions WHERE id = %s", [id]).fetchone()

    def ids(self, user_id: str) -> list[str]:
        with psycopg.connect(self._url) as connection:
            return [
                id for (id,) in connection.execute("SELECT id FROM sessions WHERE user_id = %s", [user_id])
            ]


@pytest.fixture
def loaders(postgres_url: str, pg: psycopg.Connection[Any]) -> Loaders:
    pg.execute(TABLE)
    return Loaders(postgres_url)


@pytest.fixture
def store(connect: Callable[..., WriteBehind], loaders: Loaders) -> Callable[..., SessionStore]:
    """Makes stores of this test's queue."""

    def make(url: str | None = None, client: dict[str, Any] | None = None, **given: Any) -> SessionStore:
        wb = connect(*([url] if url else []), **(client or {}))
        return SessionStore(
            wb, **{"load": loaders.load, "load_ids_of_user": loaders.ids, "lifetime": 3600, **given}
        )

    return make


@pytest.fixture
def site(
    connect: Callable[..., WriteBehind],
    loaders: Loaders,
    redis_client: redis.Redis,
    pg: psycopg.Connection[Any],
    options: dict[str, Any],
) -> Site:
    wb = connect()
    made = SessionStore(wb, load=loaders.load, load_ids_of_user=loaders.ids, lifetime=3600)
    return Site(made, wb, redis_client, pg, options, loaders.loads)


# What the client is told.


def test_what_one_version_of_an_application_revokes_is_revoked_for_another(
    store: Callable[..., SessionStore],
) -> None:
    old, new = store(client={"version": 1}), store(client={"version": 2})
    first, second = old.create(7), old.create(7)
    assert old.get(first) == new.get(first) is not None
    new.revoke(first)
    assert old.get(first) is None
    new.revoke_all(7)
    assert old.get(second) is None


def test_no_limit_on_writes_keeps_a_session_from_being_read_or_revoked(
    store: Callable[..., SessionStore],
) -> None:
    made = store(client={"admit": lambda *_: RateLimit("writes", 1, per=60)}, slack=0.001, lifetime=2)
    tokens = [made.create(7) for _ in range(3)]
    time.sleep(0.01)  # their end is to be moved
    assert all(made.get(token) for token in tokens)
    made.set(tokens[0], "theme", "dark")
    made.revoke(tokens[0])
    made.revoke_all(7)
    assert [made.get(token) for token in tokens] == [None] * 3


def test_a_session_is_as_safe_as_the_client_says(site: Site, store: Callable[..., SessionStore]) -> None:
    safe = store(client={"durability": "committed", "durability_timeout": 0.1})
    tokens = [site.store.create(7) for _ in range(3)]
    making: list[Callable[[], str]] = [lambda: safe.create(8), lambda: safe.rotate(tokens[2])]
    for made in making:
        with pytest.raises(FlushTimeout) as caught:
            made()
        assert caught.value.token is not None
        assert site.store.get(caught.value.token) is not None
    for call in (
        lambda: safe.set(tokens[0], "theme", "dark"),
        lambda: safe.revoke(tokens[1]),
        lambda: safe.revoke_all(7),
    ):
        with pytest.raises(FlushTimeout):
            call()
    assert [site.store.get(token) for token in tokens] == [None] * 3
    waiting = len(site.queued())
    late = site.store.create(9)
    site.end_in(late, dt.timedelta(minutes=1))
    assert safe.get(late)
    assert safe.touch(late)
    assert len(site.queued()) == waiting + 2  # prolonged, once, and not waited for
    with RunningWorker(**site.options):
        patient = store(client={"durability": "committed", "durability_timeout": 20})
        token = patient.create(10)
        assert digest(token) in site.ids()
        patient.set(token, "theme", "dark")
        assert site.pg.execute("SELECT theme FROM sessions WHERE user_id = '10'").fetchall() == [("dark",)]
        new = patient.rotate(token)
        assert digest(new) in site.ids() and digest(token) not in site.ids()
        assert len(patient.revoke_all(10)) == 1
        assert site.ids() == {digest(late)} | {
            id for (id,) in site.pg.execute("SELECT id FROM sessions WHERE user_id = '8'")
        }


def test_the_sessions_of_a_uuid_are_found_however_it_is_spelt(site: Site) -> None:
    user = uuid4()
    spelt: list[str | UUID] = [user, str(user), str(user).upper(), f"{{{user}}}", user.hex]
    tokens = [site.store.create(one) for one in spelt]
    assert len(site.store.revoke_all(str(user).upper())) == len(spelt)
    assert [site.store.get(token) for token in tokens] == [None] * len(spelt)


def test_a_session_that_somebody_else_prolonged_is_no_failed_write(
    site: Site, store: Callable[..., SessionStore], redis_url: str
) -> None:
    failed: list[BaseException] = []

    class Heard(Observer):
        def write_failed(self, table: str, op: Any, error: BaseException) -> None:
            failed.append(error)

    token = site.store.create(7)
    site.end_in(token, dt.timedelta(minutes=1))
    with Proxy.to(redis_url) as proxy:
        late = store(proxied_url(redis_url, proxy.port), client={"observer": Heard()})
        proxy.pause_at(lambda chunk: b"HGETALL" in chunk)
        with ThreadPoolExecutor(1) as thread:
            reading = thread.submit(late.get, token)
            proxy.wait_for_pause()
            site.store.set(token, "theme", "dark")
            proxy.resume()
            assert reading.result(10) is not None
    assert failed == []
    assert len(site.queued()) == 2


# A session's life.


def test_a_session_from_login_to_logout(site: Site) -> None:
    before = dt.datetime.now(dt.UTC)
    token = site.store.create(7, {"theme": "dark", "cart": {"apples": 2}})
    session = site.live(token)
    assert (session.id, session.user_id) == (digest(token), "7")
    assert session.fields == {"theme": "dark", "cart": {"apples": 2}}
    assert abs(session.created_at - before) < dt.timedelta(seconds=10)
    assert session.expires_at - session.created_at == 1.1 * HOUR
    site.store.set(token, "theme", "light")
    site.store.update(token, {"cart": [], "credit": 3})
    assert site.live(token).fields == {"theme": "light", "cart": [], "credit": 3}
    assert site.store.touch(token)
    assert site.loads == []
    site.work_off()
    assert site.pg.execute("SELECT * FROM sessions").fetchall() == [
        (session.id, "7", session.created_at, session.expires_at, "light", Decimal(3), [])
    ]
    receipt = site.store.revoke(token)
    assert receipt is not None
    assert site.store.get(token) is None
    assert not site.store.touch(token)
    site.work_off()
    assert receipt.is_durable()
    assert site.ids() == set()


def test_a_flush_of_redis_logs_nobody_out_and_nobody_in(site: Site) -> None:
    tokens = [site.store.create(f"user {i % 10}", {"theme": f"t{i}", "cart": {"n": i}}) for i in range(60)]
    for i, token in enumerate(tokens):
        if i % 3 == 0:
            site.store.set(token, "cart", {"n": i, "more": [1.5, None]})
        if i % 5 == 0:
            site.store.revoke(token)
    site.store.revoke_all("user 9")
    before = [site.store.get(token) for token in tokens]
    assert [session is None for session in before] == [i % 5 == 0 or i % 10 == 9 for i in range(60)]
    site.work_off()
    site.flush()

    with RunningWorker(**site.options):
        after = [site.store.get(token) for token in tokens]
        for old, new in zip(before, after, strict=True):
            assert (old is None) == (new is None)
            if old is not None and new is not None:
                assert new.fields == {"credit": None, **old.fields}
                assert (new.user_id, new.created_at, new.expires_at) == (
                    old.user_id,
                    old.created_at,
                    old.expires_at,
                )
        loads = len(site.loads)
        assert [site.store.get(token) for token in tokens] == after
        assert len(site.loads) == loads
        site.store.set(tokens[1], "theme", "new").wait(10)
        assert len(site.store.revoke_all("user 1")) == 6
    assert [site.store.get(tokens[i]) for i in (1, 11, 21)] == [None] * 3


def test_a_session_that_redis_lost_is_loaded_once(site: Site) -> None:
    token = site.store.create("ada", {})
    site.work_off()
    site.flush()
    with ThreadPoolExecutor(12) as pool:
        sessions = list(pool.map(site.store.get, [token] * 60))
    assert sessions == [site.store.get(token)] * 60
    assert site.loads == [digest(token)]


def test_neither_redis_nor_postgres_has_a_token(site: Site) -> None:
    tokens = [site.store.create("ada", {})]
    tokens.append(site.store.rotate(tokens[0]))
    site.store.set(tokens[1], "theme", "dark")
    assert site.store.get("A" * 43) is None
    seen = b"".join(key + (site.client.dump(key) or b"") for key in site.client.scan_iter())
    assert digest(tokens[1]).encode() in seen
    site.work_off()
    seen += repr(site.pg.execute("SELECT * FROM sessions").fetchall()).encode()
    for token in tokens:
        assert token.encode() not in seen
    assert len({*tokens}) == 2


@pytest.mark.parametrize(
    "token", [None, "", "x", "a" * 64, "A" * 42 + "é", "A" * 42 + "\n", "*" * 43, "A" * 44, b"A" * 43, 7]
)
def test_what_is_no_token_is_no_session_and_costs_nothing(site: Site, token: Any) -> None:
    assert site.store.get(token) is None
    assert site.store.touch(token) is False
    assert site.store.revoke(token) is None
    for call in (lambda: site.store.set(token, "theme", "x"), lambda: site.store.rotate(token)):
        with pytest.raises(SessionEnded):
            call()
    assert site.loads == []
    assert site.queued() == []


# Its end.


def test_a_session_in_use_is_written_seldom_and_one_reader_of_many_writes(site: Site) -> None:
    token = site.store.create("ada", {"theme": "dark"})
    for _ in range(20):
        site.live(token)
    assert len(site.queued()) == 1
    site.end_in(token, HOUR - dt.timedelta(seconds=30))
    barrier = threading.Barrier(8)

    def read(_: int) -> LoginSession:
        barrier.wait()
        return site.live(token)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    _, prolong = site.queued()
    assert prolong["op"] == "patch"
    assert prolong["data"].keys() == {"expires_at"}
    session = site.live(token)
    assert 1.09 * HOUR < session.expires_at - dt.datetime.now(dt.UTC) <= 1.1 * HOUR
    assert session.fields == {"theme": "dark"}
    site.work_off()
    assert site.pg.execute("SELECT expires_at FROM sessions").fetchall() == [(session.expires_at,)]


def test_a_change_prolongs_by_the_same_write(site: Site) -> None:
    token = site.store.create("ada", {})
    site.end_in(token, HOUR / 2)
    site.store.set(token, "theme", "dark")
    assert site.live(token).expires_at - dt.datetime.now(dt.UTC) > HOUR
    assert [message["data"].keys() for message in site.queued()[1:]] == [{"theme", "expires_at"}]


def test_one_that_is_not_used_ends_although_its_entry_is_pending_and_stays(site: Site) -> None:
    """The worker is down: nothing but `expires_at` says so."""
    token = site.store.create("ada", {})
    site.end_in(token, dt.timedelta(0))
    assert site.client.pttl(site.key(token)) == -1
    assert site.store.get(token) is None
    assert not site.store.touch(token)
    for call in (lambda: site.store.set(token, "theme", "x"), lambda: site.store.rotate(token)):
        with pytest.raises(SessionEnded):
            call()
    assert len(site.queued()) == 1


def test_sessions_live_while_they_are_used_and_no_longer(
    store: Callable[..., SessionStore], site: Site
) -> None:
    short = store(lifetime=2, slack=0.2)
    used, idle = short.create("ada"), short.create("ada")
    with RunningWorker(**site.options):
        for _ in range(11):
            time.sleep(0.25)
            assert short.get(used) is not None
        assert short.get(idle) is None
        wait_until(lambda: not site.client.llen(site.wb.keys.queue))
        site.client.delete(site.key(used))
        assert short.get(used) is not None
        wait_until(lambda: short._carrier.run(short._core._find(used)) is None)
        assert short.get(used) is None


def test_an_entry_stays_cached_until_its_session_ends(site: Site) -> None:
    token = site.store.create("ada", {})
    site.work_off()
    assert 3950 <= site.client.ttl(site.key(token)) <= 3961
    site.client.delete(site.key(token))
    site.live(token)
    assert 3950 <= site.client.ttl(site.key(token)) <= 3961


def test_nothing_prolongs_a_session_beyond_its_greatest_age(
    store: Callable[..., SessionStore], site: Site
) -> None:
    aged = store(lifetime=3600, max_age=5400)
    token = aged.create("ada")
    session = aged.get(token)
    assert session is not None
    assert session.expires_at - session.created_at == 1.1 * HOUR
    began = dt.datetime.now(dt.UTC) - HOUR
    site.client.hset(site.key(token), "created_at", json.dumps(began.isoformat()))
    site.end_in(token, HOUR / 10)
    for _ in range(2):
        session = aged.get(token)
        assert session is not None
        assert session.expires_at == began + 1.5 * HOUR
    assert len(site.queued()) == 2
    assert store(lifetime=3600, max_age=3599).get(token) is None
    rotated = aged.get(aged.rotate(token))
    assert rotated is not None
    assert (rotated.created_at, rotated.expires_at) == (began, began + 1.5 * HOUR)


@pytest.mark.parametrize(
    "given",
    [{"lifetime": 0}, {"lifetime": True}, {"lifetime": 1.5}, {"max_age": 0}, {"slack": 0}, {"slack": 2}],
)
def test_limits_that_make_no_sense_are_refused(store: Callable[..., SessionStore], given: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        store(**given)


def test_the_time_to_live_of_an_entry_is_never_too_short() -> None:
    for idle, slack in ((1, 0.001), (1, 1), (3600, 0.1), (86_400, 0.333)):
        created = dt.datetime.now(dt.UTC)
        lifetime = Lifetime(idle, slack, None)
        assert created + dt.timedelta(seconds=lifetime.ttl_s) >= lifetime.end(created, created)


# Changes.


def test_changes_of_different_fields_at_once_are_all_kept(site: Site) -> None:
    token = site.store.create("ada", {"theme": "", "credit": 0, "cart": None})
    site.work_off()
    site.flush()  # the first of them have to load the row

    def change(i: int) -> None:
        name, value = (("theme", f"t{i}"), ("credit", i), ("cart", [i]))[i % 3]
        site.store.set(token, name, value)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(change, range(30)))
    fields = site.live(token).fields
    assert (fields["theme"][0], fields["credit"] % 3, fields["cart"][0] % 3) == ("t", 1, 2)
    site.work_off()
    row = site.pg.execute("SELECT theme, credit, cart FROM sessions").fetchone()
    assert row == (fields["theme"], fields["credit"], fields["cart"])


@pytest.mark.parametrize("name", ["id", "user_id", "created_at", "expires_at"])
def test_columns_of_the_store_are_not_the_applications(site: Site, name: str) -> None:
    with pytest.raises(InvalidWrite, match=name):
        site.store.create("ada", {name: "x"})
    token = site.store.create("ada", {})
    with pytest.raises(InvalidWrite, match=name):
        site.store.set(token, name, "x")


@pytest.mark.parametrize("user", [None, "", True, b"ada", "a\0", "\ud800", 1.5])
def test_a_session_is_of_a_user(site: Site, user: Any) -> None:
    with pytest.raises(InvalidWrite, match="user_id"):
        site.store.create(user, {})
    with pytest.raises(InvalidWrite, match="user_id"):
        site.store.revoke_all(user)


def test_a_change_of_a_session_that_ended_or_never_was_brings_none_back(site: Site) -> None:
    revoked, lost = site.store.create("ada", {}), "A" * 43
    site.store.revoke(revoked)
    for _ in range(2):
        for token in (revoked, lost):
            with pytest.raises(SessionEnded):
                site.store.set(token, "theme", "dark")
            with pytest.raises(SessionEnded):
                site.store.rotate(token)
        site.work_off()
        site.flush()
    assert site.ids() == set()
    assert site.pg.execute("SELECT FROM writebehind.dead_letters").rowcount == 0


def test_changes_that_race_with_a_logout_never_bring_a_session_back(site: Site) -> None:
    with ThreadPoolExecutor(4) as pool:
        for _ in range(40):
            token = site.store.create("ada", {})
            barrier = threading.Barrier(4)

            def race(call: Callable[[], Any], barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                for _ in range(3):
                    with suppress(SessionEnded):
                        call()

            done = [
                pool.submit(race, call)
                for call in (
                    lambda t=token: site.store.set(t, "theme", "x"),
                    lambda t=token: site.store.revoke(t),
                    lambda t=token: site.store.get(t),
                    lambda t=token: site.store.touch(t),
                )
            ]
            for call in done:
                call.result()
            assert site.store.get(token) is None
    site.work_off()
    assert site.ids() == set()
    assert site.pg.execute("SELECT FROM writebehind.dead_letters").rowcount == 0


def test_a_reader_who_loads_while_the_session_is_revoked_does_not_bring_it_back(
    store: Callable[..., SessionStore], site: Site, loaders: Loaders
) -> None:
    token = site.store.create("ada", {})
    site.work_off()
    site.flush()

    def load(id: str) -> Any:
        row = loaders.load(id)
        site.store.revoke(token)
        return row

    store(load=load).get(token)
    assert site.store.get(token) is None
    site.work_off()
    assert site.store.get(token) is None


def test_a_row_that_postgres_refuses_is_no_session(site: Site) -> None:
    token = site.store.create("ada", {"credit": "much"})
    site.live(token)
    site.work_off()
    assert site.store.get(token) is None
    with pytest.raises(SessionEnded):
        site.store.set(token, "theme", "dark")


# Rotation.


@pytest.mark.parametrize("is_flushed", [False, True])
def test_a_rotated_session_is_the_same_under_another_token(site: Site, is_flushed: bool) -> None:
    old = site.store.create("ada", {"theme": "dark", "credit": Decimal("0.12345678901234567890123")})
    before = site.live(old)
    if is_flushed:
        site.work_off()
        site.flush()
    new = site.store.rotate(old)
    assert site.store.get(old) is None
    after = site.live(new)
    assert {k: v for k, v in after.fields.items() if k != "cart"} == before.fields
    assert (after.user_id, after.created_at) == (before.user_id, before.created_at)
    assert after.id != before.id
    site.work_off()
    site.flush()
    assert site.store.get(old) is None
    assert site.live(new).created_at == before.created_at
    rows = site.pg.execute("SELECT id, theme, credit FROM sessions").fetchall()
    assert rows == [(after.id, "dark", Decimal("0.12345678901234567890123"))]


def test_of_many_rotations_at_once_one_wins(site: Site) -> None:
    token = site.store.create("ada", {})
    barrier = threading.Barrier(6)

    def rotate(_: int) -> str | None:
        barrier.wait()
        with suppress(SessionEnded):
            return site.store.rotate(token)
        return None

    with ThreadPoolExecutor(6) as pool:
        tokens = list(pool.map(rotate, range(6)))
    (new,) = [token for token in tokens if token]
    site.live(new)


def test_no_change_is_lost_to_a_rotation(site: Site) -> None:
    for i in range(20):
        token = site.store.create("ada", {"theme": "old"})
        barrier = threading.Barrier(2)

        def change(token: str = token, barrier: threading.Barrier = barrier, i: int = i) -> bool:
            barrier.wait()
            try:
                site.store.set(token, "theme", f"new {i}")
            except SessionEnded:
                return False
            return True

        with ThreadPoolExecutor(1) as pool:
            changed = pool.submit(change)
            barrier.wait()
            new = site.store.rotate(token)
            assert site.live(new).fields == {"theme": f"new {i}" if changed.result() else "old"}


# Logging out everywhere.


def test_all_of_a_user_are_revoked_wherever_they_are_known(site: Site) -> None:
    in_postgres = [site.store.create("ada", {}) for _ in range(3)]
    others = [site.store.create("bob", {}), site.store.create("ada:", {}), site.store.create("ad", {})]
    site.work_off()
    site.flush()
    cached = site.store.create("ada", {})
    site.work_off()
    pending = [site.store.create("ada", {}), site.store.rotate(cached)]
    kept = pending[0]
    mine = [*in_postgres, cached, *pending]

    receipts = site.store.revoke_all("ada", except_token=kept)
    assert len({receipt.seq for receipt in receipts}) == len(mine) - 1
    assert [token for token in mine if site.store.get(token)] == [kept]
    assert all(site.store.get(token) for token in others)
    site.work_off()
    for receipt in receipts:
        assert receipt.is_durable()
    site.flush()
    assert [token for token in mine if site.store.get(token)] == [kept]
    assert site.ids() == {digest(token) for token in (kept, *others)}
    assert len(site.store.revoke_all("ada")) == 1
    assert site.store.revoke_all("nobody") == []


def test_what_is_kept_of_new_sessions_is_what_is_pending(site: Site) -> None:
    keys = site.wb.keys
    for _ in range(3):
        for _ in range(40):
            site.store.create("ada", {})
        site.work_off()
    token = site.store.create("ada", {})
    for key in (keys.sessions, keys.session_seqs):
        assert site.client.zcard(key) <= 41
        assert site.client.ttl(key) == -1
    newest: Any = site.client.zrange(keys.session_seqs, -1, -1, withscores=True)
    assert newest[0][0].endswith(digest(token).encode())
    assert newest[0][1] == site.queued()[-1]["seq"]


def test_nothing_is_rotated_while_all_are_looked_for(site: Site, store: Callable[..., SessionStore]) -> None:
    hasty = store(timeout=0.05)
    kept, stolen, other = (site.store.create(user, {}) for user in ("ada", "ada", "bob"))
    refused = []

    def ids(_: str) -> list[str]:
        for token in (kept, stolen):
            with pytest.raises(RedisRefused, match="being revoked"):
                hasty.rotate(token)
            refused.append(token)
        site.store.rotate(other)
        return []

    revoking = store(load_ids_of_user=ids)
    assert len(revoking.revoke_all("ada", except_token=kept)) == 1
    assert refused == [kept, stolen]
    assert site.store.get(stolen) is None
    site.live(site.store.rotate(kept))


def test_one_who_revokes_all_beside_another_does_not_let_any_escape_him(
    site: Site, store: Callable[..., SessionStore]
) -> None:
    """The second keeps a session that the first has to end, and is done before the first is."""
    tokens = [site.store.create("ada", {})]

    def ids(_: str) -> list[str]:
        if len(tokens) < 3:
            site.store.revoke_all("ada", except_token=tokens[-1])
            tokens.append(site.store.rotate(tokens[-1]))
        return []

    store(load_ids_of_user=ids).revoke_all("ada")
    assert [site.store.get(token) for token in tokens] == [None] * 3


def test_who_dies_while_he_revokes_all_does_not_forbid_rotation_for_ever(
    site: Site, store: Callable[..., SessionStore]
) -> None:
    token = site.store.create("ada", {})

    def die(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store(load_ids_of_user=die).revoke_all("ada")
    (closing,) = site.client.scan_iter(f"*{site.wb.keys.queue}*:sessions:closing:*")
    assert 50 < site.client.ttl(closing) <= 60
    site.client.pexpire(closing, 30)
    site.live(site.store.rotate(token))


def has_escaped(tokens: list[str]) -> bool:
    return len(tokens) > 3


def test_somebody_who_rotates_all_the_time_is_logged_out(site: Site) -> None:
    with RunningWorker(**site.options):
        for _ in range(5):
            tokens = [site.store.create("ada", {})]
            stop = threading.Event()

            def escape(tokens: list[str] = tokens, stop: threading.Event = stop) -> None:
                with suppress(SessionEnded):
                    while not stop.is_set():
                        tokens.append(site.store.rotate(tokens[-1]))

            with ThreadPoolExecutor(1) as pool:
                escaping = pool.submit(escape)
                wait_until(partial(has_escaped, tokens))
                site.store.revoke_all("ada")
                stop.set()
                escaping.result()
            assert site.store.get(tokens[-1]) is None


def test_many_sessions_of_one_user_are_revoked(site: Site, store: Callable[..., SessionStore]) -> None:
    ids = [digest(str(i)) for i in range(10_050)]
    receipts = store(load_ids_of_user=lambda _: ids).revoke_all("ada")
    assert len({receipt.seq for receipt in receipts}) == len(ids) == site.client.llen(site.wb.keys.queue)


# Loaders.


def test_what_a_loader_returns_is_looked_at(site: Site, store: Callable[..., SessionStore]) -> None:
    now = dt.datetime.now(dt.UTC)
    good = {"user_id": 7, "created_at": str(now), "expires_at": f"{now + 2 * HOUR:%Y-%m-%d %H:%M:%S}+00"}
    session = store(load=lambda _: good).get("A" * 43)
    assert session is not None
    assert (session.user_id, session.created_at, session.fields) == ("7", now, {})
    for i, (bad, says) in enumerate(
        [
            ({"user_id": "x", "created_at": now}, "expires_at"),
            ({**good, "expires_at": dt.datetime.now()}, "timestamptz"),
            ({**good, "created_at": None}, "timestamptz"),
        ]
    ):
        with pytest.raises(InvalidLoad, match=says):
            store(load=lambda _, bad=bad: bad).get("A" * 42 + str(i))
    for ids in ("abc", 7, None, [("a",)], [1]):
        with pytest.raises(InvalidLoad, match="load_ids_of_user"):
            store(load_ids_of_user=lambda _, ids=ids: ids).revoke_all("ada")
    assert site.queued() == []


def test_a_loader_that_raises_is_heard(site: Site, store: Callable[..., SessionStore]) -> None:
    def fail(_: str) -> None:
        raise ConnectionRefusedError

    away = store(load=fail, load_ids_of_user=fail)
    token = site.store.create("ada", {})
    assert away.get(token) is not None
    site.client.delete(site.key(token))
    with pytest.raises(ConnectionRefusedError):
        away.get(token)
    with pytest.raises(ConnectionRefusedError):
        away.revoke_all("ada")


# Faults.


@contextmanager
def full(client: redis.Redis) -> Iterator[None]:
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


def test_a_full_redis_logs_nobody_out(site: Site, servers: Servers) -> None:
    if not servers.ours:
        pytest.skip("the server is the user's")
    token, lost = site.store.create("ada", {}), site.store.create("ada", {})
    site.work_off()
    site.end_in(token, HOUR / 2)
    site.client.delete(site.key(lost))
    with full(site.client):
        assert site.live(token).expires_at - dt.datetime.now(dt.UTC) < HOUR
        site.live(lost)
        for call in (
            lambda: site.store.create("ada", {}),
            lambda: site.store.touch(token),
            lambda: site.store.set(token, "theme", "x"),
            lambda: site.store.set(lost, "theme", "x"),
            lambda: site.store.rotate(token),
            lambda: site.store.revoke(token),
            lambda: site.store.revoke_all("ada"),
        ):
            with pytest.raises(RedisFull):
                call()
    assert site.queued() == []
    assert site.live(token).expires_at - dt.datetime.now(dt.UTC) > HOUR


def test_a_full_queue_logs_nobody_out(site: Site, store: Callable[..., SessionStore]) -> None:
    token = site.store.create("ada", {})
    site.end_in(token, HOUR / 2)
    tight = store(client={"max_queue_length": 1})
    assert tight.get(token) is not None
    for call in (lambda: tight.touch(token), lambda: tight.create("ada"), lambda: tight.rotate(token)):
        with pytest.raises(QueueFull):
            call()
    assert site.client.zcard(site.wb.keys.sessions) == 1
    assert len(site.queued()) == 1


@pytest.mark.parametrize("what", ["create", "set", "rotate", "get", "revoke"])
def test_a_call_whose_reply_is_lost_takes_effect_once(
    site: Site, store: Callable[..., SessionStore], redis_url: str, what: str
) -> None:
    with Proxy.to(redis_url) as proxy:
        behind = store(proxied_url(redis_url, proxy.port), client={"retry": Retry(NoBackoff(), 3)})
        token = behind.create("ada", {"theme": "old"})
        if what == "get":
            site.end_in(token, HOUR / 2)
        behind.set(token, "credit", 1)
        before = len(site.queued())
        sha = Script("writebehind", "enqueue" if what == "revoke" else "session").sha.encode()
        behind.revoke("A" * 43)  # its script is known
        before += 1
        if what == "get":
            site.end_in(token, HOUR / 2)
        proxy.drop_reply_after(lambda chunk: sha in chunk)
        new: str | None = token
        if what == "create":
            new = behind.create("ada", {"theme": "new"})
        elif what == "set":
            behind.set(token, "theme", "new")
        elif what == "rotate":
            new = behind.rotate(token)
        elif what == "get":
            behind.get(token)
        else:
            behind.revoke(token)
            new = None
        assert proxy.dropped == 1
    messages = site.queued()[before:]
    assert [message.get("op", "put") for message in messages] == {
        "create": ["put"],
        "set": ["patch"],
        "get": ["patch"],
        "rotate": ["delete", "put"],
        "revoke": ["delete"],
    }[what]
    if new:
        assert site.live(new).expires_at - dt.datetime.now(dt.UTC) > HOUR
    members: Any = site.client.zrange(site.wb.keys.session_seqs, 0, -1, withscores=True)
    puts = [message for message in site.queued() if "op" not in message]
    assert [(m[-64:].decode(), int(s)) for m, s in members] == [(m["id"], m["seq"]) for m in puts]


def test_something_else_at_the_key_is_said(site: Site, store: Callable[..., SessionStore]) -> None:
    hasty = store(timeout=0.1)
    token = site.store.create("ada", {})
    site.work_off()
    site.client.delete(site.key(token))
    site.client.set(site.key(token), "by hand")
    site.live(token)
    for call in (lambda: hasty.set(token, "theme", "x"), lambda: hasty.rotate(token)):
        with pytest.raises(RedisRefused, match="something else"):
            call()
    site.store.revoke(token)
    assert site.store.get(token) is None


def test_everything_works_while_no_worker_does(site: Site) -> None:
    tokens = [site.store.create(f"user {i % 2}", {"theme": "a"}) for i in range(20)]
    for token in tokens:
        site.store.set(token, "theme", "b")
    tokens[0] = site.store.rotate(tokens[0])
    site.store.revoke_all("user 1")
    assert [site.store.get(token) is not None for token in tokens] == [i % 2 == 0 for i in range(20)]
    assert site.loads == []
    site.work_off()
    assert site.ids() == {digest(token) for token in tokens[::2]}


def test_verify_finds_cached_sessions_as_they_are_in_postgres(rows: Rows, loaders: Loaders) -> None:
    store = SessionStore(rows.wb, load=loaders.load, load_ids_of_user=loaders.ids)
    tokens = [store.create("ada", {"theme": "dark", "credit": 1.5, "cart": {"n": i}}) for i in range(5)]
    store.set(tokens[0], "cart", None)
    tokens[1] = store.rotate(tokens[1])
    rows.flush()
    found = rows.verify()
    assert (found["exit_code"], found["agree"]) == (0, 6), found  # one of them is the old one's tombstone


# On an event loop.


def test_the_async_store_does_the_same(
    site: Site, redis_url: str, queue: str, loaders: Loaders, options: dict[str, Any]
) -> None:
    async def load(id: str) -> Any:
        await asyncio.sleep(0)
        return loaders.load(id)

    async def ids(user: str) -> list[str]:
        await asyncio.sleep(0)
        return loaders.ids(user)

    async def job() -> None:
        async with AsyncWriteBehind.from_url(redis_url, queue=queue, prefix=f"{queue}:") as wb:
            store = AsyncSessionStore(wb, load=load, load_ids_of_user=ids, lifetime=3600)
            tokens = await asyncio.gather(*(store.create("ada", {"theme": f"t{i}"}) for i in range(20)))
            await asyncio.gather(*(store.set(token, "credit", 1) for token in tokens))
            await (await store.update(tokens[0], {"cart": [1]})).wait(10)
            site.flush()
            wait_until(lambda: not site.client.exists(wb.keys.queue))
            sessions = await asyncio.gather(*(store.get(token) for token in tokens))
            assert [s.fields["theme"] for s in sessions if s] == [f"t{i}" for i in range(20)]
            new = await store.rotate(tokens[0])
            assert await store.touch(new)
            assert not await store.touch(tokens[0])
            revoked = await store.revoke(tokens[1])
            assert revoked is not None
            receipts = await store.revoke_all("ada", except_token=new)
            assert len(receipts) >= 18
            await receipts[-1].wait(10)
            left = await asyncio.gather(*(store.get(token) for token in [*tokens, new]))
            assert [s.user_id for s in left if s] == ["ada"]
            assert await store.revoke(None) is None
            with pytest.raises(SessionEnded):
                await store.set(tokens[2], "theme", "x")

    with RunningWorker(**options):
        asyncio.run(job())
    assert len(site.ids()) == 1


def test_cancelled_calls_leave_sessions_whole(
    site: Site, redis_url: str, queue: str, loaders: Loaders
) -> None:
    async def job() -> list[str]:
        async with AsyncWriteBehind.from_url(redis_url, queue=queue, prefix=f"{queue}:") as wb:
            store = AsyncSessionStore(wb, load=loaders.load, load_ids_of_user=loaders.ids)
            tokens = [await store.create("ada", {"theme": "t", "credit": i}) for i in range(40)]
            for i, token in enumerate(tokens):
                call = asyncio.create_task(store.rotate(token) if i % 2 else store.set(token, "theme", "t"))
                for _ in range(i % 9):
                    await asyncio.sleep(0)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
            return tokens

    tokens = asyncio.run(job())
    site.work_off()
    rows = site.pg.execute("SELECT theme, credit::int FROM sessions ORDER BY credit").fetchall()
    assert rows == [("t", i) for i in range(40)]
    assert all(site.store.get(token) for token in tokens[::2])
