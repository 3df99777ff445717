"""Why writes do not get to Postgres, as far as `writebehind status` knows. No I/O."""

from __future__ import annotations

from collections.abc import Iterator

from .status import QueueStatus, Status


def obstacles(status: Status) -> list[str]:
    """What stands in the way, the most certain first; empty where nothing is known to."""
    return list(_obstacles(status))


def _obstacles(status: Status) -> Iterator[str]:
    if status.redis_error is not None:
        yield status.redis_error
    if status.postgres_error is not None:
        yield status.postgres_error
    if status.redis is not None:
        if (paused := pause_of(status.redis)) is not None:
            yield paused
        if status.redis.held is not None:
            yield f"it is held {status.redis.held} (`writebehind reshard`)"
        if (no_owner := without_owner(status.redis)) is not None:
            yield no_owner
    if status.ledger is not None and status.ledger.waiting_for:
        yield f"the oldest batch waits: {status.ledger.waiting_for}"


def pause_of(queue: QueueStatus) -> str | None:
    """That an operator has paused it, if one has."""
    if queue.paused is None:
        return None
    return f"the queue is paused by an operator: {queue.paused} (`writebehind resume` ends it)"


def without_owner(queue: QueueStatus) -> str | None:
    """That no worker owns the queue, if none does."""
    if queue.lease_remaining_s is None:
        return "no worker runs"
    if queue.lease_remaining_s <= 0:
        return f"no worker runs: the lease of {queue.owner} ended {-queue.lease_remaining_s:.0f} s ago"
    return None
