"""Writes and rows whose large values are kept compressed, in the queue and in the cache alike. No I/O."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping

from .errors import InvalidWrite
from .frame import MAX_UNPACKED_BYTES, Compression, compressor
from .message import Write, cache_fields, encode


class PackedWrite(Write, frozen=True, gc=False, kw_only=True):
    """A write with ``frames`` for some of its columns: a message of version 2."""

    frames: dict[str, bytes]

    @property
    def says_version(self) -> bool:
        """See :attr:`Write.says_version`."""
        return True

    def message(self, cache_key: str, ttl_s: int) -> bytes:
        """See :meth:`Write.message`."""
        others = {c: v for c, v in self.columns.items() if c not in self.frames}
        message = Write(self.op, self.table, self.id_json, self.key, others, self.route).message(
            cache_key, ttl_s
        )
        packed = b",".join([b'%b:"%b"' % (encode(c), b64encode(f)) for c, f in self.frames.items()])
        # `unpacked` comes last: there `claim.lua` looks for it.
        size = sum(len(self.columns[c]) for c in self.frames)
        version = b',"v":2' if self.route is None else b""
        return b'%b%b,"packed":{%b},"unpacked":%d}' % (message[:-1], version, packed, size)

    def cache_fields(self) -> list[str | bytes]:
        """See :meth:`Write.cache_fields`."""
        return packed_fields(self.columns, self.frames)


class Packing:
    """Compresses what is longer than ``above`` bytes, and becomes smaller by it even as base64."""

    def __init__(self, above: int, compression: Compression) -> None:
        self._above, self._compress = above, compressor(compression)

    def write(self, write: Write) -> Write:
        """The same, packed if it has a large value. An increment's deltas are added, and stay as they are."""
        if write.op not in ("put", "patch"):
            return write
        frames = self._frames(write.columns)
        if frames is None:
            raise InvalidWrite(
                f"{write.table}: the large values of a write may have {MAX_UNPACKED_BYTES} bytes in all, not "
                "compressed: store them elsewhere, or cut them into several rows"
            )
        if not frames:
            return write
        return PackedWrite(
            write.op, write.table, write.id_json, write.key, write.columns, write.route, frames=frames
        )

    def fields(self, columns: Mapping[str, bytes]) -> list[str | bytes] | None:
        """As :func:`cache_fields`; ``None`` for a row that is too large to be cached."""
        frames = self._frames(columns)
        return None if frames is None else packed_fields(columns, frames)

    def _frames(self, columns: Mapping[str, bytes]) -> dict[str, bytes] | None:
        """Column → frame, where it is worth one; ``None``: no reader would take so much."""
        frames: dict[str, bytes] = {}
        size = 0
        for column, text in columns.items():
            if len(text) <= self._above:
                continue
            if size + len(text) > MAX_UNPACKED_BYTES:
                return None
            frame = self._compress(text)
            if len(frame) * 4 < len(text) * 3:
                frames[column] = frame
                size += len(text)
        return frames


def packed_fields(columns: Mapping[str, bytes], frames: Mapping[str, bytes]) -> list[str | bytes]:
    """As :func:`cache_fields`, with ``frames`` in the place of their columns' texts."""
    fields: list[str | bytes] = [*cache_fields({c: v for c, v in columns.items() if c not in frames})]
    for name, frame in zip(cache_fields(dict.fromkeys(frames, b""))[::2], frames.values(), strict=True):
        fields += (name, frame)
    return fields
