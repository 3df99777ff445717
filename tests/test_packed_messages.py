"""Version 2 of the wire format: packed columns, read as if they stood in `data`, or refused with a reason."""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from writebehind import frame as frames
from writebehind.frame import MAX_UNPACKED_BYTES, Compression
from writebehind.message import WIRE_VERSION, make_write
from writebehind.packing import PackedWrite, Packing
from writebehind_worker.packed_rows import readable
from writebehind_worker.received import Message, declared_size, receive

CLOCK = 10**15
LONG = json.dumps("a long text " * 100).encode()

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)


def texts(message: Message) -> dict[str, bytes]:
    return {name: bytes(text) for name, text in (message.columns or {}).items()}


def packed(columns: dict[str, bytes], **changes: Any) -> bytes:
    """A message with these frames; its fields in the order in which the library writes them."""
    given = {
        "table": "t",
        "id": 1,
        "data": {},
        "v": 2,
        "packed": {name: b64encode(frame).decode() for name, frame in columns.items()},
        "unpacked": sum(len(zlib.decompressobj().decompress(f)) for f in columns.values() if f[:1] == b"x"),
    } | changes
    return json.dumps({n: v for n, v in given.items() if v != "absent"}, separators=(",", ":")).encode()


def reason(body: bytes) -> str:
    message = receive(0, body, CLOCK)
    assert message.fault is not None, f"taken as valid: {message}"
    assert (message.fault.sqlstate, message.newer_version, message.lacks_zstd) == ("22P02", None, False)
    assert message.fault.reason.isprintable()
    return message.fault.reason


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
@given(
    data=st.dictionaries(names, st.tuples(values, st.integers(1, 50)), min_size=1, max_size=5),
    above=st.integers(0, 200),
    op=st.sampled_from(["put", "patch"]),
    trace=st.booleans(),
)
def test_what_is_packed_is_read_as_it_was_meant(
    kind: Compression, data: dict[str, Any], above: int, op: Any, trace: bool
) -> None:
    plain = make_write(op, "t", 1, {name: [value] * times for name, (value, times) in data.items()})
    write = Packing(above, kind).write(plain)
    body = b'{"seq":17,' + write.message("cache:t:1", 60)[1:]
    message = receive(0, body, CLOCK)
    assert message.fault is None
    assert texts(message) == plain.columns
    assert (message.op, message.id, message.cache_key, message.seq) == (op, "1", "cache:t:1", 17)
    packed_ones = write.frames if isinstance(write, PackedWrite) else {}
    assert all(len(plain.columns[name]) > above for name in packed_ones)
    assert declared_size(body) == sum(len(plain.columns[name]) for name in packed_ones)
    if packed_ones:
        assert len(body) < len(plain.message("cache:t:1", 60)) + 60 + 20 * len(packed_ones)
        assert texts(receive(0, readable(body), CLOCK)) == plain.columns
    else:
        assert write is plain, "not a byte of it is another"
        assert readable(body) == body


def test_what_is_not_packed_is_of_version_1_to_the_byte() -> None:
    for write in (
        make_write("put", "t", 1, {"a": "short", "b": "0123456789abcdefghijklmnopqrstuvwxyz"}),
        make_write("increment", "t", 1, {"n": 10**200}),
        make_write("delete", "t", 1, None),
    ):
        assert Packing(0, "zlib").write(write) is write
    assert WIRE_VERSION == 3


@pytest.mark.parametrize("frame", [zlib.compress(LONG), zlib.compress(LONG, 9), zlib.compress(LONG, 0)])
def test_frames_of_any_level_are_read(frame: bytes) -> None:
    assert texts(receive(0, packed({"a": frame}), CLOCK)) == {"a": LONG}


def test_columns_of_both_kinds_stand_together() -> None:
    body = packed({"a": zlib.compress(LONG)}, data={"b": 1})
    assert texts(receive(0, body, CLOCK)) == {"b": b"1", "a": LONG}
    assert texts(receive(0, packed({"a": zlib.compress(LONG)}, op="patch"), CLOCK)) == {"a": LONG}


def test_short_fields_may_follow() -> None:
    body = packed({"a": zlib.compress(LONG)})[:-1] + b',"retry":%d,"force":true}' % (2**62)
    message = receive(0, body, CLOCK)
    assert (message.fault, message.retry, message.force) == (None, 2**62, True)


Z = zlib.compress(LONG)
NULL = zlib.compress(b'"a\\u0000b"')


