"""What the worker counts, in Prometheus' form, in a registry of its own.

The labels are bounded: tables, SQLSTATEs and reasons beyond the first so many are counted as `other`,
so that no producer can grow the worker's memory or a time series database.
"""

from __future__ import annotations

import heapq
import threading
import time
from bisect import bisect_left, bisect_right
from collections import Counter as Count
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from .figures import MOST_REASONS, Backlog, DeadLetters, Figures, summed
from .redis_figures import RedisFigures
from .stages import Stages
from .version import installed_version

Outcome = Literal["applied", "rejected", "rollback", "passed_over"]
Server = Literal["redis", "postgres"]
Hold = Literal["paused", "breaker", "lock"]
"""Why a queue does not move though both servers answer: an operator, refusals alike, somebody's lock."""
RedisRisk = Literal["eviction", "persistence", "write_error", "memory"]
"""What endangers the writes that wait in Redis: see `redis_risks`."""

LAG_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300,
)  # fmt: skip
FLUSH_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
MESSAGE_BUCKETS = tuple(1 << power for power in range(7, 21))
"""Bytes: 128 B to 1 MiB."""
_NO_SUCH_TABLE = "42P01"
MOST_SHOWN = 100
"""So many pairs of table and SQLSTATE are told of the open dead letters."""
BATCH_BUCKETS = (1, 10, 100, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000)


