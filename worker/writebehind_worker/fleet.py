"""The workers of a queue that has shards: each serves its fair share of them.

Nobody decides for the others. Each says now and then that it is there, hears how many there are, and takes
free shards up to its share, or lets go of those beyond it: when another has come, or is gone. The lease and
the epoch of each shard see to it that none is served by two.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

import redis
from redis import Redis
from structlog.typing import FilteringBoundLogger

from writebehind.keys import QueueKeys
from writebehind.script import Script
from writebehind.shards import Layout

from .answers import ask_nodes, raise_first
from .config import Config, one_line
from .errors import FatalError
from .former_shards import FormerShards
from .lease import read_lease
from .lost_steps import counts_served, judge, suspects
from .metrics import Metrics
from .nodes import REDIS_ERRORS
from .redis_number import NotOurs
from .redis_server import RedisLink
from .resharding import (
    copy_to_shards,
    divide,
    divide_again,
    is_unused,
    layout_of,
    mend,
    served,
    still_draining,
)
from .shard_clocks import NODE_TIMEOUT_S, Clocks, hear_clocks
from .share import fair_share, is_last, to_begin
from .spare import Spare
from .state import WorkerState
from .worker import Worker, stall_after_s

_FLEET = Script("writebehind_worker", "fleet")
_LONGEST_PERIOD_S = 1.0
_LONGEST_LOOK_S = 5.0  # that others are made to wait for
_JOIN_S = 0.05
Mode = Literal["alone", "alone again", "shared"]  # again: after a division, see `Ledger`
_LEAVE_S = 1.0  # for the last word to Redis


@dataclass(frozen=True, slots=True)
class _View:
    """What Redis says: its time in ms, the layout, and who is there.

    ``queues``: what can be served. ``is_alone``: there is one only, and nobody was asked who is there.
    """

    now_ms: int
    layout: Layout
    workers: Sequence[str]
    queues: Sequence[QueueKeys]
    is_alone: bool


@dataclass(frozen=True, slots=True)
class _Kept:
    """The layout; closed shards that hold something; the silent ones, which are not begun with, and why."""

    layout: Layout
    closed: Sequence[QueueKeys] = ()
    silent: frozenset[QueueKeys] = frozenset()
    reason: str | None = None


class _Serving:
    """One queue that this process serves, or tries to."""

    def __init__(self, worker: Worker, state: WorkerState, hurry: threading.Event, name: str) -> None:
        self.state = state
        self.error: BaseException | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(worker, hurry), name=name, daemon=True)
        self._thread.start()

    def _run(self, worker: Worker, hurry: threading.Event) -> None:
        try:
            worker.run(self._end, hurry)
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        """Finishes what is frozen, and lets go of the queue."""
        self._end.set()

    @property
    def is_ending(self) -> bool:
        return self._end.is_set()

    @property
    def has_ended(self) -> bool:
        return not self._thread.is_alive()


class Fleet:
    """One process of the fleet. A queue that has no shards is served by one worker as ever."""

    def __init__(
        self, config: Config, state: WorkerState, metrics: Metrics, log: FilteringBoundLogger
    ) -> None:
        self._config, self._state, self._metrics = config, state, metrics
        self._log = log.bind(queue=config.queue)
        self._keys = QueueKeys(config.queue)
        self._name = secrets.token_hex(8)
        self._began, self._looked_s = 0.0, 0.0  # when this look began, how long the last one took
        self._failed_looks = 0  # since the last one that did not
        self._serving: dict[str, _Serving] = {}
        self._spare = Spare(config, state)
        self._former = FormerShards(config, self._log)
        self._mode: Mode | None = None
        self._shards = 0  # as logged last
        self._turn = threading.Lock()  # of beginning to serve, and of:
        self._is_ending = False
        self._fatal: BaseException | None = None
        self._refused: set[str] = set()  # why Redis did not answer, as far as that has been logged

    def run(self, stop: threading.Event, hurry: threading.Event | None = None) -> None:
        """As :meth:`Worker.run`, for all queues that fall to this process.

        A thread of its own asks Redis: one that is silent must not hold up the stop.
        """
        hurry = hurry or stop
        self._former.watch(stop)
        thread = threading.Thread(target=self._work, args=(stop, hurry), name="fleet", daemon=True)
        thread.start()
        stop.wait()
        self._end_all()
        thread.join(_LEAVE_S)
        if self._fatal is not None:
            raise self._fatal
        self._raise_what_ended_one()

    def _work(self, stop: threading.Event, hurry: threading.Event) -> None:
        period_s = min(self._config.lease_ttl_s / 3, _LONGEST_PERIOD_S)
        try:
            # In no step of a look a node is waited for for long: it may fall silent between any two of them.
            with RedisLink(self._config.redis_url, at_most_s=NODE_TIMEOUT_S) as link:
                while not stop.is_set():
                    self._began = time.monotonic()
                    self._look_after(link, hurry)
                    self._looked_s = time.monotonic() - self._began
                    stop.wait(period_s)
                self._leave(link)
        except BaseException as error:
            self._fatal = error
            stop.set()

    def _look_after(self, link: RedisLink, hurry: threading.Event) -> None:
        self._raise_what_ended_one()
        try:
            kept = self._kept(link.client)
            view = self._look(link.client, kept)
            asked = [] if view.is_alone else [keys for keys in view.queues if keys not in kept.silent]
            free = self._free(link.client, asked, view.now_ms) if asked else []
        except REDIS_ERRORS as error:
            self._redis_is(False, one_line(error))
            if isinstance(error, redis.ResponseError):
                self._tell(error)
            self._failed_looks += 1
            # On a cluster one may fail by chance; and served alone a divided queue is not known as such.
            if not self._serving and self._mode is None and self._failed_looks > link.is_clustered:
                self._serve_alone(hurry)  # it tells what is wrong, and goes on by itself
            return
        self._failed_looks = 0
        self._redis_is(kept.reason is None, kept.reason)
        if view.is_alone:
            self._serve_alone(hurry, "alone again" if view.layout.number else "alone")
        else:
            self._share(view, free, hurry)

    def _tell(self, error: Exception) -> None:
        """Once."""
        if one_line(error) not in self._refused:
            self._refused.add(one_line(error))
            self._log.warning("redis refuses to tell of shards: see docs/scaling.md", reason=one_line(error))

    def _kept(self, client: Redis) -> _Kept:
        """The layout, once all is done about it that has to be; with what is silent, if nothing had to.

        So a node of a cluster that does not answer keeps nobody from the shards of the others. Lost steps are
        judged where all are heard only: mending them takes each, and what a silent one would say may matter.
        """
        layout = layout_of(client, self._keys)
        self._former.saw(layout)
        heard = hear_clocks(client, self._keys, counts_served(layout) | self._former.suspects)
        for error in heard.errors.values():
            self._tell(error)
            if not isinstance(error, NotOurs):
                raise error
        closed = self._told_closed(client, layout)
        if heard.silent:
            first = min(heard.silent, key=lambda one: one.queue)
            reason = heard.errors.get(first) or redis.ConnectionError(f"no answer of {first.queue}'s node")
            if not self._needs_nothing(client, layout, heard.clocks):
                raise reason
            others = [keys for keys in served(self._keys, layout) if keys not in heard.silent]
            copy_to_shards(client, self._keys, others)
            return _Kept(layout, closed, heard.silent, one_line(reason))
        layout = self._checked_layout(client, layout, heard.clocks)
        if layout.draining:
            still_draining(client, self._keys, layout)
        else:
            mend(client, self._keys, layout)
        copy_to_shards(client, self._keys, served(self._keys, layout))
        return _Kept(layout, closed)

    def _told_closed(self, client: Redis, layout: Layout) -> Sequence[QueueKeys]:
        """Closed shards that hold something, and know whether there is a pause: others are not served now."""
        told: list[QueueKeys] = []
        others = {*served(self._keys, layout), *self._former.silent}
        for one in (one for one in self._former.left if one not in others):
            try:
                copy_to_shards(client, self._keys, [one])
            except redis.ResponseError as error:  # its key may be none of ours
                self._tell(error)
            except REDIS_ERRORS:
                break  # each would be waited for; `FormerShards` finds out who is silent
            else:
                told.append(one)
        return told

    def _needs_nothing(self, client: Redis, layout: Layout, clocks: Clocks) -> bool:
        """Whether nothing has to be done about shards before they are served, as far as is heard of them.

        While former ones drain, nothing may be claimed from one that has lost its hold.
        """
        if layout.closing is not None or layout.draining:
            return False
        if self._config.shards not in (0, layout.shards) or client.get(self._keys.paused) is not None:
            return False
        return not (self._former.suspects or suspects(layout, clocks))

    def _look(self, client: Redis, kept: _Kept) -> _View:
        layout = kept.layout
        queues = served(self._keys, layout)
        # What former shards hold though all that they had accepted is in Postgres.
        if len(queues) == 1 and set(self._former.left) <= set(queues):
            return _View(0, layout, (), queues, is_alone=True)
        queues += [keys for keys in kept.closed if keys not in queues]
        # Longer where looks take long, or the others would count us in at one look, and not at the next one.
        took_s = max(self._looked_s, time.monotonic() - self._began)
        varies_s = 2 * NODE_TIMEOUT_S if kept.silent else 0  # whom redis-py asks who has which slot
        ttl_s = self._config.lease_ttl_s + min(took_s + varies_s, _LONGEST_LOOK_S)
        ttl_ms = int(ttl_s * 1000) if self._is_fit() else 0
        now_ms, *workers = _FLEET(client, [self._keys.fleet], [self._name, ttl_ms])
        return _View(
            int(now_ms), layout, [name.decode(errors="replace") for name in workers], queues, is_alone=False
        )

    def _is_fit(self) -> bool:
        """Whether the others can count on us: who does not reach Postgres serves no shard."""
        return all(one.state.facts()["postgres_up"] is not False for one in self._serving.values())

    def _checked_layout(self, client: Redis, layout: Layout, clocks: Clocks) -> Layout:
        """Raises `FatalError` where there are not as many shards as this worker was told."""
        told, layout = self._config.shards, self._mended(client, layout, clocks)
        if layout.closing is not None:
            layout = self._finished(client, layout)
        if not told or told in (layout.shards, layout.closing):
            return layout
        if is_unused(client, self._keys):
            divide(client, self._keys, told)
        layout = layout_of(client, self._keys)  # another worker may have been quicker
        if told in (layout.shards, layout.closing):
            return layout
        raise FatalError(
            f"queue {self._config.queue!r} has {layout.shards} shards, and this worker was told {told}",
            f"give it --shards {layout.shards}, or --shards 0 for as many as there are; "
            f"or run `writebehind reshard {told}`",
        )

    def _mended(self, client: Redis, layout: Layout, clocks: Clocks) -> Layout:
        """After a failover it may be what it was before, or shards may be."""
        lost = judge(client, self._keys, layout, clocks)
        if lost is None:
            return layout
        self._log.warning(
            "redis lost steps of a division: the queue is divided anew",
            shards=lost.shards,
            reason=lost.reason,
        )
        return divide_again(client, self._keys, layout, lost)

    def _finished(self, client: Redis, layout: Layout) -> Layout:
        """Nothing is accepted while shards are closed: whoever closed them may be dead."""
        with suppress(FatalError):  # another was quicker
            return divide(client, self._keys, layout.closing or layout.shards)
        return layout_of(client, self._keys)

    def _free(self, client: Redis, queues: Sequence[QueueKeys], now_ms: int) -> list[str]:
        """Those whose lease nobody holds; none of a node that does not answer."""
        told = ask_nodes(client, queues, lambda pipe, keys: pipe.get(keys.lease)).replies
        raise_first(told)
        ends = {keys: read_lease(lease)[1] or 0 for keys, (lease,) in told.items()}
        return [keys.queue for keys in queues if keys in ends and ends[keys] < now_ms]

    def _serve_alone(self, hurry: threading.Event, mode: Mode = "alone") -> None:
        """The only queue: any number of workers stand by."""
        if self._becomes(mode) and self._config.queue not in self._serving:
            was_divided = mode == "alone again"
            self._metrics.keep_parts(())
            worker = Worker(self._config, self._state, self._metrics, self._log, is_divided=was_divided)
            self._serve(self._config.queue, worker, self._state, hurry)

    def _becomes(self, mode: Mode) -> bool:
        """Whether nothing is served any more in the other way: what is must come to its end first."""
        if self._mode not in (None, mode):
            self._end_those(self._serving)
            self._state.progress()
            if self._serving:
                return False
            self._state.begin(stall_after_s(self._config))
        self._mode = mode
        return True

    def _share(self, view: _View, free: Sequence[str], hurry: threading.Event) -> None:
        if not self._becomes("shared"):
            return
        if self._shards != view.layout.shards:
            self._log.info("serving shards", shards=view.layout.shards)
            self._shards = view.layout.shards
        queues = [keys.queue for keys in view.queues]
        self._state.progress()
        self._end_those(queue for queue in self._serving if queue not in queues)
        self._metrics.keep_parts({*queues, *self._serving})
        # Who finds that another has the lease was too late: it does not wait for it.
        self._end_those(q for q, one in self._serving.items() if one.state.facts()["role"] == "standby")
        # The queue itself, which hardly anything goes to, counts for no shard.
        shards = [queue for queue in queues if queue != self._keys.queue]
        self._take(shards, fair_share(view.workers, self._name, len(shards)), view, free, hurry)
        itself = int(is_last(view.workers, self._name))
        self._take([self._keys.queue], itself, view, free, hurry)
        self._state.role_is("standby")  # of the process, where it serves nothing
        if not self._serving:
            self._spare.look()

    def _take(
        self, queues: Sequence[str], share: int, view: _View, free: Sequence[str], hurry: threading.Event
    ) -> None:
        """Begins to serve so many of the queues, or lets go of those beyond it."""
        mine = [queue for queue in queues if queue in self._serving and not self._serving[queue].is_ending]
        self._end_those(mine[share:])
        wanted = to_begin(queues, set(free) - self._serving.keys(), view.workers, self._name)
        for queue in wanted[: max(0, share - len(mine))]:
            self._begin(queue, hurry)

    def _begin(self, queue: str, hurry: threading.Event) -> None:
        config = replace(self._config, queue=queue)
        state = self._state.part(queue)
        worker = Worker(config, state, self._metrics.part(queue), self._log, self._keys, is_divided=True)
        self._serve(queue, worker, state, hurry)

    def _serve(self, queue: str, worker: Worker, state: WorkerState, hurry: threading.Event) -> None:
        with self._turn:
            if not self._is_ending:
                self._serving[queue] = _Serving(worker, state, hurry, f"worker of {queue}")

    def _end_those(self, queues: Iterable[str]) -> None:
        """Without waiting for it: takes those away that have ended."""
        for queue in list(queues):
            self._serving[queue].end()
        ended = [queue for queue, one in self._serving.items() if one.is_ending and one.has_ended]
        self._raise_what_ended_one()  # after the look: an error that came late is not dropped with its worker
        for queue in ended:
            del self._serving[queue]
            self._state.drop_part(queue)

    def _end_all(self) -> None:
        self._state.role_is("stopping")
        with self._turn:
            self._is_ending = True
            those = list(self._serving.values())
        for one in those:
            one.end()
        while not all(one.has_ended for one in those):
            time.sleep(_JOIN_S)

    def _leave(self, link: RedisLink) -> None:
        """The others need not wait until our word has run out."""
        try:
            if self._mode == "shared":
                _FLEET(link.client, [self._keys.fleet], [self._name, 0])
        except REDIS_ERRORS as error:
            self._log.debug("could not say that we leave", error=one_line(error))

    def _raise_what_ended_one(self) -> None:
        for one in list(self._serving.values()):
            if one.error is not None:
                raise one.error

    def _redis_is(self, up: bool, reason: str | None = None) -> None:
        if self._mode == "shared":
            self._state.redis_is(up, None if reason is None else f"Redis: {reason}")
            self._metrics.unserved_are(self._serving, up, self._state.facts()["postgres_up"])
            self._state.progress()
