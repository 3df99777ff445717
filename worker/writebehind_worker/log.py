"""Structured logs on stderr: for people on a terminal, JSON lines elsewhere.

Tracebacks carry no local variables, and passwords are taken out of every value: rows and connection
strings pass through this process, and logs travel further than either may.
"""

from __future__ import annotations

import logging
import sys
from typing import cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from .config import redacted


def configure_logging(level: str = "info", log_format: str = "auto") -> None:
    """Sets up structlog for the process. ``log_format``: auto, console or json, as in `Config`."""
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact_passwords,
            _console_renderer() if console else structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,  # so that a second call takes effect
    )


def get_logger(**context: object) -> FilteringBoundLogger:
    """A logger that adds ``context`` to each line."""
    return cast(FilteringBoundLogger, structlog.get_logger(**context))


def redact_passwords(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Processor: the passwords of URLs and connection strings, in any string or exception, become ``***``."""
    for name, value in event.items():
        if isinstance(value, str | BaseException):
            event[name] = redacted(str(value))
    return event


def _console_renderer() -> Processor:
    return structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
