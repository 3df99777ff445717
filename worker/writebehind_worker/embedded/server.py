"""The servers: one child process each, over a folder that outlives it."""

from __future__ import annotations

import fcntl
import os
import pwd
import random
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, ClassVar, Literal, Self

from .errors import EmbeddedServerError
from .folder import create_root, require_reachable
from .process import STOP_TIMEOUT_S, is_free, kill_tree, processes, spawn, wait_until
from .program import postgres_bin, redis_program

START_TIMEOUT_S = 120.0  # replaying a long log after a crash takes a while
# A port can be taken between our look and the bind; orphaned backends need a moment to end.
START_ATTEMPTS = 3
LOG_BYTES = 16 << 20  # a longer log is set aside at the next start
# Below the range that systems give to outgoing connections (Linux: from 32768): a client that
# reconnects in a loop to a port within that range ends up connected to itself.
PORTS = range(15_000, 32_000)
_NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


class _Server:
    """One child process over one folder. Starting and stopping twice is harmless."""

    name: ClassVar[str]
    leftover_signal: ClassVar[signal.Signals]

    def __init__(self, data_dir: Path, *, port: int = 0, options: Mapping[str, str] = _NO_OPTIONS) -> None:
        """Nothing is started or written yet. ``port`` 0: a free one, kept from then on."""
        self.port = port
        self._options = options
        self._root = data_dir.resolve()
        self._folder = self._root / self.name
        self._log = self._root / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: BinaryIO | None = None
        self._account: tuple[int, int] | None = None  # uid and gid to run as; None: our own

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start and wait until it answers. Raises EmbeddedServerError with the end of the server's log."""
        if self.pid is not None:
            return
        try:
            create_root(self._root)
            self._take_lock()
            self._stop_leftovers()
            self._rotate_log()
            self._prepare()
            self._launch()
        except OSError as error:
            self.kill()
            raise EmbeddedServerError(
                f"could not start {self.name} in {self._root}: {error}; "
                "check the folder's owner, permissions and free space, or choose another folder"
            ) from error
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL to the server and its children, and wait: what a crash does."""
        if (pid := self.pid) is not None:
            kill_tree(pid)
        if self._process:
            self._process.wait()
        self._process = None
        if self._lock:
            self._lock.close()
            self._lock = None

    def _stop_with(self, *signals: signal.Signals) -> None:
        for signum in signals:
            if self._process and self.pid is not None:
                self._process.send_signal(signum)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_TIMEOUT_S)
        self.kill()

    def _started_port(self) -> int:
        if not self.port:
            raise EmbeddedServerError(f"{self.name} has no port yet; call start() before using its url")
        return self.port

    # What a kind of server has to say.

    def _prepare(self) -> None:
        """Find the program and make the data folder."""
        raise NotImplementedError

    def _command(self, port: int) -> list[str]:
        raise NotImplementedError

    def _answers(self, port: int) -> bool:
        raise NotImplementedError

    def _markers(self) -> tuple[str, ...]:
        """What only this folder's server has in its command line."""
        raise NotImplementedError

    # Steps of starting.

    def _take_lock(self) -> None:
        if self._lock:
            return
        lock = (self._root / f"{self.name}.lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise EmbeddedServerError(
                f"another program runs {self.name} in {self._root}; stop it, or choose another data folder"
            ) from error
        self._lock = lock

    def _leftovers(self) -> list[int]:
        markers = self._markers()
        return [pid for pid, _, command in processes() if any(m in command + " " for m in markers)]

    def _stop_leftovers(self) -> None:
        """End a server whose program was killed. We hold the lock: no living program owns it."""
        for pid in (pids := self._leftovers()):
            with suppress(ProcessLookupError):
                os.kill(pid, self.leftover_signal)
        if pids and not wait_until(lambda: not self._leftovers(), STOP_TIMEOUT_S):
            for pid in self._leftovers():
                kill_tree(pid)

    def _launch(self) -> None:
        for attempt in range(START_ATTEMPTS):
            port = self._choose_port()
            if self._run(port):
                self.port = port
                (self._root / f"{self.name}.port").write_text(f"{port}\n")
                return
            time.sleep(0.2 * (attempt + 1))
        raise EmbeddedServerError(f"{self.name} ended while starting; {self._log} ends:\n{self._log_tail()}")

    def _choose_port(self) -> int:
        if self.port and not is_free(self.port):
            raise EmbeddedServerError(
                f"port {self.port} of 127.0.0.1 is taken; stop what listens there, "
                f"or choose another port for {self.name}"
            )
        stored = self._root / f"{self.name}.port"
        text = stored.read_text().strip() if stored.exists() else ""
        last = [int(text)] if text.isdecimal() and int(text) < 65536 else []
        return self.port or next(filter(is_free, [*last, *random.sample(PORTS, len(PORTS))]))

    def _run(self, port: int) -> bool:
        """Whether it came to answer; False if it ended instead."""
        with self._log.open("ab") as log:
            self._process = spawn(self._command(port), log, self._account)
        process = self._process
        if wait_until(lambda: process.poll() is not None or self._answers(port), START_TIMEOUT_S):
            return process.poll() is None
        raise EmbeddedServerError(
            f"{self.name} did not answer within {START_TIMEOUT_S:.0f} s; "
            f"{self._log} ends:\n{self._log_tail()}"
        )

    def _rotate_log(self) -> None:
        if self._log.exists() and self._log.stat().st_size > LOG_BYTES:
            self._log.replace(self._log.with_suffix(".log.old"))
        self._log.touch(mode=0o600)  # it quotes rows that were refused

    def _log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])


