"""Rows as lines that COPY reads."""

from __future__ import annotations

import csv
import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from writebehind_worker.row_lines import CHUNK, Row, all_as_lines, as_lines, with_key

KEYS = st.integers(-(1 << 63), (1 << 63) - 1) | st.text(max_size=5)
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from(["null", "]\n[", '"', ",", "\\.", ""])
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=2), st.integers(), max_size=2)
)
ROWS = st.lists(st.tuples(KEYS, st.tuples(VALUES, VALUES)), min_size=1, max_size=6)


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value, ensure_ascii=False).encode())


def field(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@given(ROWS)
def test_a_line_says_what_the_row_says(rows: list[tuple[int | str, tuple[object, object]]]) -> None:
    values = [tuple(map(raw, own)) for _, own in rows]
    found = as_lines([key for key, _ in rows], values)
    assert len(found) == len(rows)
    for (key, own), given_, row in zip(rows, values, found, strict=True):
        assert json.loads(msgspec.json.encode(with_key(key, row))) == [key, *own]
        if isinstance(row, bytes):
            (line,) = csv.reader([row.decode()])
            assert line == [field(key), *map(field, own)]
        else:
            assert row == given_


def test_text_alone_does_not_keep_a_row_from_being_a_line() -> None:
    assert as_lines([1, "a"], [(raw("x,y"), raw(None)), (raw("null"), raw(-0.5))]) == [
        b'1,"x,y",null',
        b'"a","null",-0.5',
    ]


def test_a_row_that_is_none_keeps_no_other_from_being_a_line() -> None:
    odd = (raw("a\nb"),)
    assert as_lines([1, 2, 3], [(raw(1),), odd, (raw(3),)]) == [b"1,1", odd, b"3,3"]


def test_large_rows_stay_as_they_are() -> None:
    large = [(raw("x" * 3000),)] * 3
    assert as_lines([1, 2, 3], large) == large


def test_rows_become_lines_later_too() -> None:
    rows: dict[int | str, Row] = {key: (raw(key),) for key in range(2 * CHUNK + 1)}
    rows[7] = b"7,8"
    found = dict(all_as_lines(rows))
    assert 7 not in found
    assert found == {key: b"%d,%d" % (key, key) for key in range(2 * CHUNK + 1) if key != 7}
