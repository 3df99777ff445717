"""Spans of OpenTelemetry for a client's calls: what its setting ``tracer`` switches on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

try:
    from opentelemetry import trace
    from opentelemetry.trace import SpanKind, Tracer, TracerProvider
except ImportError as error:
    raise ImportError(
        f"writebehind.opentelemetry needs opentelemetry-api ({error}): "
        "pip install 'writebehind[opentelemetry]'"
    ) from error

from .cache import Row
from .core import Core
from .durability import Accepted
from .message import Id, Op, Write
from .steps import Load, Steps, T

Attributes = dict[str, str | int]


def get_tracer(provider: TracerProvider | None = None) -> Tracer:
    """The tracer for a client: ``WriteBehind.from_url(..., tracer=get_tracer())``.

    ``provider``: whose; ``None`` is the global one, whenever that is set.
    """
    return trace.get_tracer("writebehind", _version(), provider)


class TracedCore:
    """A core each of whose calls is a span: the attributes are those of the semantic conventions.

    Neither ids nor values are in them. What a call raises is recorded as its span's exception.
    """

    def __init__(self, core: Core, tracer: Tracer) -> None:
        self._core, self._tracer = core, tracer
        self._queue = core.settings.queue
        core.traceparent = _traceparent

    def __getattr__(self, name: str) -> Any:
        """What is not traced."""
        return getattr(self._core, name)

    def write(self, op: Op, table: str, *rest: Any, **named: Any) -> Steps[Accepted]:
        """See :meth:`Core.write`."""
        return self._span(op, table, 1, lambda: self._core.write(op, table, *rest, **named))

    def send(self, writes: Sequence[Write], **named: Any) -> Steps[Accepted]:
        """See :meth:`Core.send`."""
        ops, tables = {write.op for write in writes}, {write.table for write in writes}
        op = next(iter(ops)) if len(ops) == 1 else ""
        table = next(iter(tables)) if len(tables) == 1 else None
        name = op if len(writes) == 1 else f"BATCH {op}".rstrip()
        return self._span(name, table, len(writes), lambda: self._core.send(writes, **named))

    def get(self, table: str, *rest: Any, **named: Any) -> Steps[Row | None]:
        """See :meth:`Core.get`."""
        return self._span("get", table, 1, lambda: self._core.get(table, *rest, **named))

    def get_many(self, table: str, ids: Sequence[Id], *rest: Any, **named: Any) -> Steps[list[Row | None]]:
        """See :meth:`Core.get_many`."""
        return self._span(
            "get_many", table, len(ids), lambda: self._core.get_many(table, ids, *rest, **named)
        )

    def invalidate(self, table: str, *rest: Any, **named: Any) -> Steps[bool]:
        """See :meth:`Core.invalidate`."""
        return self._span("invalidate", table, 1, lambda: self._core.invalidate(table, *rest, **named))

    def invalidate_many(self, table: str, ids: Sequence[Id], *rest: Any) -> Steps[list[bool]]:
        """See :meth:`Core.invalidate_many`."""
        return self._span(
            "invalidate_many", table, len(ids), lambda: self._core.invalidate_many(table, ids, *rest)
        )

    def call(self, operation: str, table: str | None, size: int, begin: Callable[[], Steps[T]]) -> Steps[T]:
        """See :meth:`Core.call`."""
        return self._span(operation, table, size, begin)

    def _span(self, operation: str, table: str | None, size: int, begin: Callable[[], Steps[T]]) -> Steps[T]:
        attributes: Attributes = {
            "db.system.name": "redis",
            "db.operation.name": operation,
            "writebehind.queue": self._queue,
        }
        if isinstance(table, str):  # else the call will be refused
            attributes["db.collection.name"] = table
        if size > 1:
            attributes["db.operation.batch.size"] = size
        name = f"{operation} {table}" if isinstance(table, str) else operation
        with self._tracer.start_as_current_span(name, kind=SpanKind.CLIENT, attributes=attributes) as span:
            try:
                return (yield from self._with_loads(table, begin()))
            except GeneratorExit:
                raise
            except BaseException as error:
                span.set_attribute("error.type", type(error).__qualname__)
                raise

    def _with_loads(self, table: str | None, steps: Steps[T]) -> Steps[T]:
        """The same steps; each call of a loader is a span within the call's, and what it does within that."""
        try:
            step = next(steps)
            while True:
                try:
                    if type(step) is Load:
                        with self._tracer.start_as_current_span(f"load {table}"):
                            result = yield step
                    else:
                        result = yield step
                except GeneratorExit:
                    steps.close()
                    raise
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as done:
            returned: T = done.value
            return returned


def _version() -> str | None:
    try:
        return metadata.version("writebehind")
    except metadata.PackageNotFoundError:  # run from its source
        return None


def _traceparent() -> str | None:
    """Of the span at hand, as W3C has it; ``None`` where it is not sampled: no link could lead to it."""
    context = trace.get_current_span().get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