class EmbeddedRedis(_Server):
    """Valkey (or Redis) that has on disk whatever it acknowledged: AOF, fsync before each reply."""

    name = "redis"
    leftover_signal = signal.SIGTERM
    _program = Path()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._started_port()}/0"

    def stop(self) -> None:
        """Let it finish its files and end; killed if it does not."""
        self._stop_with(signal.SIGTERM)

    def _prepare(self) -> None:
        self._program = redis_program()
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def _command(self, port: int) -> list[str]:
        defaults = {"bind": "127.0.0.1", "appendonly": "yes", "appendfsync": "always", "save": ""}
        # Without its own process title it keeps the command line by which we find it again.
        fixed = {"daemonize": "no", "set-proc-title": "no", "port": str(port)}
        command = [str(self._program), "--dir", str(self._folder)]
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


class EmbeddedPostgres(_Server):
    """PostgreSQL with one superuser ``postgres``, trusted on 127.0.0.1. Under root it runs as ``nobody``."""

    name = "postgres"
    leftover_signal = signal.SIGINT
    _bin = Path()

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

    def _prepare(self) -> None:
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")  # PostgreSQL refuses to run as root
            self._account = nobody.pw_uid, nobody.pw_gid
            require_reachable(self._root)
        self._bin = postgres_bin(self._account)
        if not self._folder.exists():
            self._initialise()
        self._forget_foreign_pid()

    def _initialise(self) -> None:
        # In a folder of another name first: an interrupted initdb leaves half a cluster.
        new = self._new_folder
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if self._account:
            os.chown(new, *self._account)
        arguments = ["--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync", "-U", "postgres"]
        with self._log.open("ab") as log:
            command = [str(self._bin / "initdb"), "-D", str(new), *arguments]
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
        command = [str(self._bin / "postgres"), "-D", str(self._folder)]
        for name, value in {**defaults, **self._options, "port": str(port)}.items():
            command += ["-c", f"{name}={value}"]
        return command

    def _answers(self, port: int) -> bool:
        lines = self._pid_file_lines()  # as pg_ctl does: the first line is the pid, the eighth the state
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7] == "ready"

    def _markers(self) -> tuple[str, ...]:
        return f"/postgres -D {self._folder} ", f"/initdb -D {self._new_folder} "


class EmbeddedServers:
    """Both servers over one data folder; a context manager."""

    def __init__(
        self,
        data_dir: Path,
        *,
        redis_port: int = 0,
        postgres_port: int = 0,
        redis_options: Mapping[str, str] = _NO_OPTIONS,
        postgres_options: Mapping[str, str] = _NO_OPTIONS,
    ) -> None:
        self.data_dir = data_dir.resolve()
        self.redis = EmbeddedRedis(data_dir, port=redis_port, options=redis_options)
        self.postgres = EmbeddedPostgres(data_dir, port=postgres_port, options=postgres_options)

    @property
    def redis_url(self) -> str:
        return self.redis.url

    @property
    def postgres_url(self) -> str:
        return self.postgres.url

    def start(self) -> None:
        """Start both at once. If one fails, neither is left running."""
        try:
            with ThreadPoolExecutor(2) as pool:
                for started in [pool.submit(self.redis.start), pool.submit(self.postgres.start)]:
                    started.result()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        try:
            self.redis.stop()
        finally:
            self.postgres.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
