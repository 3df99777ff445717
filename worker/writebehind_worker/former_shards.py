"""The shards that a queue had before: whether one of them has writes that nobody would look for."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress

import psycopg
from redis import Redis
from structlog.typing import FilteringBoundLogger

from writebehind.keys import QueueKeys
from writebehind.shards import Layout, shards_of

from . import postgres
from .config import Config, one_line
from .errors import FatalError
from .lost_steps import left_behind, suspects
from .nodes import REDIS_ERRORS
from .redis_server import RedisLink
from .resharding import layout_of
from .shard_clocks import NODE_TIMEOUT_S, hear_clocks

_EVERY_S = 1.0
_REST = 20.0  # times as long as a look took
_FIRST_LOOK_S = 2.0


class FormerShards:
    """A thread looks at them now and then: those of a node that does not answer must not hold up the others.

    Into how many shards the queue was ever divided it knows from what this process has seen in Redis, which
    may forget, and from the ledger, which has a row of each shard that was ever served.
    """

    def __init__(self, config: Config, log: FilteringBoundLogger) -> None:
        self._config, self._keys, self._log = config, QueueKeys(config.queue), log
        self._told: set[str] = set()  # as far as it has been logged
        self._adding = threading.Lock()
        self._counts = frozenset({1})
        self._asks_ledger = True
        self.suspects = frozenset[int]()
        """Numbers of shards of which one says what does not fit the layout, and all can be asked."""
        self.left: tuple[QueueKeys, ...] = ()
        """Closed ones that hold something all the same: all that were seen."""
        self.silent = frozenset[QueueKeys]()
        """Shards that could not be asked when last looked at."""

    def watch(self, stop: threading.Event) -> None:
        """Until then. Returns after the first look, unless a server is slow to answer."""
        looked = threading.Event()
        threading.Thread(target=self._watch, args=(stop, looked), name="former shards", daemon=True).start()
        looked.wait(_FIRST_LOOK_S)

    def saw(self, layout: Layout) -> None:
        """Adds what it says."""
        self._add((layout.shards, *layout.draining, *((layout.closing,) if layout.closing else ())))

    def look(self, client: Redis) -> float:
        """Once. Shards that cannot be asked now are asked the next time.

        Returns how long the others took, s: who is silent does no work meanwhile.
        """
        layout = layout_of(client, self._keys)
        self.saw(layout)
        heard = hear_clocks(client, self._keys, self._counts, contents=True)
        found = suspects(layout, heard.clocks)
        self.suspects = found & heard.whole
        self.silent = heard.silent
        self._tell("a shard cannot be looked at: see docs/scaling.md", map(one_line, heard.errors.values()))
        if (waiting := found - heard.whole) and layout_of(client, self._keys) == layout:
            event = "redis lost steps of a division: they are mended once all shards of that number answer"
            self._tell(event, (f"{shards} shards" for shards in sorted(waiting)))
        self.left = tuple(dict.fromkeys((*self.left, *left_behind(self._keys, layout, heard.clocks))))
        return heard.took_s

    def _tell(self, event: str, reasons: Iterable[str]) -> None:
        """Each once."""
        for reason in reasons:
            if reason not in self._told:
                self._told.add(reason)
                self._log.warning(event, reason=reason)

    def _watch(self, stop: threading.Event, looked: threading.Event) -> None:
        with RedisLink(self._config.redis_url, at_most_s=NODE_TIMEOUT_S) as link:
            while not stop.is_set():
                self._ask_ledger()
                took_s = 0.0
                if self._counts != {1}:
                    with suppress(*REDIS_ERRORS, FatalError):  # whoever serves tells of them
                        took_s = self.look(link.client)
                looked.set()
                stop.wait(max(_EVERY_S, _REST * took_s))

    def _ask_ledger(self) -> None:
        """Until it has answered once. Whether Postgres is there is told by who serves a queue."""
        if not self._asks_ledger:
            return
        with suppress(psycopg.Error), postgres.connect(self._config.postgres_url) as conn:
            self._add(counts_in_ledger(conn, self._config.queue))
            self._asks_ledger = False

    def _add(self, counts: Iterable[int]) -> None:
        with self._adding:
            self._counts = self._counts.union(counts)


def counts_in_ledger(conn: postgres.Connection, queue: str) -> set[int]:
    """Of the shards that were ever served. Raises ``psycopg.Error``."""
    rows = conn.execute(
        "SELECT queue FROM writebehind.ledger WHERE starts_with(queue, $1::text || ':')", [queue]
    ).fetchall()
    return {shards for (name,) in rows if (shards := shards_of(queue, name)) is not None}
