"""The breaker: refusals of a table that no write can mend, in a row."""

from __future__ import annotations

import pytest

from writebehind_worker.breaker import LIMIT, Breaker, Trial, is_structural
from writebehind_worker.errors import BreakerTripped
from writebehind_worker.received import Fault, Message
from writebehind_worker.resolve import Refusal

MISSING = Fault("42703", "users has no column 'nick'")
DENIED = Fault("42501", "permission denied for table users")


def refuse(breaker: Trial, times: int, fault: Fault = MISSING, table: str = "public.users") -> None:
    for _ in range(times):
        breaker.refused(table, fault)


def test_it_trips_at_the_limit_and_says_why() -> None:
    breaker = Breaker(limit=3).trial()
    refuse(breaker, 2)
    with pytest.raises(BreakerTripped, match=r"last 3 writes to public\.users .*42703"):
        refuse(breaker, 1)


def test_the_limit_is_a_thousand() -> None:
    breaker = Breaker().trial()
    refuse(breaker, LIMIT - 1)
    with pytest.raises(BreakerTripped):
        refuse(breaker, 1)
    assert LIMIT == 1000


def test_a_write_that_goes_through_begins_the_count_again() -> None:
    breaker = Breaker(limit=3).trial()
    for _ in range(5):
        refuse(breaker, 2)
        breaker.applied("public.users")


def test_a_write_to_another_table_does_not() -> None:
    breaker = Breaker(limit=3).trial()
    refuse(breaker, 2)
    breaker.applied("public.pages")
    with pytest.raises(BreakerTripped):
        refuse(breaker, 1)


def test_tables_are_counted_apart() -> None:
    breaker = Breaker(limit=3).trial()
    for table in ("public.a", "public.b", "public.c"):
        refuse(breaker, 2, table=table)


def test_another_code_begins_the_count_again() -> None:
    breaker = Breaker(limit=3).trial()
    for _ in range(5):
        refuse(breaker, 2, MISSING)
        refuse(breaker, 2, DENIED)


def test_once_tripped_one_more_refusal_trips_the_next_attempt() -> None:
    breaker = Breaker(limit=3)
    with pytest.raises(BreakerTripped):
        refuse(breaker.trial(), 3)
    for _ in range(3):
        with pytest.raises(BreakerTripped):
            refuse(breaker.trial(), 1)


def test_once_tripped_one_write_that_goes_through_closes_it() -> None:
    breaker = Breaker(limit=3)
    with pytest.raises(BreakerTripped):
        refuse(breaker.trial(), 3)
    trial = breaker.trial()
    trial.applied("public.users")
    refuse(trial, 2)
    trial.commit()
    with pytest.raises(BreakerTripped):
        refuse(breaker.trial(), 1)


def test_an_attempt_that_is_rolled_back_leaves_no_count() -> None:
    breaker = Breaker(limit=3)
    for _ in range(5):
        refuse(breaker.trial(), 2)


def test_committed_batches_are_counted_together() -> None:
    breaker = Breaker(limit=5)
    for _ in range(2):
        trial = breaker.trial()
        refuse(trial, 2)
        trial.commit()
    with pytest.raises(BreakerTripped):
        refuse(breaker.trial(), 1)


@pytest.mark.parametrize("state", ["42703", "42P01", "42501", "XX001", "XX002"])
def test_what_no_other_write_can_mend_is_structural(state: str) -> None:
    assert is_structural(Refusal(Message(0, b""), Fault(state, "?")))


@pytest.mark.parametrize(
    "state", ["23503", "23505", "22P02", "P0002", "40001", "XX000", "", "42P10", "428C9"]
)
def test_what_a_write_itself_is_to_blame_for_is_not(state: str) -> None:
    assert not is_structural(Refusal(Message(0, b""), Fault(state, "?")))
