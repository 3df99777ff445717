"""How safe a write is when its call returns: accepted, replicated, fsynced or committed. No I/O: steps.

WAIT and WAITAOF are about what their own connection wrote last, so that they go in one pipeline with the
write. If redis-py sends that again over another connection, the script writes once more what it has written
for the session, harmlessly, so that there is something to wait for. A long wait is made of short ones, each
with a script that does just that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from redis.exceptions import NoScriptError, RedisError, ResponseError

from .errors import DurabilityNotReached, FlushTimeout, OutcomeUnknown, WriteBehindError, WriteRejected
from .keys import QueueKeys
from .receipt import AnyReceipt, wait_durable
from .script import Argument, Script
from .steps import Pause, Pipeline, Steps

Durability = Literal["accepted", "replicated", "fsynced", "committed"]
"""accepted: Redis has it in memory. replicated: its replicas, too. fsynced: it is in Redis' AOF on disk.
committed: it is in Postgres."""

R = TypeVar("R", bound=AnyReceipt)

_AWAY_S = 0.05
_SLICE_S = 1.0  # of a long wait in Redis: the connection must not seem dead meanwhile
_QUEUED = "the write is accepted and queued"
_LOST = "does not have it, or has lost its history: it may be lost, unless it is in Postgres by now"
_CONFIRM = Script("writebehind", "confirm")
_seen: set[str] = set()  # scripts that a server has: where it lacks one, WAIT would wait in vain first
_NOT_ACCEPTED = (b"full", b"stale", b"changed", b"moved")


class Accepted(NamedTuple):
    """Writes that one call has put into the queue: the first one's seq; the others follow it.

    ``keys``: of the queue. ``unreached`` says why they are not as safe as was wanted, if they are not.
    """

    seq: int
    generation: int
    keys: QueueKeys
    unreached: str | None = None


class Assurance(NamedTuple):
    """What a call waits for, and how long, in seconds; ``replicas`` is how many must have the write."""

    level: Durability
    timeout: float
    replicas: int

    @property
    def is_told_by_redis(self) -> bool:
        """Whether Redis itself knows when it is reached."""
        return self.level in ("replicated", "fsynced")


def assurance(
    wait: float | None, level: Durability | None, timeout: float, replicas: int
) -> Assurance | None:
    """Of the arguments of a call; ``None`` if it is enough that Redis accepts the write.

    Raises:
        ValueError: there is no such durability, or the time is none.
    """
    level = level or ("accepted" if wait is None else "committed")
    if level not in get_args(Durability):
        raise ValueError(f"durability must be one of {', '.join(get_args(Durability))}, not {level!r}")
    seconds = timeout if wait is None else wait
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= 86_400:
        raise ValueError(f"wait must be seconds, more than 0 and at most a day, not {seconds!r}")
    if level == "accepted":
        if wait is not None:
            raise ValueError("wait: there is nothing to wait for where durability is 'accepted'")
        return None
    return Assurance(level, float(seconds), replicas)


class Sent(NamedTuple):
    """The script's reply, and why the durability was not reached, if it was not."""

    reply: Sequence[bytes]
    unreached: str | None


def send_safely(
    script: Script,
    keys: Sequence[str],
    args: Sequence[Argument],
    wanted: Assurance,
    socket_timeout: float | None,
) -> Steps[Sent]:
    """Runs the script that accepts writes, and waits until they are as safe as wanted.

    Raises as the script does, unless it is known by then that the writes are accepted.
    """
    deadline = time.monotonic() + wanted.timeout
    longest = min(_SLICE_S, socket_timeout / 2 if socket_timeout else _SLICE_S)

    def with_wait(run: Sequence[Argument]) -> Pipeline:
        milliseconds = max(1, int(min(deadline - time.monotonic(), longest) * 1000))  # 0 would mean for ever
        return Pipeline([run, _wait(wanted, milliseconds)], keeps_errors=True)

    run = script.command(keys, args) if script.sha in _seen else script.whole_command(keys, args)
    reply, done = yield with_wait(run)
    if isinstance(reply, NoScriptError):
        reply, done = yield with_wait(script.whole_command(keys, args))
    if isinstance(reply, Exception):
        raise reply
    _seen.add(script.sha)
    if reply[0] in _NOT_ACCEPTED:
        return Sent(reply, None)
    # Not the script again: to a server that knows nothing of the call it would be another write.
    confirm = _CONFIRM.whole_command([keys[2]], args[:2])
    pause_s = 0.0
    while not _is_reached(wanted, done):
        if isinstance(done, Exception) or time.monotonic() >= deadline:
            return Sent(reply, _why(wanted, done))
        yield Pause(pause_s)  # who has been cancelled meanwhile ends here
        pause_s = 0.0
        try:
            is_known, done = yield with_wait(confirm)
        except (RedisError, OSError) as error:  # it may be there again in time
            is_known, pause_s = error, _AWAY_S
        if isinstance(is_known, Exception) and (not pause_s or time.monotonic() >= deadline):
            return Sent(reply, f"{_QUEUED}; whether it is {wanted.level} is not known: {is_known}")
        if not is_known:
            return Sent(reply, f"the write was accepted, but the server that answers now {_LOST}")
    return Sent(reply, None)


def assured(
    sending: Steps[Accepted], wanted: Assurance | None, keep: Callable[[Accepted], Sequence[R]]
) -> Steps[Sequence[R]]:
    """Sends writes to one queue, and returns their receipts when they are as safe as wanted.

    ``keep`` makes them as soon as the writes are accepted. An error tells the receipt of a single write.
    """
    accepted = yield from sending
    receipts = keep(accepted)
    yield from assure(receipts, accepted.unreached, wanted)
    return receipts


def assure(receipts: Sequence[AnyReceipt], unreached: str | None, wanted: Assurance | None) -> Steps[None]:
    """Returns when writes that one queue has accepted are as safe as wanted."""
    try:
        if unreached is not None:
            raise DurabilityNotReached(unreached)
        if wanted is not None and wanted.level == "committed":
            yield from wait_durable(receipts[0], receipts[-1], wanted.timeout)
    except (DurabilityNotReached, FlushTimeout, WriteRejected, OutcomeUnknown) as error:
        error.receipt = receipts[0] if len(receipts) == 1 else None
        raise
    except WriteBehindError as error:  # of asking: who took it for the write's would write twice
        unknown = DurabilityNotReached(f"{_QUEUED}; whether it is committed is not known: {error}")
        unknown.receipt = receipts[0] if len(receipts) == 1 else None
        raise unknown from error


def _wait(wanted: Assurance, milliseconds: int) -> Sequence[Argument]:
    if wanted.level == "fsynced":
        return "WAITAOF", 1, 0, milliseconds
    return "WAIT", wanted.replicas, milliseconds


def _is_reached(wanted: Assurance, done: Any) -> bool:
    if isinstance(done, Exception):
        return False
    return int(done[0]) >= 1 if wanted.level == "fsynced" else int(done) >= wanted.replicas


def _why(wanted: Assurance, done: Any) -> str:
    if isinstance(done, ResponseError):
        what = (
            "WAITAOF needs Redis 7.2 or Valkey, and appendonly yes" if wanted.level == "fsynced" else "WAIT"
        )
        return f"{_QUEUED}, but Redis cannot tell whether it is {wanted.level}: {done} ({what})"
    if wanted.level == "fsynced":
        return f"{_QUEUED}, but was not on Redis' disk within {wanted.timeout:g} s"
    return (
        f"{_QUEUED}, but {int(done)} of {wanted.replicas} replicas had it within "
        f"{wanted.timeout:g} s (see INFO replication)"
    )
