"""Logs: format, level, and what must never be in them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import structlog

from writebehind_worker.log import configure_logging, get_logger


@pytest.fixture(autouse=True)
def reset() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def fail_with_a_secret_local() -> None:
    password = "hunter" + "2"
    raise ValueError(f"bad value, {len(password)} characters")


def test_json_lines_go_to_stderr_with_a_utc_time(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "auto")  # captured stderr is no terminal
    get_logger(queue="q").info("batch committed", writes=3)
    captured = capsys.readouterr()
    assert captured.out == ""
    line = json.loads(captured.err)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "batch committed", "level": "info", "queue": "q", "writes": 3}


def test_levels_below_the_one_asked_for_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("warning", "json")
    get_logger().info("quiet")
    get_logger().warning("loud")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["loud"]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_tracebacks_carry_no_local_variables(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    configure_logging("info", log_format)
    try:
        fail_with_a_secret_local()
    except ValueError:
        get_logger().exception("flush failed")
    shown = capsys.readouterr().err
    assert "ValueError: bad value, 7 characters" in shown
    assert "fail_with_a_secret_local" in shown
    assert "hunter2" not in shown


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_passwords_are_taken_out_of_values_events_and_exceptions(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    configure_logging("info", log_format)
    try:
        raise ConnectionError("no answer from redis://:hunter2@h/0")
    except ConnectionError as error:
        get_logger().error("at redis://:hunter2@h", dsn="password=hunter2", error=error, exc_info=True)
    shown = capsys.readouterr().err
    assert "hunter2" not in shown
    assert "***@h" in shown


def test_any_value_can_be_logged(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    get_logger().info("x", raw=b"\xff", where={1, 2}.__class__)
    assert json.loads(capsys.readouterr().err)["event"] == "x"
