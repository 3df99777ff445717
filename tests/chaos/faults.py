"""Doing each fault, and ending it: one thread for each lane of the schedule."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import psycopg
from redis import Redis, RedisError

from writebehind.keys import QueueKeys
from writebehind_worker.nodes import REDIS_ERRORS
from writebehind_worker.pause import wait_until_settled
from writebehind_worker.redis_server import RedisLink
from writebehind_worker.whole_pause import pause_all, resume_all

from .child import Child
from .schedule import Fault
from .stage import KEYS, MOVED, QUEUE, SECOND, Stage
from .topology import OfNodes, Single, UnderSentinels

_LONGEST_WAIT_FOR_A_CALL_S = 0.5
_LONGEST_DELAY_S = 0.05
_OWNERS_SHARE = 0.6
_TINY_BYTES = 1 << 20
_SETTLE_S = 1.0
_MOVE_S, _AGAIN_S = 10.0, 0.05
_COMMITTED = (
    "SELECT queue, recent_batches FROM writebehind.ledger "
    "WHERE queue <> %s AND recent_batches <> '{}' ORDER BY queue"
)


class Faults:
    """``done`` counts by (lane, fault); ``failure`` is what went wrong in the harness itself."""

    def __init__(self, stage: Stage, lanes: Mapping[str, Sequence[Fault]]) -> None:
        self._stage = stage
        self._stop = threading.Event()
        self._counting = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), daemon=True) for lane in lanes.values() if lane
        ]
        self._began = 0.0
        self._is_moved = False
        self.done: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self._acts: dict[str, Callable[[Fault], None]] = {
            "kill worker": self._kill_worker,
            "pause worker": self._pause_worker,
            "pause worker for long": self._pause_worker,
            "kill producer": self._kill_producer,
            "kill redis": self._kill_redis,
            "fill redis": self._fill_redis,
            "kill primary": self._fail_over,
            "pause primary": self._fail_over,
            "replace primary": self._fail_over,
            "restart sentinel": self._restart_sentinel,
            "kill node": self._replace_node,
            "pause node": self._replace_node,
            "replace node": self._replace_node,
            "move slot": self._move_slot,
            "move slot key by key": self._move_slot,
            "restart postgres": self._restart_postgres,
            "read-only postgres": self._read_only_postgres,
            "terminate backends": self._terminate_backends,
            "reshard": self._reshard,
            "kill reshard": self._reshard,
            "reshard twice": self._reshard,
            "move": self._move,
            "kill move": self._move,
            "move twice": self._move,
            "pause queue": self._pause_queue,
            "cut": self._cut,
            "refuse": self._refuse,
            "delay": self._delay,
            "half-open": self._half_open,
            "half-open for long": self._half_open,
            "drop replies": self._drop_replies,
        }

    def start(self) -> None:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends what goes on; raises what went wrong in the harness."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self, lane: Sequence[Fault]) -> None:
        try:
            for fault in lane:
                if self._stop.wait(max(0.0, self._began + fault.at_s - time.monotonic())):
                    return
                self._acts[fault.name](fault)
        except BaseException as error:
            self.failure = error

    def _count(self, what: str, times: int = 1) -> None:
        with self._counting:
            self.done[what] += times

    # Processes.

    def _worker(self, fault: Fault) -> int:
        """The owner more often than another."""
        chance = random.Random(fault.pick)
        owner = None
        if fault.pick < _OWNERS_SHARE:
            owner = self._stage.owner(self._stage.one_queue(chance.random()))
        return chance.randrange(len(self._stage.workers)) if owner is None else owner

    def _kill_worker(self, fault: Fault) -> None:
        index = self._worker(fault)
        self._stage.workers[index].kill()
        self._count("kills")
        self._stop.wait(fault.lasts_s)
        self._stage.workers[index] = self._stage.new_worker(index)

    def _pause_worker(self, fault: Fault) -> None:
        child = self._stage.workers[self._worker(fault)]
        child.send(signal.SIGSTOP)
        self._count("pauses")
        self._stop.wait(fault.lasts_s)
        child.send(signal.SIGCONT)

    def _kill_producer(self, fault: Fault) -> None:
        index = int(fault.pick * len(self._stage.producers))
        deadline = time.monotonic() + _LONGEST_WAIT_FOR_A_CALL_S
        while not self._stage.is_calling(index) and time.monotonic() < deadline:
            time.sleep(0.0002)
        time.sleep(random.Random(fault.pick).uniform(0, 0.003))
        self._stage.producers[index].kill()
        self._count("kills")
        self._stop.wait(fault.lasts_s)
        self._stage.producers[index] = self._stage.new_producer(index)

    # Servers.

    def _kill_redis(self, fault: Fault) -> None:
        assert isinstance(self._stage.topology, Single)
        redis = self._stage.topology.redis
        redis.kill()
        self._count("kills")
        self._stop.wait(fault.lasts_s)
        redis.start()
        self._count("restarts")

    def _fail_over(self, fault: Fault) -> None:
        assert isinstance(self._stage.topology, UnderSentinels)
        if self._stage.topology.fail_over(fault.name):
            self._count("failovers")

    def _replace_node(self, fault: Fault) -> None:
        assert isinstance(self._stage.topology, OfNodes)
        if self._stage.topology.replace_node(fault.name, self._stage.one_queue(fault.pick)):
            self._count("failovers")

    def _move_slot(self, fault: Fault) -> None:
        assert isinstance(self._stage.topology, OfNodes)
        at_once = fault.name == "move slot"
        queue = self._stage.one_queue(fault.pick)
        if self._stage.topology.move_slot(queue, None if at_once else fault.lasts_s):
            self._count("slots moved")

    def _restart_sentinel(self, fault: Fault) -> None:
        assert isinstance(self._stage.topology, UnderSentinels)
        _, *others = self._stage.topology.sentinels  # the first one is told to replace the primary
        sentinel = others[int(fault.pick * len(others))]
        sentinel.kill()
        self._count("kills")
        self._stop.wait(fault.lasts_s)
        sentinel.start()
        self._count("restarts")

    def _fill_redis(self, fault: Fault) -> None:
        with self._stage.redis() as client:
            client.config_set("maxmemory", _TINY_BYTES)
            self._count("times full")
            self._stop.wait(fault.lasts_s)
            client.config_set("maxmemory", 0)

    def _restart_postgres(self, fault: Fault) -> None:
        self._stage.postgres_server.stop("immediate")
        self._stop.wait(fault.lasts_s)
        self._stage.postgres_server.start()
        self._count("restarts")

    def _read_only_postgres(self, fault: Fault) -> None:
        with self._stage.postgres() as pg:
            pg.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            pg.execute("SELECT pg_reload_conf()")
            self._count("times read-only")
            self._stop.wait(fault.lasts_s)
            pg.execute("ALTER SYSTEM RESET default_transaction_read_only")
            pg.execute("SELECT pg_reload_conf()")

    def _terminate_backends(self, _fault: Fault) -> None:
        with self._stage.postgres() as pg:
            ended = pg.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name IN ('writebehind', 'loader')"
            ).rowcount
        self._count("backends terminated", ended)

    # The operator.

    def _reshard(self, fault: Fault) -> None:
        """Into another number; killed before its end, it is run again, or the workers do the rest."""
        chance = random.Random(fault.pick)
        numbers = [str(chance.randint(1, 2 * self._stage.shards)) for _ in range(2)]
        if self._command(fault, [["reshard", number] for number in numbers]):
            self._count("reshards")

    def _move(self, fault: Fault) -> None:
        """To the other queue; killed before its end, it is run again, so that its writes do not wait."""
        self._is_moved = not self._is_moved
        there, back = ([SECOND], [QUEUE]) if self._is_moved else ([QUEUE], [SECOND])
        move = ["move", MOVED, "--timeout", str(_MOVE_S)]
        second = there if fault.pick < 0.5 else back
        if self._command(fault, [[*move, *there], [*move, *second]]):
            self._count("moves")

    def _command(self, fault: Fault, commands: Sequence[Sequence[str]]) -> bool:
        """The first, killed and run until it succeeds, or beside the second, as the fault says."""
        first = self._stage.begin_command(*commands[0])
        self._stop.wait(fault.lasts_s)
        if fault.name.endswith("twice"):
            second = self._stage.begin_command(*commands[1])
            return self._succeeds(first) | self._succeeds(second)
        if fault.name.startswith("kill"):
            first.kill()
            self._count("kills")
            while not self._succeeds(self._stage.begin_command(*commands[0])):
                if self._stop.wait(_AGAIN_S):
                    return False
            return True
        return self._succeeds(first)

    def _succeeds(self, child: Child) -> bool:
        """At the end of all faults it is killed."""
        while child.exit_code is None and not self._stop.is_set():
            child.wait(_AGAIN_S)
        code = child.exit_code
        child.kill()
        return code == 0

    def _pause_queue(self, fault: Fault) -> None:
        """Once a pause has said that nothing is written, nothing may be until its end."""
        begun = self._asked(lambda client: pause_all(client, KEYS, "chaos"))
        before = self._committed() if begun and self._are_settled(begun[0]) else None
        self._stop.wait(fault.lasts_s)
        after = self._committed() if before is not None else None
        while not self._asked(lambda client: resume_all(client, KEYS)):
            time.sleep(0.05)
        if before is not None and after is not None:
            self._count("queue pauses")
            if before != after:
                raise AssertionError(f"paused, but batches were committed: {before} became {after}")

    def _are_settled(self, shards: Sequence[QueueKeys]) -> bool:
        """Whether nothing is frozen in them: those that are made from now on claim nothing."""
        try:
            for keys in shards:
                with self._stage.redis(keys.queue) as client:
                    if wait_until_settled(client, keys, _SETTLE_S):
                        return False
        except RedisError:
            return False
        return True

    def _asked(self, question: Callable[[Redis], Any]) -> tuple[Any] | None:
        """The answer of a Redis that may be down: ``None`` then, though it may have heard the question.

        Asked as commands ask: of a cluster all nodes, for a pause is told to each shard.
        """
        try:
            with RedisLink(self._stage.topology.url) as link:
                return (question(link.client),)
        except (*REDIS_ERRORS, OSError):
            return None

    def _committed(self) -> Any:
        """The batches that the ledger remembers; ``None`` if Postgres is down."""
        try:
            with self._stage.postgres() as pg:
                return pg.execute(_COMMITTED, [SECOND]).fetchall()
        except psycopg.Error:
            return None

    # Links.

    def _cut(self, fault: Fault) -> None:
        self._stage.links[fault.lane].drop_connections()
        self._count("links cut")

    def _refuse(self, fault: Fault) -> None:
        link = self._stage.links[fault.lane]
        link.refuse()
        link.drop_connections()
        self._count("links cut")
        self._stop.wait(fault.lasts_s)
        link.accept()

    def _delay(self, fault: Fault) -> None:
        link = self._stage.links[fault.lane]
        link.delay_s = fault.pick * _LONGEST_DELAY_S
        self._count("links delayed")
        self._stop.wait(fault.lasts_s)
        link.delay_s = 0.0

    def _half_open(self, fault: Fault) -> None:
        link = self._stage.links[fault.lane]
        link.pause()
        self._count("links half-open")
        self._stop.wait(fault.lasts_s)
        link.resume()

    def _drop_replies(self, fault: Fault) -> None:
        """One after the other, each to a request that the pick chooses among those that matter."""
        link = self._stage.links[fault.lane]
        chance = random.Random(fault.pick)
        deadline = time.monotonic() + fault.lasts_s
        while time.monotonic() < deadline and not self._stop.is_set():
            before = link.dropped
            chosen = _Chosen(fault.lane, chance)
            # Prepared statements of Postgres are known by the reply only.
            if fault.lane == "worker-postgres":
                link.drop_reply_matching(chosen)
            else:
                link.drop_reply_after(chosen)
            while link.dropped == before and time.monotonic() < deadline and not self._stop.wait(0.01):
                pass
            chosen.is_over = True
            self._count("replies dropped", link.dropped - before)


class _Chosen:
    """A predicate of `Proxy`: some of the calls whose effect must not come twice, and not be lost."""

    _MARKS: ClassVar = {
        "worker-redis": (b":processing:", b":epoch"),
        "worker-postgres": (b"COMMIT\0",),
        "producer-redis": (b"EVALSHA", b"LPUSH"),
    }

    def __init__(self, lane: str, chance: random.Random) -> None:
        self._marks, self._chance = self._MARKS[lane], chance
        self.is_over = False

    def __call__(self, chunk: bytes) -> bool:
        if self.is_over:
            return False
        return any(mark in chunk for mark in self._marks) and self._chance.random() < 0.3
