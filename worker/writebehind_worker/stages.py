"""Where batches spend their time: whether it is Redis, the worker or Postgres that writes wait for."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Summary

Stage = Literal["claim", "read", "wait", "flush", "announce", "settle", "acknowledge"]
"""In this order: frozen in Redis and fetched, read, ready until Postgres is free, in its transaction; then
receipts are told, if there are many cache entries; these get their TTL, and the batch leaves Redis: both is
`acknowledge`, if there are not too many."""


class Stages:
    """The metric of it, in seconds; several batches that are flushed at once count as one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        seconds = Summary(
            "writebehind_stage_seconds", "Where batches spend their time.", ["stage"], registry=registry
        )
        self._known = {stage: seconds.labels(stage) for stage in get_args(Stage)}

    def time(self, stage: Stage) -> AbstractContextManager[object]:
        """For the block; whatever becomes of it."""
        return self._known[stage].time()

    def took(self, stage: Stage, seconds: float) -> None:
        """One batch was so long there."""
        self._known[stage].observe(seconds)
