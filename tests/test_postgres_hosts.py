"""Several hosts in the URL of Postgres: what is taken, how long it may take, and what doctor says."""

from __future__ import annotations

import socket
import time
from typing import Any

import psycopg
import pytest
from tests.support.workers import free_port

from writebehind_worker.config import Config
from writebehind_worker.doctor_postgres import examine_postgres
from writebehind_worker.postgres import connect, longest_connect_s, may_find_standby
from writebehind_worker.worker import stall_after_s


@pytest.mark.parametrize(
    ("url", "may"),
    [
        ("postgresql://u@one/db", False),
        ("postgresql://u@one,two/db", True),
        ("postgresql://u@one,two/db?target_session_attrs=any", True),
        ("postgresql://u@one,two/db?target_session_attrs=prefer-standby", True),
        ("postgresql://u@one,two/db?target_session_attrs=read-write", False),
        ("postgresql://u@one:1,two:2/db?target_session_attrs=primary", False),
        ("host=one,two dbname=db", True),
    ],
)
def test_several_hosts_without_a_wish_may_lead_to_a_standby(url: str, may: bool) -> None:
    assert may_find_standby(url) is may


def test_doctor_names_the_missing_wish(options: dict[str, Any], postgres_url: str) -> None:
    second = f",127.0.0.1:{free_port()}/"
    several = second.join(postgres_url.rsplit("/", 1))
    for url, severity in ((several, "warning"), (f"{several}?target_session_attrs=read-write", "ok")):
        found = examine_postgres(Config(**{**options, "postgres_url": url})).findings
        [hosts] = [f for f in found if f.check == "postgres.hosts"]
        assert hosts.severity == severity
        assert ("target_session_attrs=read-write" in hosts.remedy) == (severity == "warning")


def test_hosts_that_accept_and_say_nothing_take_no_longer_than_is_reckoned(postgres_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        hosts = ",".join(f"127.0.0.1:{s.getsockname()[1]}" for s in (one, two))
        url = f"postgresql://u@{hosts}/db?connect_timeout=2&target_session_attrs=read-write"
        began = time.monotonic()
        with pytest.raises(psycopg.OperationalError):
            connect(url)
        took_s = time.monotonic() - began
    assert took_s > 3  # both were tried
    assert longest_connect_s(url) == 8
    assert stall_after_s(Config(postgres_url=url)) > longest_connect_s(url)
    mixed = f"postgresql://postgres@{hosts},{postgres_url.rsplit('@', 1)[1]}?connect_timeout=2"
    with connect(mixed) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
