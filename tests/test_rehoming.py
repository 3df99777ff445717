"""A write that is sent again keeps everything but the name of its cache entry."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from writebehind_worker.rehoming import renamed

TEXTS = st.text() | st.sampled_from(['"key":"old"', "old", '{"key":"old"}'])
DATA = st.dictionaries(
    TEXTS | st.just("key"), TEXTS | st.integers() | st.fixed_dictionaries({"key": st.just("old")})
)


def message(data: dict[str, Any], *keys: str, **more: Any) -> bytes:
    writes = [{"table": "t", "id": n, "data": data, "key": key} for n, key in enumerate(keys)]
    fields = writes[0] if len(writes) == 1 else {"table": "t", "id": 0, "v": 3, "group": writes}
    return json.dumps(fields | more, separators=(",", ":"), ensure_ascii=False).encode()


def new(entry: str) -> str:
    return {"old": "new", "new": "newer"}.get(entry, entry)


@given(DATA)
def test_the_entry_of_a_write_is_renamed_and_no_value(data: dict[str, Any]) -> None:
    assert renamed(message(data, "old", retry=7), new) == message(data, "new", retry=7)


@given(DATA)
def test_each_entry_of_a_group_is_renamed_once(data: dict[str, Any]) -> None:
    assert renamed(message(data, "old", "new", "other"), new) == message(data, "new", "newer", "other")


def test_numbers_keep_their_digits_and_a_message_without_entry_stays() -> None:
    text = b'{"table":"t","id":1,"data":{"n":1.50,"big":12345678901234567890123,"e":1e400}}'
    assert renamed(text, new) == text
