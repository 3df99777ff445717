"""docs/operations.md, back up and restore: what each way brings back, and that nothing takes effect twice."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from tests.conftest import SCHEMA
from tests.support.workers import RunningWorker

from writebehind import WriteBehind
from writebehind.keys import QueueKeys
from writebehind_worker.embedded import EmbeddedServers
from writebehind_worker.embedded.program import postgres_bin
from writebehind_worker.embedded.redis import EmbeddedRedis
from writebehind_worker.pause import pause, resume
from writebehind_worker.testing.wait import wait_until

KEYS = QueueKeys()


class Site:
    """Two servers, the table `counters`, and backups of both."""

    def __init__(self, servers: EmbeddedServers, folder: Path) -> None:
        self.servers, self.folder = servers, folder
        self.restored: EmbeddedRedis | None = None
        with self.postgres() as pg:
            pg.execute(SCHEMA.read_bytes())
            pg.execute("CREATE TABLE counters (id int PRIMARY KEY, n bigint)")

    @property
    def redis_url(self) -> str:
        return self.restored.url if self.restored else self.servers.redis_url

    def postgres(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.servers.postgres_url, autocommit=True)

    def redis(self) -> redis.Redis:
        return redis.Redis.from_url(self.redis_url)

    def worker(self) -> RunningWorker:
        return RunningWorker(redis_url=self.redis_url, postgres_url=self.servers.postgres_url)

    def write(self, *ids: int) -> None:
        """One to each of these counters, accepted by Redis."""
        with WriteBehind.from_url(self.redis_url) as wb:
            for id in ids:
                wb.increment("counters", id, {"n": 1})

    def apply(self) -> None:
        """A worker runs until nothing is left."""
        with self.worker(), self.redis() as client:
            wait_until(lambda: client.llen(KEYS.queue) + client.llen(KEYS.inflight) == 0, timeout=20)

    def rows(self) -> dict[int, int]:
        with self.postgres() as pg:
            return dict(pg.execute("SELECT id, n FROM counters"))

    def dead_letters(self) -> list[str]:
        with self.postgres() as pg:
            return [kind for (kind,) in pg.execute("SELECT kind FROM writebehind.dead_letters")]

    def back_up_redis(self) -> None:
        target = self.folder / "dump.rdb"
        if shutil.which("redis-cli"):
            with self.redis() as client:
                client.config_set("repl-diskless-sync-delay", 0)  # it waits 5 s for other replicas
            run("redis-cli", "-u", self.redis_url, "--rdb", target)
        else:
            with self.redis() as client:
                client.save()
            shutil.copy2(self.servers.data_dir / "redis" / "dump.rdb", target)

    def back_up_postgres(self) -> None:
        target, url = self.folder / "app.dump", self.servers.postgres_url
        run(self._program("pg_dump"), "--format", "custom", "--file", target, url)

    def restore_redis(self) -> None:
        """At the same address. With AOF on it would pass over the file, and start empty."""
        port = self.servers.redis.port
        self.servers.redis.stop()
        folder = self.folder / "restored"
        (folder / "redis").mkdir(parents=True)
        shutil.copy2(self.folder / "dump.rdb", folder / "redis")
        self.restored = EmbeddedRedis(folder, port=port, options={"appendonly": "no"})
        self.restored.start()

    def restore_postgres(self) -> None:
        url = self.servers.postgres_url
        run(self._program("pg_restore"), "--clean", "--if-exists", "--dbname", url, self.folder / "app.dump")

    def _program(self, name: str) -> Path:
        return postgres_bin(None) / name

    def close(self) -> None:
        with suppress(redis.RedisError), self.redis() as client:
            resume(client, KEYS)
        if self.restored:
            self.restored.stop()


def run(*words: str | Path) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def site(own_servers: EmbeddedServers, tmp_path: Path) -> Iterator[Site]:
    made = Site(own_servers, tmp_path)
    yield made
    made.close()


def test_a_pair_taken_in_a_pause(site: Site) -> None:
    site.write(1, 2)
    site.apply()
    with site.redis() as client:
        pause(client, KEYS, "backup")
        site.write(2, 3)
        site.back_up_redis()
        site.back_up_postgres()
        resume(client, KEYS)
    site.write(4)
    site.apply()
    assert site.rows() == {1: 1, 2: 2, 3: 1, 4: 1}
    site.restore_redis()
    site.restore_postgres()
    with site.worker() as worker, site.redis() as client:
        wait_until(lambda: worker.facts["paused"] is not None)
        assert (site.rows(), client.llen(KEYS.queue)) == ({1: 1, 2: 1}, 2)
        resume(client, KEYS)
        wait_until(lambda: site.rows() == {1: 1, 2: 2, 3: 1})
    assert site.dead_letters() == []


def test_redis_first_and_postgres_after_it(site: Site) -> None:
    site.write(1, 2)
    site.apply()
    site.write(2, 3)
    site.back_up_redis()
    site.apply()
    site.back_up_postgres()
    site.write(4)
    site.apply()
    site.restore_redis()
    site.restore_postgres()
    site.apply()
    assert site.rows() == {1: 1, 2: 2, 3: 1}
    assert site.dead_letters() == ["rollback", "rollback"]


def test_redis_only(site: Site) -> None:
    site.write(1)
    site.back_up_redis()
    site.apply()
    site.write(2)
    site.restore_redis()
    site.apply()
    assert site.rows() == {1: 1}
    assert site.dead_letters() == ["rollback"]
    site.write(1)
    site.apply()
    assert site.rows() == {1: 2}


def test_postgres_only(site: Site) -> None:
    site.write(1)
    site.apply()
    site.back_up_postgres()
    site.write(1, 2)
    site.apply()
    site.restore_postgres()
    site.write(3)
    with site.worker() as worker:
        wait_until(lambda: site.rows() == {1: 1, 3: 1})
        assert worker.metric("rollbacks_total", server="postgres") == 1


def test_a_redis_that_comes_back_empty(site: Site) -> None:
    site.write(1)
    site.apply()
    with site.redis() as client:
        client.flushall()
    site.write(1, 2)
    site.apply()
    assert site.rows() == {1: 2, 2: 1}
    assert site.dead_letters() == []


def test_without_the_ledger_what_redis_holds_is_applied(site: Site) -> None:
    """And what of it had been committed, twice: the document warns of it."""
    site.write(1)
    site.back_up_redis()
    site.apply()
    with site.postgres() as pg:
        pg.execute("DROP SCHEMA writebehind CASCADE")
        pg.execute(SCHEMA.read_bytes())
    site.restore_redis()
    site.apply()
    assert site.rows() == {1: 2}
