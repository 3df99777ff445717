"""Reading queue items: whatever stands in the list becomes a message or a fault that a person understands."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from writebehind.message import make_write
from writebehind_worker.received import Message, receive

CLOCK = 1_700_000_000_000_000
VALID: list[dict[str, Any]] = [
    {"table": "users", "id": 42, "data": {"name": "Ada"}},
    {"table": "app.users", "id": "x", "op": "patch", "data": {"name": None, "tags": [1, [2], {}]}},
    {"table": "pages", "id": {"site": 1, "path": "/"}, "op": "increment", "data": {"views": 1, "f": -2.5}},
    {"table": "users", "id": 42, "op": "delete", "seq": CLOCK, "key": "users:42", "ttl": 60},
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def texts(message: Message) -> dict[str, bytes]:
    """Column → JSON text."""
    return {name: bytes(text) for name, text in (message.columns or {}).items()}


def read(item: dict[str, Any] | str | bytes) -> Message:
    if isinstance(item, dict):
        item = json.dumps(item)
    body = item.encode() if isinstance(item, str) else item
    message = receive(3, body, CLOCK)
    assert (message.position, message.body) == (3, body)
    return message


def reason(item: dict[str, Any] | str | bytes) -> str:
    message = read(item)
    assert message.fault is not None, f"taken as valid: {message}"
    assert message.fault.sqlstate == "22P02"
    start = "not a message of the wire format: "
    assert message.fault.reason.startswith(start)
    said = message.fault.reason.removeprefix(start)
    assert len(said) > 8
    assert said.isprintable()
    return said


def valid(**changes: Any) -> dict[str, Any]:
    return VALID[0] | changes


# What is valid.


def test_the_least_message_is_a_put() -> None:
    message = read({"table": "users", "id": 42, "data": {"name": "Ada"}})
    assert message.fault is None
    assert (message.table, message.op, message.id, message.id_json) == ("users", "put", "42", b"42")
    assert texts(message) == {"name": b'"Ada"'}
    assert (message.seq, message.cache_key, message.ttl_s) == (None, None, 3600)


@pytest.mark.parametrize("item", VALID)
def test_every_operation_is_read_with_all_its_fields(item: dict[str, Any]) -> None:
    message = read(item)
    assert message.fault is None
    assert message.op == item.get("op", "put")
    assert message.columns is not None
    assert {n: json.loads(v) for n, v in texts(message).items()} == item.get("data", {})
    assert (message.seq, message.cache_key) == (item.get("seq"), item.get("key"))


def test_values_keep_their_json_text() -> None:
    spelt = {
        "n": "12345678901234567890.10",
        "i": "9007199254740993",
        "z": "-0.0",
        "e": "1E+2",
        "o": '{"a" :[]}',
    }
    data = ",".join(f'"{name}": {text} ' for name, text in spelt.items())
    message = read('{"table":"t" , "id" : 1 ,"data": {' + data + "}}")
    assert texts(message) == {name: text.encode() for name, text in spelt.items()}


@pytest.mark.parametrize(
    ("spelt", "text"),
    [("42", "42"), (' "42" ', "42"), ("true", "true"), ("1.50", "1.50"), ('"\\u00e9"', "é"), ("-0", "-0")],
)
def test_a_scalar_id_is_read_as_the_text_that_postgres_would_read(spelt: str, text: str) -> None:
    message = read('{"table":"t","id":' + spelt + ',"data":{}}')
    assert (message.fault, message.id) == (None, text)


def test_a_composite_id_is_read_column_by_column() -> None:
    message = read('{"table":"t","id":{"tenant": 1 ,"user":"2"},"data":{}}')
    assert message.id == {"tenant": "1", "user": "2"}
    assert message.id_json == {"tenant": b"1", "user": b'"2"'}


def test_a_put_without_columns_is_valid() -> None:
    assert read(valid(data={})).fault is None


def test_a_delete_may_carry_empty_data() -> None:
    empty: tuple[dict[str, Any] | None, ...] = ({}, None)
    for data in empty:
        message = read(valid(op="delete", data=data))
        assert (message.fault, texts(message)) == (None, {})


def test_optional_fields_may_be_null() -> None:
    message = read(valid(seq=None, key=None, ttl=None))
    assert (message.fault, message.seq, message.ttl_s) == (None, None, 3600)


def test_the_last_of_duplicate_members_counts_as_in_every_json_library() -> None:
    message = read('{"table":"a","table":"b","id":1,"id":2,"data":{"n":1,"n":2}}')
    assert (message.fault, message.table, message.id, texts(message)) == (None, "b", "2", {"n": b"2"})


def test_white_space_around_the_message_is_no_fault() -> None:
    assert read(b' \n{"table":"t","id":1,"data":{}}\r\n').fault is None


def test_the_clock_itself_is_a_seq_that_was_given_out() -> None:
    assert read(valid(seq=CLOCK, key="users:42")).seq == CLOCK


def test_a_seq_without_a_cache_key_is_not_our_librarys_and_refused() -> None:
    message = read(valid(seq=CLOCK))
    assert message.fault is not None
    assert "leave it out" in message.fault.reason


@pytest.mark.parametrize("field", ["table", "id", "data", "op", "seq", "key", "ttl"])
@pytest.mark.parametrize("value", [True, False, 1, 1.5, "x", [], {}, None])
def test_a_field_of_any_type_leaves_a_message_that_postgres_can_keep(field: str, value: object) -> None:
    message = read(valid(seq=1, key="k", ttl=1, data=None) | {field: value})
    assert message.seq is None or type(message.seq) is int
    assert message.table is None or type(message.table) is str
    assert message.cache_key is None or type(message.cache_key) is str


def test_a_reason_is_cut_to_what_a_person_reads() -> None:
    message = read({"x" * 10**6: 1})
    assert message.fault is not None
    assert len(message.fault.reason) < 1100


@given(
    table=st.text(min_size=1).filter(lambda t: "\0" not in t),
    id=st.integers() | st.text(min_size=1) | st.dictionaries(st.text(min_size=1), st.integers(), min_size=1),
    data=st.dictionaries(st.text(min_size=1), json_values, min_size=1),
    op=st.sampled_from(["put", "patch", "delete"]),
)
def test_what_the_library_writes_is_read_as_it_was_meant(
    table: str, id: Any, data: dict[str, Any], op: Any
) -> None:
    try:
        write = make_write(op, table, id, data)
    except ValueError:  # NaN, infinities, lone surrogates
        return
    message = read(b'{"seq":17,' + write.message("some:key", 60)[1:])
    assert message.fault is None
    assert (message.table, message.op, message.id, texts(message)) == (table, op, write.key, write.columns)
    assert (message.seq, message.cache_key, message.ttl_s) == (17, "some:key", 60)


# What is not.


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (b"", "truncated"),
        (b"hello", "malformed"),
        (b'{"table":"users","id":42,"data":{"name":"Ada"}', "truncated"),
        (b'{"table":"users","id":42,"data":{}} {}', "trailing"),
        (b"null", "Expected `object`, got `null`"),
        (b"[1,2]", "Expected `object`, got `array`"),
        (b'"users"', "Expected `object`, got `str`"),
        (b"\xff\xfe{}", "not UTF-8: invalid start byte at byte 0"),
        ('{"table":"users","id":1,"data":{"name":"Zoë"}}'.encode("latin-1"), "not UTF-8"),
        (b'\xef\xbb\xbf{"table":"users","id":1,"data":{}}', "malformed"),
        (b'{"table":"users","id":1,"data":{"n":NaN}}', "malformed"),
        (b'{"table":"users","id":1,"data":{"n":01}}', "invalid number"),
        (b'{"table":"users","id":1,"data":{"n":1.}}', "invalid number"),
        (b'{"table":"users","id":1,"data":{"n":"a\nb"}}', "malformed"),
        (b'{"table":"users","id":1,"data":{"n":"a\0b"}}', "malformed"),
        (b"{'table':'users','id':1,'data':{}}", "malformed"),
        (b'{"table":"t","id":1,"data":{"v":' + b"[" * 100_000 + b"]" * 100_000 + b"}}", "nested too deep"),
        (b'{"table":"t","id":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}", "nested too deep"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_is_no_json_object_is_named(item: bytes, said: str) -> None:
    assert said in reason(item)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"id": 1, "data": {}}, "missing required field `table`"),
        ({"table": "users", "data": {}}, "missing required field `id`"),
        ({"table": "", "id": 1, "data": {}}, "`table` is empty"),
        (valid(table=7), "`$.table`"),
        (valid(table=None), "`$.table`"),
        (valid(id=None), "`id` must be a scalar"),
        (valid(id=[1]), "`id` must be a scalar"),
        (valid(id={}), "`id` is empty"),
        (valid(id={"a": None}), "`id` must be a scalar"),
        (valid(id={"a": {"b": 1}}), "`id` must be a scalar"),
        (valid(data=None), "`data` is missing"),
        ({"table": "users", "id": 1}, "`data` is missing: put needs column → value"),
        (valid(data=[1]), "`$.data`"),
        (valid(data="name=Ada"), "`$.data`"),
        (valid(op="upsert"), 'put, patch, increment or delete, not "upsert"'),
        (valid(op="PUT"), 'not "PUT"'),
        (valid(op=""), 'not ""'),
        (valid(op=None), "`$.op`"),
        (valid(op="patch", data={}), "`data` is empty: patch needs at least one column"),
        (valid(op="increment", data={}), "`data` is empty: increment needs at least one column"),
        (valid(op="delete"), "`delete` takes no `data`"),
        (valid(op="increment", data={"n": "1"}), 'increment of "n": the delta must be a JSON number'),
        (valid(op="increment", data={"n": None}), "the delta must be a JSON number"),
        (valid(op="increment", data={"n": True}), "the delta must be a JSON number"),
        (valid(op="increment", data={"n": [1]}), "the delta must be a JSON number"),
        (valid(seq=CLOCK + 1), "`seq` is not one that this queue has given out; leave it out"),
        (valid(seq=10**30), "`seq`"),
        (valid(seq=0), "`seq`"),
        (valid(seq=-5), "`seq`"),
        (valid(seq="17"), "`$.seq`"),
        (valid(seq=1.5), "`$.seq`"),
        (valid(seq=True), "`$.seq`"),
        (valid(ttl=0), "`ttl` must be a number of seconds"),
        (valid(ttl=-1), "`ttl`"),
        (valid(ttl="60"), "`$.ttl`"),
        (valid(ttl=1.5), "`$.ttl`"),
        (valid(ttl=False), "`$.ttl`"),
        (valid(key=7), "`$.key`"),
        (valid(key=["a"]), "`$.key`"),
        (valid(tabel="users"), "unknown field `tabel`"),
        (valid(values={}), "unknown field `values`"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_a_message_of_the_wrong_shape_is_told_what_is_wrong(item: dict[str, Any], said: str) -> None:
    assert said in reason(item)


@pytest.mark.parametrize("ttl", [10**16, 10**18, 2**63 - 1])
def test_a_ttl_that_redis_cannot_hold_is_refused_here(ttl: int) -> None:
    """EXPIRE fails from 2^63 milliseconds on, and settling must not."""
    assert "ttl" in reason(valid(ttl=ttl))


@pytest.mark.parametrize("text", [r"\ud800", r"\ud800x", r"a\udfff", r"\ud800\ud800", r"\udc00\ud800"])
@pytest.mark.parametrize(
    "item",
    [
        '{"table":"t","id":"?","data":{}}',
        '{"table":"t","id":{"a":"?"},"data":{}}',
        '{"table":"?","id":1,"data":{}}',
        '{"table":"t","id":1,"key":"?","data":{}}',
        '{"table":"t","id":1,"data":{"?":1}}',
    ],
)
def test_a_lone_surrogate_in_a_name_or_id_is_a_fault(item: str, text: str) -> None:
    assert reason(item.replace("?", text))


@pytest.mark.parametrize("text", [r"\ud800", r"\ud800x", r"a\udfff", r"\ud800\ud800"])
def test_a_lone_surrogate_in_a_value_is_a_fault_or_left_to_postgres(text: str) -> None:
    read('{"table":"t","id":1,"data":{"a":"' + text + '"}}')


def test_a_long_unknown_op_is_cut_in_the_reason() -> None:
    assert len(reason(valid(op="x" * 10_000))) < 200


def test_a_faulty_message_still_says_what_could_be_read() -> None:
    """Its cache entry must be settled, and its dead letter found by the table."""
    message = read({"table": "users", "id": None, "data": {}, "seq": 5, "key": "users:1"})
    assert message.fault is not None
    assert (message.table, message.seq, message.cache_key) == ("users", 5, "users:1")


@pytest.mark.parametrize("fields", [{"seq": CLOCK + 1}, {"seq": "5"}, {"seq": -1}, {"key": 5}, {"table": 5}])
def test_a_faulty_field_is_not_among_what_could_be_read(fields: dict[str, Any]) -> None:
    message = read(valid(**fields))
    assert message.fault is not None
    assert message.seq is None
    assert message.cache_key is None
    assert message.table == ("users" if "table" not in fields else None)


@pytest.mark.parametrize("text", [r"\ud800", r"x\ud800", r"\udc00y", r"\ud800\ud800", r"\ud83d\ude00\ude00"])
def test_half_of_a_surrogate_pair_is_called_that(text: str) -> None:
    assert "half of a surrogate pair" in reason('{"table":"t","id":1,"data":{"a":["' + text + '"]}}')


@pytest.mark.parametrize("text", [r"\ud83d\ude00", r"\\ud800", r"\u00e9"])
def test_escapes_of_whole_characters_are_values(text: str) -> None:
    assert read('{"table":"t","id":1,"data":{"a":"' + text + '"}}').fault is None


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_raise(body: bytes) -> None:
    read(body)


@given(json_values)
def test_arbitrary_json_never_raises(value: Any) -> None:
    read(json.dumps(value))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "table": st.just("users") | json_values,
            "id": st.integers() | json_values,
            "data": st.dictionaries(st.text(max_size=3), json_values, max_size=3) | json_values,
            "op": st.sampled_from(["put", "patch", "increment", "delete"]) | json_values,
            "seq": st.integers(-(2**70), 2**70) | json_values,
            "key": st.text() | json_values,
            "ttl": st.integers(-5, 5) | json_values,
            "more": json_values,
        },
    )
)
def test_objects_with_our_fields_are_read_right_or_refused(item: dict[str, Any]) -> None:
    message = read(item)
    if message.fault is not None:
        reason(item)
        return
    assert item.keys() <= {"table", "id", "data", "op", "seq", "key", "ttl"}
    assert message.op in ("put", "patch", "increment", "delete")
    assert message.table == item["table"] != ""
    assert message.seq is None or 0 < message.seq <= CLOCK
    assert message.ttl_s > 0
    assert message.cache_key is None or isinstance(message.cache_key, str)
    assert message.columns is not None
    assert list(message.columns) == list(item.get("data") or {})


@given(
    st.sampled_from(VALID),
    st.lists(
        st.tuples(st.integers(0, 200), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=4
    ),
)
def test_damaged_messages_are_refused_or_still_json(
    item: dict[str, Any], edits: list[tuple[int, int, bytes]]
) -> None:
    body = json.dumps(item).encode()
    for at, cut, put in edits:
        at %= len(body) + 1
        body = body[:at] + put + body[at + cut :]
    message = read(body)
    if message.fault is None:
        again = json.loads(body)
        assert (message.table, message.op) == (again["table"], again.get("op", "put"))
        assert message.columns is not None
        assert list(message.columns) == list(again.get("data") or {})
    else:
        assert message.fault.reason.isprintable()
