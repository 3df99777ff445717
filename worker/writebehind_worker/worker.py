"""The worker: connects, takes the lease, serves the queue; begins again when anything is lost."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psycopg
import redis
from structlog.typing import FilteringBoundLogger

from writebehind.identity import TableKey
from writebehind.keys import QueueKeys

from . import postgres, redis_server
from .backoff import Backoff
from .breaker import Breaker
from .config import Config, one_line, redacted
from .errors import LedgerRefused, OwnershipLost
from .flush import Flusher
from .heartbeat import BacklogSampler, Heartbeat
from .lease import Holder, Lease, own_name
from .ledger import Ledger
from .metrics import Metrics
from .nodes import SLOT_MOVES
from .owned_queue import CONNECTIONS, OwnedQueue, publish_tables
from .publisher import Publisher
from .redis_server import RedisLink
from .sqlstate import advice
from .state import WorkerState
from .takeover import Takeover, take_over
from .tenure import Tenure

_STANDBY_POLL_S = 0.2
_STANDBY_PING_S = 5.0
_STABLE_S = 10.0  # a tenure that lasted so long was no failed attempt
_STALL_MARGIN_S = 25.0  # for its own computing on a busy machine, and to resolve a name
_JOIN_S = 0.1


def stall_after_s(config: Config) -> float:
    """Seconds after which a worker that does not come round hangs: longer than it may wait for a server.

    The longest silence of Postgres that is none of its faults is one answer, or one attempt to connect.
    Whatever comes from there counts as progress, so that a statement may be one of many.
    """
    reply_s = config.statement_timeout_s + postgres.REPLY_GRACE_S
    connect_s = postgres.longest_connect_s(config.postgres_url)
    return max(reply_s, connect_s, redis_server.longest_silence_s(config.redis_url)) + _STALL_MARGIN_S


class Worker:
    """Brings one queue to Postgres. Any number may run on a queue: one owns it, the others stand by.

    ``whole``: the keys of the queue that this one is a shard of, where producers look. ``is_divided``: that
    has shards, or had some.
    """

    def __init__(
        self,
        config: Config,
        state: WorkerState,
        metrics: Metrics,
        log: FilteringBoundLogger,
        whole: QueueKeys | None = None,
        *,
        is_divided: bool = False,
    ) -> None:
        self._config, self._state, self._metrics = config, state, metrics
        self._log = log.bind(queue=config.queue)
        self._keys = QueueKeys(config.queue)
        self._whole, self._is_divided = whole or self._keys, is_divided
        self._owner = own_name()
        self._token = secrets.token_hex(16)
        self._breaker = Breaker()
        self._publisher = Publisher(metrics, self._log)
        self._backlog = BacklogSampler(self._keys, metrics)
        self._reasons: set[str] = set()  # for which Postgres is away, as far as they have been logged
        self._fatal: BaseException | None = None

    def run(self, stop: threading.Event, hurry: threading.Event | None = None) -> None:
        """Works until ``stop`` is set, then finishes what is frozen.

        Within ``stop_timeout_s`` of ``hurry``, which is ``stop`` unless another event is given: the process
        goes on then, and what is frozen may take as long as Postgres may.

        Raises:
            FatalError: the operator must act.
        """
        thread = threading.Thread(target=self._work, args=(stop,), name="work", daemon=True)
        thread.start()
        stop.wait()
        self._state.role_is("stopping")
        while thread.is_alive() and not (hurry or stop).is_set():
            thread.join(_JOIN_S)
        thread.join(self._config.stop_timeout_s)
        if thread.is_alive():
            self._log.warning(
                "stopped before the batch was finished; it stays frozen, and the next owner finishes it"
            )
        if self._fatal is not None:
            raise self._fatal

    def _work(self, stop: threading.Event) -> None:
        backoff = Backoff()
        try:
            while not stop.is_set():
                began = time.monotonic()
                self._state.progress()
                try:
                    self._serve_once(stop)
                except OwnershipLost as error:
                    self._log.warning("ownership lost", reason=str(error))
                except SLOT_MOVES as error:
                    self._log.warning("the queue's slot has moved, or moves", reason=one_line(error))
                except redis.RedisError as error:
                    self._redis_is(False, f"Redis: {one_line(error)}")
                except psycopg.Error as error:
                    self._postgres_is(False, f"Postgres: {one_line(error)}; {advice(error)}")
                except LedgerRefused as error:
                    self._postgres_is(False, str(error))
                self._state.role_is("starting")  # whoever held the lease, another may by now
                self._metrics.retried("begin again")
                if time.monotonic() - began > _STABLE_S:
                    backoff.reset()
                stop.wait(backoff.next_s())
        except BaseException as error:
            self._fatal = error
            stop.set()

    def _serve_once(self, stop: threading.Event) -> None:
        """One tenure, from connecting to its end."""
        url, name = self._config.redis_url, self._config.queue
        with RedisLink(url, name) as link, RedisLink(url, name) as side:
            redis_server.check(link.client, self._config)
            self._redis_is(True)
            if self._state.facts()["postgres_up"] is False:
                self._look_at_backlog(side.client)
            with self._connect() as conn:
                postgres.check_version(conn, redacted(self._config.postgres_url))
                ledger = Ledger(conn, self._config.queue, self._whole.queue, is_divided=self._is_divided)
                ledger.check()
                self._postgres_is(True)
                self._metrics.nothing_is_known()
                lease = self._lease(link.client)
                if not self._stand_by(lease, conn, stop):
                    return
                self._own(link, side, conn, ledger, lease, stop)

    def _look_at_backlog(self, client: redis.Redis) -> None:
        """Without Postgres nobody owns the queue, and somebody has to tell how it grows."""
        with contextlib.suppress(redis.RedisError, ValueError):
            self._backlog.sample(client)

    def _connect(self) -> postgres.Connection:
        c = self._config
        reply_timeout_s = c.statement_timeout_s + postgres.REPLY_GRACE_S
        return postgres.connect(c.postgres_url, reply_timeout_s, self._state.progress)

    def _lease(self, client: redis.Redis) -> Lease:
        return Lease(client, self._keys, self._token, self._owner, self._config.lease_ttl_s)

    def _stand_by(self, lease: Lease, conn: psycopg.Connection[Any], stop: threading.Event) -> bool:
        """Waits until the lease is ours; False if told to stop before."""
        pinged = time.monotonic()
        while not stop.is_set():
            holder: Holder | None = lease.take()
            if holder is None:
                return True
            if self._state.role_is("standby", owner=holder.owner):
                self._log.info("standing by", owner=holder.owner)
            self._state.progress()
            if time.monotonic() - pinged > _STANDBY_PING_S:
                conn.execute("SELECT")
                pinged = time.monotonic()
            stop.wait(_STANDBY_POLL_S)
        return False

    def _own(
        self,
        link: RedisLink,
        side: RedisLink,
        conn: psycopg.Connection[Any],
        ledger: Ledger,
        lease: Lease,
        stop: threading.Event,
    ) -> None:
        """From the lease to the end of the tenure. However it ends, the next worker need not wait."""
        c = self._config
        heart = Heartbeat(
            side.client, self._keys, self._lease(side.client), c.lease_ttl_s, self._metrics, self._log
        )
        heart.start()
        try:
            queue = OwnedQueue(link, self._keys, self._token, self._whole)
            taken = self._take_over(link, queue, ledger)
            self._tell(taken)
            flusher = self._flusher(conn, ledger, taken, side)
            frozen = list(taken.frozen)
            tenure = Tenure(
                c, queue, flusher, conn, frozen, self._state, self._metrics, self._publisher, self._log
            )
            del taken, frozen  # else they were kept until its end
            tenure.serve(stop, heart.lost)
        finally:
            heart.stop()
            self._metrics.lease_is(False)
            self._metrics.nothing_is_known()
            self._metrics.nothing_holds()
            self._state.held_is(None)
            self._state.delay_is(None)
            self._state.breaker_is(None)
            self._state.paused_is(None)
            with contextlib.suppress(redis.RedisError):
                if lease.release():
                    self._log.info("released")

    def _take_over(self, link: RedisLink, queue: OwnedQueue, ledger: Ledger) -> Takeover:
        """Asks the server that answers now for its run id: while we stood by it may have become another."""
        link.open(CONNECTIONS)
        before = link.connections
        run_id = redis_server.check(link.client, self._config)
        has_moved = partial(link.has_moved, self._keys.clock)
        taken = take_over(queue, ledger, self._owner, run_id, self._state.progress, has_moved)
        if link.connections != before:
            raise OwnershipLost("the connection to Redis was renewed: another server may answer now")
        return taken

    def _flusher(
        self, conn: psycopg.Connection[Any], ledger: Ledger, taken: Takeover, side: RedisLink
    ) -> Flusher:
        c = self._config
        flusher = Flusher(
            conn,
            ledger,
            taken.row,
            committed=taken.committed,
            tables=c.tables,
            lock_timeout_s=c.lock_timeout_s,
            statement_timeout_s=c.statement_timeout_s,
            breaker=self._breaker,
            publish=partial(self._publish_tables, side),
            refuse_newer=c.refuse_newer,
        )
        if unwritable := flusher.catalog.unwritable(c.tables):
            # No reason to stop: the other tables' writes go on, and dead letters can be sent again.
            self._log.warning(
                "--table names tables that cannot be written to; see `writebehind doctor`", tables=unwritable
            )
        return flusher

    def _publish_tables(self, side: RedisLink, tables: Mapping[str, TableKey]) -> None:
        """They are the whole queue's: on a cluster another node may have its slot."""
        if not side.is_clustered or self._whole is self._keys:
            publish_tables(side.client, self._whole, tables)
            return
        with RedisLink(self._config.redis_url, self._whole.queue) as link:
            publish_tables(link.client, self._whole, tables)

    def _tell(self, taken: Takeover) -> None:
        """Says what the new owner has found."""
        self._state.role_is("owner", epoch=taken.row.epoch, owner=self._owner)
        self._metrics.lease_is(True)
        self._metrics.epoch_is(taken.row.epoch)
        self._log.info("owner", epoch=taken.row.epoch, frozen_batches=len(taken.frozen))
        history, row = taken.history, taken.row
        if history.redis_went_back or (history.redis_is_new and row.generations):
            self._metrics.rollback_detected("redis")
            self._log.error(
                "redis went back in time: writes that it had accepted may be lost; what has been applied "
                "before is kept as dead letters of kind rollback",
                applied_before=row.rollback_items,
            )
        elif history.redis_restarted:
            self._log.warning(
                "redis has been restarted or has failed over: receipts given before cannot be answered; what "
                "it had not written to disk, or not replicated, is lost",
                applied_before=row.rollback_items,
            )
        if history.postgres_went_back:
            self._metrics.rollback_detected("postgres")
            self._log.error(
                "postgres went back in time: batches that it had committed are lost, and have left Redis; "
                "look for the writes that were accepted in this time",
                last_batch=row.recent_batches[-1] if row.recent_batches else None,
                acknowledged_batch=taken.found.acked,
                lost_after_seq=row.applied_seq,
                lost_up_to_seq=taken.found.applied,
                accepted_after=_utc(row.applied_seq),
                accepted_until=_utc(taken.found.applied),
            )

    def _redis_is(self, up: bool, reason: str | None = None) -> None:
        self._metrics.redis_is(up)
        if not up:
            self._metrics.nothing_is_known()
        if self._state.redis_is(up, reason):
            (self._log.info if up else self._log.warning)("redis", up=up, reason=reason)

    def _postgres_is(self, up: bool, reason: str | None = None) -> None:
        self._metrics.postgres_is(up)
        changed = self._state.postgres_is(up, reason)
        if up:
            self._reasons.clear()
        # Each reason once: a server that comes back may refuse us for another one.
        if changed or (reason is not None and reason not in self._reasons):
            self._reasons |= {reason} if reason is not None else set()
            (self._log.info if up else self._log.warning)("postgres", up=up, reason=reason)


def _utc(seq: int) -> str | None:
    """When a write was accepted, for people; ``None`` for what is no time: anybody may set keys in Redis."""
    return datetime.fromtimestamp(seq / 1e6, UTC).isoformat() if 0 < seq < 10**16 else None
