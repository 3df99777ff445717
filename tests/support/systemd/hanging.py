"""`writebehind`, with one thread of it that hangs once there is a file /run/hang; the others go on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from writebehind_worker import worker
from writebehind_worker.__main__ import main
from writebehind_worker.owned_queue import OwnedQueue

worker._STALL_MARGIN_S = 0.0  # a minute is long for a test
acknowledge = OwnedQueue.acknowledge


def hang(queue: OwnedQueue, *batches: Any) -> None:
    if Path("/run/hang").exists():
        threading.Event().wait()
    acknowledge(queue, *batches)


OwnedQueue.acknowledge = hang  # type: ignore[method-assign, assignment]
main()
