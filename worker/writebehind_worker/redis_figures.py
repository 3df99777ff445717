"""What Redis tells of itself, as metrics: its ``INFO`` as the owner last read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_COUNTERS = (
    ("keyspace_hits", "keyspace_hits", "Lookups of keys that were there, by all clients of the server."),
    ("keyspace_misses", "keyspace_misses", "Lookups of keys that were not there."),
    ("evicted_keys", "evicted_keys", "Keys that were removed for want of memory."),
    ("expired_keys", "expired_keys", "Keys whose time to live was over."),
)
_GAUGES = (
    ("memory_used_bytes", "used_memory", "Memory that Redis has allocated."),
    ("memory_max_bytes", "maxmemory", "Memory that it may allocate (maxmemory); 0: no limit."),
    ("connected_clients", "connected_clients", "Connections of clients."),
    ("blocked_clients", "blocked_clients", "Clients in a blocking call; an idle owner is one."),
)


class RedisFigures(Collector):
    """Shows nothing of what is not known: before the first look, without the lease, or kept from this user.

    A counter begins again as the server does, which is what Prometheus expects of one.
    """

    def __init__(self) -> None:
        self._info: Mapping[str, Any] = {}

    def are(self, info: Mapping[str, Any]) -> None:
        """``info``: of the server that the owner talks to; empty: no longer known."""
        told = {field: info.get(field) for _, field, _ in (*_COUNTERS, *_GAUGES)}
        self._info = {field: value for field, value in told.items() if isinstance(value, int | float)}

    def collect(self) -> Iterator[Metric]:
        info = self._info
        for name, field, help in _COUNTERS:
            counter = CounterMetricFamily(f"writebehind_redis_{name}", help, labels=())
            if field in info:
                counter.add_metric((), info[field])
            yield counter
        for name, field, help in _GAUGES:
            gauge = GaugeMetricFamily(f"writebehind_redis_{name}", help, labels=())
            if field in info:
                gauge.add_metric((), info[field])
            yield gauge
