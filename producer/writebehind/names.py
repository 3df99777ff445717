"""Names that applications give to what they keep in Redis beside rows: locks, rate limits."""

from __future__ import annotations

MAX_NAME = 256
"""Bytes of UTF-8."""


def check_name(what: str, name: str) -> str:
    """``name`` itself. Raises ``ValueError`` unless it is printable text of 1 to 256 bytes."""
    if not isinstance(name, str) or not name.isprintable():
        raise ValueError(f"a {what}'s name must be printable text, not {name!r}")
    if not 1 <= len(name.encode()) <= MAX_NAME:
        raise ValueError(f"a {what}'s name must have 1 to {MAX_NAME} bytes, not {len(name.encode())}")
    return name
