"""The worker's metrics: their names, their bounds, and the cost of the lag histogram."""

from __future__ import annotations

import importlib.metadata
import random
import time

import pytest
from prometheus_client import generate_latest
from redis import Redis

from writebehind_worker.metrics import LAG_BUCKETS_S, MESSAGE_BUCKETS, MOST_SHOWN, Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"writebehind_{name}", labels)


def test_counters_count(metrics: Metrics) -> None:
    metrics.flushed("users", "applied", 3)
    metrics.flushed("users", "applied", 2)
    metrics.flushed("users", "rejected", 1)
    metrics.rows_written("users", 4)
    metrics.retried("postgres_down")
    metrics.dead_lettered("23505", 2)
    metrics.dead_lettered(None, 1)
    metrics.rollback_detected("redis")
    assert value(metrics, "writes_total", table="users", outcome="applied") == 5
    assert value(metrics, "writes_total", table="users", outcome="rejected") == 1
    assert value(metrics, "rows_total", table="users") == 4
    assert value(metrics, "retries_total", reason="postgres_down") == 1
    assert value(metrics, "dead_lettered_total", sqlstate="23505") == 2
    assert value(metrics, "dead_lettered_total", sqlstate="none") == 1
    assert value(metrics, "rollbacks_total", server="redis") == 1
    assert value(metrics, "rollbacks_total", server="postgres") == 0


def test_a_rollback_is_dated(metrics: Metrics) -> None:
    assert value(metrics, "last_rollback_timestamp_seconds", server="postgres") == 0
    before = time.time()
    metrics.rollback_detected("postgres")
    assert (
        before <= (value(metrics, "last_rollback_timestamp_seconds", server="postgres") or 0) <= time.time()
    )
    assert value(metrics, "last_rollback_timestamp_seconds", server="redis") == 0


def test_a_worker_says_what_it_is(metrics: Metrics) -> None:
    assert value(metrics, "epoch") == 0
    metrics.epoch_is(7)
    assert value(metrics, "epoch") == 7
    assert value(metrics, "build_info", version=importlib.metadata.version("writebehind")) == 1
    memory = metrics.registry.get_sample_value("process_resident_memory_bytes")
    assert memory is None or memory > 1 << 20, "it is known on Linux only"


def test_gauges_show_the_last_value(metrics: Metrics) -> None:
    metrics.queue_is(10, 5, 2, 1.5)
    metrics.lease_is(True)
    metrics.redis_is(True)
    metrics.postgres_is(False)
    metrics.dead_letters_are({("users", "23505"): 7, ("pages", "23514"): 2, (None, ""): 1})
    assert value(metrics, "queue_length") == 10
    assert value(metrics, "frozen_items") == 5
    assert value(metrics, "frozen_batches") == 2
    assert value(metrics, "oldest_age_seconds") == 1.5
    assert value(metrics, "lease_held") == 1
    assert value(metrics, "redis_up") == 1
    assert value(metrics, "postgres_up") == 0
    assert value(metrics, "dead_letters_open", table="users", sqlstate="23505") == 7
    assert value(metrics, "dead_letters_open", table="unknown", sqlstate="none") == 1
    metrics.dead_letters_are({("users", "23505"): 6})
    assert value(metrics, "dead_letters_open", table="users", sqlstate="23505") == 6
    assert value(metrics, "dead_letters_open", table="pages", sqlstate="23514") is None
    metrics.queue_is(0, 0, 0, None)
    assert value(metrics, "oldest_age_seconds") == 0


def test_of_many_tables_with_dead_letters_those_with_most_are_shown_and_the_rest_as_one(
    metrics: Metrics,
) -> None:
    flood: dict[tuple[str | None, str | None], int] = {(f"made_up_{n}", "42P01"): 2 for n in range(500)}
    metrics.dead_letters_are(flood)
    metrics.dead_letters_are(flood | {("users", "23505"): 1, (None, None): 4, ("unknown", None): 2})
    assert value(metrics, "dead_letters_open", table="users", sqlstate="23505") == 1
    assert value(metrics, "dead_letters_open", table="unknown", sqlstate="none") == 6
    (family,) = (m for m in metrics.registry.collect() if m.name == "writebehind_dead_letters_open")
    assert len(family.samples) == MOST_SHOWN + 1
    assert value(metrics, "dead_letters_open", table="other", sqlstate="other") == 1000 - 2 * (MOST_SHOWN - 2)
    assert sum(sample.value for sample in family.samples) == 1007
    metrics.flushed("users", "applied", 1)
    assert value(metrics, "writes_total", table="users", outcome="applied") == 1


def test_a_batch_is_observed_by_size_and_time(metrics: Metrics) -> None:
    metrics.flush([4000], 0.02)
    assert value(metrics, "batch_size_bucket", le="2500.0") == 0
    assert value(metrics, "batch_size_bucket", le="5000.0") == 1
    assert value(metrics, "flush_seconds_bucket", le="0.025") == 1


