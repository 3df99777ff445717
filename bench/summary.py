"""What README.md says of speed, in figures of latest.json."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

BEGIN, END = "<!-- figures, written by make bench -->", "<!-- end of figures -->"
_WIDTH = 140  # of a line
_WORDS = {2: "two", 4: "four", 8: "eight"}


def summary(found: Mapping[str, Any]) -> str | None:
    """One paragraph; ``None`` where not all that it tells has been measured."""
    try:
        text = _text(found)
    except KeyError:
        return None
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _text(found: Mapping[str, Any]) -> str:
    cores = found["about"]["machine"]["cores"]
    updates, put, lag = found["unique_updates"], found["put"], found["lag_half_load"]
    wide, large = (found[name]["ratio_to_afternoon"] for name in ("wide_rows", "large_values"))
    few, many = (found["backlog"]["pending"][length]["peak_mib"] for length in ("100000", "1000000"))
    return (
        f"By `make bench`, on {_WORDS.get(cores, cores)} cores that worker, Redis and Postgres share "
        f"([all figures, and what binds](docs/benchmarks.md)): {_rate(updates)} updates/s of as many rows, "
        f"{updates['ratio_to_afternoon']:.1f} × the loop that one writes in an afternoon (RPOP, a dict, "
        f"`executemany`; a kill loses its batch) and {updates['ratio_to_limit']:.2f} of what one connection "
        f"takes by COPY and one upsert. Hot rows {_rate(found['hot_keys'])} writes/s, counters "
        f"{_rate(found['counters'])}. Rows of 40 columns {wide:.1f} × that loop, values of 8 kB "
        f"{large:.2f} ×. "
        f"A `put` is one round trip, at {put['ratio_to_pipelined_pair']:.2f} of the calls/s of a pipelined "
        f"SET + LPUSH. At half of the capacity a write is committed after {lag['p50_ms']:.0f} ms, "
        f"99% after {lag['p99_ms']:.0f} ms. With a million pending the worker has {many:.0f} MiB, "
        f"with a hundred thousand {few:.0f}."
    )


def _rate(load: Mapping[str, Any]) -> str:
    return f"{round(load['writes_per_s'], -3):,}"
