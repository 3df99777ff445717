"""A large value compressed: a frame of zlib or zstd that stands for a JSON text. No I/O.

No JSON text begins as a frame does, so that the first byte tells them apart wherever a value is kept.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final, Literal

Compression = Literal["zlib", "zstd"]

MARKS: Final = frozenset({b"x", b"("})
"""What frames begin with: zlib's with a window of 32 kB, and zstd's."""

MAX_UNPACKED_BYTES: Final = 64 << 20
"""What the frames of one message, or of one cache entry, may unpack to. Part of the wire format."""

_ZLIB, _ZSTD = b"x", b"(\xb5/\xfd"


class BadFrame(ValueError):
    """It does not unpack to what it should; the text of the error goes on from the name of the column."""


class NoZstd(BadFrame):
    """A frame of zstd, and this installation has nothing to read it with."""

    def __init__(self) -> None:
        super().__init__("is compressed with zstd, for which there is nothing here: " + ZSTD_HINT)


ZSTD_HINT: Final = "it takes Python 3.14 or the package zstandard: pip install 'writebehind[zstd]'"


def compressor(kind: Compression) -> Callable[[bytes], bytes]:
    """Makes a frame of a text. Raises ``ValueError`` where this installation cannot."""
    if kind == "zlib":
        return zlib.compress
    if kind != "zstd":
        raise ValueError(f"compression must be zlib or zstd, not {kind!r}")
    found = _zstd()
    if found is None:
        raise ValueError(f"compression zstd is not there: {ZSTD_HINT}")
    return found[0]


def unpack(frame: bytes, most: int) -> bytes:
    """The text of a frame, of ``most`` bytes at most: no more is ever held, whatever the frame says.

    Raises:
        BadFrame: it is no whole frame and nothing else, or would be longer.
    """
    if frame[:1] == _ZLIB:
        return _unpack_zlib(frame, most)
    if not frame.startswith(_ZSTD):
        raise BadFrame("is no frame of zlib or zstd")
    found = _zstd()
    if found is None:
        raise NoZstd
    return found[1](frame, most)


def unpack_all(frames: Mapping[str, bytes]) -> dict[str, bytes]:
    """Column → text of column → frame. Raises :class:`BadFrame`."""
    left, texts = MAX_UNPACKED_BYTES, {}
    for column, frame in frames.items():
        texts[column] = unpack(frame, left)
        left -= len(texts[column])
    return texts


def framed_columns(columns: Mapping[str, bytes]) -> list[str]:
    """Which columns of a cache entry hold a frame."""
    return [column for column, value in columns.items() if value[:1] in MARKS]


def _unpack_zlib(frame: bytes, most: int) -> bytes:
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(frame, most + 1)
    except zlib.error as error:
        raise BadFrame(f"is damaged: {error}") from error
    _check_length(len(text), most)
    if not reader.eof:
        raise BadFrame("is cut off")
    if reader.unused_data:
        raise BadFrame("has something after its end")
    return text


def _check_length(length: int | None, most: int) -> None:
    if length is None:
        raise BadFrame("does not say how long it is: a zstd frame must have its content's size")
    if length > most:
        raise BadFrame(f"unpacks to more than {most} bytes")


@cache
def _zstd() -> tuple[Callable[[bytes], bytes], Callable[[bytes, int], bytes]] | None:
    """Compresses, and unpacks; of the standard library where it has it."""
    for name, make in (("compression.zstd", _of_library), ("zstandard", _of_package)):
        try:
            return make(importlib.import_module(name))
        except ImportError:
            continue
    return None


def _of_library(zstd: Any) -> tuple[Callable[[bytes], bytes], Callable[[bytes, int], bytes]]:
    def unpack(frame: bytes, most: int) -> bytes:
        try:
            length = zstd.get_frame_info(frame).decompressed_size
            _check_length(length, most)
            reader = zstd.ZstdDecompressor()
            text: bytes = reader.decompress(frame, length + 1)
        except zstd.ZstdError as error:
            raise BadFrame(f"is damaged: {error}") from error
        if not reader.eof:
            raise BadFrame("is cut off")
        if reader.unused_data:
            raise BadFrame("has something after its end")
        return text

    return zstd.compress, unpack


def _of_package(zstandard: Any) -> tuple[Callable[[bytes], bytes], Callable[[bytes, int], bytes]]:
    def unpack(frame: bytes, most: int) -> bytes:
        try:
            length = zstandard.get_frame_parameters(frame).content_size
            _check_length(None if length == zstandard.CONTENTSIZE_UNKNOWN else length, most)
            reader = zstandard.ZstdDecompressor()
            text: bytes = reader.decompress(frame, max_output_size=length, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise BadFrame(f"is damaged: {error}") from error
        if len(text) != length:
            raise BadFrame("is damaged: it does not have the length that it says")
        return text

    return zstandard.compress, unpack
