"""OpenTelemetry's SDK for the worker's process, by the usual OTEL_ variables."""

from __future__ import annotations

import os
from importlib.metadata import entry_points

from .errors import FatalError

_PROTOCOLS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
_INSTALL = "pip install opentelemetry-sdk opentelemetry-exporter-otlp"


def prepare_tracing() -> None:
    """Sets the global tracer provider, unless somebody has: `opentelemetry-instrument`, or an earlier call.

    Raises:
        FatalError: a package is missing, or an exporter is not one that is installed.
    """
    try:
        from opentelemetry import trace  # noqa: PLC0415 - its absence is told well
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise FatalError(f"tracing needs OpenTelemetry's SDK: {error}", _INSTALL) from error
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return
    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "writebehind"}))
    provider = TracerProvider(resource=resource)
    for name in _exporters():
        provider.add_span_processor(BatchSpanProcessor(_exporter(name)()))
    trace.set_tracer_provider(provider)


def _exporters() -> list[str]:
    names = os.environ.get("OTEL_TRACES_EXPORTER", "").split(",")
    wanted = [name.strip() for name in names if name.strip()] or ["otlp"]
    if "otlp" in wanted:
        protocol = (
            os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
            or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
            or "http/protobuf"
        )
        if protocol not in _PROTOCOLS:
            raise FatalError(
                f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}", f"one of {', '.join(_PROTOCOLS)}"
            )
        wanted[wanted.index("otlp")] = _PROTOCOLS[protocol]
    return [name for name in wanted if name != "none"]


def _exporter(name: str) -> type:
    found = entry_points(group="opentelemetry_traces_exporter", name=name)
    for point in found:
        try:
            exporter: type = point.load()
        except ImportError as error:
            raise FatalError(f"the span exporter {name!r} cannot be imported: {error}", _INSTALL) from error
        return exporter
    raise FatalError(
        f"no span exporter {name!r} is installed (OTEL_TRACES_EXPORTER)",
        f"{_INSTALL}, or OTEL_TRACES_EXPORTER=console",
    )
