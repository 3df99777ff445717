"""Writes of which Postgres tells how often each took effect, and in which order."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, cast

import psycopg
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError
from redis.retry import Retry

from writebehind import Receipt, WriteBehind
from writebehind.keys import QueueKeys
from writebehind_worker.testing.wait import wait_until

TABLES = """
CREATE TABLE tally (id int PRIMARY KEY, n int NOT NULL);
CREATE TABLE latest (id int PRIMARY KEY, write int NOT NULL);
CREATE FUNCTION only_forward() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    IF NEW.write < OLD.write THEN RAISE 'write % came after %', NEW.write, OLD.write; END IF;
    RETURN NEW;
END$$;
CREATE TRIGGER only_forward BEFORE UPDATE ON latest FOR EACH ROW EXECUTE FUNCTION only_forward();
"""
WRITES = 2
"""Messages a tick: an increment of a row of its own, and a put of one of three rows."""


class _Pauses(ConstantBackoff):
    """``made``: how many there were, on all connections."""

    made = 0

    def compute(self, failures: int) -> float:
        self.made += 1
        return super().compute(failures)

    def __deepcopy__(self, memo: object) -> Self:
        return self  # redis-py copies it for each


class Tally:
    """A producer that re-sends for as long as Redis is away.

    ``ticks``: receipts of what was accepted. ``count`` numbers them, in the order in which they are sent.
    ``resent``: those whose call may have been sent more than once; a new connection counts, too.
    """

    def __init__(self, redis_url: str, queue: str) -> None:
        self._pauses = _Pauses(0.02)
        again = Retry(self._pauses, 1000, (ConnectionError, TimeoutError, BusyLoadingError))
        self.wb = WriteBehind.from_url(
            redis_url, queue=queue, prefix=f"{queue}:cache:", redis_options={"retry": again}
        )
        self.keys = QueueKeys(queue)
        self.ticks: dict[int, Receipt] = {}
        self.resent: set[int] = set()
        self.count = itertools.count()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def tick(self, times: int = 1) -> set[int]:
        """Accepts so many more; returns their numbers."""
        made = set()
        for i in itertools.islice(self.count, times):
            pauses = self._pauses.made
            with self.wb.batch() as batch:
                batch.increment("tally", i, {"n": 1})
                batch.put("latest", i % 3, {"write": i})
            if self._pauses.made > pauses:
                self.resent.add(i)
            self.ticks[i] = batch.receipts[-1]
            made.add(i)
        return made

    def start(self) -> None:
        """Goes on ticking in a thread."""

        def run() -> None:
            while not self._stop.is_set():
                self.tick()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; a second time is harmless."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=30)
            assert not self._thread.is_alive(), "the producer hangs"

    def wait_for(self, ticks: int) -> None:
        """Until so many have been accepted."""
        wait_until(lambda: len(self.ticks) >= ticks)

    def pending(self, client: Redis, resolved: Sequence[int] = ()) -> set[int]:
        """The ticks that a server holds: in its list, and in frozen batches after the last ``resolved``."""
        frozen = [int(batch) for batch in client.lrange(self.keys.inflight, 0, -1)]
        while set(frozen) & set(resolved):
            del frozen[0]
        lists = [self.keys.queue, *map(self.keys.processing, frozen)]
        return numbers([cast(bytes, item) for name in lists for item in client.lrange(name, 0, -1)])

    def wait_until_drained(self, timeout: float = 20) -> None:
        """Until nothing waits and nothing is frozen."""

        def left() -> int:
            with suppress(ConnectionError, TimeoutError):
                return int(self.wb.redis.llen(self.keys.queue) + self.wb.redis.llen(self.keys.inflight))
            return -1

        wait_until(lambda: left() == 0, timeout, message="the queue was not drained")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self.wb.close()


class TallyDatabase:
    """What Postgres says of it. ``conn``: autocommit."""

    def __init__(self, conn: psycopg.Connection[Any], queue: str) -> None:
        self.conn, self._queue = conn, queue

    def has_tables(self) -> bool:
        """Whether they can be seen, on a standby, say."""
        return (
            self.conn.execute("SELECT FROM pg_class WHERE oid = to_regclass('tally')").fetchone() is not None
        )

    def applied(self, resent: Collection[int] = ()) -> set[int]:
        """The ticks that have taken effect; none twice, but for those ``resent`` across a failover."""
        counts = dict(self.conn.execute("SELECT id, n FROM tally").fetchall())
        twice = {i: n for i, n in counts.items() if n != 1 and not (n == 2 and i in resent)}
        assert not twice, twice
        return set(counts)

    def check(self, expected: set[int], resent: Collection[int] = ()) -> None:
        """Just these have taken effect, once each and in order; nothing was refused."""
        assert self.applied(resent) == expected
        latest = {i % 3: i for i in sorted(expected)}
        assert dict(self.conn.execute("SELECT id, write FROM latest").fetchall()) == latest
        assert self.dead("rejected") == []

    def dead(self, kind: str) -> list[bytes]:
        """The bodies of the dead letters of one kind."""
        found = self.conn.execute(
            "SELECT body FROM writebehind.dead_letters WHERE queue = %s AND kind = %s", [self._queue, kind]
        )
        return [body for (body,) in found.fetchall()]

    def ledger(self, column: str) -> Any:
        """A column of the queue's row."""
        query = psycopg.sql.SQL("SELECT {} FROM writebehind.ledger WHERE queue = %s")
        found = self.conn.execute(query.format(psycopg.sql.Identifier(column)), [self._queue]).fetchone()
        return None if found is None else found[0]


def numbers(bodies: Sequence[bytes]) -> set[int]:
    """The ticks of these messages."""
    return {read["id"] for read in map(json.loads, bodies) if read["table"] == "tally"}
