"""Which faults happen when: drawn from the seed alone. No I/O.

A lane is a sequence of faults, one after the other; the lanes run side by side, so that faults overlap.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """``pick`` (0 to 1) chooses among several targets, or where within a call."""

    at_s: float
    lane: str
    name: str
    lasts_s: float
    pick: float


@dataclass(frozen=True, slots=True)
class _Lane:
    """``gap_s`` between the end of a fault and the next; each fault: weight, least and longest duration."""

    gap_s: tuple[float, float]
    faults: dict[str, tuple[float, float, float]]


_LINK = {
    "cut": (3, 0.0, 0.0),
    "refuse": (1, 0.1, 1.0),
    "delay": (2, 0.3, 1.5),
    "half-open": (2, 0.2, 3.0),
    "half-open for long": (0.3, 5.5, 6.5),  # longer than any client waits
    "drop replies": (4, 0.3, 1.5),
}
LANES = {
    "killed workers": _Lane((1.5, 4.0), {"kill worker": (1, 0.0, 0.3)}),
    "paused workers": _Lane(
        (1.5, 4.5), {"pause worker": (1, 0.2, 1.5), "pause worker for long": (1, 1.5, 3.5)}
    ),
    "producers": _Lane((0.5, 2.0), {"kill producer": (1, 0.0, 0.1)}),
    "redis": _Lane((4.0, 10.0), {"kill redis": (2, 0.0, 0.7), "fill redis": (1, 0.5, 2.5)}),
    "postgres": _Lane(
        (4.0, 10.0),
        {
            "restart postgres": (2, 0.0, 0.7),
            "read-only postgres": (1, 0.5, 2.5),
            "terminate backends": (3, 0.0, 0.0),
        },
    ),
    "failover": _Lane(
        (4.0, 8.0),
        {
            "kill primary": (2, 0.0, 0.0),
            "pause primary": (1, 0.0, 0.0),
            "replace primary": (1, 0.0, 0.0),
            "restart sentinel": (1, 0.0, 2.0),
        },
    ),
    "nodes": _Lane(
        (3.0, 6.0),
        {
            "kill node": (2, 0.0, 0.0),
            "pause node": (1, 0.0, 0.0),
            "replace node": (1, 0.0, 0.0),
            "move slot": (2, 0.0, 0.0),
            "move slot key by key": (2, 0.1, 1.0),
        },
    ),
    "division": _Lane(  # by how long: until it is killed, or until the second one begins
        (1.0, 4.0), {"reshard": (2, 0.0, 0.0), "kill reshard": (2, 0.0, 0.3), "reshard twice": (1, 0.0, 0.2)}
    ),
    "moves": _Lane(
        (1.0, 4.0), {"move": (2, 0.0, 0.0), "kill move": (2, 0.0, 1.0), "move twice": (1, 0.0, 0.2)}
    ),
    "operator": _Lane((3.0, 8.0), {"pause queue": (1, 0.3, 1.5)}),
    "worker-redis": _Lane((3.0, 8.0), _LINK),
    "worker-postgres": _Lane((3.0, 8.0), _LINK),
    "producer-redis": _Lane((2.0, 6.0), _LINK),
}
FAULTS = frozenset(name for lane in LANES.values() for name in lane.faults)


def schedule(
    seed: int,
    seconds: float,
    only: Collection[str] | None = None,
    hurry: float = 1.0,
    lanes: Collection[str] = frozenset(LANES),
) -> dict[str, list[Fault]]:
    """The faults of each lane, in order; the same for the same arguments.

    ``only`` these faults ("LANE/FAULT"; ``None``: all), with gaps ``hurry`` times shorter.
    """
    return {name: _lane(seed, seconds, name, only, hurry) for name in LANES if name in lanes}


def _lane(seed: int, seconds: float, name: str, only: Collection[str] | None, hurry: float) -> list[Fault]:
    lane, chance = LANES[name], random.Random(f"{seed}/{name}")
    kinds = [kind for kind in lane.faults if only is None or f"{name}/{kind}" in only]
    weights = [lane.faults[kind][0] for kind in kinds]
    found: list[Fault] = []
    at_s = chance.uniform(*lane.gap_s) / hurry
    while kinds and at_s < seconds:
        kind = chance.choices(kinds, weights)[0]
        lasts_s = chance.uniform(*lane.faults[kind][1:])
        found.append(Fault(at_s, name, kind, min(lasts_s, seconds - at_s), chance.random()))
        at_s += lasts_s + chance.uniform(*lane.gap_s) / hurry
    return found
