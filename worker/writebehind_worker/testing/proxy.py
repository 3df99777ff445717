"""A TCP proxy between us and a server whose faults a test switches on: what a network does to a client.

Each connection has two pumps (threads), one per direction; a chunk is whatever one ``recv`` returned.
Requests of a few kilobytes over loopback arrive as one chunk, which is what the predicates rely on.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Self
from urllib.parse import urlsplit, urlunsplit

from .wait import wait_until

Predicate = Callable[[bytes], bool]
_DEFAULT_PORTS = {"redis": 6379, "postgresql": 5432, "postgres": 5432}
_CHUNK_BYTES = 65536


def proxied_url(url: str, port: int) -> str:
    """``url`` (redis:// or postgresql://) with 127.0.0.1:``port`` in place of its server."""
    parts = urlsplit(url)
    account = parts.netloc.rpartition("@")[0]
    return urlunsplit(
        parts._replace(netloc=f"{account}@127.0.0.1:{port}" if account else f"127.0.0.1:{port}")
    )


@dataclass
class _Rule:
    """What happens at the next ``times`` matching chunks of a client: see the methods of `Proxy`."""

    what: Literal["reply", "request", "matching reply", "pause before", "pause after"]
    matches: Predicate
    times: int


@dataclass
class _Link:
    """One client's connection and ours to the server."""

    client: socket.socket
    server: socket.socket
    swallow_reply: bool = False
    pumps: list[threading.Thread] = field(default_factory=list)

    def cut(self) -> None:
        """Wakes both pumps; the last one to end closes the sockets."""
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.client.close()
        self.server.close()


class Proxy:
    """Forwards to one server at a time, until told to do worse.

    ``dropped`` counts the requests and replies that were swallowed; ``delay_s`` holds every chunk that
    long, in either direction.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self.target = (target_host, target_port)
        self.port = 0  # 0 until it runs
        self.delay_s = 0.0
        self.dropped = 0
        self._changed = threading.Condition()  # guards what is below, and ``dropped``
        self._links: list[_Link] = []
        self._rules: list[_Rule] = []
        self._refusing = False
        self._closing = False
        self._flowing = threading.Event()
        self._flowing.set()

    @classmethod
    def to(cls, url: str) -> Self:
        """A proxy to the server of a redis:// or postgresql:// URL."""
        return cls(*_address(url))

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept_all, name="proxy-accept", daemon=True)
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closing = True
        with suppress(OSError):  # wakes the acceptor
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        self._acceptor.join(timeout=10)
        self._listener.close()
        self._flowing.set()
        pumps = [pump for link in self._current() for pump in link.pumps]
        self.drop_connections()
        for pump in pumps:
            pump.join(timeout=10)

    # Faults.

    def drop_connections(self) -> None:
        """Cut every connection now; new ones are taken."""
        for link in self._current():
            link.cut()

    def redirect(self, url: str) -> None:
        """Forward to another server from now on, as an address that moves; every connection is cut."""
        with self._changed:
            self.target = _address(url)
        self.drop_connections()

    def refuse(self) -> None:
        """Reset new connections at once, as a server that is down; those that stand go on."""
        with self._changed:
            self._refusing = True

    def accept(self) -> None:
        """Take new connections again."""
        with self._changed:
            self._refusing = False

    def pause(self) -> None:
        """Hold all bytes: the peers see a connection that stands and says nothing."""
        self._flowing.clear()

    def resume(self) -> None:
        """Forward what was held, and go on."""
        self._flowing.set()

    def pause_at(self, predicate: Predicate, when: Literal["before", "after"] = "after") -> None:
        """Pause at a matching request: before it reaches the server, or after, so that its reply is held."""
        self._add(_Rule("pause before" if when == "before" else "pause after", predicate, 1))

    def wait_for_pause(self, timeout: float = 15) -> None:
        """Until a rule of ``pause_at`` has paused it."""
        wait_until(lambda: not self._flowing.is_set(), timeout, message="no request matched")

    def drop_reply_after(self, predicate: Predicate, times: int = 1) -> None:
        """Forward a matching request, swallow the first bytes that come back, and cut the connection.

        The server has then executed it, and the client cannot know.
        """
        self._add(_Rule("reply", predicate, times))

    def drop_reply_matching(self, predicate: Predicate, times: int = 1) -> None:
        """Swallow a matching reply and cut the connection: a prepared COMMIT is known by its reply only."""
        self._add(_Rule("matching reply", predicate, times))

    def drop_request_matching(self, predicate: Predicate, times: int = 1) -> None:
        """Cut the connection instead of forwarding a matching request: the server never sees it."""
        self._add(_Rule("request", predicate, times))

    def wait_for_drops(self, count: int = 1, timeout: float = 10) -> None:
        """Until ``dropped`` has come to ``count``; AssertionError after ``timeout`` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.dropped >= count, timeout):
                raise AssertionError(f"{self.dropped} of {count} drops happened within {timeout} s")

    # Work of the threads.

    def _add(self, rule: _Rule) -> None:
        with self._changed:
            self._rules.append(rule)

    def _current(self) -> list[_Link]:
        with self._changed:
            return list(self._links)

    def _accept_all(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with self._changed:
                closing, refusing, target = self._closing, self._refusing, self.target
            if closing:
                client.close()
                return
            server = None if refusing else _connect(target)
            if server is None:
                _reset(client)
            else:
                self._start(_Link(client, server), target)

    def _start(self, link: _Link, target: tuple[str, int]) -> None:
        for end in (link.client, link.server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for pump in (self._pump_requests, self._pump_replies):
            link.pumps.append(threading.Thread(target=self._run, args=(pump, link), daemon=True))
        with self._changed:
            self._links.append(link)
            if self.target != target:  # redirected while we connected
                link.cut()
        for thread in tuple(link.pumps):  # one that ends at once takes itself off the list
            thread.start()

    def _run(self, pump: Callable[[_Link], None], link: _Link) -> None:
        try:
            with suppress(OSError):  # the other side has gone, or the link was cut
                pump(link)
        finally:
            link.cut()
            with self._changed:
                link.pumps.remove(threading.current_thread())
                if not link.pumps:
                    self._links.remove(link)
                    link.close()

    def _pump_requests(self, link: _Link) -> None:
        while chunk := link.client.recv(_CHUNK_BYTES):
            self._hold()
            fate = self._fate(chunk, ("request", "reply", "pause before", "pause after"))
            if fate == "pause before":
                self.pause()
                self._hold()
            elif fate == "pause after":
                self.pause()
            if fate == "request":
                self._count_drop()
                return
            if fate == "reply":
                link.swallow_reply = True  # before the request goes out, so that its reply cannot pass
            link.server.sendall(chunk)

    def _pump_replies(self, link: _Link) -> None:
        while chunk := link.server.recv(_CHUNK_BYTES):
            self._hold()
            if link.swallow_reply or self._fate(chunk, ("matching reply",)):
                self._count_drop()
                return
            link.client.sendall(chunk)

    def _hold(self) -> None:
        self._flowing.wait()
        if self.delay_s:
            time.sleep(self.delay_s)

    def _fate(self, chunk: bytes, among: Collection[str]) -> str | None:
        """What the first rule among these kinds does to a chunk."""
        with self._changed:
            for rule in self._rules:
                if rule.times > 0 and rule.what in among and rule.matches(chunk):
                    rule.times -= 1
                    return rule.what
        return None

    def _count_drop(self) -> None:
        with self._changed:
            self.dropped += 1
            self._changed.notify_all()


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or _DEFAULT_PORTS[parts.scheme]


def _connect(target: tuple[str, int]) -> socket.socket | None:
    try:
        server = socket.create_connection(target, timeout=10)
    except OSError:
        return None
    server.settimeout(None)
    return server


def _reset(connection: socket.socket) -> None:
    """Close with RST, so that the client gets an error and not the end of a stream."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
