"""Holds what the producers were told against what both servers hold. No I/O, and no code of the product.

A group is refused as a whole, or one transaction has brought all of its rows to what it made of them.
Each marked call has one write that must be refused, its mark. Its dead letter says whether the call was
accepted, and where it came in the order that is promised: that of the queue, (batch, position), for raw
pushes; for the library's that of the seq, whichever shards a row has been in, and in each queue both are one.
So the order of all writes to a row is known, also of calls whose producer never heard of the outcome.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .history import Call, History, Read
from .model import COLUMNS, Kind, Step, Story, after, compare, is_bad, places, tell, violates_check
from .snapshot import CacheEntry, DeadLetter, RowId, Snapshot, State, cached_row


@dataclass(frozen=True, slots=True)
class Violation:
    kind: Kind
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(slots=True)
class Verdict:
    """``counts``: writes accepted, calls of unknown outcome, and what else was looked at."""

    violations: list[Violation] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: Kind, text: str) -> None:
        self.violations.append(Violation(kind, text))

    def of(self, kind: Kind) -> int:
        return sum(v.kind == kind for v in self.violations)


def check(histories: Sequence[History], snapshot: Snapshot) -> Verdict:
    """All that is wrong; of one row, the first thing only."""
    return _Check(histories, snapshot).run()


class _Check:
    def __init__(self, histories: Sequence[History], snapshot: Snapshot) -> None:
        self._histories, self._snapshot = histories, snapshot
        self._verdict = Verdict()
        self._dead: dict[str, list[DeadLetter]] = defaultdict(list)
        for letter in snapshot.dead_letters:
            self._dead[letter.token].append(letter)
        self._steps: dict[RowId, list[Step]] = defaultdict(list)
        self._unplaced: set[RowId] = set()  # rows of calls whose mark is missing: where they came is unknown

    def run(self) -> Verdict:
        calls = [call for history in self._histories for call in history.calls]
        accepted = self._accepted([call for call in calls if call.mark is not None])
        self._check_order(accepted)
        for call in accepted:
            self._take(call, is_certain=True)
        for call in calls:
            if call.mark is None and call.outcome != "refused":
                self._take(call, is_certain=call.outcome == "acked")
        stories = {row: tell(steps, self._dead) for row, steps in self._steps.items()}
        self._check_dead_letters(stories)
        self._check_rows(stories)
        for call in calls:
            if call.kind == "group" and call.outcome != "refused" and call.letter(0) not in self._dead:
                self._check_whole(call, stories)
        for history in self._histories:
            self._check_reads(history)
        for entry in self._snapshot.cache:
            self._check_entry(entry)
        self._verdict.counts["unknown"] = sum(call.outcome == "unknown" for call in calls)
        return self._verdict

    # Calls.

    def _accepted(self, marked: Iterable[Call]) -> list[Call]:
        """Those that were accepted, in the order that is promised for the writes of each row."""
        found: list[tuple[tuple[int, int], Call]] = []
        by_queue: dict[str, list[tuple[tuple[int, int], Call]]] = defaultdict(list)
        for call in marked:
            assert call.mark is not None
            letters = self._dead.get(call.token(call.mark), [])
            if len(letters) > 1:
                self._verdict.add("repeated", f"the mark of {call} is a dead letter {len(letters)} times")
            if letters and call.outcome == "refused":
                self._verdict.add("repeated", f"{call} was refused ({call.why}), but took effect")
            if letters:
                self._check_seq(call, letters[0])
                by_queue[letters[0].queue].append((letters[0].place, call))
                found.append((letters[0].place if call.kind == "raw" else (call.seq or 0, 0), call))
            elif call.outcome == "acked":
                self._verdict.add("lost", f"the mark of {call} is no dead letter")
                self._unplaced |= {(w.table, w.id) for w in call.writes}
            else:
                self._check_absent(call)
        for taken in by_queue.values():
            self._check_queue([call for _, call in sorted(taken, key=lambda f: f[0])])
        return [call for _, call in sorted(found, key=lambda f: f[0])]

    def _check_seq(self, call: Call, letter: DeadLetter) -> None:
        assert call.mark is not None
        if call.kind == "raw":
            return
        if call.seq is None and letter.seq is not None:
            call.seq = letter.seq - call.mark
        if call.seq is not None and letter.seq != call.seq + call.mark:
            self._verdict.add("broken", f"the dead letter of the mark of {call} has seq {letter.seq}")

    def _check_absent(self, call: Call) -> None:
        """A call without a mark was not accepted: nothing of it may be there."""
        for i, write in enumerate(call.writes):
            if write.table == "events" and ("events", write.id) in self._snapshot.rows:
                self._verdict.add("broken", f"{call} has no mark, but {call.token(i)} took effect")
                return

    def _check_order(self, accepted: Sequence[Call]) -> None:
        """Those of one producer with one route stand as it made them, whichever shards they went by."""
        last_of = dict[tuple[int, bool, int | None], Call]()
        for call in accepted:
            if call.outcome == "acked":
                those = call.who, call.kind == "raw", call.route
                before = last_of.get(those)
                if before is not None and before.number > call.number:
                    self._verdict.add("out of order", f"{call} was taken after {before}")
                last_of[those] = call

    def _check_queue(self, taken: Sequence[Call]) -> None:
        """The library's calls stand in a queue by seq."""
        last_seq = 0
        for call in taken:
            if call.seq is not None:
                if call.seq < last_seq:
                    self._verdict.add("out of order", f"{call} was taken after seq {last_seq}")
                last_seq = max(last_seq, call.seq)

    def _take(self, call: Call, is_certain: bool) -> None:
        for i, write in enumerate(call.writes):
            self._steps[write.table, write.id].append(Step(call, i, is_certain))
        self._verdict.counts["writes"] += len(call.writes) if is_certain else 0

    # Rows and dead letters.

    def _check_dead_letters(self, stories: Mapping[RowId, Story]) -> None:
        refused = {step.token: step for row, story in stories.items() for step in story.refused}
        good = {s.token: s for row, steps in self._steps.items() for s in steps if s.token not in refused}
        for token, letters in self._dead.items():
            self._verdict.counts["dead letters"] += len(letters)
            first = letters[0]
            step = good.get(token)
            if step is not None and (step.write.table, step.write.id) not in self._unplaced:
                why = f"it was refused ({first.kind}): {first.reason}"
                self._verdict.add("wrongly refused", f"{step} is a good write ({step.call}), but {why}")
            elif token in refused and len(letters) > 1 and refused[token].write.table != "marks":
                self._verdict.add("repeated", f"{refused[token]} is a dead letter {len(letters)} times")
            elif token in refused and refused[token].letter != token:
                why = f"{refused[token]} is a dead letter without its group: {first}"
                self._verdict.add("torn apart", why)
            elif step is None and token not in refused:
                self._verdict.add("broken", f"nobody wrote this dead letter: {first}")
            elif token in refused and first.kind != "rejected":
                self._verdict.add(
                    "wrongly refused", f"{refused[token]} is a dead letter of kind {first.kind}"
                )
        for row, story in stories.items():
            if row not in self._unplaced:
                self._check_refused(story)

    def _check_refused(self, story: Story) -> None:
        """What was refused is a dead letter, unless a delete in the same batch has taken its place."""
        last_delete = max((i for i, s in enumerate(story.steps) if s.write.op == "delete"), default=-1)
        kept = {step.token for step in story.steps[last_delete + 1 :]}
        for step in story.refused:
            is_covered = not is_bad(step.write) and step.token not in kept
            if step.letter not in self._dead and step.is_certain and not is_covered:
                self._verdict.add("lost", f"{step} had to be refused, and is no dead letter ({step.call})")

    def _check_rows(self, stories: Mapping[RowId, Story]) -> None:
        snapshot = self._snapshot
        for row in stories.keys() | snapshot.rows.keys() | snapshot.versions.keys():
            if row in self._unplaced:
                continue
            versions = snapshot.versions.get(row, [])
            found = compare(stories.get(row) or tell([]), versions)
            if found is None and (versions[-1] if versions else None) != snapshot.rows.get(row):
                found = "broken", "the row is not as its last version"
            if found is not None:
                self._verdict.add(found[0], f"{row[0]} {row[1]}: {found[1]}")
            self._verdict.counts["versions"] += len(versions)

    def _check_whole(self, call: Call, stories: Mapping[RowId, Story]) -> None:
        """One transaction has brought every row of a group to where the group made it, or beyond."""
        brought: dict[RowId, int | None] = {}
        for row in ((write.table, write.id) for write in call.writes):
            story, versions = stories[row], self._snapshot.versions.get(row, [])
            at = next(i for i, step in enumerate(story.steps, start=1) if step.call is call)
            found = places(story, versions)
            if len(found) < len(versions):
                return  # that row is wrong by itself
            first = next((i for i, place in enumerate(found) if place >= at), None)
            brought[row] = None if first is None else self._snapshot.made_by[row][first]
        if len(set(brought.values())) > 1:
            self._verdict.add("torn apart", f"{call} is not one transaction: {brought}")
        self._verdict.counts["groups"] += 1

    # Reads and the cache.

    def _check_reads(self, history: History) -> None:
        """Of its own rows a producer sees all that it was told is accepted: nobody else writes to them.

        A write that violates a check is refused if it is a dead letter; else a later one of its batch has
        taken the place of what is wrong with it, and the rest has been applied.
        """
        states: dict[RowId, State | None] = {}
        for step in history.steps:
            if isinstance(step, Read):
                self._verdict.counts["reads"] += 1
                expected = states.get((step.table, step.id))
                if not _shows(step.row, expected):
                    told = f"producer-{step.who}.jsonl read {step.row}, its writes had made it {expected}"
                    self._verdict.add("read back", f"{step.table} {step.id}: {told}")
            elif step.kind in ("single", "batch") and step.mark is None and step.outcome == "acked":
                for index, write in enumerate(step.writes):
                    row = states.get((write.table, write.id))
                    is_refused = violates_check(write) and step.letter(index) in self._dead
                    if not (is_refused or (write.op == "patch" and row is None)):
                        states[write.table, write.id] = after(row, write)

    def _check_entry(self, entry: CacheEntry) -> None:
        if entry.ttl_ms < 0:
            self._verdict.add("stale", f"the cache entry {entry.key} has no TTL: {entry.fields}")
        elif entry.fields is None:
            self._verdict.add("stale", f"the cache entry {entry.key} is no hash")
        elif (kind := entry.fields.get("@is")) == "marker":
            self._verdict.add("stale", f"the cache entry {entry.key} is a marker, though nothing is pending")
        elif kind != "fill":
            table, _, id = entry.key.partition(":")
            row = self._snapshot.rows.get((table, id.partition(":")[0]))
            shown = None if kind in ("tombstone", "negative") else cached_row(entry.fields)
            if not _shows(shown, row):
                self._verdict.add("stale", f"the cache entry {entry.key} shows {shown}, the row is {row}")
        self._verdict.counts["cache entries"] += 1


def _shows(shown: dict[str, Any] | None, row: State | None) -> bool:
    """Whether what is shown is the row, or the part of it that was put last."""
    if shown is None or row is None:
        return shown is None and row is None
    columns = dict(zip(COLUMNS, row, strict=True))
    return all(name in columns and columns[name] == value for name, value in shown.items())
