"""The recent course of the figures: what is drawn is what happened, whatever the clock and the process do."""

from __future__ import annotations

import dataclasses
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from writebehind_worker.course import RECENT_S, Course, Rates, Sample, between, quantile
from writebehind_worker.figures import Backlog, DeadLetters, Figures
from writebehind_worker.metrics import LAG_BUCKETS_S, Metrics
from writebehind_worker.recorder import Recorder
from writebehind_worker.testing.wait import wait_until

STEPS = st.lists(
    st.tuples(st.floats(0.01, 30), st.integers(0, 100_000), st.integers(0, 5000)), min_size=1, max_size=80
)


def looked_at(length: int, at_s: float) -> Backlog:
    return Backlog(length, 0, 0, 0.5, at_s)


def filled(steps: list[tuple[float, int, int]], seconds: int = 600) -> tuple[Course, float, Figures]:
    """A course, its last time and figures: each step is seconds, further writes, further rows."""
    course, at, figures = Course(seconds), 1000.0, Figures()
    course.add(at, figures)
    for passed, writes, rows in steps:
        at += passed
        figures = dataclasses.replace(figures, applied=figures.applied + writes, rows=figures.rows + rows)
        course.add(at, figures)
    return course, at, figures


@given(STEPS)
def test_it_is_bounded_and_all_series_are_as_long(steps: list[tuple[float, int, int]]) -> None:
    course, at, _ = filled(steps, seconds=20)
    lengths = {len(values) for values in course.series().values()}
    assert len(lengths) == 1
    assert lengths.pop() <= 20
    assert len(course.series_of(("users", "23505"))) == len(course.series()["waiting"])
    assert course.silent_s(at + 7) is not None


@given(STEPS)
def test_no_rate_is_above_what_could_have_been(steps: list[tuple[float, int, int]]) -> None:
    """Never below zero, and no peak after a silence: in none of its seconds were there more writes."""
    course, _, figures = filled(steps)
    drawn = [value for value in course.series()["writes_per_s"] if value is not None]
    assert all(value >= 0 for value in drawn)
    assert all(value <= figures.applied / 0.01 for value in drawn)


@given(
    st.lists(st.tuples(st.floats(0.9, 1.1), st.integers(0, 900), st.integers(0, 9)), min_size=5, max_size=80)
)
def test_what_is_drawn_adds_up(steps: list[tuple[float, int, int]]) -> None:
    course, _, figures = filled(steps)
    drawn = sum(value or 0 for value in course.series()["writes_per_s"])
    left_for_next_call = max(writes for _, writes, _ in steps)  # the last one may have come too soon
    assert (
        figures.applied * 0.85 - 2 * left_for_next_call
        <= drawn
        <= figures.applied * 1.15 + left_for_next_call
    )


@given(st.floats(4.5, 100_000))
def test_a_process_that_was_stopped_leaves_a_gap_and_no_peak(silence_s: float) -> None:
    course, _, _ = filled([(1.0, 100, 10)] * 5 + [(silence_s, 100, 10), (1.0, 100, 10)])
    drawn = course.series()["writes_per_s"]
    gap = [value is None for value in drawn[6:-2]]
    assert all(gap)
    assert len(gap) in (min(int(silence_s) - 1, 592), min(int(silence_s), 592), min(int(silence_s) - 2, 592))
    assert max(value for value in drawn if value is not None) <= 101
    assert drawn[-2] == pytest.approx(100 / silence_s, rel=0.02)
    assert drawn[-1] == 100


def test_a_call_that_is_late_speaks_for_the_seconds_that_it_missed() -> None:
    course, _, _ = filled([(1.0, 100, 10), (3.0, 300, 30), (1.0, 100, 10)])
    assert course.series()["writes_per_s"] == [None, 100, 100, 100, 100, 100]


def test_a_call_that_comes_too_soon_is_counted_with_the_next() -> None:
    course, _, _ = filled([(1.0, 100, 10), (0.2, 40, 4), (0.8, 60, 6)])
    assert course.series()["writes_per_s"] == [None, 100, 100]


def test_recent_is_the_mean_of_the_last_seconds() -> None:
    course, _, _ = filled([(1.0, 1000, 10)] * 50 + [(1.0, 100, 50)] * RECENT_S)
    recent = course.recent()
    assert (recent.writes_per_s, recent.rows_per_s, recent.coalescing) == (100, 50, 2)
    assert filled([(1.0, 1000, 10)] * 5 + [(60, 0, 0)])[0].recent().writes_per_s is None, "not that of before"


def test_an_empty_course() -> None:
    course = Course()
    assert course.recent() == Rates()
    assert course.series() == {name: [] for name in Sample.__struct_fields__}
    assert course.silent_s(1.0) is None


