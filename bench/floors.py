"""What each figure has to reach. No speed is asserted anywhere: the report says whether it is reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Floor:
    """``member`` of ``part`` in latest.json must be at least ``bound``, or at most if ``is_ceiling``."""

    part: str
    member: str
    title: str
    bound: float
    is_ceiling: bool = False

    def figure(self, results: Mapping[str, Any]) -> float | None:
        """``None`` where it has not been measured."""
        found = results.get(self.part, {}).get(self.member)
        return None if found is None else float(found)

    def is_reached(self, figure: float) -> bool:
        return figure <= self.bound if self.is_ceiling else figure >= self.bound


FLOORS = (
    Floor("unique_updates", "ratio_to_limit", "unique updates, of the limit", 0.6),
    Floor("unique_updates", "ratio_to_afternoon", "unique updates, × afternoon", 1.3),
    Floor("hot_keys", "writes_per_s", "hot keys, writes/s", 400_000),
    Floor("hot_keys", "ratio_to_afternoon", "hot keys, × afternoon", 5),
    Floor("counters", "writes_per_s", "counters, writes/s", 400_000),
    Floor("wide_rows", "ratio_to_limit", "wide rows, of the limit", 0.6),
    Floor("large_values", "ratio_to_limit", "large values, of the limit", 0.6),
    Floor("put", "ratio_to_pipelined_pair", "put, of a pipelined SET + LPUSH", 0.8),
    Floor("put", "ratio_to_naive_pair", "put, × SET and LPUSH in two round trips", 1.5),
    Floor("put_batch_1000", "ratio_to_pipeline", "batches of 1,000, of a pipeline", 0.7),
    Floor("lag_half_load", "p99_ms", "lag at half load, p99, ms", 25, is_ceiling=True),
    Floor("backlog", "memory_ratio", "memory, most pending against least", 1.1, is_ceiling=True),
    Floor("backlog", "ratio_1m_to_10k", "drain rate, 1 million pending against 10,000", 0.9),
    Floor("scale", "ratio_to_limit_1", "1 shard, 1 process, of 1 bare connection", 0.6),
    Floor("scale", "ratio_to_limit_2", "2 shards, 2 processes, of 2 bare connections", 0.6),
    Floor("scale", "ratio_to_limit_4", "4 shards, 4 processes, of 4 bare connections", 0.6),
    Floor("backlog", "ratio_10m_to_10k", "drain rate, 10 million pending against 10,000", 0.9),
)
