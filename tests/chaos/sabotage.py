"""Rules of the protocol, broken on purpose: the check must find each. The product has no such switch.

A child process calls ``spoil_worker`` (commands do, too) or ``spoil_producer`` before it begins: methods of
the product are replaced there.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from writebehind import enqueue as producer_enqueue
from writebehind.script import Script
from writebehind_worker import apply, ledger, owned_queue, takeover, worker
from writebehind_worker.frozen import FrozenBatch
from writebehind_worker.ledger import Ledger
from writebehind_worker.moving import Move
from writebehind_worker.owned_queue import OwnedQueue


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Sabotage:
    """``breaks``: the rule. The check says ``shows`` once ``faults`` ("LANE/FAULT") have exposed it."""

    breaks: str
    shows: frozenset[str]
    faults: frozenset[str]
    spoil_worker: Callable[[], None] = _nothing
    spoil_producer: Callable[[], None] = _nothing
    batch_size: int = 200
    hurry: float = 1.5
    shards: int = 1


def _forget_batches() -> None:
    inner = Ledger.record

    @functools.wraps(inner)
    def record(self: Any, epoch: int, batches: Sequence[int], *rest: int, **how: bool) -> None:
        inner(self, epoch, batches, *rest, **how)
        self._conn.execute(
            "UPDATE writebehind.ledger SET recent_batches = "
            "recent_batches[:cardinality(recent_batches) - $1] WHERE queue = $2",
            [len(batches), self._queue],
        )

    _replace(Ledger, "record", record)


def _let_everybody_commit() -> None:
    """And pauses at the worst moment, with a ledger that remembers just enough for recovery."""
    inner, calls = Ledger.record, itertools.count(1)
    _replace(ledger, "RECENT", 8)

    @functools.wraps(inner)
    def record(self: Any, epoch: int, batches: Sequence[int], *rest: int, **how: bool) -> None:
        if next(calls) % 12 == 0:
            _pause(seconds=4)
        found = self._conn.execute("SELECT epoch FROM writebehind.ledger WHERE queue = $1", [self._queue])
        inner(self, found.fetchone()[0], batches, *rest, **how)

    _replace(Ledger, "record", record)


def _pause(seconds: int) -> None:
    """Somebody else has to wake us up."""
    subprocess.Popen(["/bin/sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


def _queue_frozen_again() -> None:
    inner = takeover.take_over

    @functools.wraps(inner)
    def take_over(queue: Any, *rest: Any) -> Any:
        client, keys = queue._client, queue._keys
        for batch in map(int, client.lrange(keys.inflight, 0, -1)):
            if items := client.lrange(keys.processing(batch), 0, -1):
                client.lpush(keys.queue, *items)
            client.delete(keys.processing(batch))
        client.delete(keys.inflight)
        return inner(queue, *rest)

    _replace(worker, "take_over", take_over)


def _acknowledge_at_once() -> None:
    inner, acknowledge = OwnedQueue.claim, OwnedQueue.acknowledge

    @functools.wraps(inner)
    def claim(self: Any, *rest: Any) -> Any:
        claimed = inner(self, *rest)
        if isinstance(claimed, FrozenBatch):
            acknowledge(self, [claimed.id], claimed.applied_seq, claimed.id, [])
        return claimed

    def acknowledge_recovered(
        self: Any, batches: Sequence[int], applied_seq: int, last: int, rejections: Any, entries: Any = ()
    ) -> None:
        self.settle(entries)
        if batches[0] in self._inflight:
            acknowledge(self, batches, applied_seq, last, rejections)

    _replace(OwnedQueue, "claim", claim)
    _replace(OwnedQueue, "acknowledge", acknowledge_recovered)


def _bury_nothing() -> None:
    _replace(Ledger, "bury", lambda *_: None)


def _pop() -> None:
    """The queue as most know it: what is taken is nowhere else."""

    @functools.wraps(OwnedQueue.claim)
    def claim(self: Any, most_items: int, *_: Any) -> Any:
        items = self._client.rpop(self._keys.queue, most_items)
        if not items:
            return 0.0
        clock = int(self._client.hget(self._keys.clock, "seq") or 0)
        self._claimed += 1
        return FrozenBatch(self._epoch << 32 | self._claimed, items, clock)

    def acknowledge(
        self: Any, _: Sequence[int], applied_seq: int, __: int, ___: Any, entries: Any = ()
    ) -> None:
        self.settle(entries)
        if applied_seq:
            self._client.set(self._keys.applied, applied_seq)

    _replace(OwnedQueue, "claim", claim)
    _replace(OwnedQueue, "acknowledge", acknowledge)


def _settle_whatever_is_there() -> None:
    for script in (owned_queue._SETTLE, owned_queue._ACKNOWLEDGE):
        _rewrite(script, b"applied ~= '0' and seq == applied", b"applied ~= '0' and seq")
        _rewrite(script, b"    if seq == applied then", b"    if seq then")


def _take_each_call_as_new() -> None:
    _rewrite(producer_enqueue._ENQUEUE, b"if seen == counter", b"if seen == false")


def _cut_groups() -> None:
    _replace(apply, "is_one", lambda writes: len(writes) == 1)
    _replace(apply, "halves", lambda writes: (writes[: len(writes) // 2], writes[len(writes) // 2 :]))


def _hold_nothing() -> None:
    _rewrite(owned_queue._CLAIM, b"if state[2] then return", b"if false then return")


def _move_at_once() -> None:
    _replace(Move, "_is_empty", lambda *_: True)


def _replace(owner: Any, name: str, new: Any) -> None:
    setattr(owner, name, new)


def _rewrite(script: Script, old: bytes, new: bytes) -> None:
    assert old in script.source
    script.source = script.source.replace(old, new)
    script.sha = hashlib.sha1(script.source).hexdigest()


_KILLS = frozenset({"killed workers/kill worker"})
_LOST, _REPEATED, _ORDER = frozenset({"lost"}), frozenset({"repeated"}), frozenset({"out of order"})

SABOTAGES = {
    "forgetful-ledger": Sabotage(
        "the ledger remembers each batch that it has committed",
        _REPEATED,
        frozenset({"worker-postgres/drop replies"}),
        spoil_worker=_forget_batches,
        hurry=5,
    ),
    "no-fence": Sabotage(
        "only the epoch's owner commits",
        _REPEATED | _ORDER,
        frozenset(),
        spoil_worker=_let_everybody_commit,
        batch_size=100,
    ),
    "queued-again": Sabotage(
        "the next owner finishes what is frozen, and queues nothing again",
        _ORDER,
        _KILLS,
        spoil_worker=_queue_frozen_again,
    ),
    "early-acknowledge": Sabotage(
        "a batch leaves Redis after its COMMIT", _LOST, _KILLS, spoil_worker=_acknowledge_at_once
    ),
    "pop": Sabotage("a batch is claimed by moving it within Redis", _LOST, _KILLS, spoil_worker=_pop),
    "no-dead-letters": Sabotage(
        "what Postgres refuses becomes a dead letter", _LOST, frozenset(), spoil_worker=_bury_nothing
    ),
    "no-session": Sabotage(
        "a call that is sent again is answered with its first answer",
        _REPEATED,
        frozenset({"producer-redis/drop replies"}),
        spoil_producer=_take_each_call_as_new,
        hurry=3,
    ),
    "blind-settle": Sabotage(
        "a cache entry is settled only if it shows the write that was flushed",
        frozenset({"read back", "stale"}),
        frozenset(),
        spoil_worker=_settle_whatever_is_there,
    ),
    "cut-groups": Sabotage(
        "a group that Postgres refuses is refused whole",
        frozenset({"repeated", "torn apart"}),
        frozenset(),
        spoil_worker=_cut_groups,
    ),
    "no-hold": Sabotage(
        "nothing of new shards is written before all of the former ones is",
        _ORDER,
        frozenset({"division/reshard", "paused workers/pause worker for long"}),
        spoil_worker=_hold_nothing,
        hurry=3,
        shards=3,
    ),
    "hasty-move": Sabotage(
        "a table moves once all that its queue has accepted is written",
        _ORDER,
        frozenset({"moves/move", "paused workers/pause worker for long"}),
        spoil_worker=_move_at_once,
        hurry=3,
    ),
}
