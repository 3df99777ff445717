"""What the cache must hear of a flushed batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from writebehind.message import Op
from writebehind_worker.received import Fault, Message
from writebehind_worker.settle import Latest, Seqs, Settlement, settlements, still_shown


def message(position: int, key: str | None, seq: int | None, ttl_s: int = 60, op: Op = "put") -> Message:
    return Message(position, b"", "users", op, seq=seq, cache_key=key, ttl_s=ttl_s)


def test_an_empty_batch_settles_nothing() -> None:
    assert settlements([], set()) == []


def test_an_applied_write_gives_its_entry_the_ttl() -> None:
    assert settlements([message(0, "users:1", 7, op="patch")], set()) == [Settlement("users:1", 60, 7)]
    assert settlements([message(0, "users:1", 7)], set()) == [Settlement("users:1", 60, 7, is_put=True)]


def test_a_rejected_write_makes_its_entry_dirty() -> None:
    assert settlements([message(0, "users:1", 7)], {0}) == [Settlement("users:1", 60, rejected_seq=7)]


def test_the_last_applied_write_of_an_entry_counts() -> None:
    batch = [message(0, "users:1", 7, ttl_s=60), message(1, "users:1", 9, ttl_s=90)]
    assert settlements(batch, set()) == [Settlement("users:1", 90, applied_seq=9, is_put=True)]


def test_applied_and_rejected_writes_of_one_entry_are_both_told() -> None:
    batch = [message(0, "a", 1), message(1, "a", 2), message(2, "a", 3), message(3, "a", 4)]
    assert settlements(batch, {1, 3}) == [Settlement("a", 60, 3, rejected_seq=4, is_put=True)]


def test_the_ttl_is_that_of_an_applied_write_where_there_is_one() -> None:
    batch = [message(0, "a", 1, ttl_s=10), message(1, "a", 2, ttl_s=20), message(2, "a", 3, ttl_s=30)]
    assert settlements(batch, {0, 2}) == [Settlement("a", 20, 2, rejected_seq=3, is_put=True)]


def test_whether_an_entry_shows_a_put_is_told_of_its_last_applied_write() -> None:
    ops: list[Op] = ["put", "patch", "put", "delete"]
    batch = [message(i, "a", i + 1, op=op) for i, op in enumerate(ops)]
    for number, op in enumerate(ops):
        (found,) = settlements(batch, set(range(number + 1, len(ops))))
        assert (found.applied_seq, found.is_put) == (number + 1, op == "put")


def test_raw_writes_have_no_entry() -> None:
    assert settlements([message(0, None, None), message(1, None, 5), message(2, "a", None)], {1}) == []


def test_a_faulty_message_settles_what_could_be_read_of_it() -> None:
    faulty = Message(0, b"", seq=5, cache_key="a", fault=Fault("22P02", "broken"))
    assert settlements([faulty], {0}) == [Settlement("a", 3600, rejected_seq=5)]


def test_entries_come_in_the_order_of_the_batch() -> None:
    batch = [message(i, key, i + 1) for i, key in enumerate("bacab")]
    assert [s.cache_key for s in settlements(batch, set())] == ["b", "a", "c"]


@pytest.mark.parametrize("ops", [("patch", "put"), ("put", "patch")])
def test_what_shares_its_seq_with_another_write_is_not_taken_for_a_put(ops: tuple[Op, Op]) -> None:
    """The entry may show the other one."""
    (found,) = settlements([message(i, "a", 7, op=op) for i, op in enumerate(ops)], set())
    assert not found.is_put


@pytest.mark.parametrize(("first", "then"), [("patch", "put"), ("put", "patch")])
def test_what_comes_after_a_later_seq_tells_nothing_of_that_one(first: Op, then: Op) -> None:
    """It is forged."""
    (found,) = settlements([message(0, "a", 7, op=first), message(1, "a", 5, op=then)], set())
    assert (found.applied_seq, found.is_put) == (7, first == "put")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(1, 9))))
def test_each_key_is_told_of_its_last_applied_and_its_last_rejected_seq(
    writes: list[tuple[str, bool, int]],
) -> None:
    batch = [message(i, key, i + 1, ttl_s) for i, (key, _, ttl_s) in enumerate(writes)]
    buried = {i for i, (_, bad, _) in enumerate(writes) if bad}
    found = {s.cache_key: s for s in settlements(batch, buried)}
    assert found.keys() == {key for key, _, _ in writes}
    for key, settlement in found.items():
        mine = [i for i, (k, _, _) in enumerate(writes) if k == key]
        applied = [i for i in mine if i not in buried]
        assert settlement.applied_seq == max((i + 1 for i in applied), default=0)
        assert settlement.rejected_seq == max((i + 1 for i in mine if i in buried), default=0)
        assert settlement.ttl_s == writes[(applied or mine)[-1 if applied else 0]][2]


def test_an_entry_that_a_later_frozen_batch_changes_is_left_to_that_one() -> None:
    a, b = Settlement("a", 60, applied_seq=1), Settlement("b", 60, applied_seq=2)
    assert list(still_shown([a, b], [{}, {"c": 3}, {"a": 4}])) == [b]


def test_an_entry_is_settled_by_the_last_of_the_writes_that_are_frozen() -> None:
    """A unit that is flushed in parts is among the later ones itself."""
    unit: Seqs = {"a": 7, "b": 3}
    first, last = [Settlement("a", 60, applied_seq=2)], [Settlement("a", 60, applied_seq=7)]
    assert list(still_shown(first, [unit])) == []
    assert list(still_shown(last, [unit])) == last


def test_that_a_write_was_rejected_is_told_at_once() -> None:
    """The later write's entry may be of it: the entry has to be made dirty."""
    rejected = [Settlement("a", 60, applied_seq=1, rejected_seq=2)]
    assert list(still_shown(rejected, [{"a": 4}])) == rejected


SENT = st.tuples(st.sampled_from("abc"), st.sampled_from([60, 90]), st.booleans())  # key, ttl, is it a put


@given(st.lists(st.lists(st.tuples(st.lists(SENT), st.booleans()))))
def test_what_is_known_of_each_entry_is_its_last_message_however_they_came(
    batches: list[list[tuple[list[tuple[str, int, bool]], bool]]],
) -> None:
    """Of batches that join, each read in chunks; where a chunk is of one kind, that may be said once."""
    whole, seq = Latest(), 0
    expected: dict[str, Settlement] = {}
    for chunks in batches:
        batch = Latest()
        for sent, is_short in chunks:
            keys, kinds = [key for key, _, _ in sent], [(ttl, is_put) for _, ttl, is_put in sent]
            seqs = range(seq + 1, seq + 1 + len(sent))
            seq += len(sent)
            batch.add(keys, seqs, kinds[0] if is_short and len(set(kinds)) == 1 else kinds)
            expected |= {
                key: Settlement(key, ttl, n, is_put=is_put)
                for n, key, (ttl, is_put) in zip(seqs, keys, kinds, strict=True)
            }
        whole.add_all(batch)
    assert {s.cache_key: s for s in whole.settlements()} == expected
    assert whole.seqs == {key: s.applied_seq for key, s in expected.items()}
