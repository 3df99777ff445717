"""The worker's configuration: one frozen object, validated once and passed down.

A field's declaration is also its option, its environment variable, its key in the TOML file and its
line in the help (`options.py` builds those from here), so that the five cannot drift apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, timeout_from_conninfo

from writebehind.address import UnknownOption, read_address
from writebehind.keys import DEFAULT_QUEUE
from writebehind.shards import MAX_SHARDS

from .errors import ConfigError

_T = TypeVar("_T", str, int, float, bool, tuple[str, ...])

_DAY_S = 86_400.0
_MIB = 1024 * 1024

# A password may hold anything but a newline when the whole value is one URL; inside a longer text, no space.
_SECRETS = (
    re.compile(r"(\A\s*[\w+.-]+://[^\s:@/?#]*:).*(?=@)"),
    re.compile(r"([\w+.-]+://[^\s:@/?#]*:)\S*(?=@)"),
    re.compile(r"([?&]\w*password=)[^&\s]*", re.IGNORECASE),
    re.compile(r"(?<![?&\w])(\w*password\s*=\s*)('(?:\\.|[^'\\])*'?|(?:\\.|[^\s\\])+)", re.IGNORECASE),
)


def redacted(text: str) -> str:
    """``text`` with the passwords of URLs and of libpq connection strings replaced by ``***``.

    It rather hides too much: what follows the first colon of a URL's user part, up to the last ``@``.
    """
    if "=" not in text and "://" not in text:
        return text
    for pattern in _SECRETS:
        text = pattern.sub(r"\1***", text)
    return text


def one_line(error: BaseException) -> str:
    """The text of a driver's error for a log or a terminal: on one line, without passwords."""
    return redacted(" ".join(str(error).split()))


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of `Config` as an operator sees it."""

    field: str
    type: type
    default: Any
    help: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    secret: bool = False

    @property
    def key(self) -> str:
        """Its name in the TOML file: the field's, without the unit."""
        return "table" if self.field == "tables" else self.field.removesuffix("_s")

    @property
    def flag(self) -> str:
        return "--" + self.key.replace("_", "-")

    @property
    def variable(self) -> str:
        return "WRITEBEHIND_" + self.key.upper()

    def wrong(self, message: str) -> ConfigError:
        """The error to raise; it names every place that the value may have come from."""
        credential = f", the credential {self.key}" if self.secret else ""
        return ConfigError(
            f"{self.flag} {message}",
            f"correct {self.flag}, {self.variable}{credential} or {self.key!r} in the configuration file, "
            "wherever you set it",
        )


