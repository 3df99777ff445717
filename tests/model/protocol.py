"""The way of writes from Redis to Postgres as a model: docs/protocol.md, one step for one atomic action.

The steps carry the names of the code's: enqueue; take the lease, take, own, adopt (takeover.py); claim,
acknowledge (owned_queue.py); record, COMMIT (flush.py). What a new owner concludes from both servers is
decided by the product's own functions (history.py, frozen.py), so that these are checked as they are.

Each worker serves as in tenure.py: claiming, acknowledging and flushing, one batch or all that wait, in any
order that its threads can take. Faults come at every point, as many of each kind as the instance says:
a kill; a false suspicion (the lease runs out although its holder lives, and goes on later); a lost reply; a
producer's call that is sent again; a Redis, or a Postgres, that comes back with an older state: any of those
that it has been in, with writes arriving afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from writebehind_worker.frozen import count_applied_before
from writebehind_worker.history import History, Holdings, LedgerRow, committed, compare

Ids = tuple[int, ...]
Batch = tuple[int, Ids]  # id, seqs: oldest first


class Item(NamedTuple):
    """One write of the producer's program."""

    key: str
    op: str = "put"
    raw: bool = False  # a bare LPUSH: no seq in the message


@dataclass(frozen=True)
class Instance:
    """What there is, how many faults may come, and which rules of the protocol are left out."""

    name: str
    items: tuple[Item, ...]
    waiting: int = 0  # so many are in the queue before anything happens
    batch_size: int = 1
    max_in_flight: int = 2
    recent_batches: int = 64
    kills: int = 0
    suspicions: int = 0
    lost_replies: int = 0
    resends: int = 0
    redis_failovers: int = 0
    postgres_failovers: int = 0
    without: frozenset[str] = frozenset()


class Redis(NamedTuple):
    """The queue's keys. Entries are seqs, oldest first, those of raw items too."""

    queue: Ids = ()
    inflight: tuple[Batch, ...] = ()
    lease: tuple[int, bool] | None = None  # holder, has run out
    epoch: int = 0
    acked: int = 0
    generation: int = 0
    calls: int = 0  # {q}:producers: the last call seen


class Postgres(NamedTuple):
    """The ledger's row; ``applied`` and ``set_aside`` are bit sets of items."""

    epoch: int = 0
    recent: Ids = ()
    applied_seq: int = 0
    generations: Ids = ()
    run: int | None = None
    rollback_seq: int = 0
    rollback_items: int = 0
    applied: int = 0


class Worker(NamedTuple):
    """What a worker believes. ``done``: for each flushed batch the last that the ledger had then."""

    phase: str = "idle"
    epoch: int = 0
    row: Postgres | None = None
    history: History | None = None
    generation: int = 0
    clock: int = 0
    run: int = 0  # of Redis, as it was asked
    connection: int = 0  # the Postgres that it is connected to
    batches: tuple[Batch, ...] = ()
    committed: Ids = ()  # of those that it found, as the ledger told
    done: Ids = ()
    inflight: Ids = ()
    acked: int = 0
    claimed: int = 0
    opened: int = 0  # batches that are not done, which a transaction has recorded
    rollback_items: int = 0


class World(NamedTuple):
    """One state of everything. ``log``: seq - 1 → item, in the order of acceptance."""

    redis: Redis
    postgres: Postgres
    workers: tuple[Worker, ...]
    log: Ids = ()
    sent: int = 0
    redis_run: int = 1
    postgres_run: int = 1
    replica: Redis | None = None  # what a failover will bring back
    standby: Postgres | None = None
    may_lose: int = 0  # items that a server lost after acknowledging them
    may_repeat: int = 0  # raw items that a Redis of before may hold again
    redis_lost: int = 0  # of those, which no owner has told of yet
    postgres_lost: int = 0
    kills: int = 0
    suspicions: int = 0
    lost_replies: int = 0
    resends: int = 0
    redis_failovers: int = 0
    postgres_failovers: int = 0
    broken: str | None = None


_IDLE = Worker()
Step = tuple[str, World]


