"""Commands for Redis as bytes that are made once and sent many times, without waiting for each reply."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import urlsplit

_CHUNK = 500


def pack(*parts: bytes) -> bytes:
    """One command in Redis' protocol."""
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts)


def lpush(key: bytes, items: Sequence[bytes]) -> Iterator[bytes]:
    """Pushes items, the oldest first."""
    for at in range(0, len(items), _CHUNK):
        yield pack(b"LPUSH", key, *items[at : at + _CHUNK])


def connect(url: str) -> socket.socket:
    """A bare connection to a ``redis://`` URL without a password."""
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname or "", parts.port or 6379))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def send_all(url: str, commands: Iterable[bytes]) -> None:
    """Sends commands and waits until Redis has done them; their replies are not looked at."""
    with connect(url) as connection:
        connection.sendall(b"CLIENT REPLY OFF\r\n")
        for command in commands:
            connection.sendall(command)
        connection.sendall(b"CLIENT REPLY ON\r\n")
        assert connection.recv(16) == b"+OK\r\n"