def test_a_nul_is_left_to_postgres_as_ever() -> None:
    assert texts(receive(0, packed({"a": NULL}), CLOCK)) == {"a": b'"a\\u0000b"'}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (packed({"a": Z}, packed={"a": "%%%"}), '`packed`: "a" is no base64'),
        (packed({"a": Z}, packed={"a": b64encode(Z).decode() + "="}), "is no base64"),
        (packed({"a": Z}, packed={"a": " " + b64encode(Z).decode()}), "is no base64"),
        (packed({"a": Z}, packed={"a": "ä"}), "is no base64"),
        (packed({"a": Z}, packed={"a": ""}), '"a" is no frame of zlib or zstd'),
        (packed({"a": Z}, packed={"a": b64encode(LONG).decode()}), "is no frame"),
        (packed({"a": Z}, packed={"a": b64encode(Z[:-1]).decode()}), '"a" is cut off'),
        (packed({"a": Z}, packed={"a": b64encode(Z + b"x").decode()}), "has something after its end"),
        (packed({"a": Z}, packed={"a": b64encode(Z[:20] + b"\xff" + Z[21:]).decode()}), "is damaged"),
        (packed({"a": zlib.compress(b"hello")}), '"a" unpacks to what is no JSON'),
        (packed({"a": zlib.compress(b"")}), "what is no JSON"),
        (packed({"a": zlib.compress(b"1 2")}), "what is no JSON"),
        (packed({"a": zlib.compress(b'"\xff"')}), "what is no JSON: 'utf-8'"),
        (packed({"a": zlib.compress(b'"a\0b"')}), "what is no JSON"),
        (packed({"a": zlib.compress(b"[" * 100_000 + b"]" * 100_000)}), "nested too deep"),
        (packed({"a": Z}, data={"a": 1}), '"a" is in both `data` and `packed`'),
        (packed({"a": Z}, v="absent"), "say so by `v`"),
        (packed({"a": Z}, v=1), "say so by `v`"),
        (packed({"a": Z}, unpacked="absent"), "`unpacked` must stand at the end"),
        (packed({"a": Z}, unpacked=len(LONG) - 1), f"unpacks to more than {len(LONG) - 1} bytes"),
        (packed({"a": Z}, unpacked=len(LONG) + 1), "unpacks to 1 bytes less than `unpacked` says"),
        (packed({"a": Z}, unpacked=-1), "`unpacked` must stand at the end"),
        (packed({"a": Z}, unpacked="10"), "`$.unpacked`"),
        (packed({"a": Z}, unpacked=MAX_UNPACKED_BYTES + 1), f"{MAX_UNPACKED_BYTES} is the most"),
        (
            b'{"unpacked":%d,' % len(LONG) + packed({"a": Z}, unpacked="absent", key="k" * 200)[1:],
            "at the end",
        ),
        (packed({"a": Z}).replace(b'"packed":', b'"packed" :'), "at the end"),
        (packed({"a": Z}).replace(b'"unpacked":', b'"unpacked": '), "at the end"),
        (packed({}, packed={}), "`packed` is empty"),
        (packed({}, packed="absent"), "`packed` is empty"),
        (packed({"a": Z}, data="absent"), "`data` is missing; it may be empty"),
        (packed({"a": Z}, op="increment"), "`increment` takes no `packed`"),
        (packed({"a": Z}, op="delete"), "`delete` takes no `packed`"),
        (packed({"a": Z}, packed=["a"]), "`$.packed`"),
        (packed({"a": Z}, packed={"a": 1}), "`$.packed[...]`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_packed_message_that_is_wrong_is_told_what_is_wrong(body: bytes, said: str) -> None:
    assert said in reason(body)


def test_a_message_of_version_2_needs_nothing_packed() -> None:
    message = receive(0, b'{"table":"t","id":1,"data":{"a":1},"v":2}', CLOCK)
    assert (message.fault, texts(message)) == (None, {"a": b"1"})


def test_a_faulty_packed_message_still_says_what_could_be_read() -> None:
    body = packed({"a": Z[:-1]}, seq=5, key="t:1", unpacked=len(LONG))
    message = receive(0, body, CLOCK)
    assert (message.table, message.seq, message.cache_key) == ("t", 5, "t:1")


def test_a_column_by_the_name_of_the_size_is_no_size() -> None:
    for body in (
        b'{"table":"t","id":1,"data":{"a":1,"unpacked":5000000}}',
        b'{"table":"t","id":1,"data":{"packed":1,"unpacked":99999999999}}',
    ):
        assert declared_size(body) == 0
        assert receive(0, body, CLOCK).fault is None


def test_a_worker_without_zstd_knows_that_it_is_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_zstd", lambda: None)
    message = receive(0, packed({"a": zstandard.compress(LONG)}, unpacked=len(LONG)), CLOCK)
    assert message.lacks_zstd
    assert message.fault is not None
    assert "zstandard" in message.fault.reason


@given(
    st.sampled_from([packed({"a": Z}), packed({"a": zstandard.compress(LONG)}, unpacked=len(LONG))]),
    st.lists(
        st.tuples(st.integers(0, 300), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=3
    ),
)
def test_damaged_messages_never_raise_nor_pass_for_others(
    body: bytes, edits: list[tuple[int, int, bytes]]
) -> None:
    for at, cut, put in edits:
        at %= len(body) + 1
        body = body[:at] + put + body[at + cut :]
    message = receive(0, body, CLOCK)
    if message.fault is None and message.columns:
        for text in message.columns.values():
            json.loads(bytes(text))
        assert len(readable(body)) < MAX_UNPACKED_BYTES
