"""What a call does, without doing it: a generator that yields steps and is sent their results.

Everything that is decided stands in such generators, once; the sync client and the async one only carry the
steps to Redis and bring the replies back. What a step raises is thrown into the generator.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

from redis.exceptions import NoScriptError, ResponseError

from .script import Argument, Script
from .session import Session

T = TypeVar("T")


class Command(NamedTuple):
    """Asks Redis one thing; on the connection of ``session``, if it keeps one. Its result is the reply."""

    arguments: Sequence[Argument]
    session: Session | None = None


class Pipeline(NamedTuple):
    """Asks Redis several things in one round trip, on one connection. Its result is the list of replies.

    ``at_once``: nothing of anybody else's happens in between. An error is raised, or with ``keeps_errors``
    stands in the list.
    """

    commands: Sequence[Sequence[Argument]]
    at_once: bool = False
    keeps_errors: bool = False


class Pause(NamedTuple):
    """Does nothing for a while."""

    seconds: float


class Load(NamedTuple):
    """Calls a function of the application's. Its result is what that returns, or what is awaited of it."""

    function: Callable[[Any], Any]
    argument: Any


Step = Command | Pipeline | Pause | Load
Steps = Generator[Step, Any, T]


def run_script(
    script: Script, keys: Sequence[str], args: Sequence[Argument], session: Session | None = None
) -> Steps[Any]:
    """Runs a script and returns Redis' reply. NOSCRIPT means that nothing was run: then it is sent whole."""
    try:
        return (yield Command(script.command(keys, args), session))
    except NoScriptError:
        return (yield Command(script.whole_command(keys, args), session))


def run_scripts(
    script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]
) -> Steps[list[Any]]:
    """Runs a script with each of these keys and arguments; a reply for each, be it an error of Redis'."""
    if len(calls) == 1:
        try:
            return [(yield from run_script(script, *calls[0]))]
        except ResponseError as error:
            return [error]
    replies: list[Any] = yield Pipeline([script.command(*call) for call in calls], keeps_errors=True)
    while again := [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]:
        # On a cluster each node has to see it once.
        whole = [script.whole_command(*calls[i]) for i in again[:1]]
        rest = [script.command(*calls[i]) for i in again[1:]]
        second = yield Pipeline([*whole, *rest], keeps_errors=True)
        for i, reply in zip(again, second, strict=True):
            replies[i] = reply
    return replies


def undone_if_cancelled(steps: Steps[T], undo: Callable[[], Steps[Any]]) -> Steps[T]:
    """The same steps; where the call is cancelled or interrupted, what undoes them comes after.

    Redis may have done them: whose reply nobody has read is not known to have failed.
    """
    try:
        return (yield from steps)
    except GeneratorExit:
        raise
    except BaseException as error:
        if not isinstance(error, Exception):
            yield from undo()
        raise
