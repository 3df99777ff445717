"""Into how many shards a queue has ever been divided."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import psycopg

from writebehind.shards import Layout, shards_of

from . import postgres
from .config import Config

_ASK_AGAIN_S = 10.0


class KnownCounts:
    """What this process has seen in Redis, and what the ledger has of each shard that was ever served.

    Redis may forget; the ledger is asked until it has answered once, by a thread: Postgres may be silent.
    """

    def __init__(self, config: Config) -> None:
        self._config, self._found = config, frozenset[int]()

    def ask_the_ledger(self, stop: threading.Event) -> None:
        """In a thread of its own, which ends when the ledger has answered."""
        threading.Thread(target=self._ask, args=(stop,), name="known counts", daemon=True).start()

    def saw(self, layout: Layout) -> None:
        """Adds what it says."""
        self._add((layout.shards, *layout.draining, *((layout.closing,) if layout.closing else ())))

    def all(self) -> frozenset[int]:
        """As far as is known by now."""
        return self._found

    def _add(self, counts: Iterable[int]) -> None:
        self._found = self._found.union(counts)

    def _ask(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                with postgres.connect(self._config.postgres_url) as conn:
                    self._add(counts_in_ledger(conn, self._config.queue))
                return
            except psycopg.Error:  # who serves a queue tells of it
                stop.wait(_ASK_AGAIN_S)


def counts_in_ledger(conn: postgres.Connection, queue: str) -> set[int]:
    """Of the shards that were ever served. Raises ``psycopg.Error``."""
    rows = conn.execute(
        "SELECT queue FROM writebehind.ledger WHERE starts_with(queue, $1::text || ':')", [queue]
    ).fetchall()
    return {shards for (name,) in rows if (shards := shards_of(queue, name)) is not None}
