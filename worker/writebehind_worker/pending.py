"""What is frozen, as anybody may see it in Redis: for `writebehind status`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis import Redis

from writebehind.keys import QueueKeys


def read_frozen(client: Redis, keys: QueueKeys, batches: Sequence[int]) -> tuple[list[int], bytes | None]:
    """How many items each batch has, and the oldest item of all; one round trip, if there are batches.

    A batch without items has been acknowledged since its id was read.
    """
    if not batches:
        return [], None
    pipe: Any = client.pipeline(transaction=False)
    for batch in batches:
        pipe.llen(keys.processing(batch))
    *lengths, oldest = pipe.lindex(keys.processing(batches[0]), 0).execute()
    return lengths, oldest
