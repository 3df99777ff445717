"""Both servers together."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from .base import NO_OPTIONS
from .postgres import EmbeddedPostgres
from .redis import EmbeddedRedis


class EmbeddedServers:
    """Both servers over one data folder; a context manager."""

    def __init__(
        self,
        data_dir: Path,
        *,
        redis_port: int = 0,
        postgres_port: int = 0,
        redis_options: Mapping[str, str] = NO_OPTIONS,
        postgres_options: Mapping[str, str] = NO_OPTIONS,
    ) -> None:
        self.data_dir = data_dir.resolve()
        self.redis = EmbeddedRedis(data_dir, port=redis_port, options=redis_options)
        self.postgres = EmbeddedPostgres(data_dir, port=postgres_port, options=postgres_options)

    @property
    def redis_url(self) -> str:
        return self.redis.url

    @property
    def postgres_url(self) -> str:
        return self.postgres.url

    def start(self) -> None:
        """Start both at once. If one fails, neither is left running."""
        _ = self.redis.program, self.postgres.program  # where one is missing, the other's data is not made
        try:
            with ThreadPoolExecutor(2) as pool:
                for started in [pool.submit(self.redis.start), pool.submit(self.postgres.start)]:
                    started.result()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        try:
            self.redis.stop()
        finally:
            self.postgres.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
