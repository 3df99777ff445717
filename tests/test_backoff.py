"""Delays between attempts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from writebehind_worker.backoff import Backoff


def test_full_delays_double_up_to_the_longest() -> None:
    backoff = Backoff(first_s=1, longest_s=10)
    # a draw of 1 would be the full delay
    assert [backoff.next_s(draw=1.0) for _ in range(6)] == [1, 2, 4, 8, 10, 10]


def test_the_jitter_takes_at_most_half_of_a_delay() -> None:
    assert [Backoff(first_s=1).next_s(draw) for draw in (0.0, 0.5)] == [0.5, 0.75]


@given(st.integers(0, 100), st.floats(0, 1, exclude_max=True))
def test_a_delay_lies_in_the_upper_half_of_its_range(attempts: int, draw: float) -> None:
    delay = Backoff(first_s=0.05, longest_s=5, attempts=attempts).next_s(draw)
    full = min(5, 0.05 * 2.0**attempts)
    assert full / 2 <= delay <= full


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=8))
def test_delays_never_shrink_until_the_longest_is_reached(draws: list[float]) -> None:
    backoff = Backoff(first_s=0.01, longest_s=1000)
    delays = [backoff.next_s(draw) for draw in draws]
    assert delays == sorted(delays)


def test_chance_spreads_the_delays() -> None:
    delays = {Backoff(first_s=1).next_s() for _ in range(50)}
    assert len(delays) > 10
    assert all(0.5 <= delay <= 1 for delay in delays)


def test_after_a_success_it_begins_again() -> None:
    backoff = Backoff(first_s=1, longest_s=10)
    for _ in range(5):
        backoff.next_s()
    backoff.reset()
    assert backoff.next_s(draw=0.0) == 0.5


def test_a_million_attempts_do_not_overflow() -> None:
    assert Backoff(attempts=1_000_000).next_s(draw=0.0) == pytest.approx(2.5)
