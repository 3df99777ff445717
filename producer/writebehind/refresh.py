"""Early refresh: of the readers that meet a row before it expires one loads it anew. No I/O: steps."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

from redis.exceptions import OutOfMemoryError, RedisError

from .entry import Entry
from .script import Argument, Script
from .steps import Steps, run_scripts, undone_if_cancelled
from .translate import redis_errors_as_ours

_BEGIN_REFRESH = Script("writebehind", "begin_refresh")
_END_REFRESH = Script("writebehind", "end_refresh")

Outcome = tuple[str, int, Sequence[str | bytes]]
"""What a reader's load came to: ``row``, ``negative`` or ``abandon``; time to live, s; fields."""
ABANDONED: Outcome = ("abandon", 1, [])


class Refresh:
    """The refresh tokens of one client.

    Args:
        ahead_s: how long before its expiry a row is refreshed.
        timeout_s: how long one reader may take.
    """

    def __init__(self, ahead_s: float, timeout_s: float) -> None:
        self._ahead_ms, self._timeout_ms = int(ahead_s * 1000), int(timeout_s * 1000)

    def is_due(self, entry: Entry, left_ms: int) -> bool:
        """Whether nobody refreshes this row, as far as a reader can see; the script has the last word."""
        if entry.state != "row" or not 0 < left_ms <= self._ahead_ms:
            return False
        _, seq, _, left_at_its_end = (entry.refresh.split(b":") + [b""] * 3)[:4]
        return seq != b"%d" % entry.seq or left_ms <= int(left_at_its_end)

    def begin(self, names: Sequence[str], token: str) -> Steps[list[str]]:
        """Puts a token beside each row that nobody refreshes; its seq then, else an empty text."""
        args: list[Argument] = [token, self._timeout_ms, self._ahead_ms]
        with redis_errors_as_ours("get"):
            replies = yield from undone_if_cancelled(
                run_scripts(_BEGIN_REFRESH, [([where], args) for where in names]),
                lambda: self.abandon(names, token),
            )
            return [_begun(reply) for reply in replies]

    def end(self, taken: Sequence[tuple[str, str]], token: str, outcomes: Sequence[Outcome]) -> Steps[None]:
        """Puts rows in place; ``taken`` are cache keys with the seq that :meth:`begin` told."""
        calls: list[tuple[Sequence[str], Sequence[Argument]]] = [
            ([where], [token, seq, kind, ttl, *fields])
            for (where, seq), (kind, ttl, fields) in zip(taken, outcomes, strict=True)
        ]
        with contextlib.suppress(RedisError, OSError):  # the rows are loaded; a token ends by itself
            yield from run_scripts(_END_REFRESH, calls)

    def abandon(self, names: Sequence[str], token: str) -> Steps[None]:
        """Lets others refresh these rows."""
        yield from self.end([(where, "0") for where in names], token, [ABANDONED] * len(names))


def log_failure(table: str, error: Exception) -> None:
    """A loader raised while a row that is still valid was refreshed."""
    logging.getLogger("writebehind").warning(
        "%s: a cached row could not be refreshed (%s); it is served until it expires",
        table, type(error).__name__,
    )  # fmt: skip


def _begun(reply: bytes | Exception) -> str:
    if isinstance(reply, OutOfMemoryError):  # a full Redis still answers reads
        return ""
    if isinstance(reply, Exception):
        raise reply
    return reply.decode()
