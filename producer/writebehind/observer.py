"""What an application may hear of its calls: an observer, and how it is kept from breaking them."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from .message import Op
from .steps import Steps

T = TypeVar("T")

_log = logging.getLogger("writebehind")


class Observer:
    """Hears what a client does. Override what you want to hear: each method does nothing by default.

    Its methods are called in the middle of a call, by whatever thread or event loop makes it: they must be
    fast and thread-safe, and must not call the client. Whatever one raises is caught: the first error of each
    method is logged, with its traceback, to the logger ``writebehind``; the call goes on.

    A later version may add methods; an observer that inherits from this class stays valid.

    ``table`` is as the call names it. Seconds are of this machine's monotonic clock.
    """

    def hit(self, table: str, rows: int) -> None:
        """So many rows were found in the cache at the first look."""

    def negative_hit(self, table: str, rows: int) -> None:
        """Of so many rows the cache knew that they do not exist."""

    def miss(self, table: str, rows: int) -> None:
        """So many rows could not be answered at the first look, whether they are then loaded or not."""

    def loaded(self, table: str, seconds: float, error: BaseException | None) -> None:
        """A loader was called and took so long; ``error`` is what it raised, a cancellation too."""

    def filled(self, table: str, size_bytes: int) -> None:
        """A loaded row was cached: bytes of its columns' names and JSON texts; 0: that there is no row."""

    def fill_lost(self, table: str) -> None:
        """A loaded row was returned but not cached.

        A write or an invalidation came in between, the load took longer than ``fill_timeout``, or Redis
        did not take it.
        """

    def refreshed(self, table: str, seconds: float, error: BaseException | None) -> None:
        """A cached row was loaded anew before its time, and took so long; ``error`` is what that raised."""

    def waited_for_load(self, table: str, seconds: float) -> None:
        """A call waited so long for another reader's load."""

    def waited_for_write(self, table: str, seconds: float, error: BaseException | None) -> None:
        """A call waited so long for the commit of a write that the cache cannot show.

        ``error`` is what ended the wait before: :class:`FlushTimeout`, say.
        """

    def wrote(self, table: str, op: Op, size_bytes: int) -> None:
        """A write was accepted: bytes of its message, without its ``seq``; of a batch, each write."""

    def write_failed(self, table: str, op: Op, error: Exception) -> None:
        """A write was refused, or is too large, or its outcome is not known: what the call raises.

        Of a batch, each write. Other arguments that no write can be made of are not told.
        """


METHODS = tuple(name for name in vars(Observer) if not name.startswith("_"))


def guarded(observer: Observer | None) -> Observer | None:
    """The observer, so that nothing it raises comes out. ``None`` stays ``None``.

    Raises ``ValueError`` for what is no observer.
    """
    if observer is None:
        return None
    check_observer(observer)
    safe = Observer()
    for name in METHODS:
        setattr(safe, name, _guarded(name, getattr(observer, name)))
    return safe


def check_observer(observer: object) -> None:
    """Raises ``ValueError`` for what cannot be called as an observer."""
    if not isinstance(observer, Observer):
        raise ValueError(f"observer must be a writebehind.Observer, not {observer!r}")
    for name in METHODS:
        if inspect.iscoroutinefunction(getattr(observer, name)):
            raise ValueError(f"an observer's methods are not awaited: {name} must be a plain function")


def _guarded(name: str, method: Callable[..., None]) -> Callable[..., None]:
    has_failed = False

    def call(*arguments: Any) -> None:
        nonlocal has_failed
        try:
            method(*arguments)
        except Exception:
            if not has_failed:
                has_failed = True
                _log.exception("an observer's %s failed; further errors of it are not logged", name)

    return call


def timed(steps: Steps[T], tell: Callable[[str, float, BaseException | None], None], table: str) -> Steps[T]:
    """The same steps; ``tell`` hears how long they took, and what they raised."""
    began = time.monotonic()
    try:
        result = yield from steps
    except GeneratorExit:
        raise
    except BaseException as error:
        tell(table, time.monotonic() - began, error)
        raise
    tell(table, time.monotonic() - began, None)
    return result


def tell_looks(observer: Observer, table: str, states: Sequence[str]) -> None:
    """What a first look at entries has found."""
    hits, negative = states.count("row"), states.count("gone")
    for tell, rows in (
        (observer.hit, hits),
        (observer.negative_hit, negative),
        (observer.miss, len(states) - hits - negative),
    ):
        if rows:
            tell(table, rows)


def tell_fills(
    observer: Observer,
    table: str,
    outcomes: Sequence[tuple[str, int, Sequence[str | bytes]]],
    replies: Sequence[Any],
) -> None:
    """What became of loaded rows; no ``replies``: Redis did not answer."""
    for i, (kind, _, fields) in enumerate(outcomes):
        if kind != "abandon" and i < len(replies) and replies[i] == 1:
            observer.filled(table, sum(len(t if isinstance(t, bytes) else t.encode()) for t in fields))
        else:
            observer.fill_lost(table)