def test_what_nobody_has_told_is_unknown_and_not_zero() -> None:
    course = Course()
    course.add(1.0, Figures())
    course.add(
        2.0, Figures(backlog=looked_at(7, 2.0), dead_letters=DeadLetters(3, 1, {("users", "23505"): 3}))
    )
    course.add(3.0, Figures(backlog=looked_at(7, -20.0), dead_letters=DeadLetters()))
    assert course.series()["waiting"] == [None, 7, None], "what was seen long ago is not known now"
    assert course.series()["dead_letters"] == [None, 3, 0]
    assert course.series_of(("users", "23505")) == [None, 3, 0]
    assert course.series()["flush_s"] == [None, None, None]
    assert course.series()["writes_per_s"] == [None, 0, 0]


@given(st.lists(st.floats(0, 400), min_size=1, max_size=300), st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_in_the_bucket_of_the_true_one(lags_s: list[float], share: float) -> None:
    at_most = [sum(lag <= bound for lag in lags_s) for bound in LAG_BUCKETS_S] + [len(lags_s)]
    found = quantile(at_most, share)
    assert found is not None
    true = sorted(lags_s)[max(0, -int(-len(lags_s) * share // 1) - 1)]
    for low, high in pairwise([0.0, *LAG_BUCKETS_S]):
        if low < true <= high:
            assert low * 0.995 <= found <= high * 1.005
    if true > LAG_BUCKETS_S[-1]:
        assert found == LAG_BUCKETS_S[-1]


def test_a_quantile_of_nothing() -> None:
    assert quantile([], 0.5) is None
    assert quantile([0] * 18, 0.5) is None


def test_the_lag_is_that_of_the_interval() -> None:
    metrics, second = Metrics(), 1_000_000
    metrics.lag(100 * second, [99 * second] * 1000)
    before = metrics.figures()
    metrics.lag(200 * second, [200 * second - 2_000] * 10)
    found = between(before, metrics.figures(), 1, 0)
    assert found.lag_p50_s == pytest.approx(0.0018, abs=0.0008)
    assert found.lag_p99_s is not None
    assert found.lag_p99_s <= 0.0025
    assert between(Figures(), metrics.figures(), 1, 0).lag_p99_s == pytest.approx(1, abs=0.5)


def test_the_metrics_tell_their_figures() -> None:
    metrics = Metrics("q")
    assert metrics.figures() == Figures(lag=(0,) * (len(LAG_BUCKETS_S) + 1))
    metrics.flushed("users", "applied", 30)
    metrics.flushed("pages", "applied", 10)
    metrics.flushed("users", "rejected", 2)
    metrics.flushed("users", "passed_over", 5)
    metrics.rows_written("users", 8)
    metrics.flush([42], 0.5)
    metrics.retried("x")
    metrics.lease_is(True)
    metrics.queue_is(7, 3, 1, 1.5)
    metrics.redis_risks_are(["persistence"])
    metrics.dead_letters_are({(f"t{n}", "23505"): n + 1 for n in range(30)})
    found = metrics.figures()
    assert (found.applied, found.rejected, found.rows) == (40, 2, 8)
    assert (found.flushes, found.flush_s, found.retries, found.is_owner) == (1, 0.5, 1, True)
    assert found.backlog is not None
    assert (found.backlog.waiting, found.backlog.oldest_age_s) == (10, 1.5)
    assert found.dead_letters is not None
    assert (found.dead_letters.total, found.dead_letters.reasons) == (465, 30)
    assert list(found.dead_letters.largest.items())[:2] == [(("t29", "23505"), 30), (("t28", "23505"), 29)]
    assert len(found.dead_letters.largest) == 20
    assert found.risks == frozenset({"persistence"})


def test_once_it_is_not_the_owner_it_knows_of_the_queue_no_more() -> None:
    metrics = Metrics("q")
    metrics.queue_is(7, 3, 1, 1.5)
    metrics.redis_risks_are(["memory"])
    metrics.dead_letters_are({("users", "23505"): 1})
    metrics.nothing_is_known()
    metrics.nothing_holds()
    found = metrics.figures()
    assert (found.backlog, found.dead_letters) == (None, None)
    assert found.risks == frozenset({"memory"}), "of Redis it still is what was seen last"
    assert metrics.registry.get_sample_value("writebehind_queue_length") == 0
    assert metrics.registry.get_sample_value("writebehind_redis_risk", {"risk": "memory"}) == 0


def test_the_recorder_takes_a_sample_a_second() -> None:
    metrics, course = Metrics(), Course()
    recorder = Recorder(metrics, course)
    recorder.start()
    recorder.start()
    wait_until(lambda: course.silent_s(0) is not None)
    metrics.flushed("users", "applied", 50)
    wait_until(lambda: 50 in course.series()["writes_per_s"][1:] or (course.recent().writes_per_s or 0) > 0)
    recorder.stop()
    recorder.stop()
    assert "course" not in [thread.name for thread in threading.enumerate()]
