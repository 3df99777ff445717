"""The PostgreSQL server."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Literal

from .base import START_TIMEOUT_S, Server
from .errors import EmbeddedServerError
from .folder import require_reachable
from .process import processes, spawn, wait_until
from .program import major_version, postgres_bin


class EmbeddedPostgres(Server):
    """PostgreSQL with one superuser ``postgres``, trusted on 127.0.0.1. Under root it runs as ``nobody``."""

    name = "postgres"
    leftover_signal = signal.SIGINT

    @property
    def _new_folder(self) -> Path:
        return self._root / "postgres.new"

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self._started_port()}/postgres"

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Shut down as ``pg_ctl stop -m mode``; one that takes too long gives way to the next harder."""
        signals = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
        self._stop_with(*signals[("smart", "fast", "immediate").index(mode) :])

    def _find_program(self) -> Path:
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")  # PostgreSQL refuses to run as root
            self._account = nobody.pw_uid, nobody.pw_gid
        return postgres_bin(self._account) / "postgres"

    def _prepare(self) -> None:
        if self._account:
            require_reachable(self._root)
        if self._folder.exists():
            self._require_same_version()
        else:
            self.initialise()
        self._forget_foreign_pid()

    def _require_same_version(self) -> None:
        """A major version reads only its own files; its log would say so, but not what to do."""
        stored = self._folder / "PG_VERSION"
        made_by = stored.read_text().strip() if stored.exists() else ""
        here = major_version(self.program, self._account)
        if made_by and here and made_by != here:
            raise EmbeddedServerError(
                f"{self._folder} was made by PostgreSQL {made_by}, and {self.program} is PostgreSQL {here}, "
                f"which cannot read it; install PostgreSQL {made_by} again (its rows move to another version "
                "with pg_dump or pg_upgrade), or choose another data folder"
            )

    def initialise(self) -> None:
        """initdb, which ``start`` does where there is no data folder yet."""
        initdb = self.program.with_name("initdb")  # finding it tells the account, too
        # In a folder of another name first: an interrupted initdb leaves half a cluster.
        new = self._new_folder
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if self._account:
            os.chown(new, *self._account)
        arguments = ["--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync", "-U", "postgres"]
        with self._log.open("ab") as log:
            command = [str(initdb), "-D", str(new), *arguments]
            process = self._process = spawn(command, log, self._account)
        ended = wait_until(lambda: process.poll() is not None, START_TIMEOUT_S)
        if not ended or process.returncode != 0:
            raise EmbeddedServerError(f"initdb failed in {new}; it printed:\n{self._log_tail()}")
        new.rename(self._folder)

    def _forget_foreign_pid(self) -> None:
        """Remove a lock file whose process id now belongs to something else, as after a container's restart.

        PostgreSQL would refuse to start; the leftovers of this folder have been ended before. The file stays
        where the process is gone: PostgreSQL uses it to wait for orphaned backends.
        """
        lines = self._pid_file_lines()
        if lines and any(str(pid) == lines[0] for pid, _, _ in processes()):
            (self._folder / "postmaster.pid").unlink()

    def _pid_file_lines(self) -> list[str]:
        with suppress(FileNotFoundError):
            return [line.strip() for line in (self._folder / "postmaster.pid").read_text().splitlines()]
        return []

    def _command(self, port: int) -> list[str]:
        defaults = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "log_checkpoints": "off"}
        command = [str(self.program), "-D", str(self._folder)]
        for name, value in {**defaults, **self._options, "port": str(port)}.items():
            command += ["-c", f"{name}={value}"]
        return command

    def _answers(self, port: int) -> bool:
        lines = self._pid_file_lines()  # as pg_ctl does: the first line is the pid, the eighth the state
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7] == "ready"

    def _markers(self) -> tuple[str, ...]:
        return f"/postgres -D {self._folder} ", f"/initdb -D {self._new_folder} "
