"""Packed columns for those who look from outside: of cache entries to be compared, of messages to be read."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping

import msgspec

from writebehind.frame import MAX_UNPACKED_BYTES, ZSTD_HINT, BadFrame, NoZstd, framed_columns, unpack
from writebehind.message import encode

from .errors import FatalError
from .received import Message, receive

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_packed = msgspec.json.Decoder(dict[str, str]).decode
_PACKING = ("v", "packed", "unpacked")


def unpacked_columns(columns: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """Column → JSON text of a cached row; a damaged frame stays as it is, and is no JSON.

    Raises:
        FatalError: nobody here can tell what the row says.
    """
    left, texts = MAX_UNPACKED_BYTES, dict(columns)
    for column in framed_columns(columns):
        try:
            texts[column] = unpack(columns[column], left)
        except NoZstd as error:
            raise FatalError(
                "a cached row is compressed with zstd, and cannot be read here", ZSTD_HINT
            ) from error
        except BadFrame:
            continue
        left -= len(texts[column])
    return texts


def frames_of(message: Message) -> dict[str, bytes]:
    """Column → frame of a message without a fault."""
    packed = _decode(message.body).get("packed")
    texts: dict[str, str] = {} if packed is None or packed == b"null" else _decode_packed(packed)
    return {column: b64decode(text) for column, text in texts.items()}


def readable(body: bytes) -> bytes:
    """A message as a person reads it: packed columns stand in `data`. Anything else is as it is."""
    if b'"packed":' not in body:
        return body
    message = receive(0, body, (1 << 63) - 1)
    if message.fault is not None:
        return body
    data = b",".join(encode(column) + b":" + bytes(text) for column, text in (message.columns or {}).items())
    fields = {name: bytes(raw) for name, raw in _decode(body).items() if name not in _PACKING}
    fields["data"] = b"{" + data + b"}"
    return b"{" + b",".join(encode(name) + b":" + raw for name, raw in fields.items()) + b"}"
