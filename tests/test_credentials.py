"""Secrets as files in $CREDENTIALS_DIRECTORY: below flags and environment, above the TOML file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from writebehind_worker.config import Config
from writebehind_worker.credentials import read_credentials
from writebehind_worker.errors import ConfigError
from writebehind_worker.options import config_options, config_reader


def parse(*args: str, env: dict[str, str]) -> tuple[Config, Callable[[], Config]]:
    seen: list[tuple[Config, Callable[[], Config]]] = []

    @click.command()
    @config_options()
    def command(config: Config) -> None:
        seen.append((config, config_reader()))

    result: Result = CliRunner().invoke(command, list(args), env=env)
    assert seen, result.output or result.exception
    return seen[0]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    return tmp_path


def test_flag_beats_environment_beats_credential_beats_file(folder: Path) -> None:
    file = folder / "w.toml"
    file.write_text("redis_url = 'redis://file'\npostgres_url = 'host=file'\nqueue = 'file'\n")
    (folder / "redis_url").write_text("redis://credential\n")
    (folder / "postgres_url").write_text("  host=credential\n\n")
    (folder / "queue").write_text("no secret, not read")
    env = {"WRITEBEHIND_POSTGRES_URL": "host=environment"}
    config, _ = parse("--config", str(file), env={})
    assert (config.redis_url, config.postgres_url) == ("redis://credential", "host=credential")
    assert config.queue == "file"
    config, _ = parse("--config", str(file), "--redis-url", "redis://flag", env=env)
    assert (config.redis_url, config.postgres_url) == ("redis://flag", "host=environment")
    (folder / "redis_url").unlink()
    config, _ = parse("--config", str(file), env={})
    assert config.redis_url == "redis://file"


def test_read_again_file_and_credentials_may_change_and_flags_stay(folder: Path) -> None:
    file = folder / "w.toml"
    file.write_text("batch_size = 1\nqueue = 'one'\nembedded = false\n")
    config, read = parse("--config", str(file), "--queue", "flag", env={"WRITEBEHIND_LEASE_TTL": "9"})
    assert (config.batch_size, config.queue, config.lease_ttl_s) == (1, "flag", 9.0)
    file.write_text("batch_size = 2\nqueue = 'two'\nlease_ttl = 8\nmax_in_flight = 9\n")
    (folder / "redis_url").write_text("redis://new")
    config = read()
    assert (config.batch_size, config.queue, config.lease_ttl_s) == (2, "flag", 9.0)
    assert (config.max_in_flight, config.redis_url) == (9, "redis://new")
    file.write_text("batch_size = 0")
    with pytest.raises(ConfigError, match="--batch-size is 0"):
        read()


@pytest.mark.parametrize(
    ("content", "said"),
    [(b" \n", "is empty"), (b"redis://:\xffhunter2@h", "is not UTF-8"), (None, "cannot be")],
)
def test_a_credential_that_cannot_be_used_is_named_and_not_shown(
    folder: Path, content: bytes | None, said: str
) -> None:
    path = folder / "redis_url"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"the credential {path} {said}") as caught:
        read_credentials({"CREDENTIALS_DIRECTORY": str(folder)})
    assert "hunter2" not in str(caught.value) + caught.value.hint
    assert caught.value.__suppress_context__ or content is None or not content.strip()


def test_a_wrong_url_of_a_credential_is_told_without_its_password(folder: Path) -> None:
    (folder / "redis_url").write_text("redis://:hunter2@h:x/0")
    values = read_credentials({"CREDENTIALS_DIRECTORY": str(folder)})
    with pytest.raises(ConfigError, match="--redis-url") as caught:
        Config(**values)  # type: ignore[arg-type]
    assert "the credential redis_url" in caught.value.hint
    assert "hunter2" not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize(
    "environment", [{}, {"CREDENTIALS_DIRECTORY": ""}, {"CREDENTIALS_DIRECTORY": "/nowhere"}]
)
def test_without_a_directory_there_are_none(environment: dict[str, str]) -> None:
    assert read_credentials(environment) == {}
