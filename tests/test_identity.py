"""One row has one name: canonical ids, and cache keys that never collide."""

from __future__ import annotations

import json
from typing import Any, get_args
from uuid import UUID, uuid4

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from writebehind import WriteBehind
from writebehind.identity import KeyKind, TableKey, cache_key, canonical, scalar_text
from writebehind.message import make_write
from writebehind_worker.owned_queue import publish_tables

A = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"


def key_of(table: TableKey, id: Any, prefix: str = "") -> str:
    """The cache key as the client makes it."""
    return cache_key(prefix, table, make_write("delete", table.name, id, None).key)


def of_kind(*kinds: KeyKind) -> TableKey:
    """A table whose key has columns a, b, ... of these kinds."""
    return TableKey("t", tuple(zip("abcdef", kinds, strict=False)))


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("int", "42", "42"),
        ("int", " 42\n", "42"),
        ("int", "+42", "42"),
        ("int", "-042", "-42"),
        ("int", "-0", "0"),
        ("int", "0", "0"),
        ("int", "007", "7"),
        ("int", "9" * 19, "9" * 19),
        ("int", "9" * 20, "9" * 20),
        ("int", "9" * 40, "9" * 40),
        ("int", "9" * 41, None),
        ("int", "42.0", None),
        ("int", "4_2", None),
        ("int", "0x10", None),
        ("int", "٤٢", None),
        ("int", "", None),
        ("uuid", A, A),
        ("uuid", A.upper(), A),
        ("uuid", A.replace("-", ""), A),
        ("uuid", "{" + A + "}", A),
        ("uuid", "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11", A),
        ("uuid", A[:-1], None),
        ("uuid", A[:-1] + "g", None),
        ("bool", "TRUE", "true"),
        ("bool", " y ", "true"),
        ("bool", "on", "true"),
        ("bool", "1", "true"),
        ("bool", "off", "false"),
        ("bool", "f", "false"),
        ("bool", "o", None),
        ("bool", "2", None),
        ("text", " As It Is ", " As It Is "),
        ("text", "042", "042"),
        ("other", "1.50", None),
    ],
)
def test_a_key_value_has_one_spelling(kind: KeyKind, text: str, expected: str | None) -> None:
    assert canonical(kind, text) == expected


@given(st.sampled_from(get_args(KeyKind)), st.text())
def test_a_canonical_spelling_is_its_own_canonical_spelling(kind: KeyKind, text: str) -> None:
    spelling = canonical(kind, text)
    if spelling is not None:
        assert canonical(kind, spelling) == spelling


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_integer_has_the_spelling_of_postgres(number: int) -> None:
    assert canonical("int", str(number)) == str(number)


@given(st.uuids())
def test_every_uuid_has_the_spelling_of_postgres(value: UUID) -> None:
    for text in (str(value), str(value).upper(), value.hex, "{" + str(value) + "}"):
        assert canonical("uuid", text) == str(value)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b'"a\\"b"', 'a"b'),
        (b'""', ""),
        (b"42", "42"),
        (b"-1.50", "-1.50"),
        (b"true", "true"),
        (b"null", None),
        (b"[1]", None),
        (b'{"a":1}', None),
    ],
)
def test_the_text_of_a_scalar_is_what_postgres_would_read(raw: bytes, text: str | None) -> None:
    assert scalar_text(raw) == text


@pytest.mark.parametrize("id", [42, "42", "+42", " 042", {"a": 42}, {"a": "42"}], ids=repr)
def test_all_spellings_of_an_integer_are_one_row(id: Any) -> None:
    assert key_of(of_kind("int"), id) == "t:42"


@pytest.mark.parametrize("id", [UUID(A), A, A.upper(), UUID(A).hex, {"a": A.upper()}], ids=repr)
def test_all_spellings_of_a_uuid_are_one_row(id: Any) -> None:
    assert key_of(of_kind("uuid"), id) == f"t:{A}"


