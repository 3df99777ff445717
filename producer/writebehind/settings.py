"""What a client is told when it is made. Both clients take the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

from .durability import Durability, assurance
from .frame import Compression, compressor
from .keys import DEFAULT_QUEUE
from .message import MAX_TTL_S, Op
from .observer import Observer, check_observer
from .packing import Packing
from .rate import RateLimit
from .shards import check_shards

Admit = Callable[[str, "str | dict[str, str]", Op], RateLimit | None]
"""Table, id and op of a write → the limit that it counts for, if any."""


class Options(TypedDict, total=False):
    """The keyword arguments of a client; each has the default that :class:`Settings` shows."""

    ttl: int
    queue: str
    shards: int | None
    prefix: str
    version: str | int | None
    max_queue_length: int
    max_message_bytes: int
    compress_above: int | None
    compression: Compression
    negative_ttl: int
    fill_timeout: float
    ttl_jitter: float
    refresh_ahead: float | None
    near_cache: int
    near_cache_ttl: float
    parse_float: Callable[[str], Any]
    observer: Observer | None
    tracer: Any
    admit: Admit | None
    durability: Durability
    durability_timeout: float
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Validated options.

    Attributes:
        ttl: how long a row stays cached once it is durable, in seconds, at most.
        queue: name of the list; the worker's ``--queue`` must be the same.
        shards: how many the queue must have; ``None``: as many as Redis says. See docs/scaling.md.
        prefix: put before every cache key.
        version: of the rows' shape; part of every cache key, so that another shape is never read.
        max_queue_length: writes pending in a shard at which :class:`QueueFull` is raised.
        max_message_bytes: largest message, in bytes of JSON, as it is sent: large values may be compressed.
        compress_above: a value whose JSON text has more bytes is kept compressed, if that makes it smaller;
            ``None``: none is. See docs/patterns.md.
        compression: ``zlib``, or ``zstd``, for which all need Python 3.14 or the package zstandard.
        negative_ttl: how long it is remembered that a row does not exist, in seconds.
        fill_timeout: how long one reader may take to load a row before another may, in seconds.
        ttl_jitter: share of ``ttl``, 0 to 0.9, by which an entry's own may be shorter, at random: rows cached
            together do not expire together.
        refresh_ahead: how long before a row expires one of its readers loads it anew, in seconds; the others
            get the cached row meanwhile. ``None``: not at all.
        near_cache: how many rows the client keeps in its process, 0 for none; see docs/patterns.md.
        near_cache_ttl: how old a row that it keeps may become, in seconds.
        parse_float: makes a number with a fraction out of its text (``Decimal`` keeps all digits).
        observer: hears of hits, misses, loads, waits and sizes: see :class:`Observer`.
        tracer: of OpenTelemetry: a span for each call; from ``writebehind.opentelemetry.get_tracer()``.
        admit: called with table, id (its text, or column → text) and op of each write; the :class:`RateLimit`
            that it counts for, or ``None``. Where that has no slots left, :class:`RateLimited` is raised.
            Login sessions are not asked about.
        durability: what a write waits for: ``accepted`` (nothing more), ``replicated``, ``fsynced`` or
            ``committed``; see docs/patterns.md.
        durability_timeout: how long it waits for that, in seconds.
        replicas: how many must have a write that is ``replicated``.
    """

    ttl: int = 3600
    queue: str = DEFAULT_QUEUE
    shards: int | None = None
    prefix: str = ""
    version: str | int | None = None
    max_queue_length: int = 1_000_000
    max_message_bytes: int = 1 << 20
    compress_above: int | None = None
    compression: Compression = "zlib"
    negative_ttl: int = 5
    fill_timeout: float = 5.0
    ttl_jitter: float = 0.1
    refresh_ahead: float | None = None
    near_cache: int = 0
    near_cache_ttl: float = 5.0
    parse_float: Callable[[str], Any] = float
    observer: Observer | None = None
    tracer: Any = None
    admit: Admit | None = None
    durability: Durability = "accepted"
    durability_timeout: float = 2.0
    replicas: int = 1

    def __post_init__(self) -> None:
        for name, value in (("ttl", self.ttl), ("negative_ttl", self.negative_ttl)):
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_TTL_S:
                raise ValueError(f"{name} must be whole seconds from 1 to {MAX_TTL_S}, not {value!r}")
        above = self.compress_above
        if above is not None and (not isinstance(above, int) or isinstance(above, bool) or above < 0):
            raise ValueError(f"compress_above must be a number of bytes, or None, not {above!r}")
        check_shards(self.shards)
        compressor(self.compression)
        if not 0.001 <= self.fill_timeout <= 86_400:
            raise ValueError(f"fill_timeout must be from a millisecond to a day, not {self.fill_timeout!r}")
        if not 0 <= self.ttl_jitter <= 0.9:
            raise ValueError(f"ttl_jitter must be a share of ttl from 0 to 0.9, not {self.ttl_jitter!r}")
        shortest = self.ttl * (1 - self.ttl_jitter)
        if self.refresh_ahead is not None and not 0.001 <= self.refresh_ahead < shortest:
            raise ValueError(
                f"refresh_ahead must be from a millisecond to less than the shortest time to live, "
                f"{shortest:g} s (ttl less ttl_jitter), not {self.refresh_ahead!r}"
            )
        if not isinstance(self.near_cache, int) or isinstance(self.near_cache, bool) or self.near_cache < 0:
            raise ValueError(f"near_cache must be a number of rows, 0 for none, not {self.near_cache!r}")
        if not 0.001 <= self.near_cache_ttl <= 86_400:
            raise ValueError(
                f"near_cache_ttl must be from a millisecond to a day, not {self.near_cache_ttl!r}"
            )
        assurance(None, self.durability, self.durability_timeout, self.replicas)
        if not isinstance(self.replicas, int) or isinstance(self.replicas, bool) or self.replicas < 1:
            raise ValueError(f"replicas must be 1 or more, not {self.replicas!r}")
        if self.observer is not None:
            check_observer(self.observer)
        if self.tracer is not None and not hasattr(self.tracer, "start_as_current_span"):
            raise ValueError(f"tracer must be a tracer of OpenTelemetry, not {self.tracer!r}")

    def entry_ttl(self) -> int:
        """The time to live of one entry, in seconds: by chance up to ``ttl_jitter`` of ``ttl`` less."""
        if not self.ttl_jitter:
            return self.ttl
        return max(1, round(self.ttl * (1 - random.random() * self.ttl_jitter)))  # noqa: S311 - no secret

    def packing(self) -> Packing | None:
        """What compresses large values; ``None``: nothing does."""
        return None if self.compress_above is None else Packing(self.compress_above, self.compression)

    @property
    def cache_prefix(self) -> str:
        """What every cache key begins with."""
        return self.prefix + (f"v{self.version}:" if self.version is not None else "")
