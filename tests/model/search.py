"""Breadth-first search of a model's states: all of them, or the shortest way to a broken invariant."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

S = TypeVar("S", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has seen: ``states`` in all, the longest of the shortest ways to one as ``depth``.

    ``violation`` says what is broken, ``trace`` the steps to it, as few as possible; else ``None`` and empty.
    """

    states: int
    depth: int
    violation: str | None
    trace: tuple[str, ...]


def search(
    start: S,
    steps: Callable[[S], Iterable[tuple[str, S]]],
    broken: Callable[[S], str | None],
    stuck: Callable[[S], str | None],
    most_states: int = 5_000_000,
) -> Found:
    """Follows every step from every state.

    ``steps`` yields (name, next state); ``broken`` names the invariant that a state breaks, if any; ``stuck``
    says what is wrong with a state that no step leaves.

    Raises:
        MemoryError: there are more than ``most_states``: the instance is too large to be exhausted.
    """
    came_from: dict[S, tuple[S, str] | None] = {start: None}
    layer, depth = [start], 0
    while layer:
        following: list[S] = []
        for state in layer:
            violation, is_last = broken(state), True
            for name, successor in () if violation else steps(state):
                is_last = False
                if successor not in came_from:
                    came_from[successor] = (state, name)
                    following.append(successor)
            if violation or (is_last and (violation := stuck(state))):
                return Found(len(came_from), depth, violation, _way_to(state, came_from))
        if len(came_from) > most_states:
            raise MemoryError(f"more than {most_states} states: the instance is too large")
        layer, depth = following, depth + bool(following)
    return Found(len(came_from), depth, None, ())


def _way_to(state: S, came_from: dict[S, tuple[S, str] | None]) -> tuple[str, ...]:
    names: list[str] = []
    while (origin := came_from[state]) is not None:
        state, name = origin
        names.append(name)
    return tuple(reversed(names))
