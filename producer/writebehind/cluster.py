"""Redis Cluster: which node a step goes to, and what to do when it is another's by now. No I/O: steps.

What a node refuses for now (MOVED, ASK, TRYAGAIN, CLUSTERDOWN) and what gets no answer is sent again for some
ten seconds, to whoever has the slot by then. No script runs in a slot that moves key by key: there a key
that is absent, be it one that the script itself has deleted, is an error in the middle, and what was written
before it stays. So each script names one key more, which never exists: Redis refuses it before it begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    ConnectionError,
    ExecAbortError,
    MovedError,
    RedisError,
    TimeoutError,
    TryAgainError,
)

from .pauses import pauses
from .script import GUARDED, Argument
from .sentinel import Host
from .steps import Command, Pause, Pipeline, T

TRIED_FOR_S = 10.0
SLOTS = 16384
_LATER = (AskError, TryAgainError, ClusterDownError)  # AskError is MovedError's base
_KEYLESS = frozenset({"TIME", "WAIT", "WAITAOF"})
_CLUSTER_SLOTS = ("CLUSTER", "SLOTS")


class Ask(NamedTuple):
    """Asks one node several things over one connection. Its result: the replies, of which some are errors."""

    node: Host
    commands: Sequence[Sequence[Argument]]


Asks = Generator[Ask | Pause, Any, T]


def is_no_answer(error: BaseException) -> bool:
    """Whether nobody can tell what became of what was asked: another attempt may."""
    no_answer = isinstance(error, ConnectionError | TimeoutError | OSError)
    return no_answer and not isinstance(error, AuthenticationError)


class Slots:
    """Which node has each slot, as far as this client knows. Thread-safe.

    Args:
        seeds: nodes to ask first.
        remap: where a node is reached that others know by this address.
    """

    def __init__(self, seeds: Iterable[Host], remap: Callable[[Host], Host] | None = None) -> None:
        self._seeds = list(dict.fromkeys(seeds))
        self._remap = remap or (lambda host: host)
        self._owners: list[Host | None] = [None] * SLOTS
        self._silent: frozenset[Host] = frozenset()

    def owner(self, slot: int) -> Host | None:
        """Its primary."""
        return self._owners[slot]

    def nodes(self, last: Host | None) -> list[Host]:
        """All that may be asked; ``last``, and those that were silent when last asked, after the others."""
        known = dict.fromkeys([*filter(None, dict.fromkeys(self._owners)), *self._seeds])
        return sorted(known, key=lambda host: host == last or host in self._silent)

    def was_silent(self, node: Host) -> None:
        """Else each call would wait for it again, and where its timeout is long, for nobody else."""
        self._silent |= {node}

    def learn(self, told: Any, teller: Host) -> None:
        """What ``CLUSTER SLOTS`` said; a node without an address is the one that was asked."""
        owners: list[Host | None] = [None] * SLOTS
        for start, end, primary, *_ in told:
            host = self.address(primary[0], int(primary[1]), teller)
            owners[start : end + 1] = [host] * (end + 1 - start)
        self._owners = owners
        self._silent -= {teller}

    def moved(self, error: AskError, teller: Host) -> Host:
        """The node that a refusal names; it has the slot from now on, unless it has only part of it."""
        host = self.address(error.host, error.port, teller)
        if isinstance(error, MovedError):
            self._owners[error.slot_id] = host
        return host

    def address(self, name: str | bytes | None, port: int, teller: Host) -> Host:
        """Where a node is that another one has named."""
        text = name.decode() if isinstance(name, bytes) else name
        return self._remap((teller[0] if text in (None, "", "?") else str(text), port))


def carry(slots: Slots, step: Command | Pipeline) -> Asks[Any]:
    """Does a step on whichever nodes it concerns; its result, or raises, as one server would."""
    if isinstance(step, Command):
        (reply,) = yield from _Errand(slots, [step.arguments]).run()
        if isinstance(reply, Exception):
            raise reply
        return reply
    if step.at_once:
        (replies,) = yield from _Errand(slots, [_Together(step.commands)]).run()
        if isinstance(replies, Exception):
            raise replies
    else:
        replies = yield from _Errand(slots, step.commands).run()
    for reply in () if step.keeps_errors else replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


class _Together(tuple[Any, ...]):
    """Commands that are one transaction."""


class _Errand:
    """The commands of one step, until each has its reply.

    What was looked at in a slot is looked at again with what was refused there, so that the order of looks
    counts, and that WAIT comes after what it is about. A script that is done is not run again.
    """

    def __init__(self, slots: Slots, commands: Sequence[Any]) -> None:
        self._slots, self._commands = slots, [guarded(command) for command in commands]
        self._slot_of, self._lead = _slots_of(commands), _leads_of(commands)
        self._replies: list[Any] = [None] * len(commands)
        self._deadline = time.monotonic() + TRIED_FOR_S
        # Commands whose key is at another node by now than its slot: others' keys of that slot may not be.
        self._asking: dict[int, Host] = {}

    def run(self) -> Asks[list[Any]]:
        """Raises ``ConnectionError`` where the cluster has not taken them in time."""
        left = list(range(len(self._commands)))
        for pause in pauses(0.002, 1.5, 0.2):
            refused: dict[int, Exception] = {}
            for node, numbers in (yield from self._by_node(left)):
                refused.update((yield from self._ask(node, numbers)))
            if not refused:
                return self._replies
            error = next((e for e in refused.values() if is_no_answer(e)), next(iter(refused.values())))
            if time.monotonic() >= self._deadline:
                text = f"no node of the cluster has taken it for {TRIED_FOR_S:g} s: {error}"
                raise ConnectionError(text) from error
            if not all(isinstance(e, AskError) for e in refused.values()) or pause > 0.02:
                yield Pause(pause)
            again = {self._slot_of[number] for number in refused}
            left = [n for n in left if n in refused or (self._slot_of[n] in again and not self._is_script(n))]
        raise AssertionError

    def _by_node(self, numbers: Sequence[int]) -> Asks[list[tuple[Host, list[int]]]]:
        """What goes where. While keys of one slot are at two nodes, the commands keep their order."""
        if any(self._slots.owner(self._slot_of[number]) is None for number in numbers):
            yield from _look_up(self._slots, None, self._deadline)
        each = [(self._node_of(number), number) for number in numbers]
        if self._asking:
            return [(node, [n for _, n in run]) for node, run in groupby(each, key=itemgetter(0))]
        found: dict[Host, list[int]] = {}
        for node, number in each:
            found.setdefault(node, []).append(number)
        return list(found.items())

    def _node_of(self, number: int) -> Host:
        owner = self._slots.owner(self._slot_of[number]) or self._slots.nodes(None)[0]  # any says: nobody
        return self._asking.get(self._lead[number], owner)

    def _ask(self, node: Host, numbers: Sequence[int]) -> Asks[dict[int, Exception]]:
        """Those that were refused for now, or not answered."""
        flat: list[Sequence[Argument]] = []
        places = []
        for number in numbers:
            if number in self._asking:
                flat.append(("ASKING",))
            command = self._commands[number]
            flat += [("MULTI",), *command, ("EXEC",)] if isinstance(command, _Together) else [command]
            places.append(len(flat))
        try:
            replies = yield Ask(node, flat)
        except (RedisError, OSError) as error:
            if not is_no_answer(error):
                raise
            for number in numbers:
                self._asking.pop(number, None)
            yield from _look_up(self._slots, node, self._deadline)
            return dict.fromkeys(numbers, error)
        refused: dict[int, Exception] = {}
        for number, place in zip(numbers, places, strict=True):
            reply = self._replies[number] = replies[place - 1]
            if isinstance(reply, ExecAbortError):
                queued = replies[place - 1 - len(self._commands[number]) : place - 1]
                reply = next((one for one in queued if isinstance(one, _LATER)), reply)
                self._replies[number] = reply
            if isinstance(reply, _LATER):
                refused[number] = reply
                if isinstance(reply, AskError):
                    host = self._slots.moved(reply, node)
                    if isinstance(reply, MovedError):
                        self._asking.pop(number, None)
                    else:
                        self._asking[number] = host
        if any(isinstance(error, ClusterDownError) for error in refused.values()):
            yield from _look_up(self._slots, node, self._deadline)
        return refused

    def _is_script(self, number: int) -> bool:
        return self._commands[number][0] in ("EVALSHA", "EVAL")


def _look_up(slots: Slots, last: Host | None, deadline: float) -> Asks[None]:
    """Asks nodes who has which slot, until one answers, if any does; ``last`` has just not answered."""
    for node in slots.nodes(last):
        if time.monotonic() >= deadline:  # each of many silent ones would cost its timeout
            return
        try:
            (told,) = yield Ask(node, [_CLUSTER_SLOTS])
        except (RedisError, OSError) as error:
            if not is_no_answer(error):
                raise
            slots.was_silent(node)
            continue
        if not isinstance(told, Exception):
            slots.learn(told, node)
            return
        if not isinstance(told, ClusterDownError):
            raise told


def _slots_of(commands: Sequence[Any]) -> list[int]:
    """The slot of each; what has no key goes where its neighbour goes."""
    found = [_slot_of(command) for command in commands]
    near = next((slot for slot in found if slot is not None), 0)
    slots = []
    for slot in found:
        near = near if slot is None else slot
        slots.append(near)
    return slots


def _leads_of(commands: Sequence[Any]) -> list[int]:
    """The number of the command whose key each goes with: its own, or its neighbour's where it has none."""
    has_key = [_slot_of(command) is not None for command in commands]
    lead = next((number for number, has in enumerate(has_key) if has), 0)
    leads = []
    for number, has in enumerate(has_key):
        lead = number if has else lead
        leads.append(lead)
    return leads


def _slot_of(command: Any) -> int | None:
    if isinstance(command, _Together):
        return _slot_of(command[0])
    if command[0] in _KEYLESS:
        return None
    key = command[3] if command[0] in ("EVALSHA", "EVAL") else command[1]
    return key_slot(key.encode())


def guarded(command: Any) -> Any:
    """What runs a script, but never in a slot that moves key by key; any other command as it is.

    It names one key more, which is in its slot and never exists: `{tag}:absent`.
    """
    if command[0] not in ("EVALSHA", "EVAL"):
        return command
    name, script, count, *rest = command
    keys, args = rest[:count], rest[count:]
    tagged = next(key for key in keys if "{" in key)  # all but a queue itself are
    return [name, GUARDED[script], count + 1, *keys, tagged[: tagged.index("}") + 1] + ":absent", *args]
