"""Frames: whatever they say of themselves, no more is unpacked than was allowed, and nothing but the text."""

from __future__ import annotations

import importlib
import os
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from writebehind import AsyncWriteBehind, WriteBehind
from writebehind import frame as frames
from writebehind.frame import MARKS, BadFrame, Compression, NoZstd, compressor, unpack, unpack_all

KINDS: list[Compression] = ["zlib", "zstd"]
MOST = 1 << 20
TEXT = b'{"tags":[' + b",".join(b'"tag %d"' % i for i in range(300)) + b"]}"


@pytest.fixture(params=["the package's", "the library's"])
def zstd(request: pytest.FixtureRequest) -> tuple[Callable[[bytes], bytes], Callable[[bytes, int], bytes]]:
    """Both ways of having zstd; before Python 3.14 a backport stands for the library's."""
    if request.param == "the package's":
        return frames._of_package(zstandard)
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    return frames._of_library(importlib.import_module(name))


@pytest.fixture
def without_zstd(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(frames, "_zstd", lambda: None)
    yield


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.binary(max_size=2000))
def test_a_frame_is_told_by_its_first_byte_and_unpacks_to_its_text(kind: Compression, text: bytes) -> None:
    frame = compressor(kind)(text)
    assert frame[:1] in MARKS
    assert unpack(frame, len(text)) == text
    if text:
        with pytest.raises(BadFrame, match=f"more than {len(text) - 1} bytes"):
            unpack(frame, len(text) - 1)


def test_no_json_begins_as_a_frame_does() -> None:
    for mark in MARKS:
        with pytest.raises(ValueError, match="malformed"):
            importlib.import_module("msgspec").json.decode(mark + b"1")


def test_both_ways_of_having_zstd_read_each_other(zstd: Any) -> None:
    compress, read = zstd
    assert read(zstandard.compress(TEXT), MOST) == TEXT
    assert unpack(compress(TEXT), MOST) == TEXT
    for bad in (compress(TEXT)[:-1], compress(TEXT)[:5], compress(TEXT) + b"x", compress(TEXT) * 2):
        with pytest.raises(BadFrame):
            read(bad, MOST)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)
    with pytest.raises(BadFrame, match="how long"):
        read(unsized, MOST)
    with pytest.raises(BadFrame, match=f"more than {len(TEXT) - 1} bytes"):
        read(compress(TEXT), len(TEXT) - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cut_or_goes_on_is_no_frame(kind: Compression) -> None:
    frame = compressor(kind)(TEXT)
    for bad in (*(frame[:length] for length in range(len(frame))), frame + b"\0", frame + frame):
        with pytest.raises(BadFrame):
            unpack(bad, MOST)


@given(st.sampled_from(KINDS), st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_noticed_or_changes_nothing_else(kind: Compression, at: int, by: int) -> None:
    """zlib has a checksum; zstd as it is made here has none, and is told by the JSON, if at all."""
    frame = bytearray(compressor(kind)(TEXT))
    frame[at % len(frame)] ^= by
    try:
        text = unpack(bytes(frame), MOST)
    except BadFrame:
        return
    assert len(text) <= MOST
    assert text == TEXT or kind == "zstd"


@given(st.sampled_from([b"x", b"x\x9c", b"(\xb5/\xfd", b"(", b""]), st.binary(max_size=100))
def test_arbitrary_bytes_are_no_frame_or_a_small_one(start: bytes, rest: bytes) -> None:
    try:
        assert len(unpack(start + rest, 1000)) <= 1000
    except BadFrame as error:
        assert str(error)


def zstd_that_lies() -> bytes:
    """It says that it has 100 bytes; it has 64 million."""
    frame = bytearray(zstandard.compress(b"a" * (64 << 20)))
    assert zstandard.get_frame_parameters(bytes(frame)).content_size == 64 << 20
    assert frame[5 if frame[4] & 0x20 else 6 :][:4] == (64 << 20).to_bytes(4, "little")
    place = 5 if frame[4] & 0x20 else 6
    frame[place : place + 4] = (100).to_bytes(4, "little")
    return bytes(frame)


@pytest.mark.parametrize(
    "bomb",
    [zlib.compress(b"a" * (64 << 20)), zstandard.compress(b"a" * (64 << 20)), zstd_that_lies()],
    ids=["zlib", "zstd", "zstd that lies"],
)
def test_a_bomb_takes_no_memory(bomb: bytes) -> None:
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(BadFrame):
            unpack(bomb, MOST)
        assert tracemalloc.get_traced_memory()[1] < 3 * MOST
    finally:
        tracemalloc.stop()


def test_the_bound_is_of_all_columns_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_UNPACKED_BYTES", 1000)
    frame = zlib.compress(b"a" * 400)
    assert unpack_all({"a": frame, "b": frame}) == {"a": b"a" * 400, "b": b"a" * 400}
    with pytest.raises(BadFrame, match="more than 200 bytes"):
        unpack_all({"a": frame, "b": frame, "c": frame})


def test_incompressible_bytes_round_trip() -> None:
    text = os.urandom(100_000)
    for kind in KINDS:
        assert unpack(compressor(kind)(text), MOST) == text


# Where zstd is not there.


@pytest.mark.usefixtures("without_zstd")
def test_without_zstd_its_frames_are_told_apart_from_damaged_ones() -> None:
    with pytest.raises(NoZstd, match=r"pip install 'writebehind\[zstd\]'"):
        unpack(zstandard.compress(TEXT), MOST)


@pytest.mark.usefixtures("without_zstd")
@pytest.mark.parametrize("client", [WriteBehind, AsyncWriteBehind])
def test_without_zstd_no_client_can_be_told_to_use_it(client: Any) -> None:
    with pytest.raises(
        ValueError, match=r"zstd is not there: .*zstandard: pip install 'writebehind\[zstd\]'"
    ):
        client.from_url("redis://localhost", compress_above=100, compression="zstd")
    client.from_url("redis://localhost", compress_above=100)


@pytest.mark.parametrize("client", [WriteBehind, AsyncWriteBehind])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compress_above": -1}, "compress_above must be a number of bytes, or None, not -1"),
        ({"compress_above": 1.5}, "not 1.5"),
        ({"compress_above": True}, "not True"),
        ({"compression": "gzip"}, "compression must be zlib or zstd, not 'gzip'"),
    ],
)
def test_options_that_mean_nothing_are_refused(client: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        client.from_url("redis://localhost", **options)
