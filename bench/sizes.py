"""How much is measured: by default on two cores in less than ten minutes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """Writes, rows and seconds of each part; every figure is the median over ``rounds``."""

    rounds: int = 5
    rows: int = 100_000
    inserts: int = 40_000
    updates: int = 100_000
    hot_writes: int = 300_000
    hot_rows: int = 20_000
    counter_writes: int = 300_000
    counter_rows: int = 1_000
    wide: int = 30_000
    large: int = 6_000
    mixed: int = 30_000
    one_by_one: int = 1_000
    put_rounds: int = 15  # many short ones: the rivals then meet the same noise
    put_s: float = 0.3
    lag_s: float = 2.0
    capacity_s: float = 2.0
    lag_calls_per_s: int = 400
    backlogs: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    backlog_window: int = 200_000  # of a backlog, so many writes are timed
    tables: tuple[int, ...] = (100_000,)
    tasks: int = 1_000  # of each task queue: one forks for each
    shards: tuple[int, ...] = (1, 2, 4)
    idle_shards: tuple[int, ...] = (1, 4, 16)
    idle_s: float = 5.0
    wal_segments: int = 60  # of 16 MiB, within `min_wal_size`


DEFAULT = Sizes()
FULL = Sizes(
    inserts=200_000,
    updates=400_000,
    hot_writes=1_500_000,
    counter_writes=2_000_000,
    wide=200_000,
    large=12_000,
    mixed=150_000,
    backlogs=(10_000, 100_000, 1_000_000, 10_000_000),
    tables=(400_000, 10_000_000),
)
"""Loads of seconds: in the default's, of half a second, the first batch and the last one weigh."""

QUICK = Sizes(
    rounds=1,
    rows=400,
    inserts=300,
    updates=400,
    hot_writes=600,
    hot_rows=100,
    counter_writes=600,
    counter_rows=20,
    wide=100,
    large=50,
    mixed=200,
    one_by_one=50,
    put_rounds=2,
    put_s=0.05,
    lag_s=0.2,
    wal_segments=2,
    capacity_s=0.3,
    backlogs=(200, 1000),
    backlog_window=500,
    tables=(1000,),
    tasks=20,
    shards=(2,),
    idle_shards=(2,),
    idle_s=0.3,
)