def test_a_number_and_its_text_are_one_row_before_the_worker_has_published_the_table() -> None:
    unknown = TableKey("t")
    assert key_of(unknown, 42) == key_of(unknown, "42") == key_of(unknown, {"id": 42}) == "t:42"


def test_spellings_of_a_text_key_are_different_rows() -> None:
    assert key_of(of_kind("text"), "042") != key_of(of_kind("text"), "42")
    assert key_of(of_kind("text"), "a") != key_of(of_kind("text"), "A")


def test_a_value_that_only_postgres_can_read_keeps_its_spelling() -> None:
    assert key_of(of_kind("other"), "1.50") == "t:1.50"
    assert key_of(of_kind("int"), "forty-two") == "t:forty-two"


def test_a_composite_key_does_not_depend_on_the_order_given() -> None:
    table = TableKey("t", (("tenant", "int"), ("b", "text"), ("a", "uuid")))
    one = key_of(table, {"tenant": 7, "a": A, "b": "x"})
    other = key_of(table, {"b": "x", "a": A.upper(), "tenant": "007"})
    assert one == other == f"t:{A}:x:7"


def test_a_composite_key_is_the_same_before_and_after_the_worker_has_published_the_table() -> None:
    known = TableKey("t", (("z", "int"), ("a", "text")))
    assert key_of(TableKey("t"), {"z": 1, "a": "x"}) == key_of(known, {"a": "x", "z": 1})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a:b", "c"), ("a", "b:c")),
        (("a%3Ab", "c"), ("a:b", "c")),
        (("a%", "b"), ("a%25", "b")),
        (("a:", "b"), ("a", ":b")),
        (("%", ":"), (":", "%")),
    ],
)
def test_separators_inside_key_values_are_escaped(one: tuple[str, str], other: tuple[str, str]) -> None:
    keys = {key_of(of_kind("text", "text"), {"a": a, "b": b}) for a, b in (one, other)}
    assert len(keys) == 2


def test_a_separator_inside_a_table_name_is_escaped() -> None:
    assert key_of(TableKey("t"), "a:b") != key_of(TableKey("t:a"), "b")
    assert key_of(TableKey("t%3Aa"), "b") != key_of(TableKey("t:a"), "b")


def test_the_prefix_comes_first_as_it_is() -> None:
    assert key_of(TableKey("app.users"), 1, prefix="shop:v2:") == "shop:v2:app.users:1"


separators = st.text(st.sampled_from("ab:%253A"), min_size=1, max_size=6)
parts = separators | st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
composites = st.fixed_dictionaries({"a": parts, "b": parts, "c": parts})


@given(composites, composites)
def test_no_two_composite_keys_collide(one: dict[str, str], other: dict[str, str]) -> None:
    for table in (TableKey("t"), of_kind("text", "text", "text")):
        assert (key_of(table, one) == key_of(table, other)) == (one == other)


@given(st.tuples(separators, parts), st.tuples(separators, parts))
def test_no_two_rows_of_different_tables_collide(one: tuple[str, str], other: tuple[str, str]) -> None:
    keys = {key_of(TableKey(table), id) for table, id in (one, other)}
    assert (len(keys) == 1) == (one == other)


@given(composites, st.permutations(["a", "b", "c"]))
def test_the_order_of_a_composite_key_never_matters(key: dict[str, str], order: list[str]) -> None:
    table = of_kind("text", "text", "text")
    assert key_of(table, key) == key_of(table, {column: key[column] for column in order})


def test_a_client_makes_the_keys_of_a_table_as_the_worker_has_published_it(
    redis_url: str, redis_client: redis.Redis, queue: str
) -> None:
    with WriteBehind.from_url(redis_url, queue=queue, prefix=f"{queue}:", version=3) as wb:
        known = TableKey("users", (("id", "uuid"),))
        publish_tables(redis_client, wb.keys, {"users": known, "public.users": known})
        id = str(uuid4())
        wb.put("users", id, {})
        wb.put("public.users", id.upper(), {})
        keys = {json.loads(item)["key"] for item in redis_client.lrange(queue, 0, -1)}
    assert keys == {f"{queue}:v3:users:{id}"}
