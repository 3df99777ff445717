"""What a client is told when it is made. Both clients take the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

from .frame import Compression, compressor
from .keys import DEFAULT_QUEUE
from .message import MAX_TTL_S
from .packing import Packing


class Options(TypedDict, total=False):
    """The keyword arguments of a client; each has the default that :class:`Settings` shows."""

    ttl: int
    queue: str
    prefix: str
    version: str | int | None
    max_queue_length: int
    max_message_bytes: int
    compress_above: int | None
    compression: Compression
    negative_ttl: int
    fill_timeout: float
    parse_float: Callable[[str], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Validated options.

    Attributes:
        ttl: how long a row stays cached once it is durable, in seconds.
        queue: name of the list; the worker's ``--queue`` must be the same.
        prefix: put before every cache key.
        version: of the rows' shape; part of every cache key, so that another shape is never read.
        max_queue_length: writes pending at which :class:`QueueFull` is raised.
        max_message_bytes: largest message, in bytes of JSON, as it is sent: large values may be compressed.
        compress_above: a value whose JSON text has more bytes is kept compressed, if that makes it smaller;
            ``None``: none is. See docs/patterns.md.
        compression: ``zlib``, or ``zstd``, for which all need Python 3.14 or the package zstandard.
        negative_ttl: how long it is remembered that a row does not exist, in seconds.
        fill_timeout: how long one reader may take to load a row before another may, in seconds.
        parse_float: makes a number with a fraction out of its text (``Decimal`` keeps all digits).
    """

    ttl: int = 3600
    queue: str = DEFAULT_QUEUE
    prefix: str = ""
    version: str | int | None = None
    max_queue_length: int = 1_000_000
    max_message_bytes: int = 1 << 20
    compress_above: int | None = None
    compression: Compression = "zlib"
    negative_ttl: int = 5
    fill_timeout: float = 5.0
    parse_float: Callable[[str], Any] = float

    def __post_init__(self) -> None:
        for name, value in (("ttl", self.ttl), ("negative_ttl", self.negative_ttl)):
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_TTL_S:
                raise ValueError(f"{name} must be whole seconds from 1 to {MAX_TTL_S}, not {value!r}")
        above = self.compress_above
        if above is not None and (not isinstance(above, int) or isinstance(above, bool) or above < 0):
            raise ValueError(f"compress_above must be a number of bytes, or None, not {above!r}")
        compressor(self.compression)
        if not 0.001 <= self.fill_timeout <= 86_400:
            raise ValueError(f"fill_timeout must be from a millisecond to a day, not {self.fill_timeout!r}")

    def packing(self) -> Packing | None:
        """What compresses large values; ``None``: nothing does."""
        return None if self.compress_above is None else Packing(self.compress_above, self.compression)

    @property
    def cache_prefix(self) -> str:
        """What every cache key begins with."""
        return self.prefix + (f"v{self.version}:" if self.version is not None else "")
