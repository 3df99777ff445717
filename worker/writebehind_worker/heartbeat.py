"""Beside the loop: renews the lease, samples the gauges, forgets idle producer sessions."""

from __future__ import annotations

import re
import threading
import time
from typing import Any, cast

import redis
from redis import Redis
from structlog.typing import FilteringBoundLogger

from writebehind.keys import QueueKeys
from writebehind.script import Script

from .lease import Lease
from .metrics import Metrics
from .redis_server import redis_risks

_REAP = Script("writebehind_worker", "reap")
_WAITING = Script("writebehind_worker", "waiting")
_PRODUCER = re.compile(rb"[0-9]+:([0-9]{1,18}):")
_REAP_EVERY_S = 3600.0
_SESSION_IDLE_S = 86_400.0
_SAMPLE_EVERY_S = 1.0
_RISKS_EVERY_S = 10.0


class Heartbeat:
    """A thread that beats three times a lease period. ``lost`` is set when the lease is not ours any more."""

    def __init__(
        self,
        client: Redis,
        keys: QueueKeys,
        lease: Lease,
        ttl_s: float,
        metrics: Metrics,
        log: FilteringBoundLogger,
    ) -> None:
        self._client, self._keys, self._lease, self._ttl_s = client, keys, lease, ttl_s
        self._metrics, self._log = metrics, log
        self._stop = threading.Event()
        self._backlog = BacklogSampler(keys, metrics)
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._reaped_at = time.monotonic()
        self._risks_at = 0.0
        self.lost = threading.Event()

    def start(self) -> None:
        """Starts beating."""
        self._thread.start()

    def stop(self) -> None:
        """Stops; a second time is harmless."""
        self._stop.set()
        self._thread.join(timeout=self._ttl_s)

    def _beat(self) -> None:
        try:
            self._run()
        finally:  # whatever ended it: without a heartbeat we are not the owner for long
            self.lost.set()

    def _run(self) -> None:
        period = min(self._ttl_s / 3, _SAMPLE_EVERY_S)
        renewed = time.monotonic()
        while not self._stop.wait(period):
            try:
                if not self._lease.renew():
                    return
                renewed = time.monotonic()
                self._backlog.sample(self._client)
                self._look_for_risks()
                self._reap()
            except (redis.RedisError, ValueError) as error:  # anybody may write to our keys
                self._log.debug("heartbeat failed", error=str(error))
                if time.monotonic() - renewed > self._ttl_s:
                    return

    def _look_for_risks(self) -> None:
        if time.monotonic() >= self._risks_at:
            self._risks_at = time.monotonic() + _RISKS_EVERY_S
            info: dict[str, Any] = self._client.info()
            self._metrics.redis_risks_are(redis_risks(info))
            self._metrics.redis_told(info)

    def _reap(self) -> None:
        """Producer sessions end without saying so; one that was idle for a day is taken as ended."""
        if time.monotonic() - self._reaped_at < _REAP_EVERY_S:
            return
        self._reaped_at = time.monotonic()
        reap_sessions(self._client, self._keys, _SESSION_IDLE_S)


class BacklogSampler:
    """Tells the metrics what waits in Redis."""

    def __init__(self, keys: QueueKeys, metrics: Metrics) -> None:
        self._keys, self._metrics = keys, metrics
        self._ageless_since: float | None = None

    def sample(self, client: Redis) -> None:
        """Raises ``RedisError``, or ``ValueError`` for what is none of our keys' contents."""
        with client.pipeline(transaction=False) as pipe:
            pipe.lrange(self._keys.inflight, 0, -1)
            pipe.time()
            batches, (seconds, micros) = pipe.execute()
        lists = [self._keys.processing(int(b)) for b in batches]
        is_any, stamp, *frozen, length = _WAITING(client, [*lists, self._keys.queue], [])
        seq = int(stamp) if stamp else None
        if not is_any or seq is not None:
            self._ageless_since = None
        elif self._ageless_since is None:
            self._ageless_since = time.monotonic()
        if seq is not None:
            age_s = max(0.0, seconds + micros / 1e6 - seq / 1e6)
        else:  # a raw item does not tell its age: since we first saw such a one as the oldest
            age_s = 0.0 if self._ageless_since is None else time.monotonic() - self._ageless_since
        self._metrics.queue_is(length, sum(frozen), len(batches), age_s)


def reap_sessions(client: Redis, keys: QueueKeys, idle_s: float) -> int:
    """Forgets the sessions whose last write is older than ``idle_s``; returns how many."""
    seconds, micros = client.time()  # the clock that stamped their writes
    cutoff_us = seconds * 1_000_000 + micros - int(idle_s * 1e6)
    old: list[Any] = []
    for session, value in client.hscan_iter(keys.producers, count=500):
        last = _PRODUCER.match(cast(bytes, value))
        if last is not None and int(last[1]) < cutoff_us:
            old += (session, value)
    return sum(int(_REAP(client, [keys.producers], old[i : i + 1000])) for i in range(0, len(old), 1000))
