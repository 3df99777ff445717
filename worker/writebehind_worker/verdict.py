"""Whether the data is safe and how far behind Postgres is, in a sentence or two. No I/O."""

from __future__ import annotations

from .quantities import duration
from .status import LedgerStatus, QueueStatus, Status, counted


def never_used(queue: str) -> str:
    """Of a queue of which nothing is known: a mistyped name, and another server, look like an empty queue."""
    return f"Nothing has used {queue} in this Redis so far. Or is --queue, or --redis-url, another one?"


def verdict(status: Status) -> str:
    """What `writebehind status` opens with."""
    if status.redis is None:
        return (
            "Not known: Redis does not answer. No write is accepted meanwhile; what it had accepted is as "
            "safe as its persistence."
        )
    if not status.redis.is_used and status.ledger is not None and not status.ledger.epoch:
        paused = " It is paused." if status.redis.paused is not None else ""
        return never_used(status.queue) + paused + _refused(status)
    waiting = status.redis.length + sum(batch.items for batch in status.redis.frozen)
    stopped = _stopped(status, status.redis)
    if not waiting:
        text = "Every accepted write is settled" if not status.dead_letters else "Nothing waits"
        text += f", but {stopped}." if stopped else "."
    else:
        waits, them = ("waits", "it") if waiting == 1 else ("wait", "them")
        text = f"{counted(waiting)} {waits} in Redis{_age(status.redis)}"
        text += f", and {stopped}." if stopped else f", and a worker brings {them} to Postgres."
    return text + _refused(status)


def _stopped(status: Status, queue: QueueStatus) -> str | None:
    """Why nothing goes in; ``None`` if nothing is known to be in the way."""
    if status.postgres_error is not None:
        return "Postgres takes none"
    if queue.paused is not None:
        return "the queue is paused"
    if queue.held is not None:
        return f"it is held {queue.held}"
    if queue.lease_remaining_s is None or queue.lease_remaining_s <= 0:
        return "no worker brings any to Postgres"
    ledger: LedgerStatus | None = status.ledger
    return (
        f"the oldest batch waits: {ledger.waiting_for}" if ledger is not None and ledger.waiting_for else None
    )


def _age(queue: QueueStatus) -> str:
    return "" if queue.oldest_age_s is None else f", the oldest for {duration(queue.oldest_age_s)}"


def _refused(status: Status) -> str:
    refused = sum(letters.count for letters in status.dead_letters or ())
    if not refused:
        return ""
    are = "1 is a dead letter" if refused == 1 else f"{refused:,} are dead letters"
    return f" Of those refused {are}: see writebehind dead list."
