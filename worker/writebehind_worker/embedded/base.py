"""What the two servers have in common: one child process each, over a folder that outlives it."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, ClassVar

from .errors import EmbeddedServerError
from .folder import create_root
from .process import STOP_TIMEOUT_S, is_free, kill_tree, processes, spawn, wait_until

START_TIMEOUT_S = 120.0  # replaying a long log after a crash takes a while
# A port can be taken between our look and the bind; orphaned backends need a moment to end.
START_ATTEMPTS = 3
LOG_BYTES = 16 << 20  # a longer log is set aside at the next start
# Below the range that systems give to outgoing connections (Linux: from 32768): a client that
# reconnects in a loop to a port within that range ends up connected to itself.
PORTS = range(15_000, 32_000)
NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


class Server:
    """One child process over one folder. Starting and stopping twice is harmless."""

    name: ClassVar[str]
    leftover_signal: ClassVar[signal.Signals]

    def __init__(self, data_dir: Path, *, port: int = 0, options: Mapping[str, str] = NO_OPTIONS) -> None:
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

    @cached_property
    def program(self) -> Path:
        """Where its program is. Looked for once; the data folder is not touched."""
        try:
            return self._find_program()
        except OSError as error:
            raise EmbeddedServerError(
                f"could not make the program of {self.name} ready: {error}; check that folder's owner, "
                "permissions and free space, or set TMPDIR to another"
            ) from error

    def start(self) -> None:
        """Start and wait until it answers. Raises EmbeddedServerError with the end of the server's log."""
        if self.pid is not None:
            return
        _ = self.program  # where there is none, nothing is written
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

    def _find_program(self) -> Path:
        raise NotImplementedError

    def _prepare(self) -> None:
        """Make the data folder, or check the one that is there."""
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