class Metrics:
    """One method for each thing that happens; all are thread-safe and cheap enough for every batch.

    ``queue`` becomes a label of everything that `text` shows.
    """

    def __init__(self, queue: str = "", *, is_part: bool = False) -> None:
        self.queue = queue
        self._parts: dict[str, Metrics] = {}
        self.present_shards: Collection[str] = ()
        """Those that some process serves: each owner tells of its own."""
        self._figures = Figures()
        self._lock = threading.Lock()
        self.registry = CollectorRegistry()
        self._table = _Bounded(200)
        self._code = _Bounded(100)
        self._reason = _Bounded(50)
        self._lag = _LagHistogram()
        self.registry.register(self._lag)
        self._message_size = _SizeHistogram()
        self.registry.register(self._message_size)
        self.stages = Stages(self.registry)
        self._redis_figures = RedisFigures()
        self.registry.register(self._redis_figures)
        self._count()
        self._measure()
        self._identify(is_part)
        if not is_part:
            ProcessCollector(registry=self.registry)  # CPU, memory, open files; on Linux only

    def _count(self) -> None:
        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"writebehind_{name}", help, labels, registry=self.registry)

        self._writes = counter("writes", "Writes settled, by what became of them.", "table", "outcome")
        self._rows = counter("rows", "Rows written, after coalescing.", "table")
        self._retries = counter("retries", "Attempts that are made again, by reason.", "reason")
        self._dead = counter("dead_lettered", "Writes that became dead letters.", "sqlstate")
        self._changes_refused = counter(
            "changes_refused", "Messages of changes that Redis refused to publish: caches did not hear."
        )
        self._rollbacks = counter("rollbacks", "A server came back with older data.", "server")
        self._rolled_back_at = Gauge(
            "writebehind_last_rollback_timestamp_seconds",
            "Unix time at which this worker last found a server to have older data than before; 0: never.",
            ["server"],
            registry=self.registry,
        )
        for server in ("redis", "postgres"):
            self._rollbacks.labels(server)
            # A worker that finds one as it starts is scraped too late to be seen counting; the time is seen.
            self._rolled_back_at.labels(server)

    def _measure(self) -> None:
        def gauge(name: str, help: str) -> Gauge:
            return Gauge(f"writebehind_{name}", help, registry=self.registry)

        self._batch_size = Histogram(
            "writebehind_batch_size",
            "Writes in a batch.",
            buckets=BATCH_BUCKETS,
            registry=self.registry,
        )
        self._flush = Histogram(
            "writebehind_flush_seconds",
            "Time to bring a batch, or several at once, to Postgres, COMMIT included.",
            buckets=FLUSH_BUCKETS_S,
            registry=self.registry,
        )
        self._length = gauge("queue_length", "Writes that wait in the queue, frozen ones not counted.")
        self._frozen_items = gauge("frozen_items", "Writes in frozen batches.")
        self._frozen_batches = gauge("frozen_batches", "Batches taken and not yet acknowledged.")
        self._oldest = gauge("oldest_age_seconds", "Age of the oldest pending write; 0 if none.")
        self._lease = gauge("lease_held", "1 while this worker owns the queue.")
        self._redis = gauge("redis_up", "1 while Redis answers.")
        self._postgres = gauge("postgres_up", "1 while Postgres answers, and takes what this worker brings.")
        self._dead_open = Gauge(
            "writebehind_dead_letters_open",
            "Dead letters that no later write has superseded.",
            ["table", "sqlstate"],
            registry=self.registry,
        )
        self._dead_shown: set[tuple[str, str]] = set()
        self._flushed_at = gauge("last_flush_timestamp_seconds", "Unix time of the last commit; 0: none yet.")
        self._held = Gauge(
            "writebehind_held",
            "1 while the queue waits for an operator (paused), a table (breaker) or somebody's lock.",
            ["reason"],
            registry=self.registry,
        )
        self._risk = Gauge(
            "writebehind_redis_risk",
            "1 while what waits in Redis is in danger: it may be evicted, is not persisted, cannot be "
            "written to disk, or memory is nearly used up.",
            ["risk"],
            registry=self.registry,
        )
        for reason in get_args(Hold):
            self._held.labels(reason)
        for risk in get_args(RedisRisk):
            self._risk.labels(risk)

    def part(self, queue: str) -> Metrics:
        """Those of a shard, by the name of its queue. They stay when another worker serves it.

        Of the queue itself, which some process of a fleet serves as well: these.
        """
        if queue == self.queue:
            return self
        with self._lock:
            if queue not in self._parts:
                self._parts[queue] = Metrics(queue, is_part=True)
            return self._parts[queue]

    def keep_parts(self, queues: Collection[str]) -> None:
        """The other shards are none any more."""
        with self._lock:
            self.present_shards = queues
            self._parts = {queue: part for queue, part in self._parts.items() if queue in queues}

    def unserved_are(self, served: Collection[str], redis_up: bool, postgres_up: bool | None) -> None:
        """Of the queues that no worker of this process serves now: whether it reaches what that would take.

        ``postgres_up`` is None where that is not known.
        """
        for one in self._all():
            if one.queue not in served:
                one.redis_is(redis_up)
                if postgres_up is not None:
                    one.postgres_is(postgres_up)

    def _identify(self, is_part: bool) -> None:
        self._epoch = Gauge(
            "writebehind_epoch",
            "Fencing epoch of this worker's last ownership, higher with each owner; 0: it has owned nothing.",
            registry=self.registry,
        )
        if is_part:
            return
        build = Gauge(
            "writebehind_build_info", "1, with the version that runs.", ["version"], registry=self.registry
        )
        build.labels(installed_version()).set(1)

    def text(self) -> bytes:
        """All of it in Prometheus' text format, each sample with the label ``queue``."""
        return generate_latest(_Together([_Labelled(m.registry, m.queue) for m in self._all()]))

    def figures(self) -> Figures:
        """The same, few and unlabelled, for the screens."""
        found = [m._own_figures() for m in self._all()]
        return found[0] if len(found) == 1 else summed(found)

    def owned_shards(self) -> dict[str, Figures]:
        """Of a queue with shards: what this process serves of it, the queue itself too, by name."""
        if len(those := self._all()) == 1:
            return {}
        found = {one.queue: one._own_figures() for one in those}
        return {queue: figures for queue, figures in found.items() if figures.is_owner}

    def _own_figures(self) -> Figures:
        with self._lock:
            return replace(self._figures, lag=self._lag.counts())

    def _all(self) -> list[Metrics]:
        """These, and those of the shards."""
        with self._lock:
            return [self, *self._parts.values()]

    def flushed(self, table: str, outcome: Outcome, writes: int) -> None:
        """So many messages for ``table`` were applied, rejected, not applied after a Redis rollback, or
        passed over: retries whose dead letter was gone or superseded."""
        self._writes.labels(self._table(table), outcome).inc(writes)
        if outcome == "applied":
            self._add(applied=writes)
        elif outcome == "rejected":
            self._add(rejected=writes)

    def rows_written(self, table: str, rows: int) -> None:
        self._rows.labels(self._table(table)).inc(rows)
        self._add(rows=rows)

    def flush(self, sizes: Sequence[int], seconds: float) -> None:
        """Batches of ``sizes`` messages were committed together, ``seconds`` after their flush began."""
        for size in sizes:
            self._batch_size.observe(size)
        self._flush.observe(seconds)
        self.stages.took("flush", seconds)
        self._add(flushes=1, flush_s=seconds)
        self._flushed_at.set(time.time())

    def received(self, sizes: Sequence[int]) -> None:
        """The messages of a batch, in bytes, each counted once: as it is committed."""
        self._message_size.observe_all(sizes)

    def lag(self, commit_us: int, seqs_us: Sequence[int]) -> None:
        """Writes accepted at ``seqs_us``, ascending, are durable at ``commit_us``: µs of Redis' clock."""
        self._lag.observe_all(commit_us, seqs_us)

    def retried(self, reason: str) -> None:
        self._retries.labels(self._reason(reason)).inc()
        self._add(retries=1)

    def dead_lettered(self, sqlstate: str | None, writes: int) -> None:
        """``sqlstate`` is None where the worker refused the message before Postgres saw it."""
        self._dead.labels(self._code(sqlstate or "none")).inc(writes)

    def changes_refused(self, messages: int) -> None:
        """Redis refused to publish so many."""
        self._changes_refused.inc(messages)

    def rollback_detected(self, server: Server) -> None:
        self._rollbacks.labels(server).inc()
        self._rolled_back_at.labels(server).set(time.time())

    def queue_is(
        self, length: int, frozen_items: int, frozen_batches: int, oldest_age_s: float | None
    ) -> None:
        """``oldest_age_s`` is None where nothing is pending, or the oldest write carries no time."""
        backlog = Backlog(length, frozen_items, frozen_batches, oldest_age_s or 0, time.monotonic())
        self._tell(backlog=backlog)
        self._length.set(length)
        self._frozen_items.set(frozen_items)
        self._frozen_batches.set(frozen_batches)
        self._oldest.set(oldest_age_s or 0)

    def lease_is(self, held: bool) -> None:
        self._lease.set(held)
        self._tell(is_owner=held)

    def epoch_is(self, epoch: int) -> None:
        """This worker has become the owner of ``epoch``."""
        self._epoch.set(epoch)

    def redis_is(self, up: bool) -> None:
        self._redis.set(up)

    def postgres_is(self, up: bool) -> None:
        self._postgres.set(up)

    def held_is(self, reason: Hold, held: bool) -> None:
        self._held.labels(reason).set(held)

    def nothing_holds(self) -> None:
        """As far as this worker knows: it is not the owner."""
        risks = self._figures.risks
        for reason in get_args(Hold):
            self._held.labels(reason).set(0)
        self.redis_risks_are(())
        self._redis_figures.are({})
        self._tell(risks=risks)

    def redis_risks_are(self, risks: Collection[RedisRisk]) -> None:
        """Of the server that the owner talks to."""
        for risk in get_args(RedisRisk):
            self._risk.labels(risk).set(risk in risks)
        self._tell(risks=frozenset(risks))

    def redis_told(self, info: Mapping[str, Any]) -> None:
        """The ``INFO`` of the server that the owner talks to."""
        self._redis_figures.are(info)

    def nothing_is_known(self) -> None:
        """Of the queue and of the dead letters: the next owner tells."""
        self.queue_is(0, 0, 0, None)
        self.dead_letters_are({})
        self._tell(backlog=None, dead_letters=None)

    def dead_letters_are(self, counts: Mapping[tuple[str | None, str | None], int]) -> None:
        """All open ones, by (table, SQLSTATE); for one thread. Shown: those with most, and the others' sum.

        A message can name any table: those that there are not (42P01) come last.
        """
        named: Count[tuple[str, str]] = Count()
        for (table, code), count in counts.items():
            named[table or "unknown", code or "none"] += count
        kept = heapq.nlargest(
            MOST_SHOWN, named, key=lambda labels: (labels[1] != _NO_SUCH_TABLE, named[labels], labels)
        )
        shown = {labels: named[labels] for labels in kept}
        if others := sum(named.values()) - sum(shown.values()):
            shown["other", "other"] = others
        for labels, count in shown.items():
            self._dead_open.labels(*labels).set(count)
        for labels in self._dead_shown - shown.keys():
            self._dead_open.remove(*labels)
        self._dead_shown = set(shown)
        largest = heapq.nlargest(MOST_REASONS, shown, key=lambda labels: (shown[labels], labels))
        told = DeadLetters(sum(shown.values()), len(shown), {labels: shown[labels] for labels in largest})
        if told != self._figures.dead_letters:  # mostly it is the same, and kept once for all samples
            self._tell(dead_letters=told)

    def _tell(self, **changed: Any) -> None:
        with self._lock:
            self._figures = replace(self._figures, **changed)

    def _add(self, **more: float) -> None:
        with self._lock:
            sums = {name: getattr(self._figures, name) + value for name, value in more.items()}
            self._figures = replace(self._figures, **sums)


