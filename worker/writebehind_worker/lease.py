"""The lease on a queue: who owns it, and until when."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from redis import Redis

from writebehind.keys import QueueKeys
from writebehind.script import Script

_LEASE = Script("writebehind_worker", "lease")


def own_name() -> str:
    """What people call this process: ``host:pid``."""
    return f"{socket.gethostname()}:{os.getpid()}"


def read_lease(value: bytes | None) -> tuple[str | None, int | None]:
    """Owner and end, in ms of the server's clock, of what the key holds; ``None`` where it is no lease."""
    parts = value.decode(errors="replace").split("|", 2) if value else []
    if len(parts) != 3 or not parts[1].isdecimal():
        return None, None
    return parts[2], int(parts[1])


@dataclass(frozen=True, slots=True)
class Holder:
    """Another worker that holds the lease."""

    owner: str


class Lease:
    """``token`` is this worker's alone; ``owner`` names it for people."""

    def __init__(self, client: Redis, keys: QueueKeys, token: str, owner: str, ttl_s: float) -> None:
        self._client, self._key = client, keys.lease
        self._token, self._owner, self._ttl_ms = token, owner, int(ttl_s * 1000)

    def take(self) -> Holder | None:
        """``None`` if the lease is ours now, else who holds it."""
        taken, *holder = self._run("take")
        return None if taken else Holder(holder[0].decode(errors="replace"))

    def renew(self) -> bool:
        """Whether it was still ours."""
        return bool(self._run("renew")[0])

    def release(self) -> bool:
        """Lets the next worker in at once; whether it was ours."""
        return bool(self._run("release")[0])

    def _run(self, verb: str) -> list[bytes]:
        answer: list[bytes] = _LEASE(
            self._client, [self._key], [verb, self._token, self._ttl_ms, self._owner]
        )
        return answer
