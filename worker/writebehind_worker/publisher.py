"""Tells other caches of what is durable, where the worker may; flushing does not depend on it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from structlog.typing import FilteringBoundLogger

from .change_messages import MISSED
from .config import one_line
from .metrics import Metrics
from .owned_queue import OwnedQueue

_SAY_EVERY_S = 60.0


class Publisher:
    """For the thread that settles and acknowledges; it remembers from one tenure to the next."""

    def __init__(self, metrics: Metrics, log: FilteringBoundLogger) -> None:
        self._metrics, self._log = metrics, log
        self._say_at = 0.0
        self._owes = True  # word that some were missed: nobody knows what was told before us

    def publish(self, queue: OwnedQueue, messages: Sequence[bytes]) -> None:
        """What Redis refuses is counted, said, and made good later; a broken connection is raised."""
        if not messages:
            return
        if self._owes:
            self._owes = bool(queue.publish([MISSED]))
        refused = queue.publish(messages)
        if not refused:
            return
        self._owes = True
        self._metrics.changes_refused(len(refused))
        if time.monotonic() >= self._say_at:
            self._say_at = time.monotonic() + _SAY_EVERY_S
            self._log.warning(
                "redis refuses to publish changes: caches do not hear of them; "
                "see publish_changes in deploy/redis-acl.conf",
                reason=one_line(refused[0]),
            )
