"""Metrics of clients for Prometheus: ``WriteBehind.from_url(..., observer=PrometheusObserver())``."""

from __future__ import annotations

import threading
from collections.abc import Sequence

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
except ImportError as error:
    raise ImportError(
        f"writebehind.prometheus needs prometheus-client ({error}): pip install 'writebehind[prometheus]'"
    ) from error

from .message import Op
from .observer import Observer

OTHER = "other"
"""The label of every table beyond the bound."""

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BYTES = (64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576)


class PrometheusObserver(Observer):
    """Counts and times the calls of all clients that it is given to; thread-safe.

    Args:
        registry: where the metrics are found; by default that of ``prometheus_client`` itself. A registry
            takes one such observer: share it among clients.
        max_tables: so many tables have time series of their own: those that are met first. All others are
            ``table="other"``, so that names which come from outside cannot fill the memory.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY, *, max_tables: int = 100) -> None:
        self._max_tables = max_tables
        self._tables: dict[str, str] = {}
        self._turn = threading.Lock()

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"writebehind_client_{name}", help, ["table", *labels], registry=registry)

        def histogram(name: str, help: str, buckets: Sequence[float], *labels: str) -> Histogram:
            labels = ("table", *labels)
            return Histogram(f"writebehind_client_{name}", help, labels, buckets=buckets, registry=registry)

        self._lookups = counter(
            "lookups",
            "Rows asked for, by what the cache had: hit, negative (known not to exist), or miss.",
            "result",
        )
        self._load_seconds = histogram(
            "load_seconds", "Calls of a loader; outcome ok or error.", _SECONDS, "outcome"
        )
        self._refresh_seconds = histogram(
            "refresh_seconds",
            "Loads of rows that were still cached; outcome ok or error.",
            _SECONDS,
            "outcome",
        )
        self._wait_seconds = histogram(
            "wait_seconds",
            "Waits for another reader's load, or for the commit of a write that the cache cannot show.",
            _SECONDS,
            "wait",
        )
        self._fill_bytes = histogram("fill_bytes", "Loaded rows that were cached, by their size.", _BYTES)
        self._lost_fills = counter(
            "lost_fills",
            "Loaded rows that were not cached: written or invalidated meanwhile, or loaded for too long.",
        )
        self._write_bytes = histogram(
            "write_bytes", "Writes accepted, by the size of their messages.", _BYTES, "op"
        )
        self._failed_writes = counter(
            "failed_writes",
            "Writes that were refused, or whose outcome is unknown, by the error's name.",
            "op",
            "error",
        )

    def hit(self, table: str, rows: int) -> None:
        self._lookups.labels(self._label(table), "hit").inc(rows)

    def negative_hit(self, table: str, rows: int) -> None:
        self._lookups.labels(self._label(table), "negative").inc(rows)

    def miss(self, table: str, rows: int) -> None:
        self._lookups.labels(self._label(table), "miss").inc(rows)

    def loaded(self, table: str, seconds: float, error: BaseException | None) -> None:
        self._load_seconds.labels(self._label(table), _outcome(error)).observe(seconds)

    def filled(self, table: str, size_bytes: int) -> None:
        self._fill_bytes.labels(self._label(table)).observe(size_bytes)

    def fill_lost(self, table: str) -> None:
        self._lost_fills.labels(self._label(table)).inc()

    def refreshed(self, table: str, seconds: float, error: BaseException | None) -> None:
        self._refresh_seconds.labels(self._label(table), _outcome(error)).observe(seconds)

    def waited_for_load(self, table: str, seconds: float) -> None:
        self._wait_seconds.labels(self._label(table), "load").observe(seconds)

    def waited_for_write(self, table: str, seconds: float, error: BaseException | None) -> None:
        self._wait_seconds.labels(self._label(table), "write").observe(seconds)

    def wrote(self, table: str, op: Op, size_bytes: int) -> None:
        self._write_bytes.labels(self._label(table), op).observe(size_bytes)

    def write_failed(self, table: str, op: Op, error: Exception) -> None:
        self._failed_writes.labels(self._label(table), op, type(error).__name__).inc()

    def _label(self, table: str) -> str:
        label = self._tables.get(table)
        if label is not None:
            return label
        with self._turn:
            if len(self._tables) >= self._max_tables:
                return OTHER
            return self._tables.setdefault(table, table)


def _outcome(error: BaseException | None) -> str:
    return "ok" if error is None else "error"
