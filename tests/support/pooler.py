"""PgBouncer as a real process before a Postgres; it can be killed, and started again at the same address."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import psycopg
from tests.support.workers import free_port

from writebehind_worker.testing.servers import missing, new_data_dir
from writebehind_worker.testing.wait import wait_until

_PLACES = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin"


class Pooler:
    """``with Pooler(postgres_url) as pooler: pooler.url``; ``settings`` are those of [pgbouncer]."""

    def __init__(self, postgres_url: str, **settings: object) -> None:
        self._program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:{_PLACES}")
        if self._program is None:
            missing("no pgbouncer: install PgBouncer")
        self._server = urlsplit(postgres_url)
        self.port = free_port()
        self._settings: dict[str, object] = {"pool_mode": "transaction", "default_pool_size": 2, **settings}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """That of the server, by way of the pooler."""
        return self._server._replace(netloc=f"{self._server.username}@127.0.0.1:{self.port}").geturl()

    def start(self) -> None:
        """Until it answers."""
        assert self._program is not None
        account = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]  # it refuses to be root
        command = [*(account if os.geteuid() == 0 else []), self._program, "-q", str(self._write_settings())]
        self._process = subprocess.Popen(command)
        wait_until(self._answers, message="PgBouncer did not answer")

    def kill(self) -> None:
        """SIGKILL: all connections through it are gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def ask(self, command: str) -> list[dict[str, Any]]:
        """A command of its console, such as PAUSE."""
        url = self._server._replace(netloc=f"postgres@127.0.0.1:{self.port}", path="/pgbouncer").geturl()
        with psycopg.connect(url, autocommit=True, row_factory=psycopg.rows.dict_row) as conn:
            cursor = psycopg.ClientCursor(conn, row_factory=psycopg.rows.dict_row)
            cursor.execute(command.encode())
            return cursor.fetchall() if cursor.description else []

    def set(self, **settings: object) -> None:
        """Changes its settings as it runs."""
        self._settings |= settings
        self._write_settings()
        self.ask("RELOAD")

    def _answers(self) -> bool:
        try:
            return bool(self.ask("SHOW VERSION"))
        except psycopg.OperationalError:
            return False

    def _write_settings(self) -> Path:
        users = self._folder / "users.txt"
        users.write_text(f'"{self._server.username}" ""\n"postgres" ""\n')
        given: dict[str, object] = {
            "listen_addr": "127.0.0.1", "listen_port": self.port, "unix_socket_dir": "",
            "auth_type": "trust", "auth_file": users, "admin_users": "postgres", **self._settings,
        }  # fmt: skip
        server = f"* = host={self._server.hostname} port={self._server.port}"
        lines = [
            "[databases]",
            server,
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in given.items()),
        ]
        file = self._folder / "pgbouncer.ini"
        file.write_text("\n".join(lines) + "\n")
        return file

    def __enter__(self) -> Self:
        self._folder = new_data_dir()
        self._folder.chmod(0o755)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self._folder)