class Protocol:
    """All steps of an instance, and the invariants."""

    def __init__(self, instance: Instance) -> None:
        self.i = instance
        self._needs = instance.without.isdisjoint

    def start(self) -> World:
        i = self.i
        w = World(
            Redis(),
            Postgres(),
            (_IDLE, _IDLE),
            kills=i.kills,
            suspicions=i.suspicions,
            lost_replies=i.lost_replies,
            resends=i.resends,
            redis_failovers=i.redis_failovers,
            postgres_failovers=i.postgres_failovers,
        )
        for number in range(i.waiting):
            w = self._enqueued(w, number)
        return w

    def broken(self, w: World) -> str | None:
        """The invariant that does not hold, if any."""
        if w.broken:
            return w.broken
        kept = w.postgres.applied | w.may_lose
        for seq in w.redis.queue:
            kept |= 1 << w.log[seq - 1]
        for _, seqs in w.redis.inflight:
            for seq in seqs:
                kept |= 1 << w.log[seq - 1]
        if (1 << w.sent) - 1 & ~kept:
            return "lost: an accepted write is neither in Redis nor in Postgres"
        return None

    def stuck(self, w: World) -> str | None:
        """What is wrong with a state in which nothing more can happen."""
        if w.redis.queue or w.redis.inflight or w.sent < len(self.i.items):
            return "stuck: writes wait, and no step is left"
        return None

    def steps(self, w: World) -> Iterator[Step]:
        if w.broken:
            return
        yield from self._produce(w)
        yield from self._fail(w)
        for name, after in self._acts(w):
            yield name, after
            # A replica that stops following does so just before a change that it will not have.
            if w.redis_failovers and w.replica is None and after.redis != w.redis:
                yield f"{name}: the replica has not got that", after._replace(replica=w.redis)
            if w.postgres_failovers and w.standby is None and after.postgres != w.postgres:
                yield f"{name}: the standby has not got that", after._replace(standby=w.postgres)

    def _acts(self, w: World) -> Iterator[Step]:
        yield from self._produce(w)
        for n, worker in enumerate(w.workers):
            if n and worker is _IDLE and w.workers[0] is _IDLE and w.redis.lease is None:
                continue  # they are alike: let the first begin
            yield from self._work(w, n, worker)

    # The producer.

    def _produce(self, w: World) -> Iterator[Step]:
        if w.sent < len(self.i.items):
            yield f"enqueue {w.sent}", self._enqueued(w, w.sent)
        # A call that is sent again after a failover is a new write: said in docs/guarantees.md.
        if w.resends and w.sent and not self.i.items[w.sent - 1].raw and w.redis_run == 1:
            again = w._replace(resends=w.resends - 1)
            if w.redis.calls == w.sent and self._needs({"sessions"}):
                return  # enqueue.lua has seen it, and gives the first answer again
            yield f"enqueue {w.sent - 1}, sent again", self._accept(again, w.sent - 1)

    def _enqueued(self, w: World, item: int) -> World:
        w = self._accept(w, item)._replace(sent=item + 1)
        if self.i.items[item].raw:
            return w
        return w._replace(redis=w.redis._replace(calls=item + 1))

    def _accept(self, w: World, item: int) -> World:
        log = (*w.log, item)
        generation = w.redis.generation or len(log) + 10 * w.redis_run
        redis = w.redis._replace(queue=(*w.redis.queue, len(log)), generation=generation)
        return w._replace(log=log, redis=redis)

    # A worker.

    def _work(self, w: World, n: int, me: Worker) -> Iterator[Step]:
        match me.phase:
            case "idle":
                if w.redis.lease is None or w.redis.lease[0] == n or w.redis.lease[1]:
                    # The floor of the epoch, the run id and the connection to Postgres are had now.
                    taken = Worker("leased", epoch=w.redis.epoch, run=w.redis_run, connection=w.postgres_run)
                    redis = w.redis._replace(lease=(n, False))
                    yield f"{n}: take the lease", _with(w, n, taken, redis=redis)
            case "leased":
                yield from self._replied(w, n, f"{n}: take", self._take(w, n, me))
            case "taken":
                yield from self._replied(w, n, f"{n}: own", self._own(w, n, me))
            case "adopting":
                yield from self._replied(w, n, f"{n}: adopt", self._adopt(w, n, me))
            case "adopted":
                yield from self._replied(w, n, f"{n}: own", self._own_adopted(w, n, me))
            case "serving":
                yield from self._claim(w, n, me)
                yield from self._flush(w, n, me)
                yield from self._acknowledge(w, n, me)
            case "ending" if me.opened:
                yield from self._commit(w, n, me)
            case "ending":
                yield f"{n}: release", self._end(w, n)

    def _replied(self, w: World, n: int, name: str, after: World) -> Iterator[Step]:
        yield name, after
        if w.lost_replies:
            lost = after._replace(lost_replies=w.lost_replies - 1)
            yield f"{name}, reply lost", self._end(lost, n)

    def _end(self, w: World, n: int) -> World:
        """The tenure is over: an open transaction may still be committed, then the lease is released."""
        me = w.workers[n]
        if me.opened:
            return _with(w, n, me._replace(phase="ending", done=(), batches=me.batches[len(me.done) :]))
        redis = w.redis
        if redis.lease is not None and redis.lease[0] == n:
            redis = redis._replace(lease=None)
        return _with(w, n, _IDLE, redis=redis)

    def _take(self, w: World, n: int, me: Worker) -> World:
        if me.connection != w.postgres_run:
            return self._end(w, n)
        for other, worker in enumerate(w.workers):  # a stalled owner's backend is ended
            if worker.opened:
                w = _with(w, other, worker._replace(opened=0, connection=0))
        floor = me.epoch if self._needs({"epoch floor"}) else 0
        row = w.postgres._replace(epoch=max(w.postgres.epoch, floor) + 1)
        return _with(w, n, me._replace(phase="taken", epoch=row.epoch, row=row), postgres=row)

    def _own(self, w: World, n: int, me: Worker) -> World:
        redis, row = w.redis, me.row
        assert row is not None
        if redis.lease is None or redis.lease[0] != n:
            return self._end(w, n)
        if not self._needs({"frozen batches"}):
            back = tuple(seq for _, seqs in redis.inflight for seq in seqs)
            redis = redis._replace(queue=back + redis.queue, inflight=())
        redis = redis._replace(
            epoch=me.epoch, generation=redis.generation or len(w.log) + 10 * w.redis_run + 5
        )
        ids = tuple(batch for batch, _ in redis.inflight)
        clock = max(len(w.log), row.applied_seq)
        history = compare(
            LedgerRow(
                me.epoch, row.recent, row.applied_seq, row.generations,
                None if row.run is None else str(row.run), 0, 0,
            ),
            Holdings(0, clock, redis.generation, 0, redis.acked, ids),
            str(me.run),
        )  # fmt: skip
        me = me._replace(
            history=history,
            generation=redis.generation,
            clock=clock,
            batches=redis.inflight,
            committed=tuple(committed(row.recent, ids))
            if self._needs({"ledger", "what came before"})
            else (),
            inflight=ids,
            acked=redis.acked,
            rollback_items=row.rollback_items,
        )
        if history.receipts_are_void or history.redis_is_new:  # it is said which server went back
            w = w._replace(redis_lost=0, postgres_lost=w.postgres_lost & self._held(w, redis))
        if history.is_plain and row.run == me.run:
            return self._serve(w._replace(redis=redis), n, me)
        return _with(w, n, me._replace(phase="adopting"), redis=redis)

    def _adopt(self, w: World, n: int, me: Worker) -> World:
        assert me.row is not None and me.history is not None
        if me.connection != w.postgres_run or w.postgres.epoch != me.epoch:
            return self._end(w, n)
        seq, items = me.row.rollback_seq, me.row.rollback_items
        if me.history.must_count:
            known = (*me.committed, *me.row.recent)
            unresolved = [seqs for batch, seqs in me.batches if batch not in known]
            bodies = [self._body(w, s) for seqs in (*unresolved, w.redis.queue) for s in seqs]
            seq, items = me.row.applied_seq, count_applied_before(bodies, me.row.applied_seq, me.clock)[0]
        elif me.history.redis_is_new:
            seq = items = 0
        if not self._needs({"skipping by seq"}):
            items = 0
        kept = items if self._needs({"count in the ledger"}) else 0
        generation = me.generation
        if me.history.receipts_are_void:
            generation = max(len(w.log) + 10 * w.redis_run + 5, generation + 1)
        served = (me.generation,) if generation == me.generation else (me.generation, generation)
        row = w.postgres._replace(
            generations=(*(g for g in w.postgres.generations if g not in served), *served),
            run=me.run,
            rollback_seq=seq,
            rollback_items=kept,
        )
        me = me._replace(phase="adopted", generation=generation, rollback_items=items, row=row)
        return _with(w, n, me, postgres=row)

    def _own_adopted(self, w: World, n: int, me: Worker) -> World:
        assert me.row is not None
        if w.redis.lease is None or w.redis.lease[0] != n:
            return self._end(w, n)
        last = me.row.recent[-1] if me.row.recent else 0
        redis = w.redis._replace(epoch=me.epoch, generation=me.generation, acked=last)
        ids = tuple(batch for batch, _ in redis.inflight)
        return self._serve(w._replace(redis=redis), n, me._replace(inflight=ids, acked=last))

    def _serve(self, w: World, n: int, me: Worker) -> World:
        if w.redis_run != me.run:  # the connection was renewed meanwhile
            return self._end(_with(w, n, me), n)
        if not self._needs({"ordered recovery"}):
            me = me._replace(batches=me.batches[::-1])
        forgotten = me._replace(row=None, history=None, generation=0, clock=0)
        return _with(w, n, forgotten._replace(phase="serving"))

    def _claim(self, w: World, n: int, me: Worker) -> Iterator[Step]:
        redis = w.redis
        refused = (redis.lease != (n, False) and self._needs({"lease"})) or (
            redis.epoch != me.epoch and self._needs({"epoch in Redis"})
        )
        if self._needs({"checking inflight"}):
            ids = tuple(batch for batch, _ in redis.inflight)
            refused = refused or ids != me.inflight or redis.acked != me.acked
        if refused:
            yield f"{n}: claim, refused", self._end(w, n)
            return
        if not redis.queue or len(me.inflight) >= self.i.max_in_flight:
            return
        batch = (me.epoch << 8 | me.claimed + 1, redis.queue[: self.i.batch_size])
        redis = redis._replace(queue=redis.queue[self.i.batch_size :], inflight=(*redis.inflight, batch))
        if not self._needs({"frozen in Redis"}):  # a plain RPOP
            redis = redis._replace(inflight=w.redis.inflight)
        known = me._replace(
            claimed=me.claimed + 1, batches=(*me.batches, batch), inflight=(*me.inflight, batch[0])
        )
        renewed = w.redis_run != me.run and self._needs({"connection"})
        after = _with(w, n, known, redis=redis)
        if w.redis_lost & ~w.postgres.applied and not renewed:
            after = w._replace(broken="unsaid: Redis has lost a write, and the owner goes on")
        yield f"{n}: claim", self._end(after, n) if renewed else after
        if w.lost_replies:
            lost = w._replace(redis=redis, lost_replies=w.lost_replies - 1)
            if self._needs({"reading again after a claim"}):
                yield f"{n}: claim, reply lost", self._end(lost, n)
            else:
                yield f"{n}: claim, reply lost", _with(lost, n, me._replace(claimed=me.claimed + 1))

    def _flush(self, w: World, n: int, me: Worker) -> Iterator[Step]:
        if me.opened:
            yield from self._commit(w, n, me)
        elif len(me.done) < len(me.batches) and not any(worker.opened for worker in w.workers):
            yield f"{n}: record", self._record(w, n, me, 1)
            more = len(me.batches) - len(me.done)
            if more > 1 and not me.rollback_items and not self._is_in(w, me, me.batches[len(me.done) :]):
                yield f"{n}: record {more}", self._record(w, n, me, more)

    def _is_in(self, w: World, me: Worker, batches: tuple[Batch, ...]) -> bool:
        """Whether one of them has been committed before: then each goes by itself."""
        return any(id in w.postgres.recent or id in me.committed for id, _ in batches)

    def _record(self, w: World, n: int, me: Worker, count: int) -> World:
        batch = me.batches[len(me.done)][0]
        if me.connection != w.postgres_run:
            return self._end(w, n)
        if batch in me.committed:
            return _with(w, n, me._replace(done=(*me.done, w.postgres.recent[-1])))
        is_in = batch in w.postgres.recent
        if not self._needs({"membership"}):
            is_in = bool(w.postgres.recent) and batch <= w.postgres.recent[-1]
        if not self._needs({"ledger"}):
            is_in = False
        if w.postgres.epoch != me.epoch and self._needs({"fence"}):
            return self._end(w, n)
        if w.postgres_lost & ~w.postgres.applied & ~self._held(w, w.redis):
            return w._replace(broken="unsaid: Postgres has lost a write, and the owner goes on")
        if is_in:
            return _with(w, n, me._replace(done=(*me.done, w.postgres.recent[-1])))
        return _with(w, n, me._replace(opened=count))

    def _commit(self, w: World, n: int, me: Worker) -> Iterator[Step]:
        if me.connection != w.postgres_run:
            yield f"{n}: COMMIT, refused", self._end(_with(w, n, me._replace(opened=0)), n)
            return
        those = me.batches[len(me.done) : len(me.done) + me.opened]
        postgres, broken, left = w.postgres, w.broken, me.rollback_items
        for batch, seqs in those:
            at = w._replace(postgres=postgres)
            postgres, found, left = self._applied(at, me._replace(rollback_items=left), batch, seqs)
            broken = broken or found
        after = me._replace(opened=0, done=(*me.done, *[id for id, _ in those]), rollback_items=left)
        committed = w._replace(postgres=postgres, broken=broken)
        if me.phase == "ending":
            yield f"{n}: COMMIT", self._end(_with(committed, n, after), n)
            yield f"{n}: rollback", self._end(_with(w, n, me._replace(opened=0)), n)
            return
        yield f"{n}: COMMIT", _with(committed, n, after)
        if w.lost_replies:
            for name, world in (("done", committed), ("not done", w)):
                lost = _with(world, n, after)._replace(lost_replies=w.lost_replies - 1)
                if self._needs({"reading again after COMMIT"}):
                    lost = self._end(lost, n)
                yield f"{n}: COMMIT {name}, reply lost", lost

    def _applied(self, w: World, me: Worker, batch: int, seqs: Ids) -> tuple[Postgres, str | None, int]:
        """The rows and the ledger after the batch; what it has broken; rollback items left."""
        row, broken = w.postgres, None
        before, applied = 0, row.applied
        for at, seq in enumerate(seqs):  # split_applied_before
            newer = not self._item(w, seq).raw and seq > row.rollback_seq
            if at >= me.rollback_items or newer:
                break
            before += 1
        left = 0 if before < len(seqs) else me.rollback_items - before
        for at, seq in enumerate(seqs):
            number, item = w.log[seq - 1], self._item(w, seq)
            bit = 1 << number
            if at < before:
                if not (applied | w.may_lose) & bit:
                    broken = f"lost: write {number} was set aside, but had never been applied"
            elif not w.may_repeat & bit:
                if item.op == "increment" and applied & bit:
                    broken = f"repeated: increment {number} took effect twice"
                later = [k for k in range(number + 1, w.sent) if self.i.items[k].key == item.key]
                if any(applied >> k & 1 for k in later if not w.may_repeat >> k & 1):
                    broken = f"order: write {number} came after a newer one of its row"
            applied |= bit
        highest = max((s for s in seqs if not self._item(w, s).raw), default=0)
        return (
            row._replace(
                recent=(*row.recent, batch)[-self.i.recent_batches :],
                applied_seq=max(row.applied_seq, highest),
                rollback_items=left,
                applied=applied,
            ),
            broken,
            left,
        )

    def _acknowledge(self, w: World, n: int, me: Worker) -> Iterator[Step]:
        early = not self._needs({"commit before acknowledge"})
        if not me.done and not (early and me.batches):
            return
        yield from self._acknowledge_some(w, n, me, 1)
        if len(me.done) > 1:
            yield from self._acknowledge_some(w, n, me, len(me.done))

    def _acknowledge_some(self, w: World, n: int, me: Worker, count: int) -> Iterator[Step]:
        redis = w.redis
        ids, frozen = ([id for id, _ in them[:count]] for them in (me.batches, redis.inflight))
        if (
            ((redis.lease is None or redis.lease[0] != n) and self._needs({"lease"}))
            or (redis.epoch != me.epoch and self._needs({"epoch in Redis"}))
            or not redis.inflight
            or (frozen != ids and self._needs({"acknowledging the oldest"}))
        ):
            yield f"{n}: acknowledge {count}, refused", self._end(w, n)
            return
        last = me.done[count - 1] if me.done else ids[-1]
        after = w._replace(redis=redis._replace(inflight=redis.inflight[count:], acked=last))
        known = me._replace(
            batches=me.batches[count if me.done else 0 :],
            done=me.done[count:],
            inflight=me.inflight[count:],
            acked=last,
        )
        yield f"{n}: acknowledge {count}", _with(after, n, known)
        if w.lost_replies:
            lost = after._replace(lost_replies=w.lost_replies - 1)
            reads = self._needs({"reading again after acknowledge"})
            yield f"{n}: acknowledge {count}, reply lost", self._end(lost, n) if reads else _with(lost, n, me)

    # Faults.

    def _fail(self, w: World) -> Iterator[Step]:
        for n, worker in enumerate(w.workers):
            if w.kills and worker is not _IDLE:
                redis = w.redis
                if redis.lease is not None and redis.lease[0] == n:
                    redis = redis._replace(lease=None)  # it runs out
                yield f"kill {n}", _with(w, n, _IDLE, redis=redis)._replace(kills=w.kills - 1)
        lease = w.redis.lease
        if w.suspicions and lease is not None and not lease[1]:
            redis = w.redis._replace(lease=(lease[0], True))
            yield f"the lease of {lease[0]} runs out", w._replace(redis=redis, suspicions=w.suspicions - 1)
        if w.redis_failovers:
            yield "Redis: failover to the replica", self._redis_goes_back(w, w.replica or w.redis)
        if w.postgres_failovers:
            yield "Postgres: failover to the standby", self._postgres_goes_back(w, w.standby or w.postgres)

    def _redis_goes_back(self, w: World, redis: Redis) -> World:
        held = self._held(w, redis)
        lost = (1 << w.sent) - 1 & ~held & ~w.postgres.applied
        raw = sum(1 << k for k in range(w.sent) if self.i.items[k].raw)
        if redis.lease is not None:  # of a tenure that is over, or renewed by the heartbeat
            holder = redis.lease[0]
            redis = redis._replace(lease=None if w.workers[holder] is _IDLE else (holder, False))
        return w._replace(
            redis=redis._replace(calls=0),
            redis_run=w.redis_run + 1,
            replica=None,
            redis_failovers=w.redis_failovers - 1,
            may_lose=w.may_lose | lost,
            may_repeat=w.may_repeat | raw,
            redis_lost=w.redis_lost | lost & ~w.may_lose,
        )

    def _postgres_goes_back(self, w: World, postgres: Postgres) -> World:
        """Lost is what it had acknowledged, unless Redis still has it and nobody takes it for done."""
        held = self._held(w, w.redis)
        for worker in w.workers:
            for _, seqs in worker.batches[: len(worker.done)]:
                for seq in seqs:
                    held &= ~(1 << w.log[seq - 1])
        lost = w.postgres.applied & ~postgres.applied & ~held
        return w._replace(
            postgres=postgres,
            postgres_run=w.postgres_run + 1,
            standby=None,
            postgres_failovers=w.postgres_failovers - 1,
            may_lose=w.may_lose | lost,
            postgres_lost=w.postgres_lost | lost,
        )

    def _held(self, w: World, redis: Redis) -> int:
        held = 0
        for seqs in (redis.queue, *(seqs for _, seqs in redis.inflight)):
            for seq in seqs:
                held |= 1 << w.log[seq - 1]
        return held

    def _item(self, w: World, seq: int) -> Item:
        return self.i.items[w.log[seq - 1]]

    def _body(self, w: World, seq: int) -> bytes:
        if self._item(w, seq).raw:
            return b'{"table":"t","id":1,"data":{}}'
        return b'{"seq":%d,"table":"t","id":1,"data":{},"key":"t:1","ttl":1}' % seq


def _with(
    w: World, n: int, worker: Worker, *, redis: Redis | None = None, postgres: Postgres | None = None
) -> World:
    workers = (worker, w.workers[1]) if n == 0 else (w.workers[0], worker)
    return w._replace(workers=workers, redis=redis or w.redis, postgres=postgres or w.postgres)
