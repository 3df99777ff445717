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
    """The first truthy value of ``condition``; AssertionError after ``timeout`` seconds without one."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{message} within {timeout} s; last value: {value!r}")
        time.sleep(interval)
    return value
