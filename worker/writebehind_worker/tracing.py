"""Spans of what is flushed, linked to those of the producers' calls that wrote it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Any

import msgspec
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags
from structlog.typing import FilteringBoundLogger

from .flush import Flushed
from .unit import Unit
from .version import installed_version

MOST_LINKS = 128
"""Of one span: as many as OpenTelemetry's SDK keeps unless told otherwise."""

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")  # of W3C Trace Context


class _Traced(msgspec.Struct, gc=False):
    trace: Any = None


_decode = msgspec.json.Decoder(_Traced).decode


class FlushTracing:
    """Makes the spans; by the global tracer provider, as it is when a unit is flushed."""

    def __init__(self, queue: str, log: FilteringBoundLogger) -> None:
        self._queue, self._log = queue, log
        self._has_failed = False

    def flushed(self, unit: Unit, flushed: Flushed, began_ns: int) -> None:
        """The unit is in Postgres: its span, from the first attempt until now. Never raises."""
        try:
            self._record(unit, flushed, began_ns)
        except Exception as error:  # a sampler or a processor of somebody's: the queue goes on
            if not self._has_failed:
                self._has_failed = True
                self._log.warning("no span could be made; the queue goes on", reason=type(error).__name__)

    def _record(self, unit: Unit, flushed: Flushed, began_ns: int) -> None:
        ended_ns = time.time_ns()
        found, left_out = traces(item for batch in unit.batches for item in batch.items)
        tracer = trace.get_tracer("writebehind", installed_version())
        span = tracer.start_span(
            f"flush {self._queue}",
            Context(),
            SpanKind.CONSUMER,
            {
                "writebehind.queue": self._queue,
                "writebehind.batches": unit.ids,
                "writebehind.writes": unit.writes,
                "writebehind.rows": sum(flushed.rows.values()),
                "writebehind.dead_letters": len(flushed.buried),
                "writebehind.links.left_out": left_out,
            },
            [Link(context) for context in found],
            began_ns,
        )
        span.end(ended_ns)


def traces(items: Iterable[bytes]) -> tuple[list[SpanContext], int]:
    """The first distinct spans that wrote these messages, and how many messages others wrote.

    What names no span is passed over.
    """
    found: dict[str, SpanContext] = {}
    left_out = 0
    for item in items:
        text = _trace(item) if b'"trace"' in item else None
        if text is None or text in found:
            continue
        context = _context(text)
        if context is None:
            continue
        if len(found) < MOST_LINKS:
            found[text] = context
        else:
            left_out += 1
    return list(found.values()), left_out


def _trace(item: bytes) -> str | None:
    try:
        found = _decode(item).trace
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return found if isinstance(found, str) else None


def _context(text: str) -> SpanContext | None:
    parts = _TRACEPARENT.fullmatch(text)
    if parts is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in parts.groups())
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    return context if context.is_valid else None
