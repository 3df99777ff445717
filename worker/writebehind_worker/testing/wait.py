"""Waiting for a condition instead of sleeping for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T],
    timeout: float = 30,
    interval: float = 0.01,
    message: str = "the condition did not come true",
) -> T:
    """The first truthy value of ``condition``; AssertionError after ``timeout`` seconds without one.

    It is asked each ``interval`` seconds; the longer it takes, the less often, to a fifth: asking costs, too.
    """
    begun = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - begun
        if waited > timeout:
            raise AssertionError(f"{message} within {timeout} s; last value: {value!r}")
        time.sleep(max(interval, min(waited / 20, 5 * interval)))
    return value
