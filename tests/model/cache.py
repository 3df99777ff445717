"""One cache entry as a model: the table of states in docs/cache.md, with readers, fills, settles and expiry.

The steps carry the names of the code's: enqueue (enqueue.lua), COMMIT, settle (settle_entries.lua),
acknowledge; look, begin_fill, load, end_fill (cache.py), invalidate. A settle may come once more at any
later time, from a worker that was paused. Whatever has a time to live may vanish at any moment, by time or
by eviction.

What a row holds is told by the last put in it and the set of increments since; no row is ``None``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

Content = tuple[int, frozenset[int]] | None
GONE: Content = None


class Write(NamedTuple):
    """One write of the program; Postgres refuses it if it ``is_bad``."""

    op: str
    is_bad: bool = False


class Entry(NamedTuple):
    """A cache entry: ``row``, ``marker``, ``tombstone``, ``negative`` or ``fill``."""

    kind: str
    seq: int = 0
    content: Content = GONE
    has_ttl: bool = False
    is_dirty: bool = False
    token: int = 0


class Reader(NamedTuple):
    """``floor``: the newest good write accepted when its ``get`` began."""

    phase: str = "idle"
    floor: int = 0
    seq: int = 0
    token: int = 0
    loaded: tuple[int, Content] | None = None
    gets: int = 1


class World(NamedTuple):
    """``committed``, ``settled`` and ``applied`` count writes, which are flushed one by one."""

    readers: tuple[Reader, ...]
    entry: Entry | None = None
    accepted: int = 0
    committed: int = 0
    settled: int = 0
    applied: int = 0
    late_settles: int = 0
    invalidations: int = 0
    tokens: int = 0
    broken: str | None = None


@dataclass(frozen=True)
class Instance:
    """The writes, how much of everything there is, and which rules are left out."""

    name: str
    writes: tuple[Write, ...]
    readers: int = 2
    gets: int = 1
    late_settles: int = 1
    invalidations: int = 1
    without: frozenset[str] = frozenset()


Step = tuple[str, World]


class Cache:
    """All steps of an instance, and the invariants."""

    def __init__(self, instance: Instance) -> None:
        self.i = instance
        self._needs = instance.without.isdisjoint

    def start(self) -> World:
        readers = tuple(Reader(gets=self.i.gets) for _ in range(self.i.readers))
        return World(readers, late_settles=self.i.late_settles, invalidations=self.i.invalidations)

    def broken(self, w: World) -> str | None:
        """The invariant that does not hold, if any."""
        if w.broken or w.entry is None:
            return w.broken
        if w.settled < w.accepted:
            return None
        if not w.entry.has_ttl:
            return "stale: the entry has no time to live, and nothing is pending"
        if w.entry.kind in ("row", "tombstone") and w.entry.content != self._row(w.committed):
            return "stale: nothing is pending, and the entry is not what the row is"
        return None

    def stuck(self, w: World) -> str | None:
        """Nothing is left to happen when everything is done."""
        busy = w.settled < len(self.i.writes) or any(r.phase != "idle" for r in w.readers)
        return "stuck: something waits, and no step is left" if busy else None

    def steps(self, w: World) -> Iterator[Step]:
        yield from self._write(w)
        for n, reader in enumerate(w.readers):
            yield from self._read(w, n, reader)
        if w.entry is not None and w.entry.has_ttl:
            yield "the entry expires", w._replace(entry=None)
        if w.invalidations:
            pending = w.entry is not None and w.entry.seq and not w.entry.has_ttl
            if not pending or not self._needs({"invalidate waits"}):
                yield "invalidate", w._replace(entry=None, invalidations=w.invalidations - 1)

    def _row(self, writes: int) -> Content:
        """The row in Postgres after so many writes."""
        row: Content = GONE
        for seq in range(1, writes + 1):
            if not self.i.writes[seq - 1].is_bad:
                row = _after(row, self.i.writes[seq - 1].op, seq)
        return row

    # Writers and the worker.

    def _write(self, w: World) -> Iterator[Step]:
        if w.accepted < len(self.i.writes):
            seq = w.accepted + 1
            op = self.i.writes[seq - 1].op
            yield f"enqueue {op} {seq}", w._replace(accepted=seq, entry=self._shown(w.entry, op, seq))
        if w.committed < w.accepted:
            yield f"COMMIT {w.committed + 1}", w._replace(committed=w.committed + 1)
        limit = w.committed if self._needs({"settle after COMMIT"}) else w.accepted
        if w.settled < limit:
            seq = w.settled + 1
            yield f"settle {seq}", w._replace(settled=seq, entry=self._settle(w.entry, seq))
            if self._may_leave(w, seq):
                yield f"settle {seq}: left to a later write", w._replace(settled=seq)
        if w.applied < min(w.settled, w.committed):
            yield f"acknowledge {w.applied + 1}", w._replace(applied=w.applied + 1)
        if w.late_settles:
            for seq in range(1, w.settled + 1):
                after = w._replace(late_settles=w.late_settles - 1, entry=self._settle(w.entry, seq))
                yield f"settle {seq}, by a worker that was paused", after

    def _may_leave(self, w: World, seq: int) -> bool:
        """`still_shown` in settle.py."""
        is_overtaken = seq < w.accepted or not self._needs({"left to a later write only"})
        return is_overtaken and not (self.i.writes[seq - 1].is_bad and self._needs({"a rejection is told"}))

    def _shown(self, entry: Entry | None, op: str, seq: int) -> Entry | None:
        """The entry after a write: `show` in enqueue.lua."""
        early = not self._needs({"pending without TTL"})
        if op == "put":
            return Entry("row", seq, (seq, frozenset()), has_ttl=early)
        if op == "delete":
            return Entry("tombstone", seq) if self._needs({"tombstone"}) else None
        if entry is not None and entry.kind == "row":
            content = _after(entry.content, op, seq)
            return Entry("row", seq, content, has_ttl=early, is_dirty=entry.is_dirty)
        if entry is not None and entry.kind == "fill" and not self._needs({"a write ends the fill"}):
            return entry
        return Entry("marker", seq) if self._needs({"marker"}) else entry

    def _settle(self, entry: Entry | None, seq: int) -> Entry | None:
        if entry is None or not entry.seq:
            return entry
        if self.i.writes[seq - 1].is_bad:
            if entry.seq == seq:
                return None
            if entry.seq > seq and not entry.has_ttl and self._needs({"dirty"}):
                return entry._replace(is_dirty=True)
            return entry
        if entry.seq != seq and self._needs({"settle compares seq"}):
            return entry
        is_clean = self.i.writes[seq - 1].op == "put" or not self._needs({"only a put cleans"})
        if entry.kind == "marker" or (entry.is_dirty and not is_clean):
            return None
        return entry._replace(has_ttl=True)

    # Readers.

    def _read(self, w: World, n: int, r: Reader) -> Iterator[Step]:
        match r.phase:
            case "idle" if r.gets:
                good = [s for s in range(1, w.accepted + 1) if not self.i.writes[s - 1].is_bad]
                begun = Reader("looking", max(good, default=0), gets=r.gets - 1)
                yield f"{n}: look", self._look(w, n, begun)
            case "looking":
                yield f"{n}: look", self._look(w, n, r)
            case "missed":
                yield f"{n}: begin_fill", self._begin_fill(w, n, r)
            case "waiting" if w.applied >= r.seq or not self._needs({"waiting at a marker"}):
                yield f"{n}: load", self._returned(w, n, r, w.committed, fills=False)
            case "filling":
                loaded = (w.committed, self._row(w.committed))
                yield f"{n}: load", _with(w, n, r._replace(phase="loaded", loaded=loaded))
            case "loaded":
                assert r.loaded is not None
                yield f"{n}: end_fill", self._returned(w, n, r, r.loaded[0], fills=True)
                yield f"killed: reader {n}", _with(w, n, Reader(gets=r.gets))

    def _look(self, w: World, n: int, r: Reader) -> World:
        if w.entry is None:
            return _with(w, n, r._replace(phase="missed"))
        if w.entry.kind == "fill":
            return _with(w, n, r._replace(phase="looking"))
        if w.entry.kind == "marker":
            return _with(w, n, r._replace(phase="waiting", seq=w.entry.seq))
        return self._returned(w, n, r, w.entry.seq or w.entry.token, fills=False)

    def _begin_fill(self, w: World, n: int, r: Reader) -> World:
        if w.entry is not None:
            return self._look(w, n, r)
        token = w.tokens + 1
        w = w._replace(tokens=token, entry=Entry("fill", token=token, has_ttl=True))
        return _with(w, n, r._replace(phase="filling", token=token))

    def _returned(self, w: World, n: int, r: Reader, version: int, *, fills: bool) -> World:
        """The ``get`` ends with a row as it was after ``version`` writes."""
        if version < r.floor:
            return w._replace(broken=f"went back: a row without write {r.floor}, which was accepted before")
        if fills and r.loaded is not None and self._may_fill(w.entry, r):
            # What was loaded keeps its version in ``token``: it has no seq.
            kind = "negative" if r.loaded[1] is GONE else "row"
            w = w._replace(entry=Entry(kind, 0, r.loaded[1], has_ttl=True, token=r.loaded[0]))
        return _with(w, n, Reader(gets=r.gets))

    def _may_fill(self, entry: Entry | None, r: Reader) -> bool:
        if self._needs({"own token"}):
            return entry is not None and entry.kind == "fill" and entry.token == r.token
        return entry is None or entry.kind == "fill"


def _after(row: Content, op: str, seq: int) -> Content:
    if op == "put":
        return (seq, frozenset())
    if op == "delete":
        return GONE
    base, increments = row or (0, frozenset())
    return (base, increments | {seq})


def _with(w: World, n: int, reader: Reader) -> World:
    return w._replace(readers=(*w.readers[:n], reader, *w.readers[n + 1 :]))
