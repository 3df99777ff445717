"""Child processes, those that outlived their parent, and free ports."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

STOP_TIMEOUT_S = 20.0  # for each signal, before a stronger one is sent


def spawn(
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


def processes() -> Iterator[tuple[int, int, str]]:
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


def kill_tree(pid: int) -> None:
    """Kill a server and its children: PostgreSQL's hold the shared memory until they notice."""
    family = [pid, *(child for child, parent, _ in processes() if parent == pid)]
    for member in family:
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    wait_until(lambda: not any(member in family for member, _, _ in processes()), STOP_TIMEOUT_S)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        with suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
    return False


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
