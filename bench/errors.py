"""What can go wrong in a benchmark."""

from __future__ import annotations


class BenchFailed(Exception):
    """A rival did not do its work, or not all of it; with the end of its log where it has one."""
