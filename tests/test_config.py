"""Configuration: what is allowed, where it comes from, and that passwords stay in."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from writebehind_worker.config import SETTINGS, Config, redacted
from writebehind_worker.errors import ConfigError, LedgerMissing, UnsafeRedis
from writebehind_worker.options import OPTIONS, config_options, misspelt, read_file

EXAMPLE = Path(__file__).parents[1] / "deploy" / "writebehind.toml"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in OPTIONS.values():
        monkeypatch.delenv(setting.variable, raising=False)


def parse(*args: str, env: dict[str, str] | None = None) -> tuple[Result, Config | None]:
    """Runs a command that has every option; the `Config` it was called with, unless it was refused."""
    seen: list[Config] = []

    @click.command()
    @config_options()
    def command(config: Config) -> None:
        seen.append(config)

    result = CliRunner().invoke(command, list(args), env=env)
    return result, seen[0] if seen else None


def test_defaults_are_valid_and_frozen() -> None:
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.batch_size = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 100_001),
        ("batch_size", 1.5),
        ("batch_size", True),
        ("batch_bytes", 0),
        ("write_delay_s", -0.1),
        ("write_delay_s", float("nan")),
        ("hold_timeout_s", float("inf")),
        ("lease_ttl_s", 0.4),
        ("max_in_flight", 1),
        ("lock_timeout_s", 0.0),
        ("metrics_port", 65_536),
        ("log_level", "loud"),
        ("log_format", "xml"),
        ("queue", ""),
        ("queue", "a{b"),
        ("queue", "{}x"),
        ("tables", ("users", "")),
        ("tables", "users"),
        ("redis_url", "http://localhost"),
        ("redis_url", "redis://localhost:port/0"),
        ("postgres_url", "mysql://localhost"),
        ("postgres_url", "postgresql://localhost/app?connect_timeout=soon"),
        ("allow_eviction", "yes"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_the_name_of_its_option(field: str, value: object) -> None:
    values: dict[str, Any] = {field: value}
    with pytest.raises(ConfigError) as caught:
        Config(**values)
    setting = SETTINGS[field]
    assert str(caught.value).startswith(setting.flag + " ")
    assert setting.variable in caught.value.hint


@pytest.mark.parametrize("queue", ["db:write:queue", "{db}:queue", "app:{db}:queue"])
def test_queue_names_that_keep_their_keys_in_one_slot_are_allowed(queue: str) -> None:
    assert Config(queue=queue).queue == queue


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:hunter2@localhost:6379/0", "redis://:***@localhost:6379/0"),
        ("rediss://ada:hun/t@er 2@host/0", "rediss://ada:***@host/0"),
        ("postgresql:///", "postgresql:///"),
        ("postgresql://ada@db/app", "postgresql://ada@db/app"),
        ("postgresql://ada:hunter2@a:1,b:2/app?host=/s", "postgresql://ada:***@a:1,b:2/app?host=/s"),
        ("postgresql:///app?password=hunter2&host=/s", "postgresql:///app?password=***&host=/s"),
        ("host=db password=hunter2 dbname=app", "host=db password=*** dbname=app"),
        ("host=db password = 'hun\\'ter 2' dbname=app", "host=db password = *** dbname=app"),
        ("password=hun&ter\\ 2 sslpassword=x", "password=*** sslpassword=***"),
        ("at redis://u:hunter2@h/0, retrying", "at redis://u:***@h/0, retrying"),
    ],
)
def test_passwords_are_redacted(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_the_repr_holds_no_password() -> None:
    config = Config(redis_url="redis://:hunter2@h/0", postgres_url="host=h password=hunter2")
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize("url", ["redis://:hunter2@host:notaport/0", "http://a:hunter2@host"])
def test_a_refused_redis_url_is_shown_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config(redis_url=url)
    assert "hunter2" not in str(caught.value) + caught.value.hint


def test_a_refused_postgres_url_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        Config(postgres_url="host=h password=hun ter2")
    assert "ter2" not in str(caught.value) + caught.value.hint
    assert caught.value.__suppress_context__


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "w.toml"
    file.write_text("batch_size = 10\nlease-ttl = 11\nmax_in_flight = 12\n")
    env = {"WRITEBEHIND_BATCH_SIZE": "20", "WRITEBEHIND_LEASE_TTL": "21"}
    result, config = parse("--config", str(file), "--batch-size", "30", env=env)
    assert config is not None, result.output
    assert (config.batch_size, config.lease_ttl_s) == (30, 21.0)
    assert (config.max_in_flight, config.write_delay_s) == (12, 0.0)


def test_a_flag_beats_the_file_even_where_it_equals_the_default(tmp_path: Path) -> None:
    file = tmp_path / "w.toml"
    file.write_text("batch_size = 10\nallow_eviction = true\n")
    _, config = parse("--config", str(file), "--batch-size", "5000", "--no-allow-eviction")
    assert config is not None
    assert (config.batch_size, config.allow_eviction) == (5000, False)


def test_the_file_itself_may_be_named_by_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "w.toml"
    file.write_text("batch_size = 10\n")
    _, config = parse(env={"WRITEBEHIND_CONFIG": str(file)})
    assert config is not None
    assert config.batch_size == 10


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.field)
def test_every_option_is_read_from_its_variable(setting: Any) -> None:
    values = {
        "redis_url": ("redis://h/1", "redis://h/1"),
        "postgres_url": ("host=h", "host=h"),
        "tables": ("users app.pages", ("users", "app.pages")),
        "allow_eviction": ("1", True),
        "refuse_newer": ("1", True),
        "publish_changes": ("1", True),
        "tracing": ("1", True),
        "log_level": ("debug", "debug"),
        "log_format": ("json", "json"),
        "batch_bytes": ("2048", 2048),
    }
    by_type = {str: ("x", "x"), int: ("7", 7), float: ("7.5", 7.5)}
    text, value = values[setting.field] if setting.field in values else by_type[setting.type]
    result, config = parse(env={setting.variable: text})
    assert config is not None, result.output
    assert getattr(config, setting.field) == value


def test_tables_may_be_repeated_on_the_command_line() -> None:
    _, config = parse("--table", "users", "--table", "app.pages")
    assert config is not None
    assert config.tables == ("users", "app.pages")


@pytest.mark.parametrize("line", ["tables = ['users']", "table = ['users']", "table = 'users'"])
def test_tables_in_the_file(tmp_path: Path, line: str) -> None:
    file = tmp_path / "w.toml"
    file.write_text(line)
    assert read_file(file) == {"tables": ("users",)}


def test_a_misspelt_variable_is_named_and_others_are_left_alone() -> None:
    result, config = parse(env={"WRITEBEHIND_BATCHSIZE": "7"})
    assert config is not None and config.batch_size == 5000
    warning = (
        "Warning: the variable WRITEBEHIND_BATCHSIZE is no option; the closest is WRITEBEHIND_BATCH_SIZE"
    )
    assert (result.stderr.strip(), result.stdout) == (warning, "")
    assert misspelt(["WRITEBEHIND_REDIS_URI"]) == {"WRITEBEHIND_REDIS_URI": "WRITEBEHIND_REDIS_URL"}
    service = ("HOST", "PORT", "PORT_METRICS")  # as Kubernetes sets them for Services
    others = [f"WRITEBEHIND_{name}_{tail}" for name in ("SERVICE", "METRICS_SERVICE") for tail in service]
    others += ["WRITEBEHIND_PORT", "WRITEBEHIND_PORT_9753_TCP", "WRITEBEHIND_METRICS_PORT_9753_TCP_ADDR"]
    known = [setting.variable for setting in OPTIONS.values()]
    assert misspelt([*others, *known, "WRITEBEHIND_CONFIG", "WRITEBEHIND_TEST_REDIS_URL", "BATCHSIZE"]) == {}


def test_an_unknown_key_is_refused_with_the_closest_one(tmp_path: Path) -> None:
    file = tmp_path / "w.toml"
    file.write_text("batchsize = 10\n")
    with pytest.raises(ConfigError, match=r"w\.toml: unknown key 'batchsize'; the closest is 'batch_size'"):
        read_file(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batch_size = '10'", "'batch_size': --batch-size must be an integer"),
        ("batch_size = 1.0", "must be an integer"),
        ("batch_size = true", "must be an integer"),
        ("lease_ttl = '10s'", "must be a number"),
        ("allow_eviction = 1", "must be true or false"),
        ("queue = 1", "must be a string"),
        ("table = [1]", "must be a list of strings"),
        ("batch_size = 1\nbatch-size = 2", "given twice"),
        ("[worker]\nbatch_size = 1", "unknown key 'worker'"),
        ("batch_size =", "not a TOML file"),
        ("embedded = 1", "'embedded': --embedded must be true or false"),
        ("data_dir = true", "'data_dir': --data-dir must be a string"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "w.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        read_file(file)
    assert str(file) in str(caught.value)


def parse_run(*args: str, env: dict[str, str] | None = None) -> tuple[bool, str]:
    """`embedded` and `data_dir` as a command that takes them is called with them."""
    seen: list[tuple[bool, str]] = []

    @click.command()
    @config_options("redis_url", "embedded", "data_dir")
    def command(config: Config, embedded: bool, data_dir: str) -> None:
        seen.append((embedded, data_dir))

    result = CliRunner().invoke(command, list(args), env=env)
    assert seen, result.output
    return seen[0]


def test_embedded_and_its_folder_come_from_the_same_places_in_the_same_order(tmp_path: Path) -> None:
    file = tmp_path / "w.toml"
    file.write_text("embedded = true\ndata-dir = '/file'\nqueue = 'q'\n")
    env = {"WRITEBEHIND_EMBEDDED": "0", "WRITEBEHIND_DATA_DIR": "/environment"}
    assert parse_run() == (False, "")
    assert parse_run("--config", str(file)) == (True, "/file")
    assert parse_run("--config", str(file), env=env) == (False, "/environment")
    flags = ["--embedded", "--data-dir", "/flag"]
    assert parse_run("--config", str(file), *flags, env=env) == (True, "/flag")
    assert parse_run("--config", str(file), "--no-embedded") == (False, "/file")


def test_a_file_with_them_serves_commands_that_do_not_take_them(tmp_path: Path) -> None:
    file = tmp_path / "w.toml"
    file.write_text("embedded = true\ndata_dir = '/file'\nbatch_size = 10\n")
    result, config = parse("--config", str(file))
    assert config is not None, result.output
    assert config.batch_size == 10


def test_help_shows_each_variable_and_default_but_no_value_in_force(tmp_path: Path) -> None:
    file = tmp_path / "w.toml"
    file.write_text("postgres_url = 'host=h password=hunter2'\n")
    env = {"WRITEBEHIND_REDIS_URL": "redis://:hunter2@h/0"}
    result, _ = parse("--config", str(file), "--help", env=env)
    shown = re.sub(r"\s+", "", result.output)
    for setting in SETTINGS.values():
        default = {
            "tables": "(none)",
            "allow_eviction": "no-allow-eviction",
            "refuse_newer": "no-refuse-newer",
            "publish_changes": "no-publish-changes",
            "tracing": "no-tracing",
        }.get(setting.field, str(setting.default))
        assert f"[envvar:{setting.variable};default:{default}]" in shown
        assert setting.flag in shown
    assert "hunter2" not in shown


def test_the_example_file_shows_every_option_with_its_default(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    assert tomllib.loads(text) == {}
    file = tmp_path / "w.toml"
    file.write_text(re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE))
    assert read_file(file) == {name: setting.default for name, setting in OPTIONS.items()}


def test_errors_for_operators_say_what_to_do() -> None:
    assert "writebehind init" in LedgerMissing("app").hint
    assert "'app'" in str(LedgerMissing("app"))
    unsafe = UnsafeRedis("allkeys-lru", "localhost:6379")
    assert "allkeys-lru" in str(unsafe)
    assert "--allow-eviction" in unsafe.hint
