"""Of a few tests `make test` does a part; `make exhaustive` does all, with WRITEBEHIND_TEST_WHOLE=1."""

from __future__ import annotations

import os

import pytest

WHOLE = os.environ.get("WRITEBEHIND_TEST_WHOLE") == "1"

sampled = pytest.mark.sampled
"""Of a test that does a part only."""


def examples(of_the_whole: int) -> int:
    """How many examples Hypothesis shall draw: a third."""
    return of_the_whole if WHOLE else of_the_whole // 3