def _option(
    default: _T,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    secret: bool = False,
) -> _T:
    metadata = {"help": help, "low": low, "high": high, "choices": choices, "secret": secret}
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the worker can be told. Raises `ConfigError` if a value is not allowed.

    The two URLs are left out of the ``repr``: they may hold passwords.
    """

    redis_url: str = _option(
        "redis://localhost:6379/0",
        "Redis or Valkey: redis://, rediss:// (TLS), unix://, redis+sentinel:// or redis+cluster:// URL.",
        secret=True,
    )
    postgres_url: str = _option(
        "postgresql:///",
        "Postgres: libpq URL or connection string; what it leaves out, libpq takes from PG* variables.",
        secret=True,
    )
    queue: str = _option(DEFAULT_QUEUE, "Redis list that the producers push to.")
    shards: int = _option(
        0, "Shards that the queue must have; 0: as many as Redis says.", low=0, high=MAX_SHARDS
    )
    batch_size: int = _option(5000, "Writes taken in one batch, at most.", low=1, high=100_000)
    batch_bytes: int = _option(
        8 * _MIB, "Bytes of messages taken in one batch, at most.", low=1024, high=256 * _MIB
    )
    write_delay_s: float = _option(
        0.0,
        "Seconds to wait before a batch that is not full, so that writes of one row can coalesce.",
        low=0,
        high=_DAY_S,
    )
    lease_ttl_s: float = _option(
        10.0,
        "Seconds after which another worker takes over from one that fell silent.",
        low=0.5,
        high=_DAY_S,
    )
    max_in_flight: int = _option(
        3,
        "Transactions prepared, written or acknowledged at the same time; each has one batch or several.",
        low=2,
        high=48,  # as many as `Tenure` keeps frozen
    )
    lock_timeout_s: float = _option(
        5.0, "Seconds that a statement waits for a lock before it is tried again.", low=0.01, high=_DAY_S
    )
    statement_timeout_s: float = _option(30.0, "Seconds that one statement may take.", low=0.1, high=_DAY_S)
    hold_timeout_s: float = _option(
        60.0,
        "Seconds that a write which waits on a lock may hold the queue; then it is a dead letter.",
        low=0,
        high=_DAY_S,
    )
    stop_timeout_s: float = _option(
        8.0,
        "Seconds to finish the batches in flight after SIGTERM; what is left, the next worker finishes.",
        low=0,
        high=_DAY_S,
    )
    tables: tuple[str, ...] = _option((), "Table that may be written; default: all the role may write.")
    metrics_host: str = _option(
        "0.0.0.0",  # noqa: S104 - Prometheus asks from another machine
        "Address of the metrics and health endpoint.",
    )
    metrics_port: int = _option(9753, "Port of the metrics and health endpoint; 0: none.", low=0, high=65_535)
    allow_eviction: bool = _option(
        False, "Start although Redis may evict the queue (maxmemory-policy allkeys-*)."
    )
    refuse_newer: bool = _option(
        False, "Messages of a later wire format become dead letters; else the worker stops at one."
    )
    publish_changes: bool = _option(
        False, "Publish each change that is durable in Redis, for the caches of applications."
    )
    tracing: bool = _option(
        False, "Spans of OpenTelemetry for what is flushed; OTEL_ variables say where they go."
    )
    log_level: str = _option(
        "info", "Least level that is logged.", choices=("debug", "info", "warning", "error")
    )
    log_format: str = _option(
        "auto", "auto: console on a terminal, else json.", choices=("auto", "console", "json")
    )

    def __post_init__(self) -> None:
        for name, setting in SETTINGS.items():
            _check(setting, getattr(self, name))
        _check_redis_url(self.redis_url)
        _check_postgres_url(self.postgres_url)
        _check_queue(self.queue)


def _settings() -> dict[str, Setting]:
    return {
        f.name: Setting(field=f.name, type=type(f.default), default=f.default, **f.metadata)
        for f in fields(Config)
    }


SETTINGS = _settings()
"""Field name → its option, in the order of declaration."""


def checked_type(setting: Setting, value: object) -> Any:
    """``value`` as the field's type: an integer will do for a float, a list for a tuple.

    Raises `ConfigError`; a string is never taken for a number.
    """
    if setting.type is float and type(value) is int:
        return float(value)
    if setting.type is tuple and isinstance(value, list | tuple):
        if all(isinstance(item, str) for item in value):
            return tuple(value)
    elif type(value) is setting.type:
        return value
    wanted = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
    raise setting.wrong(f"must be {wanted.get(setting.type, 'a list of strings')}")


def _check(setting: Setting, value: Any) -> None:
    checked_type(setting, value)
    if setting.choices and value not in setting.choices:
        raise setting.wrong(f"is {value!r}; allowed: {', '.join(setting.choices)}")
    if setting.type is str and (not value or "\0" in value):
        raise setting.wrong("must not be empty, nor hold a NUL character")
    if setting.type is tuple and any(not item.strip(". ") or "\0" in item for item in value):
        raise setting.wrong(f"is {value!r}; allowed: names such as users or app.users")
    if setting.low is None or setting.high is None:
        return
    # NaN compares false with everything, and so is refused.
    if not setting.low <= value <= setting.high:
        raise setting.wrong(f"is {value}; allowed: {setting.low} to {setting.high}")


def _check_redis_url(url: str) -> None:
    try:
        read_address(url)
    except UnknownOption as error:
        raise SETTINGS["redis_url"].wrong(f"has {error}") from None
    except ValueError:  # its text may quote a part of the password
        shown = (
            f"is {redacted(url)!r}" if re.match(r"[\w+.-]+://", url) else "is no URL"
        )  # where would one be?
        raise SETTINGS["redis_url"].wrong(
            f"{shown}; allowed: redis://[user:password@]host[:port]/db, rediss://…, unix://path, "
            "redis+sentinel://host,host/service, redis+cluster://host,host "
            "(percent-encode what is special in a password)"
        ) from None


def _check_postgres_url(url: str) -> None:
    try:
        parameters = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        # libpq's message, and whatever it could not parse, may hold a piece of the password.
        raise (
            SETTINGS["postgres_url"].wrong(
                "cannot be parsed; allowed: postgresql://user@host:5432/db, or 'host=… dbname=…'"
            )
        ) from None
    try:
        timeout_from_conninfo(parameters)
    except psycopg.ProgrammingError:
        given = parameters["connect_timeout"]
        raise SETTINGS["postgres_url"].wrong(f"has connect_timeout={given}; allowed: whole seconds") from None


def _check_queue(queue: str) -> None:
    # With half a hash tag the queue and its own keys would be in different slots of a cluster.
    if re.fullmatch(r"[^{}]+|[^{}]*\{[^{}]+\}.*", queue, re.DOTALL) is None:
        raise SETTINGS["queue"].wrong(
            f"is {queue!r}; allowed: a name without braces, or with one {{hash tag}}"
        )