def test_lag_counts_each_write_as_observing_it_alone_would(metrics: Metrics) -> None:
    commit_us, source = 1_800_000_000_000_000, random.Random(1)
    for _ in range(3):
        lags = [round(10 ** source.uniform(2, 9)) for _ in range(1000)] + [1_000, 300_000_000, 0]
        metrics.lag(commit_us, sorted(commit_us - lag for lag in lags))
        commit_us += 1_000_000
    source = random.Random(1)
    every = [round(10 ** source.uniform(2, 9)) for _ in range(3000)] + [1_000, 300_000_000, 0] * 3
    for bound in LAG_BUCKETS_S:
        expected = sum(lag <= bound * 1e6 for lag in every)
        assert value(metrics, "write_lag_seconds_bucket", le=str(float(bound))) == expected
    assert value(metrics, "write_lag_seconds_bucket", le="+Inf") == len(every)
    assert value(metrics, "write_lag_seconds_count") == len(every)
    assert value(metrics, "write_lag_seconds_sum") == pytest.approx(sum(every) / 1e6)


def test_a_clock_that_runs_ahead_counts_as_no_lag(metrics: Metrics) -> None:
    metrics.lag(1_000_000, [900_000, 1_500_000])
    assert value(metrics, "write_lag_seconds_bucket", le="0.001") == 1
    assert value(metrics, "write_lag_seconds_sum") == pytest.approx(0.1)


def test_no_writes_no_lag(metrics: Metrics) -> None:
    metrics.lag(1_000_000, [])
    assert value(metrics, "write_lag_seconds_count") == 0


def test_tables_beyond_the_bound_are_counted_together(metrics: Metrics) -> None:
    for n in range(250):
        metrics.flushed(f"t{n}", "applied", 1)
        metrics.rows_written(f"t{n}", 1)
    metrics.flushed("t0", "applied", 1)
    assert value(metrics, "writes_total", table="t0", outcome="applied") == 2
    assert value(metrics, "writes_total", table="t249", outcome="applied") is None
    assert value(metrics, "writes_total", table="other", outcome="applied") == 50
    assert value(metrics, "rows_total", table="other") == 50


def test_the_whole_registry_is_rendered(metrics: Metrics) -> None:
    metrics.lag(2, [1])
    text = generate_latest(metrics.registry).decode()
    assert "# TYPE writebehind_write_lag_seconds histogram" in text
    assert 'writebehind_write_lag_seconds_bucket{le="0.001"} 1.0' in text
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(line.startswith(("writebehind_", "process_")) for line in lines)


def test_each_sample_of_a_divided_queue_is_told_once_and_of_former_shards_none(metrics: Metrics) -> None:
    metrics.part(metrics.queue).postgres_is(True)
    for shard in ("1of2", "2of2"):
        metrics.part(f"{metrics.queue}:{shard}").postgres_is(True)
    samples = [line.rpartition(" ")[0] for line in metrics.text().decode().splitlines() if line[0] != "#"]
    assert len(samples) == len(set(samples))
    assert sum(sample.startswith("writebehind_postgres_up{") for sample in samples) == 3
    metrics.keep_parts({f"{metrics.queue}:2of2"})
    text = metrics.text().decode()
    assert "2of2" in text and "1of2" not in text


def test_messages_are_counted_by_size(metrics: Metrics) -> None:
    sizes = [1, 128, 129, 5000, 1 << 20, (1 << 20) + 1]
    metrics.received(sizes)
    metrics.received([200])
    sizes.append(200)
    for bound in MESSAGE_BUCKETS:
        shown = value(metrics, "message_size_bytes_bucket", le=str(float(bound)))
        assert shown == sum(size <= bound for size in sizes), bound
    assert value(metrics, "message_size_bytes_count") == len(sizes)
    assert value(metrics, "message_size_bytes_sum") == sum(sizes)


def test_what_a_real_redis_tells_is_shown_until_the_lease_is_gone(
    metrics: Metrics, redis_client: Redis
) -> None:
    assert value(metrics, "redis_keyspace_hits_total") is None
    metrics.redis_told(redis_client.info())
    for name in ("keyspace_hits_total", "keyspace_misses_total", "evicted_keys_total", "expired_keys_total"):
        assert value(metrics, f"redis_{name}") is not None, name
    for name in ("memory_max_bytes", "connected_clients", "blocked_clients"):
        assert value(metrics, f"redis_{name}") is not None, name
    assert (value(metrics, "redis_memory_used_bytes") or 0) > 100_000
    hits = value(metrics, "redis_keyspace_hits_total") or 0
    redis_client.set("hit", 1, ex=60)
    assert redis_client.get("hit") == b"1"
    metrics.redis_told(redis_client.info())
    assert (value(metrics, "redis_keyspace_hits_total") or 0) > hits
    metrics.nothing_holds()
    assert value(metrics, "redis_keyspace_hits_total") is None


def test_what_redis_keeps_to_itself_is_not_shown(metrics: Metrics) -> None:
    metrics.redis_told({"keyspace_hits": 3, "used_memory": "odd"})
    assert value(metrics, "redis_keyspace_hits_total") == 3
    assert value(metrics, "redis_memory_used_bytes") is None
