"""An operator's pause of a queue: nothing is claimed while it lasts, so that nothing is written to Postgres.

It is a key in Redis that the claiming script itself reads: once it is there no batch is frozen any more, by
whichever worker, and once no batch is frozen none is being written.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from redis import Redis

from writebehind.keys import QueueKeys
from writebehind.script import Script

_PAUSE = Script("writebehind_worker", "pause")
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Pause:
    """``since_s``: Unix time by Redis' clock, 0 where it is not known. ``by``: who or what."""

    since_s: float
    reason: str
    by: str = "an operator"

    def __str__(self) -> str:
        return f"paused by {self.by}: {self.reason}"


def read_pause(value: bytes) -> Pause:
    """What the key holds: ``ms|reason``, ``ms*|reason`` of a copy; anything else pauses too."""
    ms, bar, reason = value.decode(errors="replace").partition("|")
    ms = ms.removesuffix("*")
    if bar and ms.isdecimal() and len(ms) < 16:
        return Pause(int(ms) / 1000, reason)
    return Pause(0, value.decode(errors="replace"))


def pause(client: Redis, keys: QueueKeys, reason: str) -> None:
    """Begins one, also on a full Redis; what was frozen before is still brought to Postgres.

    ``reason``: "" keeps that of the pause that there is.
    """
    _PAUSE(client, [keys.paused], ["pause", reason])


def resume(client: Redis, keys: QueueKeys) -> bool:
    """Ends it; whether there was one."""
    return bool(_PAUSE(client, [keys.paused], ["resume", ""]))


def copy_of(whole: bytes) -> bytes:
    """What a shard has of the pause of its queue: for a cluster, where claiming does not see that key."""
    ms, bar, reason = whole.partition(b"|")
    return ms + b"*|" + reason if bar else b"0*|" + whole


def is_copy(value: bytes) -> bool:
    """Whether it is of the whole queue's pause. A shard that was paused by itself stays so."""
    ms, bar, _ = value.partition(b"|")
    return bool(bar) and ms.endswith(b"*")


def change_copy(client: Redis, shard: QueueKeys, read: bytes | None, wanted: bytes | None) -> None:
    """Only where it is still as it was read: who slept since then changes nothing of a later pause."""
    _PAUSE(client, [shard.paused], ["copy", wanted or "", *([] if read is None else [read])])


def wait_until_settled(client: Redis, keys: QueueKeys, timeout_s: float) -> int:
    """Waits until no batch is frozen; returns how many still are."""
    deadline = time.monotonic() + timeout_s
    while True:
        frozen = client.llen(keys.inflight)
        if not frozen or time.monotonic() > deadline:
            return frozen
        time.sleep(_POLL_S)
