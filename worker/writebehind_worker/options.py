"""`Config` from flags, environment, credentials and a TOML file, in this order of precedence."""

from __future__ import annotations

import difflib
import functools
import os
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .config import SETTINGS, Config, Setting, checked_type
from .credentials import read_credentials
from .errors import ConfigError

Command = Callable[..., None]

OWN_SERVERS = {
    setting.field: setting
    for setting in (
        Setting("embedded", bool, False, "Start an own Valkey and PostgreSQL for it.", None, None, ()),
        Setting("data_dir", str, "", "With --embedded: where they keep their data.", None, None, ()),
    )
}
"""What `run` alone takes: no part of `Config`, for the worker is told only where its servers are."""

OPTIONS = SETTINGS | OWN_SERVERS

_READER = f"{__name__}.reader"
_PREFIX, _FILE_VARIABLE = "WRITEBEHIND_", "WRITEBEHIND_CONFIG"
_CLOSE = 0.8  # METRICS_SERVICE_PORT, which Kubernetes sets for a Service, is at 0.75 of METRICS_PORT


def config_options(*names: str) -> Callable[[Command], Command]:
    """Gives a command these options (none named: all of `Config`) and calls it with a `Config`.

    A command that reads two settings shows two, but takes the same file and environment as `run`. One of
    `OWN_SERVERS` is passed beside the `Config`, by its name. For click, what the file set has the source
    DEFAULT_MAP.
    """
    settings = [OPTIONS[name] for name in names or SETTINGS]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_config(config_file: Path | None, **params: Any) -> None:
            for name, closest in misspelt(os.environ).items():
                click.echo(f"Warning: the variable {name} is no option; the closest is {closest}", err=True)
            given = {setting.field: params.pop(setting.field) for setting in settings}
            fixed = _fixed(given)
            values = _merged(fixed, given, config_file)
            own = {name: values.pop(name, OWN_SERVERS[name].default) for name in OWN_SERVERS}
            params |= {name: value for name, value in own.items() if name in given}
            click.get_current_context().meta[_READER] = functools.partial(_read, fixed, config_file)
            command(Config(**values), **params)

        decorated: Command = _FILE_OPTION(with_config)
        for setting in reversed(settings):
            decorated = _click_option(setting)(decorated)
        return decorated

    return decorate


def config_reader() -> Callable[[], Config]:
    """For the command that is being run: reads its configuration again.

    The file and the credentials may have changed since; the flags and the environment of a process do not.
    It raises `ConfigError`.
    """
    reader: Callable[[], Config] = click.get_current_context().meta[_READER]
    return reader


def misspelt(variables: Iterable[str]) -> dict[str, str]:
    """Those that are no option but nearly one → that one. Others that begin like ours may be a Service's."""
    known = {setting.variable for setting in OPTIONS.values()} | {_FILE_VARIABLE}
    tails = [name.removeprefix(_PREFIX) for name in known]
    found: dict[str, str] = {}
    for name in variables:
        if name.startswith(_PREFIX) and name not in known:
            close = difflib.get_close_matches(name.removeprefix(_PREFIX), tails, n=1, cutoff=_CLOSE)
            if close:
                found[name] = _PREFIX + close[0]
    return found


def read_file(path: Path) -> dict[str, Any]:
    """Field name → value, from a flat TOML file whose keys are the options' names, ``-`` or ``_``.

    Raises `ConfigError`, naming the file, for an unknown key, a value of the wrong type, or no TOML.
    """
    values: dict[str, Any] = {}
    for key, value in _toml(path).items():
        setting = _setting_of(key, path)
        if setting.field in values:
            raise ConfigError(f"{path}: {key!r} is given twice", "keep one spelling of it")
        wrapped = [value] if setting.type is tuple and isinstance(value, str) else value
        try:
            values[setting.field] = checked_type(setting, wrapped)
        except ConfigError as error:
            raise ConfigError(f"{path}: {key!r}: {error}", f"correct {key!r} in {path}") from None
    return values


_FILE_OPTION = click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar=_FILE_VARIABLE,
    show_envvar=True,
    help="TOML file; its keys are these options: batch_size = 1000, table = ['users'].",
)


def _click_option(setting: Setting) -> Callable[[Command], Command]:
    flag, help_text = setting.flag, setting.help
    kind: Any = setting.type
    if setting.type is bool:
        flag += f"/--no-{flag.removeprefix('--')}"
    if setting.type is tuple:
        kind, help_text = str, help_text + " Repeat it; in the variable, separate names by spaces."
    if setting.choices:
        kind = click.Choice(setting.choices)
    default_shown: bool | str = "none" if setting.type is tuple else True
    if setting is OWN_SERVERS["data_dir"]:
        kind = click.Path(file_okay=False)
        default_shown = "/var/lib/writebehind for root, else ~/.local/share/writebehind"
    return click.option(
        flag,
        setting.field,
        type=kind,
        default=setting.default,
        multiple=setting.type is tuple,
        envvar=setting.variable,
        help=help_text,
        show_envvar=True,
        show_default=default_shown,
    )


def _fixed(given: dict[str, Any]) -> dict[str, Any]:
    """What the flags and the environment set."""
    source = click.get_current_context().get_parameter_source
    return {name: value for name, value in given.items() if source(name) is not ParameterSource.DEFAULT}


def _merged(fixed: dict[str, Any], given: dict[str, Any], config_file: Path | None) -> dict[str, Any]:
    """What the file, the credentials, the environment and the flags set."""
    # Not click's default_map: with it, `--help` would show the file's values, passwords included.
    values = _changeable(config_file)
    for name in given.keys() & values.keys() - fixed.keys():
        click.get_current_context().set_parameter_source(name, ParameterSource.DEFAULT_MAP)
    return values | fixed


def _changeable(config_file: Path | None) -> dict[str, Any]:
    return (read_file(config_file) if config_file else {}) | read_credentials(os.environ)


def _read(fixed: dict[str, Any], config_file: Path | None) -> Config:
    values = _changeable(config_file) | fixed
    return Config(**{name: value for name, value in values.items() if name in SETTINGS})


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", "check --config") from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise ConfigError(f"{path}: not a TOML file: {error}", "correct the file") from error


def _setting_of(key: str, path: Path) -> Setting:
    by_key = {setting.key: setting for setting in OPTIONS.values()}
    by_key["tables"] = SETTINGS["tables"]
    name = key.replace("-", "_")
    if name in by_key:
        return by_key[name]
    close = difflib.get_close_matches(name, by_key, n=1)
    raise ConfigError(
        f"{path}: unknown key {key!r}" + (f"; the closest is {close[0]!r}" if close else ""),
        f"the keys are flat: {', '.join(sorted(by_key))}",
    )
