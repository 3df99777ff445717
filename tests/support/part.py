"""Of a few tests `make test` does a part; `make exhaustive` does all, with WRITEBEHIND_TEST_WHOLE=1."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

WHOLE = os.environ.get("WRITEBEHIND_TEST_WHOLE") == "1"

sampled = pytest.mark.sampled
"""Of a test that does a part only."""


def drawn(examples: int) -> settings:
    """How many examples Hypothesis shall draw: a third, and always the same ones."""
    return (
        settings(max_examples=examples) if WHOLE else settings(max_examples=examples // 3, derandomize=True)
    )
