"""What systemd is to a service: a datagram socket that is told, and the variables that say so."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from writebehind_worker.testing.wait import wait_until


class Listener:
    """Everything that was sent so far, one message a line of ``NAME=value`` pairs."""

    def __init__(self, sock: socket.socket, path: str) -> None:
        self._socket, self.path = sock, path
        self._messages: list[dict[str, str]] = []

    @property
    def messages(self) -> list[dict[str, str]]:
        while True:
            try:
                text = self._socket.recv(65536, socket.MSG_DONTWAIT).decode()
            except BlockingIOError:
                return self._messages
            self._messages.append(dict(line.split("=", 1) for line in text.split("\n")))

    def said(self, name: str) -> list[str]:
        """Every value of this name, in order."""
        return [message[name] for message in self.messages if name in message]

    def states(self) -> list[str]:
        """READY, RELOADING, STOPPING as they came."""
        return [n for m in self.messages for n in m if n in ("READY", "RELOADING", "STOPPING")]

    def wait_for_status(self, part: str, timeout: float = 15) -> str:
        """The last status line, once it holds ``part``."""
        wait_until(
            lambda: part in (self.said("STATUS") or [""])[-1], timeout, message=f"the status was not {part!r}"
        )
        return self.said("STATUS")[-1]

    def environment(self, watchdog_s: float | None = None, pid: int | None = None) -> dict[str, str]:
        """As systemd sets it; ``pid``: of whom it expects the signs of life."""
        found = {"NOTIFY_SOCKET": self.path}
        if watchdog_s is not None:
            found["WATCHDOG_USEC"] = str(int(watchdog_s * 1e6))
        if pid is not None:
            found["WATCHDOG_PID"] = str(pid)
        return found


@contextmanager
def listening(folder: Path | None = None) -> Iterator[Listener]:
    """On a socket in this folder, or an abstract one."""
    name = str(folder / "notify") if folder else f"@writebehind-{os.getpid()}-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name[1:] if name.startswith("@") else name)
        yield Listener(sock, name)
