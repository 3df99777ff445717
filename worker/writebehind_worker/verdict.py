"""Whether the data is safe and how far behind Postgres is, in a sentence or two. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from .quantities import duration
from .status import LedgerStatus, QueueStatus, Status, counted

_MOST_NAMES = 3


def never_used(queue: str) -> str:
    """Of a queue of which nothing is known: a mistyped name, and another server, look like an empty queue."""
    return f"Nothing has used {queue} in this Redis so far. Or is --queue, or --redis-url, another one?"


def verdict(status: Status, shards: Sequence[Status] = ()) -> str:
    """What `writebehind status` opens with: of a queue, with all of its ``shards`` if it has some."""
    every = [status, *shards]
    queues = [one.redis for one in every if one.redis is not None]
    if len(queues) < len(every):
        return (
            "Not known: Redis does not answer. No write is accepted meanwhile; what it had accepted is as "
            "safe as its persistence."
        )
    if not queues[0].is_used and status.ledger is not None and not status.ledger.epoch:
        paused = " It is paused." if queues[0].paused is not None else ""
        return never_used(status.queue) + paused + _refused(every)
    waiting = sum(queue.length + sum(batch.items for batch in queue.frozen) for queue in queues)
    stopped = _all_stopped(every, queues)
    if not waiting:
        text = (
            "Nothing waits" if any(one.dead_letters for one in every) else "Every accepted write is settled"
        )
        text += f", but {stopped}." if stopped else "."
    else:
        waits, them = ("waits", "it") if waiting == 1 else ("wait", "them")
        bring = "workers bring" if shards else "a worker brings"
        text = f"{counted(waiting)} {waits} in Redis{_age(queues)}"
        text += f", and {stopped}." if stopped else f", and {bring} {them} to Postgres."
    return text + _refused(every)


def _all_stopped(every: Sequence[Status], queues: Sequence[QueueStatus]) -> str:
    """Each reason once, and where it is not so of all, of which."""
    reasons: dict[str, list[str]] = {}
    for one, queue in zip(every, queues, strict=True):
        if reason := _stopped(one, queue):
            reasons.setdefault(reason, []).append(one.queue)
    return "; ".join(
        reason if len(names) == len(every) else f"{reason} ({_listed(names)})"
        for reason, names in reasons.items()
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


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


def _age(queues: Sequence[QueueStatus]) -> str:
    ages = [queue.oldest_age_s for queue in queues if queue.oldest_age_s is not None]
    return f", the oldest for {duration(max(ages))}" if ages else ""


def _refused(every: Sequence[Status]) -> str:
    refused = sum(letters.count for one in every for letters in one.dead_letters or ())
    if not refused:
        return ""
    are = "1 is a dead letter" if refused == 1 else f"{refused:,} are dead letters"
    return f" Of those refused {are}: see writebehind dead list."
