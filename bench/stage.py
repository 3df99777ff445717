"""The servers on which all compete, with the settings that all share."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import psycopg
from redis import Redis

from writebehind_worker.embedded import EmbeddedServers, temporary_data_dir
from writebehind_worker.ledger_schema import apply_schema

from .cpu import cpu_s, family_cpu_s

# As in production. Nothing but the rivals' own work may fall into a run: rows are vacuumed and a checkpoint
# is made before each, so autovacuum is off and no checkpoint and no rewriting of the AOF comes by itself.
POSTGRES = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "256MB",
    "max_wal_size": "8GB",
    "min_wal_size": "1GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
}
REDIS = {"appendonly": "yes", "appendfsync": "everysec", "auto-aof-rewrite-percentage": "0"}
_AOF_BYTES = 1 << 30
_SLOW_US, _MOST_SLOW = 50, 100_000


class Stage:
    """Both servers in a folder of their own, which goes with them."""

    def __init__(self, wal_segments: int) -> None:
        self._wal_segments = wal_segments
        self.folder = temporary_data_dir()
        self._clients = ExitStack()
        self._servers = EmbeddedServers(self.folder, redis_options=REDIS, postgres_options=POSTGRES)

    def __enter__(self) -> Self:
        try:
            self._servers.start()
            self.redis_url, self.postgres_url = self._servers.redis_url, self._servers.postgres_url
            self.redis = self._clients.enter_context(Redis.from_url(self.redis_url))
            self.pg: psycopg.Connection[Any] = self._clients.enter_context(
                psycopg.connect(self.postgres_url, autocommit=True)
            )
            apply_schema(self.pg)
            self._lay_in_wal()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._clients.close()
        self._servers.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _lay_in_wal(self) -> None:
        """Segments to be written anew, as a server has them that has run for a while.

        A commit that has to make one takes ten times as long, every few seconds: p99 would tell of that.
        """
        for _ in range(self._wal_segments):
            self.pg.execute("SELECT pg_logical_emit_message(false, 'bench', '')")
            self.pg.execute("SELECT pg_switch_wal()")
        self.pg.execute("CHECKPOINT")

    def empty_redis(self) -> None:
        """Nothing is in it, and nothing of before is left to be written."""
        self.redis.flushall()
        if self.redis.info("persistence")["aof_current_size"] > _AOF_BYTES:
            self.redis.bgrewriteaof()
            while self._rewrites():
                time.sleep(0.01)

    @contextmanager
    def redis_unsynced(self) -> Iterator[None]:
        """Meanwhile the system decides when Redis' log goes to the disk, which Postgres' is on, too."""
        with self._redis_set({"appendfsync": "no"}):
            yield

    @contextmanager
    def slow_commands(self) -> Iterator[list[tuple[bytes, float]]]:
        """In the end, what took Redis longer than 0.05 ms meanwhile, and how many ms."""
        found: list[tuple[bytes, float]] = []
        with self._redis_set({"slowlog-log-slower-than": _SLOW_US, "slowlog-max-len": _MOST_SLOW}):
            self.redis.slowlog_reset()
            yield found
            found += [(e["command"], e["duration"] / 1000) for e in self.redis.slowlog_get(_MOST_SLOW)]

    @contextmanager
    def _redis_set(self, options: Mapping[str, str | int]) -> Iterator[None]:
        """Meanwhile; then as it was before."""
        before = {name: self.redis.config_get(name)[name] for name in options}
        for name, value in options.items():
            self.redis.config_set(name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                self.redis.config_set(name, value)

    def _rewrites(self) -> bool:
        found = self.redis.info("persistence")
        return bool(found["aof_rewrite_in_progress"] or found["aof_rewrite_scheduled"])

    def cpu(self, pid: int) -> dict[str, float]:
        """CPU seconds used so far, by process."""
        redis, postgres = self._servers.redis.pid, self._servers.postgres.pid
        assert redis is not None
        assert postgres is not None
        return {"process": cpu_s(pid), "redis": cpu_s(redis), "postgres": family_cpu_s(postgres)}

    def machine(self) -> dict[str, Any]:
        """On what this ran."""
        found = self.redis.info("server")
        version = found.get("valkey_version")
        row = self.pg.execute("SHOW server_version").fetchone()
        return {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
            "redis": f"Valkey {version}" if version else f"Redis {found['redis_version']}",
            "postgres": f"PostgreSQL {row[0] if row else ''}",
        }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
