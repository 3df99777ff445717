"""Whole numbers in our keys in Redis, to which anybody may write."""

from __future__ import annotations

from redis.exceptions import ResponseError

_SHOWN = 40  # bytes


class NotOurs(ResponseError):
    """A key holds what no program of ours puts there.

    As where Redis itself refuses: whoever asked goes on, and asks again.
    """


def number_in(value: bytes | None, where: str) -> int:
    """0 where nothing is. Raises `NotOurs` for what is no number; ``where`` names it."""
    try:
        return int(value or 0)
    except ValueError:
        shown = repr((value or b"")[:_SHOWN]).removeprefix("b")
        raise NotOurs(f"{where} in Redis is no number, but {shown}: no program of ours writes that") from None
