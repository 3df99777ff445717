"""`Course`: how the worker's figures went in the last minutes, a sample a second. Bounded; no I/O."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import pairwise

import msgspec
from msgspec.structs import asdict, astuple

from .figures import Figures, Reason
from .metrics import LAG_BUCKETS_S

SECONDS = 600
"""So long is what is kept."""
RECENT_S = 10
"""Rates of now are those of so many seconds."""
_MOST_LATE = 3  # seconds: after a longer silence there is a gap
_STALE_S = 15.0  # without Postgres the queue is looked at every ten seconds or so


class Rates(msgspec.Struct, frozen=True):
    """Of an interval, to three digits; None: of nothing, or not known.

    ``coalescing`` is writes per row. ``flush_s`` is the mean of the flushes in the interval, ``lag_…`` the
    quantiles of the writes that were committed in it.
    """

    writes_per_s: float | None = None
    rows_per_s: float | None = None
    coalescing: float | None = None
    flush_s: float | None = None
    lag_p50_s: float | None = None
    lag_p99_s: float | None = None
    retries_per_s: float | None = None


class Sample(Rates, frozen=True):
    """One interval's rates and the figures at its end."""

    waiting: float | None = None
    frozen: float | None = None
    oldest_age_s: float | None = None
    dead_letters: float | None = None


class Course:
    """Written by one thread, read by any. Times are seconds of the monotonic clock."""

    def __init__(self, seconds: int = SECONDS) -> None:
        self._lock = threading.Lock()
        self._samples: deque[Sample] = deque(maxlen=seconds)
        self._reasons: deque[Mapping[Reason, int] | None] = deque(maxlen=seconds)
        self._seen: deque[tuple[float, Figures]] = deque(maxlen=RECENT_S + 1)
        self._began_at = 0.0

    def add(self, at_s: float, figures: Figures) -> None:
        """To be called about once a second. What comes sooner than the next second is left to the next call.

        A call that is late speaks for all seconds since the last one; one that is very late, because the
        process was stopped say, leaves them empty: its rates are those of the whole time, and no peak.
        """
        with self._lock:
            if not self._seen:
                self._began_at = at_s - 0.5  # a call may come half a second late or early
                self._append(between(None, figures, 0, at_s), figures, 1)
            else:
                before_s, before = self._seen[-1]
                passed = self._second(at_s) - self._second(before_s)
                if passed <= 0:
                    return
                sample = between(before, figures, at_s - before_s, at_s)
                if passed > _MOST_LATE:
                    self._append(Sample(), None, passed - 1)
                    passed = 1
                    self._seen.clear()
                self._append(sample, figures, passed)
            self._seen.append((at_s, figures))

    def recent(self) -> Rates:
        """Of the last `RECENT_S` seconds."""
        with self._lock:
            if not self._seen:
                return Rates()
            (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        return rates(first, last, last_s - first_s)

    def series(self) -> dict[str, list[float | None]]:
        """Name of a field of `Sample` → its values, the oldest first, one a second."""
        with self._lock:
            samples = list(self._samples)
        names = Sample.__struct_fields__
        columns = zip(*map(astuple, samples), strict=True) if samples else [()] * len(names)
        return {name: list(values) for name, values in zip(names, columns, strict=True)}

    def series_of(self, reason: Reason) -> list[float | None]:
        """How many of its dead letters were open, one a second; 0 also while others were more frequent."""
        with self._lock:
            reasons = list(self._reasons)
        return [None if counts is None else _short(counts.get(reason, 0)) for counts in reasons]

    def silent_s(self, now_s: float) -> float | None:
        """Since the last sample; None before the first."""
        with self._lock:
            return now_s - self._seen[-1][0] if self._seen else None

    def _second(self, at_s: float) -> int:
        return math.floor(at_s - self._began_at)

    def _append(self, sample: Sample, figures: Figures | None, times: int) -> None:
        dead = None if figures is None or figures.dead_letters is None else figures.dead_letters.largest
        for _ in range(min(times, self._samples.maxlen or 0)):
            self._samples.append(sample)
            self._reasons.append(dead)


def between(before: Figures | None, now: Figures, seconds: float, at_s: float) -> Sample:
    """Two looks, so many seconds apart, the later one at ``at_s``."""
    backlog = now.backlog
    if backlog is not None and at_s - backlog.seen_at_s > _STALE_S:
        backlog = None
    passed = Rates() if before is None else rates(before, now, seconds)
    return Sample(
        **asdict(passed),
        waiting=None if backlog is None else _short(backlog.waiting),
        frozen=None if backlog is None else _short(backlog.frozen_items),
        oldest_age_s=None if backlog is None else _short(backlog.oldest_age_s),
        dead_letters=None if now.dead_letters is None else _short(now.dead_letters.total),
    )


def rates(before: Figures, now: Figures, seconds: float) -> Rates:
    """What happened between two looks, so many seconds apart."""
    if seconds <= 0:
        return Rates()
    writes, rows = now.applied - before.applied, now.rows - before.rows
    flushes = now.flushes - before.flushes
    lag = _lag(before, now)
    return Rates(
        writes_per_s=_short(writes / seconds),
        rows_per_s=_short(rows / seconds),
        coalescing=_short(writes / rows) if rows > 0 else None,
        flush_s=_short((now.flush_s - before.flush_s) / flushes) if flushes > 0 else None,
        lag_p50_s=quantile(lag, 0.5),
        lag_p99_s=quantile(lag, 0.99),
        retries_per_s=_short((now.retries - before.retries) / seconds),
    )


def quantile(at_most: Iterable[int], share: float) -> float | None:
    """Of a histogram's cumulative counts by `LAG_BUCKETS_S`, even within a bucket; None of nothing.

    What took longer than the last bound is given as the last bound.
    """
    counts = [0, *at_most]
    wanted = counts[-1] * share
    bounds = [0.0, *LAG_BUCKETS_S, LAG_BUCKETS_S[-1]]
    if counts[-1] <= 0:
        return None
    for (low, high), (below, up_to) in zip(pairwise(bounds), pairwise(counts), strict=True):
        if up_to >= wanted and up_to > below:
            return _short(low + (high - low) * (wanted - below) / (up_to - below))
    return None


def _lag(before: Figures, now: Figures) -> list[int]:
    earlier = before.lag or (0,) * len(now.lag)
    return [new - old for new, old in zip(now.lag, earlier, strict=True)]


def _short(value: float) -> float:
    """Three digits are enough to draw by, and keep what is sent small. Nothing here is below zero."""
    short = float(f"{max(0, value):.3g}")
    return int(short) if short.is_integer() else short
