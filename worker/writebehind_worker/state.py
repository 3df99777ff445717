"""What the worker knows about itself, for the health endpoint and for logging each change once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

Role = Literal["starting", "standby", "owner", "stopping"]

_READY_ROLES = ("owner", "standby")  # those that know who holds the lease


class WorkerState:
    """Written by the worker's threads, read by the endpoint's. All methods are thread-safe.

    The ``…_is`` methods return True only if what they tell is a change, so that a caller logs a state
    once and not on every retry.
    """

    def __init__(self, stall_after_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self.begin(stall_after_s)

    def begin(self, stall_after_s: float) -> None:
        """A worker starts, the first one or another one in this process: nothing is known yet."""
        with self._lock:
            self._stall_after_s = stall_after_s
            self._progress = {"loop": self._clock()}
            self._facts: dict[str, Any] = {
                "role": "starting",
                "epoch": None,
                "owner": None,
                "redis_up": None,
                "redis_reason": None,
                "postgres_up": None,
                "postgres_reason": None,
                "held": None,
                "delay": None,
                "breaker": None,
                "paused": None,
            }
            self._since = dict.fromkeys(self._facts, self._clock())
            self._parts: dict[str, WorkerState] = {}

    def part(self, name: str) -> WorkerState:
        """That of one of several workers of this process: from now on what is told is about all of them."""
        made = WorkerState(self._stall_after_s, self._clock)
        with self._lock:
            self._parts = {**self._parts, name: made}
        return made

    def drop_part(self, name: str) -> None:
        """It has ended."""
        with self._lock:
            self._parts = {n: part for n, part in self._parts.items() if n != name}

    def redis_is(self, up: bool, reason: str | None = None) -> bool:
        """Redis answers, or does not and why. A new reason alone is no change.

        Without Redis nobody asks Postgres any more: that it answers is not known then.
        """
        with self._lock:
            changed = self._change("redis_up", redis_up=up, redis_reason=reason)
            if changed and not up and self._facts["postgres_up"]:
                self._change("postgres_up", postgres_up=None, postgres_reason=None)
            return changed

    def postgres_is(self, up: bool, reason: str | None = None) -> bool:
        """Postgres answers, or does not and why. A new reason alone is no change."""
        return self._set("postgres_up", postgres_up=up, postgres_reason=reason)

    def role_is(self, role: Role, epoch: int | None = None, owner: str | None = None) -> bool:
        """``owner`` is whoever holds the lease, ``epoch`` the fencing epoch that goes with it.

        ``starting``: who holds it is not known, or not any more. A worker that is stopping stays so.
        """
        with self._lock:
            if self._facts["role"] == "stopping":
                return False
            return self._change("role", "epoch", "owner", role=role, epoch=epoch, owner=owner)

    def held_is(self, write: str | None) -> bool:
        """The write that waits for somebody's lock and holds the queue; None: no longer."""
        return self._set("held", held=write)

    def delay_is(self, reason: str | None) -> None:
        """What the batch at hand waits for, before it is known which write does; None: for nothing."""
        self._set(delay=reason)

    def breaker_is(self, reason: str | None) -> bool:
        """Why the queue is paused: every write is rejected alike; None: it goes on."""
        return self._set("breaker", breaker=reason)

    def paused_is(self, reason: str | None) -> bool:
        """Why an operator has paused the queue; None: it goes on. A paused worker is ready."""
        return self._set("paused", paused=reason)

    def progress(self, part: str = "loop") -> None:
        """A part of the worker has come round: it is alive, whether or not there was work.

        From then on it has to, again and again, until it has `ended`: one that lives does not speak for the
        others.
        """
        with self._lock:
            self._progress[part] = self._clock()

    def ended(self, part: str) -> None:
        """Nothing more will come from there."""
        with self._lock:
            self._progress.pop(part, None)

    def facts(self) -> dict[str, Any]:
        """A copy of all there is to know."""
        with self._lock:
            facts, parts = dict(self._facts), self._parts
        return facts if not parts or facts["role"] == "stopping" else _of_all(facts, parts)

    def for_s(self, fact: str) -> float:
        """For how many seconds it has been so; of a server, of its answering and not of the reason."""
        with self._lock:
            return self._clock() - self._since[fact]

    def health(self) -> tuple[bool, dict[str, Any]]:
        """False if a part has not come round for ``stall_after_s``: only a restart can help then."""
        with self._lock:
            progress = dict(self._progress)
            for name, worker in self._parts.items():
                progress |= {f"{part} of {name}": since for part, since in worker._progress.copy().items()}
            part, since = min(progress.items(), key=lambda item: item[1])
            idle_s = self._clock() - since
            alive = idle_s <= self._stall_after_s
        return alive, {"ok": alive, "since_progress_s": round(idle_s, 3)} | (
            {} if alive else {"stalled": part}
        )

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Both servers answer, who holds the lease is known, and no breaker pauses the queue.

        A standby is ready: it is not needed, but it could go on at once. ``reasons`` says why not.
        """
        facts = self.facts()
        reasons = [
            facts[f"{server}_reason"] or f"it is not known whether {server} answers"
            for server in ("redis", "postgres")
            if not facts[f"{server}_up"]
        ]
        if facts["role"] == "starting":
            reasons.append("the worker is starting: who holds the lease is not known")
        elif facts["role"] not in _READY_ROLES:
            reasons.append(f"the worker is {facts['role']}")
        if facts["breaker"] is not None:
            reasons.append(facts["breaker"])
        return not reasons, {"ok": not reasons, "reasons": reasons, **facts}

    def _set(self, *watched: str, **facts: Any) -> bool:
        with self._lock:
            return self._change(*watched, **facts)

    def _change(self, *watched: str, **facts: Any) -> bool:
        """The caller has the lock."""
        changed = [name for name in watched if self._facts[name] != facts[name]]
        self._facts.update(facts)
        self._since.update(dict.fromkeys(changed, self._clock()))
        return bool(changed)


def _of_all(own: Mapping[str, Any], parts: Mapping[str, WorkerState]) -> dict[str, Any]:
    """What is so of the process: the first trouble that a part has is its trouble."""
    each = {name: part.facts() for name, part in parts.items()}
    facts = dict(own)
    roles = {found["role"]: found["owner"] for found in each.values()}
    facts["role"] = next((role for role in ("owner", "starting") if role in roles), own["role"])
    facts["owner"] = roles.get("owner", own["owner"])
    for server in ("redis", "postgres"):
        asked = each.values() if server == "postgres" else (own, *each.values())  # own: while it had no part
        states = [(found[f"{server}_up"], found[f"{server}_reason"]) for found in asked]
        known = [state for state in states if state[0] is not None]
        down = [state for state in known if not state[0]]
        facts[f"{server}_up"], facts[f"{server}_reason"] = (down or known or states)[0]
    for trouble in ("held", "delay", "breaker", "paused"):
        told = [f"{name}: {found[trouble]}" for name, found in each.items() if found[trouble] is not None]
        facts[trouble] = told[0] if told else None
    return facts
