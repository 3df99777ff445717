"""redis-py's errors as ours: which of them leave the outcome of a write open."""

from __future__ import annotations

import pytest
from redis.exceptions import BusyLoadingError

from writebehind import RedisUnavailable
from writebehind.translate import redis_errors_as_ours


def test_a_redis_that_loads_leaves_the_outcome_open() -> None:
    # It may have accepted the write, and died before it answered; the answer is to a call sent again.
    with pytest.raises(RedisUnavailable, match="loading"), redis_errors_as_ours("write"):
        raise BusyLoadingError("Redis is loading the dataset in memory")
