"""Telling from what both servers hold whether one has gone back in time, and what was applied before."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from writebehind_worker.frozen import count_applied_before, split_applied_before, stamped_seq
from writebehind_worker.history import History, Holdings, LedgerRow, compare
from writebehind_worker.received import Message

CLOCK = 10**15
LEDGER = LedgerRow(
    epoch=3,
    recent_batches=[11, 12, 13],
    applied_seq=500,
    generations=[1, 2],
    redis_run_id="one",
    rollback_seq=0,
    rollback_items=0,
)
REDIS = Holdings(now_us=1000, clock_seq=600, generation=2, applied=500, acked=13, inflight=[])


def compared(run_id: str | None = "one", ledger: LedgerRow = LEDGER, **holdings: Any) -> History:
    return compare(ledger, replace(REDIS, **holdings), run_id)


def test_the_same_history_in_both_is_plain() -> None:
    assert compared().is_plain
    assert compared() == History()


@pytest.mark.parametrize("inflight", [[14], [14, 15]])
def test_frozen_batches_that_are_not_committed_are_plain(inflight: list[int]) -> None:
    assert compared(inflight=inflight).is_plain


@pytest.mark.parametrize(
    ("inflight", "acked", "applied"),
    [([13], 12, 400), ([12, 13], 11, 300), ([13, 14], 12, 400), ([11, 12, 13, 14], 10, 100)],
)
def test_committed_batches_that_were_not_acknowledged_are_plain(
    inflight: list[int], acked: int, applied: int
) -> None:
    assert compared(inflight=inflight, acked=acked, applied=applied).is_plain


def test_a_batch_frozen_under_a_lower_id_than_the_last_is_plain() -> None:
    assert compared(inflight=[9]).is_plain


def test_another_process_answers() -> None:
    assert compared("two") == History(redis_restarted=True)


@pytest.mark.parametrize(("ours", "theirs"), [(None, "one"), ("one", None), (None, None)])
def test_a_server_that_does_not_tell_its_run_id_has_not_restarted(
    ours: str | None, theirs: str | None
) -> None:
    assert compared(ours, replace(LEDGER, redis_run_id=theirs)).is_plain


@pytest.mark.parametrize("acked", [0, 11, 12])
def test_redis_has_acknowledged_less_than_was_committed(acked: int) -> None:
    assert compared(acked=acked) == History(redis_went_back=True)


def test_redis_holds_a_committed_batch_that_is_not_the_last() -> None:
    assert compared(inflight=[12], acked=11, applied=400).redis_went_back


def test_a_lower_applied_seq_alone_is_plain() -> None:
    """What was acknowledged tells it: a new Redis that serves raw producers only stays behind in seqs."""
    assert compared(applied=499).is_plain


def test_redis_shows_an_older_generation_that_the_ledger_has_served() -> None:
    assert compared(generation=1) == History(redis_went_back=True)


def test_redis_shows_a_generation_that_the_ledger_has_never_served() -> None:
    assert compared(generation=7, acked=0, applied=0) == History(redis_is_new=True)


@pytest.mark.parametrize(("acked", "inflight"), [(13, []), (5, []), (0, [13])])
def test_redis_was_noticed_to_go_back_and_postgres_has_forgotten_it(acked: int, inflight: list[int]) -> None:
    found = compared(generation=7, acked=acked, inflight=inflight)
    assert found == History(redis_went_back=True)
    assert found.must_count


def test_an_unknown_generation_with_a_batch_that_the_ledger_has_never_seen_is_one_that_it_has_forgotten() -> (
    None
):
    found = compared(generation=7, acked=14, applied=550)
    assert found == History(redis_restarted=True, postgres_went_back=True)
    assert found.must_count
    assert not compared(generation=7, acked=0, applied=0).must_count


def test_a_first_owner_finds_new_histories() -> None:
    first = LedgerRow(1, [], 0, [], None, 0, 0)
    assert compare(first, Holdings(1, 0, 5, 0, 0, []), "one") == History(redis_is_new=True)


@pytest.mark.parametrize("generation", [2, 7])
def test_postgres_has_never_seen_a_batch_that_was_acknowledged(generation: int) -> None:
    history = compared(generation=generation, acked=14, applied=550)
    assert history.postgres_went_back
    assert not history.redis_went_back


def test_a_ledger_that_was_made_anew_has_gone_back() -> None:
    assert compared(ledger=LedgerRow(1, [], 0, [], None, 0, 0)).postgres_went_back


# Items: a seq, or None for a raw one.
Items = Sequence[int | None]


def body(seq: int | None) -> bytes:
    return b'{"table":"t"}' if seq is None else b'{"seq":%d,"table":"t","key":"t:1"}' % seq


def messages(items: Items) -> list[Message]:
    return [Message(i, body(seq), seq=seq) for i, seq in enumerate(items)]


@st.composite
def lists(draw: st.DrawFn) -> Items:
    """A queue, oldest first: seqs grow, raw items are anywhere."""
    gaps = draw(st.lists(st.none() | st.integers(1, 3), max_size=30))
    seqs = itertools.accumulate(gap or 0 for gap in gaps)
    return [None if gap is None else seq for gap, seq in zip(gaps, seqs, strict=True)]


@pytest.mark.parametrize(
    ("items", "applied_seq", "count"),
    [
        ([], 10, 0),
        ([1, 2, 3], 0, 0),
        ([1, 2, 3], 2, 2),
        ([1, 2, 3], 9, 3),
        ([None, None], 9, 0),
        ([None, 1, None, 2, None], 2, 4),
        ([None, 3, None], 2, 0),
        ([1, None, 3], 2, 1),
    ],
)
def test_what_was_applied_before_ends_with_the_last_seq_that_was(
    items: Items, applied_seq: int, count: int
) -> None:
    assert count_applied_before(map(body, items), applied_seq, CLOCK)[0] == count


@given(lists(), st.integers(0, 60))
def test_every_seq_that_was_applied_is_counted_and_no_other(items: Items, applied_seq: int) -> None:
    count, _ = count_applied_before(map(body, items), applied_seq, CLOCK)
    assert all(seq is None or seq <= applied_seq for seq in items[:count])
    assert all(seq is None or seq > applied_seq for seq in items[count:])
    assert count == 0 or items[count - 1] is not None


@given(lists(), st.integers(0, 60), lists(), st.lists(st.integers(1, 7), max_size=40))
def test_batches_of_any_size_split_where_the_whole_list_does(
    items: Items, applied_seq: int, later: Items, sizes: list[int]
) -> None:
    """What is accepted after the rollback has higher seqs, or none; batches are cut anywhere."""
    base = max([applied_seq, *(s for s in items if s is not None)])
    whole = [*items, *(None if s is None else base + s + 1 for s in later)]
    left = count = count_applied_before(map(body, items), applied_seq, CLOCK)[0]
    before: list[Message] = []
    after: list[Message] = []
    start = 0
    for size in [*sizes, len(whole)]:
        old, new, left = split_applied_before(messages(whole[start : start + size]), applied_seq, left)
        before += old
        after += new
        start += size
    assert [m.seq for m in before] == whole[:count]
    assert [m.seq for m in after] == whole[count:]
    assert left == 0 or not whole


@given(lists(), st.integers(0, 60))
def test_without_a_rollback_nothing_is_split_off(items: Items, rollback_seq: int) -> None:
    whole = messages(items)
    assert split_applied_before(whole, rollback_seq, 0) == ([], whole, 0) or not whole


@pytest.mark.parametrize(
    ("item", "seq"),
    [
        (b'{"seq":17,"table":"t","key":"t:1"}', 17),
        (b'{"seq":17,"table":"t"}', None),  # no cache key: not our producer's
        (b'{"table":"t","seq":17}', None),  # not where our producer's script puts it
        (b'{"seq":17}', None),
        (b'{"seq":-1,"table":"t"}', None),
        (b"", None),
        (b"\xff", None),
    ],
)
def test_a_seq_counts_only_where_our_producer_puts_it(item: bytes, seq: int | None) -> None:
    assert stamped_seq(item) == seq
