"""A primary and its replica as real processes, of either server, and one address for both.

    clients ─▶ address ─▶ primary ─▶ link ─▶ replica

``link`` is a proxy: held, it makes the replica lag. Promoted, the replica takes writes; ``move_address``
lets the clients find it, as a virtual IP or DNS would.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import psycopg
import redis

from writebehind_worker.embedded import EmbeddedPostgres, EmbeddedRedis, ServerNotFound
from writebehind_worker.embedded.process import spawn
from writebehind_worker.testing.proxy import Proxy, proxied_url
from writebehind_worker.testing.servers import FAST_POSTGRES, copy_cluster, missing, new_data_dir
from writebehind_worker.testing.wait import wait_until

_BACKUP_TIMEOUT_S = 60


class RedisPair:
    """``url`` is that of the address. Nothing of the primary's is lost but by the link."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = temporary_folder(stack)
            self.primary = EmbeddedRedis(folder / "primary", options={"repl-diskless-sync-delay": "0"})
            started_in(stack, self.primary)
            self.link = stack.enter_context(Proxy.to(self.primary.url))
            self.replica = EmbeddedRedis(folder / "replica")
            started_in(stack, self.replica)
            self.address = stack.enter_context(Proxy.to(self.primary.url))
            self.url = proxied_url(self.primary.url, self.address.port)
            self.on_primary = stack.enter_context(redis.Redis.from_url(self.primary.url))
            self.on_replica = stack.enter_context(redis.Redis.from_url(self.replica.url))
            self.on_replica.replicaof("127.0.0.1", self.link.port)
            wait_until(lambda: self._replication(self.on_replica)["master_link_status"] == "up")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @staticmethod
    def _replication(client: redis.Redis) -> dict[str, Any]:
        found: dict[str, Any] = client.info("replication")
        return found

    def offset(self) -> int:
        """Bytes that the primary has had for its replica."""
        return int(self._replication(self.on_primary)["master_repl_offset"])

    def catch_up(self) -> None:
        """Until the replica has all that the primary had when this was called."""
        offset = self.offset()
        wait_until(lambda: self._replication(self.on_replica)["slave_repl_offset"] >= offset)

    def lag(self) -> None:
        """What comes from now on does not reach the replica."""
        self.catch_up()
        self.link.pause()

    def promote(self) -> None:
        """The replica takes writes; what it has not received is lost to it."""
        self.on_replica.replicaof("NO", "ONE")

    def move_address(self) -> None:
        """Clients come to the replica."""
        self.address.redirect(self.replica.url)

    def fail_over(self) -> None:
        """The primary is killed, the replica takes its place."""
        self.primary.kill()
        self.promote()
        self.move_address()

    def fail_back(self) -> None:
        """The former primary becomes a replica of the promoted one, has all of it, and is promoted again."""
        self.on_primary.replicaof("127.0.0.1", self.replica.port)
        wait_until(lambda: self._replication(self.on_primary)["master_link_status"] == "up")
        self.on_primary.replicaof("NO", "ONE")


class PostgresPair:
    """Streaming replication; asynchronous until ``wait_for_standby_at_commit``. URLs are without a database's
    tables: apply the schema yourself."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = temporary_folder(stack)
            copy_cluster(folder / "primary")
            self.primary = EmbeddedPostgres(folder / "primary", options=FAST_POSTGRES)
            started_in(stack, self.primary)
            self.link = stack.enter_context(Proxy.to(self.primary.url))
            self.standby = _Standby(folder / "standby", options=FAST_POSTGRES)
            self.standby.source = f"host=127.0.0.1 port={self.link.port} user=postgres"
            started_in(stack, self.standby)
            self.address = stack.enter_context(Proxy.to(self.primary.url))
            self.url = proxied_url(self.primary.url, self.address.port)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _on_primary(self, query: str) -> Any:
        with psycopg.connect(self.primary.url, autocommit=True) as conn:
            found = conn.execute(query.encode())
            return found.fetchone() if found.description else None

    def wait_for_standby_at_commit(self) -> None:
        """Replication is synchronous from now on."""
        self._on_primary("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self._on_primary("SELECT pg_reload_conf()")
        state = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
        wait_until(lambda: self._on_primary(state) is not None)

    def catch_up(self) -> None:
        """Until the standby has all that the primary had when this was called."""
        (flushed,) = self._on_primary("SELECT pg_current_wal_flush_lsn()")
        arrived = f"SELECT 1 FROM pg_stat_replication WHERE replay_lsn >= '{flushed}'"
        wait_until(lambda: self._on_primary(arrived) is not None)

    def lag(self) -> None:
        """What is committed from now on does not reach the standby."""
        self.catch_up()
        self.link.pause()

    def promote(self) -> None:
        """The standby takes writes; WAL that it has not received is lost to it."""
        with psycopg.connect(self.standby.url, autocommit=True) as conn:
            found = conn.execute("SELECT pg_promote(true, 30)").fetchone()
            assert found == (True,)

    def move_address(self) -> None:
        """Clients come to the standby."""
        self.address.redirect(self.standby.url)

    def fail_over(self) -> None:
        """The primary is killed, the standby takes its place."""
        self.primary.kill()
        self.promote()
        self.move_address()


class _Standby(EmbeddedPostgres):
    """Made by pg_basebackup, and streaming from then on."""

    source = ""

    def initialise(self) -> None:
        backup = self.program.with_name("pg_basebackup")
        if not backup.exists():
            missing(f"{backup} is missing; install PostgreSQL with its client programs")
        self._folder.mkdir(mode=0o700)
        if self._account:
            shutil.chown(self._folder, *self._account)
        command = [str(backup), "-D", str(self._folder), "-d", self.source, "-R", "-c", "fast", "--no-sync"]
        with self._log.open("ab") as log:
            code = spawn(command, log, self._account).wait(_BACKUP_TIMEOUT_S)
        assert code == 0, f"pg_basebackup failed:\n{self._log_tail()}"

    def _answers(self, port: int) -> bool:
        lines = self._pid_file_lines()
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7] in ("standby", "ready")


def temporary_folder(stack: ExitStack) -> Path:
    folder = new_data_dir()
    stack.callback(shutil.rmtree, folder)
    return folder


def started_in(stack: ExitStack, server: EmbeddedRedis | EmbeddedPostgres) -> None:
    try:
        stack.callback(server.kill)
        server.start()
    except ServerNotFound as error:
        missing(str(error))
