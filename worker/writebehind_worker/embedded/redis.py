"""The Redis-compatible server."""

from __future__ import annotations

import shlex
import signal
import socket
from contextlib import suppress
from pathlib import Path

from .base import Server
from .program import redis_program


class EmbeddedRedis(Server):
    """Valkey (or Redis) that has on disk whatever it acknowledged: AOF, fsync before each reply."""

    name = "redis"
    leftover_signal = signal.SIGTERM

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._started_port()}/0"

    def stop(self) -> None:
        """Let it finish its files and end; killed if it does not."""
        self._stop_with(signal.SIGTERM)

    def _find_program(self) -> Path:
        return redis_program()

    def _prepare(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def _command(self, port: int) -> list[str]:
        defaults = {"bind": "127.0.0.1", "appendonly": "yes", "appendfsync": "always", "save": ""}
        # Without its own process title it keeps the command line by which we find it again.
        fixed = {"daemonize": "no", "set-proc-title": "no", "port": str(port)}
        command = [str(self.program), "--dir", str(self._folder)]
        for name, value in {**defaults, **self._options, **fixed}.items():
            command += [f"--{name}", *(shlex.split(value) or [""])]
        return command

    def _answers(self, port: int) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))  # else "-LOADING ..."
        return False

    def _markers(self) -> tuple[str, ...]:
        return (f"-server --dir {self._folder} ",)