class _Labelled(CollectorRegistry):
    """A registry as `generate_latest` reads it, with one more label on each sample."""

    def __init__(self, registry: CollectorRegistry, queue: str) -> None:
        super().__init__()
        self._of, self._own = registry, {"queue": queue}

    def collect(self) -> Iterator[Metric]:
        for metric in self._of.collect():
            metric.samples = [s._replace(labels=self._own | s.labels) for s in metric.samples]
            yield metric


class _Together(CollectorRegistry):
    """Several registries as one: each metric once, with the samples of all."""

    def __init__(self, those: Sequence[_Labelled]) -> None:
        super().__init__()
        self._those = those

    def collect(self) -> Iterator[Metric]:
        found: dict[str, Metric] = {}
        for registry in self._those:
            for metric in registry.collect():
                if metric.name in found:
                    found[metric.name].samples += metric.samples
                else:
                    found[metric.name] = metric
        yield from found.values()


class _Bounded:
    """Lets the first ``limit`` label values through; the others become ``other``."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, label: str) -> str:
        with self._lock:
            if label in self._seen:
                return label
            if len(self._seen) >= self._limit:
                return "other"
            self._seen.add(label)
            return label


class _LagHistogram(Collector):
    """A histogram that takes a whole batch at once: a bisection per bucket.

    A batch of 5000 costs well under a millisecond so; 5000 calls of `Histogram.observe` cost ten.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at_most = [0] * len(LAG_BUCKETS_S)  # cumulative, as Prometheus shows them
        self._bounds_us = [round(bound * 1e6) for bound in LAG_BUCKETS_S]
        self._count = 0
        self._sum_us = 0

    def observe_all(self, commit_us: int, seqs_us: Sequence[int]) -> None:
        count = len(seqs_us)
        # The hybrid clock may run ahead of the time of day; such a lag counts as 0.
        past = seqs_us[: bisect_right(seqs_us, commit_us)]
        at_most = [count - bisect_left(seqs_us, commit_us - bound) for bound in self._bounds_us]
        with self._lock:
            self._at_most = [old + new for old, new in zip(self._at_most, at_most, strict=True)]
            self._count += count
            self._sum_us += commit_us * len(past) - sum(past)

    def counts(self) -> tuple[int, ...]:
        """For each bucket how many are in it or below, and at last all."""
        with self._lock:
            return (*self._at_most, self._count)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        with self._lock:
            buckets = [
                (str(float(bound)), float(count))
                for bound, count in zip(LAG_BUCKETS_S, self._at_most, strict=True)
            ]
            buckets.append(("+Inf", float(self._count)))
            sum_s = self._sum_us / 1e6
        yield HistogramMetricFamily(
            "writebehind_write_lag_seconds",
            "Time from a write's acceptance to its commit in Postgres.",
            buckets=buckets,
            sum_value=sum_s,
        )


class _SizeHistogram(Collector):
    """As `_LagHistogram`: a whole batch at once, no call for each message."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at_most = [0] * len(MESSAGE_BUCKETS)
        self._count = self._sum = 0

    def observe_all(self, sizes: Sequence[int]) -> None:
        found = Count(sizes).items()
        at_most = [sum(count for size, count in found if size <= bound) for bound in MESSAGE_BUCKETS]
        with self._lock:
            self._at_most = [old + new for old, new in zip(self._at_most, at_most, strict=True)]
            self._count += len(sizes)
            self._sum += sum(sizes)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        with self._lock:
            buckets = [
                (str(float(bound)), float(count))
                for bound, count in zip(MESSAGE_BUCKETS, self._at_most, strict=True)
            ]
            buckets.append(("+Inf", float(self._count)))
            total = self._sum
        yield HistogramMetricFamily(
            "writebehind_message_size_bytes",
            "Size of a message as it came from Redis.",
            buckets=buckets,
            sum_value=total,
        )
