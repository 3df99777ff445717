"""TLS in front of a server that was built without it."""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
import threading
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

_SSL_REQUEST = struct.pack("!II", 8, 80877103)
_GSSENC_REQUEST = struct.pack("!II", 8, 80877104)
_CHUNK_BYTES = 65536


class TlsFront:
    """Takes TLS connections and forwards what is in them to the server of ``url``.

    Of Postgres' protocol it knows the request for TLS; a client may also begin with TLS at once.
    ``context`` may be replaced by another, for the connections to come.
    """

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._target, self._is_redis = (parts.hostname, parts.port), parts.scheme == "redis"
        self.context = context
        self.port = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._closing = False
        self._threads = [threading.Thread(target=self._accept_all, daemon=True)]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        with suppress(OSError):  # wakes the acceptor
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        self._threads[0].join(10)
        self._listener.close()
        for thread in self._threads[1:]:
            thread.join(10)

    def _accept_all(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._closing:
                client.close()
                return
            self._threads.append(threading.Thread(target=self._serve, args=(client,), daemon=True))
            self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        # A client that refuses our certificate breaks off.
        with suppress(OSError), client, socket.create_connection(self._target, timeout=10) as server:
            if not self._is_redis:
                _answer_requests(client)
            with self.context.wrap_socket(client, server_side=True, do_handshake_on_connect=False) as tls:
                try:
                    tls.do_handshake()
                except ssl.SSLError:  # closed with something unread, the reason would be lost on its way
                    _drain(tls.fileno())
                    raise
                self._relay(tls, server)

    def _relay(self, tls: ssl.SSLSocket, server: socket.socket) -> None:
        """In one thread: a TLS connection must not be read and written by two at the same time."""
        while not self._closing:
            ready = [tls] if tls.pending() else select.select([tls, server], [], [], 0.1)[0]
            for source in ready:
                chunk = source.recv(_CHUNK_BYTES)
                if not chunk:
                    return
                (server if source is tls else tls).sendall(chunk)


def _drain(descriptor: int) -> None:
    while os.read(descriptor, _CHUNK_BYTES):
        pass


def _answer_requests(client: socket.socket) -> None:
    while (first := client.recv(8, socket.MSG_PEEK)) in (_SSL_REQUEST, _GSSENC_REQUEST):
        client.recv(8)
        client.sendall(b"S" if first == _SSL_REQUEST else b"N")
