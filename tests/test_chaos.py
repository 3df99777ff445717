"""The chaos harness itself: the same seed gives the same faults, and the checker names what is wrong."""

from __future__ import annotations

import ast
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.chaos.checker import Verdict, check
from tests.chaos.history import Call, History, Line, Read, Write, encode, read_history, token
from tests.chaos.model import Kind, Step, compare, is_bad, tell
from tests.chaos.report import LiveLine, last_line
from tests.chaos.round import Plan, play
from tests.chaos.schedule import FAULTS, LANES, schedule
from tests.chaos.snapshot import CacheEntry, DeadLetter, Snapshot, State
from tests.chaos.stage import Stage
from tests.chaos.stream import Stream, route_of

from writebehind_worker.embedded import ServerNotFound
from writebehind_worker.testing.servers import missing, new_data_dir

WHO = 3
CHAOS = Path(__file__).parent / "chaos"


# The schedule.


def test_the_same_seed_gives_the_same_faults_and_another_seed_others() -> None:
    assert schedule(1, 60) == schedule(1, 60)
    assert schedule(1, 60) != schedule(2, 60)


@given(st.integers(), st.floats(1, 600))
def test_the_faults_of_a_lane_follow_each_other_and_end_in_time(seed: int, seconds: float) -> None:
    for lane, faults in schedule(seed, seconds).items():
        ends_s = 0.0
        for fault in faults:
            assert fault.lane == lane and fault.name in LANES[lane].faults
            assert fault.at_s > ends_s
            ends_s = fault.at_s + fault.lasts_s
            assert ends_s <= seconds + 1e-6


def test_a_minute_has_every_fault_sooner_or_later() -> None:
    seen = {f.name for seed in range(20) for faults in schedule(seed, 60).values() for f in faults}
    assert seen == FAULTS


def test_only_the_faults_asked_for_happen() -> None:
    found = schedule(1, 60, {"worker-postgres/cut"})
    assert {f.lane + "/" + f.name for faults in found.values() for f in faults} == {"worker-postgres/cut"}


def test_a_producer_with_the_same_number_asks_for_the_same() -> None:
    assert Stream(7, WHO).batch(1) == Stream(7, WHO).batch(1)
    assert Stream(7, WHO).batch(1) != Stream(7, WHO + 1).batch(1)


# The histories.


def test_a_history_is_read_as_it_was_written() -> None:
    put = Write("put", "own", "1", {"a": token(WHO, 1, 0)})
    lines = [
        Line(1, "single", [put]),
        Line(1, ok=41),
        Line(read="1", row={"a": "x", "n": None}),
        Line(2, "single", [put]),
        Line(2, refused="full"),
        Line(3, "raw", [put]),
        Line(3, unknown="no answer"),
        Line(4, "single", [put]),
    ]
    text = b"".join(encode(line) + b"\n" for line in lines) + b'{"call":5,"kind":"sing'
    steps = read_history(WHO, text).steps
    calls = [step for step in steps if isinstance(step, Call)]
    assert [(c.number, c.outcome, c.seq) for c in calls] == [
        (1, "acked", 41),
        (2, "refused", None),
        (3, "unknown", None),
        (4, "unknown", None),
    ]
    assert steps[1] == Read(WHO, "1", {"a": "x", "n": None})


# The model: one row.


def steps_of(*writes: Write, outcome: Any = "acked") -> list[Step]:
    return [Step(Call(WHO, i, "single", [w], outcome, i), 0) for i, w in enumerate(writes, start=1)]


def put(text: str, **more: Any) -> Write:
    return Write("put", "shared", "1", {"a": text, **more})


def add(delta: int) -> Write:
    return Write("increment", "shared", "1", {"n": 1, "s": delta})


DELETE = Write("delete", "shared", "1", {})
WRITES = st.one_of(
    st.sampled_from("abcdefgh").map(put),
    st.sampled_from("abcdefgh").map(lambda t: Write("patch", "shared", "1", {"b": t})),
    st.integers(1, 1 << 40).map(add),
    st.just(DELETE),
)


def recorded(states: Sequence[State | None]) -> list[State | None]:
    """What the trigger records of these states: a row that was not there is not deleted."""
    found: list[State | None] = []
    for state in states:
        if state is not None or (found and found[-1] is not None):
            found.append(state)
    return found


@given(st.lists(WRITES, max_size=12), st.data())
def test_any_merging_of_writes_in_order_is_right(writes: list[Write], data: st.DataObject) -> None:
    story = tell(steps_of(*writes))
    cuts = data.draw(st.sets(st.integers(1, max(1, len(writes)))))
    taken = sorted({i for i in cuts if i <= len(writes)} | ({len(writes)} if writes else set()))
    # A batch gives a version only where it changed the row, or wrote it again.
    states = [story.states[i] for i in taken if story.states[i] != story.states[i - 1] or i == len(writes)]
    if not states or states[-1] != story.states[-1]:
        states.append(story.states[-1])
    seen = [s for i, s in enumerate(states) if i == 0 or s != states[i - 1]]
    assert compare(story, recorded(seen)) is None


@given(st.lists(st.integers(1 << 39, 1 << 40).map(add), min_size=1, max_size=12, unique_by=str), st.data())
def test_an_increment_that_is_missing_or_doubled_is_found(writes: list[Write], data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, len(writes) - 1))
    story = tell(steps_of(*writes))
    fewer = tell(steps_of(*writes[:lost], *writes[lost + 1 :])).states[-1]
    more = tell(steps_of(*writes, writes[lost])).states[-1]
    assert wrong(story, recorded([fewer])) == "lost"
    assert wrong(story, [more]) == "repeated"


def wrong(story: Any, versions: Sequence[State | None]) -> Kind | None:
    found = compare(story, versions)
    return None if found is None else found[0]


def shown(text: str | None, n: int = 0, s: int = 0) -> State:
    return text, None, n, s


@pytest.mark.parametrize(
    ("versions", "kind"),
    [
        ([shown("x"), shown("y")], None),
        ([shown("y")], None),
        ([], "lost"),
        ([shown("x")], "lost"),
        ([shown("x"), None, shown("y")], "out of order"),
        ([shown("y"), shown("x")], "out of order"),
        ([shown("x"), shown("x"), shown("y")], "repeated"),
        ([shown("y", n=1)], "repeated"),
        ([shown("z")], "broken"),
    ],
)
def test_two_puts_and_the_versions_of_their_row(versions: list[State | None], kind: Kind | None) -> None:
    assert wrong(tell(steps_of(put("x"), put("y"))), versions) == kind


def test_a_column_that_shows_an_older_write_than_before_went_back() -> None:
    patch = Write("patch", "shared", "1", {"b": "z"})
    story = tell(steps_of(put("x"), put("y"), patch))
    assert wrong(story, [shown("y"), ("x", "z", 0, 0)]) == "out of order"
    assert wrong(story, [("x", "z", 0, 0)]) == "lost"


def test_an_uncertain_last_write_counts_or_does_not() -> None:
    first, last = steps_of(put("x"), put("y"))
    story = tell([first, Step(last.call, 0, is_certain=False)])
    assert wrong(story, [shown("x")]) is None
    assert wrong(story, [shown("x"), shown("y")]) is None
    assert wrong(story, []) == "lost"


def test_a_bad_write_that_another_replaced_in_the_same_batch_may_leave_no_trace() -> None:
    story = tell(steps_of(put("bad 1.1.1"), put("x")))
    assert not story.refused
    assert wrong(story, [shown("x")]) is None


def test_a_bad_write_has_no_effect_once_it_is_a_dead_letter() -> None:
    steps = steps_of(put("x"), put("bad 1.1.1", b="y"))
    assert tell(steps, {steps[1].token}).states[-1] == shown("x")


# The checker: whole runs, small ones made by hand.


class Run:
    """A run in which all went well, to be spoilt: two batches, an own row, a raw push."""

    def __init__(self) -> None:
        self.history = History(WHO)
        self.snapshot = Snapshot()
        self._place = 0
        self._batch(1, 1000, [Write("put", "shared", "1", {"a": "3.1.0"}), Write("put", "events", "e", {})])
        self._batch(2, 2000, [Write("increment", "shared", "1", {"n": 1, "s": 70})])
        self.single(3, Write("put", "own", "30001", {"a": "3.3.0"}))
        self.history.steps.append(Read(WHO, "30001", {"a": "3.3.0"}))
        self._batch(4, None, [Write("put", "raw", "9", {"b": "3.4.0"})])
        self.versions("shared", "1", ("3.1.0", None, 0, 0), ("3.1.0", None, 1, 70))
        self.versions("events", "e", (None, None, 0, 0))
        self.versions("own", "30001", ("3.3.0", None, 0, 0))
        self.versions("raw", "9", (None, "3.4.0", 0, 0))
        self.cached("shared:1", {"a": '"3.1.0"', "@seq": "1000"})
        self.cached("own:30001:3", {"a": '"3.3.0"', "@seq": "3000"})

    def single(self, number: int, write: Write) -> None:
        self._call(number, "single", [write], number * 1000)

    def _call(self, number: int, kind: Any, writes: list[Write], seq: int | None) -> None:
        self.history.steps.append(Call(WHO, number, kind, writes, "acked", seq))

    def _batch(self, number: int, seq: int | None, writes: list[Write]) -> None:
        mark = token(WHO, number, len(writes))
        writes.append(Write("put", "marks", mark, {"id": "of the key", "a": mark}))
        self._call(number, "raw" if seq is None else "batch", writes, seq)
        self._place += len(writes)
        seq = None if seq is None else seq + len(writes) - 1
        self.snapshot.dead_letters.append(DeadLetter(mark, 7, self._place, "rejected", seq, "the key"))

    def versions(self, table: str, id: str, *versions: State | None) -> None:
        self.snapshot.versions[table, id] = list(versions)
        self.snapshot.rows.pop((table, id), None)
        if versions[-1] is not None:
            self.snapshot.rows[table, id] = versions[-1]

    def cached(self, key: str, fields: dict[str, str], ttl_ms: int = 1000) -> None:
        self.snapshot.cache = [e for e in self.snapshot.cache if e.key != key]
        self.snapshot.cache.append(CacheEntry(key, fields, ttl_ms))

    def call(self, number: int) -> Call:
        return next(call for call in self.history.calls if call.number == number)

    def mark(self, number: int) -> DeadLetter:
        return next(d for d in self.snapshot.dead_letters if d.token.startswith(f"{WHO}.{number}."))

    def move(self, number: int, **changes: Any) -> None:
        old = self.mark(number)
        values = {name: getattr(old, name) for name in DeadLetter.__slots__} | changes
        at = self.snapshot.dead_letters.index(old)
        self.snapshot.dead_letters[at] = DeadLetter(**values)

    def check(self) -> Verdict:
        return check([self.history], self.snapshot)

    def group(self, number: int, *texts: str, outcome: Any = "acked") -> None:
        """A group that has put a text into each of some rows of its own, all in one transaction."""
        rows = [f"4{number}{i}" for i in range(len(texts))]
        writes = [Write("put", "grouped", row, {"a": text}) for row, text in zip(rows, texts, strict=True)]
        self.history.steps.append(Call(WHO, number, "group", writes, outcome, number * 1000))
        for row, text in zip(rows, texts, strict=True):
            self.versions("grouped", row, shown(text))
            self.snapshot.made_by["grouped", row] = [number]


@pytest.fixture
def run() -> Run:
    return Run()


def test_a_run_in_which_all_went_well_is_good(run: Run) -> None:
    verdict = run.check()
    assert verdict.violations == []
    assert verdict.counts["writes"] == 8


def test_a_group_is_good_that_one_transaction_has_brought_whole(run: Run) -> None:
    run.group(5, "x", "y")
    run.group(6, "x", "y", outcome="unknown")
    verdict = run.check()
    assert verdict.violations == []
    assert verdict.counts["groups"] == 2


def test_a_group_that_two_transactions_brought_was_torn_apart(run: Run) -> None:
    run.group(5, "x", "y")
    run.snapshot.made_by["grouped", "451"] = [6]
    assert found_in(run) == {"torn apart": 1}


@pytest.mark.parametrize(
    ("outcome", "kinds"), [("acked", {"lost", "torn apart"}), ("unknown", {"torn apart"})]
)
def test_a_group_of_which_a_part_is_missing_was_torn_apart(run: Run, outcome: Any, kinds: set[Kind]) -> None:
    run.group(5, "x", "y", outcome=outcome)
    del run.snapshot.versions["grouped", "451"], run.snapshot.rows["grouped", "451"]
    assert set(found_in(run)) == kinds


def test_a_group_with_a_bad_write_is_one_dead_letter_and_nothing_of_it_is_there(run: Run) -> None:
    run.group(5, "x", "bad y")
    run.snapshot.dead_letters.append(DeadLetter(token(WHO, 5, 0), 8, 1, "rejected", 5000, "a check"))
    assert set(found_in(run)) == {"repeated"}
    for row in ("450", "451"):
        del run.snapshot.versions["grouped", row], run.snapshot.rows["grouped", row]
    assert found_in(run) == {}
    run.snapshot.dead_letters.append(DeadLetter(token(WHO, 5, 1), 8, 1, "rejected", 5000, "a check"))
    assert set(found_in(run)) == {"torn apart"}


def test_a_group_without_a_bad_write_must_not_be_a_dead_letter(run: Run) -> None:
    run.group(5, "x", "y")
    run.snapshot.dead_letters.append(DeadLetter(token(WHO, 5, 0), 8, 1, "rejected", 5000, "a check"))
    assert set(found_in(run)) == {"wrongly refused"}


def found_in(run: Run) -> dict[Kind, int]:
    return dict(Counter(v.kind for v in run.check().violations))


def test_a_mark_that_is_no_dead_letter_is_a_lost_write(run: Run) -> None:
    run.snapshot.dead_letters.remove(run.mark(2))
    assert found_in(run) == {"lost": 1}


def test_a_call_of_unknown_outcome_counts_if_its_mark_is_a_dead_letter(run: Run) -> None:
    run.call(2).outcome, run.call(2).seq = "unknown", None
    assert found_in(run) == {}
    run.versions("shared", "1", ("3.1.0", None, 0, 0))
    assert found_in(run) == {"lost": 1}


def test_a_call_of_unknown_outcome_without_mark_must_have_no_effect(run: Run) -> None:
    run.call(2).outcome, run.call(2).seq = "unknown", None
    run.snapshot.dead_letters.remove(run.mark(2))
    assert found_in(run) == {"repeated": 1}
    run.versions("shared", "1", ("3.1.0", None, 0, 0))
    assert found_in(run) == {}


def test_a_call_that_was_refused_must_have_no_effect(run: Run) -> None:
    run.call(2).outcome = "refused"
    assert "repeated" in found_in(run)


def test_a_mark_that_is_there_twice_is_a_repeated_call(run: Run) -> None:
    run.snapshot.dead_letters.append(run.mark(2))
    assert found_in(run) == {"repeated": 1}


def test_calls_taken_in_another_order_than_their_seqs_are_found(run: Run) -> None:
    run.move(1, position=50)
    run.move(2, position=20)
    assert found_in(run) == {"out of order": 1}


def test_calls_of_one_route_are_ordered_by_seq_whichever_shards_they_went_by(run: Run) -> None:
    run.move(2, queue="q:2of3", batch=1)  # a batch of a later shard has a number of that shard
    assert found_in(run) == {}
    run.versions("shared", "1", ("3.1.0", None, 1, 70), ("3.1.0", None, 0, 0))
    assert found_in(run) == {"out of order": 1}


@pytest.mark.parametrize(("route", "kinds"), [(1, {"out of order"}), (2, set())])
def test_calls_of_one_producer_are_in_its_order_where_they_have_one_route(
    run: Run, route: int, kinds: set[Kind]
) -> None:
    run.call(1).route, run.call(2).route = 1, route
    run.call(2).number, run.call(1).number = 1, 2
    for call in (run.call(1), run.call(2)):
        call.writes = [Write("put", "marks", call.token(0), {"id": "of the key", "a": call.token(0)})]
        letter = DeadLetter(call.token(0), 7, 0, "rejected", call.seq, "the key", f"q:{call.route}of2")
        run.snapshot.dead_letters[call.number - 1] = letter
    run.versions("shared", "1", None)
    del run.snapshot.versions["shared", "1"], run.snapshot.versions["events", "e"]
    del run.snapshot.rows["events", "e"]
    run.snapshot.cache = [entry for entry in run.snapshot.cache if not entry.key.startswith("shared")]
    assert set(found_in(run)) == kinds


def test_all_writes_of_a_row_have_one_route() -> None:
    routes: dict[str, set[int]] = {}
    for who in range(3):
        stream = Stream(1, who)
        for call in range(60):
            for write in stream.batch(call):
                if write.table == "shared":
                    routes.setdefault(write.id, set()).add(route_of(call))
    assert len(routes) > 200 and all(len(found) == 1 for found in routes.values())
    assert len(set.union(*routes.values())) > 1


def test_a_dead_letter_with_the_seq_of_another_write_is_found(run: Run) -> None:
    run.move(2, seq=5)
    assert found_in(run) == {"broken": 1}


def test_a_row_that_no_write_made_is_found(run: Run) -> None:
    run.versions("shared", "2", ("3.1.0", None, 0, 0))
    assert found_in(run) == {"broken": 1}


def test_a_row_that_is_not_its_last_version_is_found(run: Run) -> None:
    run.snapshot.rows["shared", "1"] = ("3.1.0", None, 0, 0)
    run.snapshot.cache.clear()
    assert found_in(run) == {"broken": 1}


def test_a_good_write_that_became_a_dead_letter_is_found(run: Run) -> None:
    run.snapshot.dead_letters.append(DeadLetter("3.3.0", 7, 30, "rejected", 3000, "why not"))
    assert found_in(run) == {"wrongly refused": 1}


def test_a_write_taken_for_one_applied_before_a_rollback_is_found(run: Run) -> None:
    run.move(2, kind="rollback")
    assert found_in(run) == {"wrongly refused": 1}


def test_a_dead_letter_that_nobody_wrote_is_found(run: Run) -> None:
    run.snapshot.dead_letters.append(DeadLetter("9.9.9", 7, 30, "rejected", 3000, "why not"))
    assert found_in(run) == {"broken": 1}


@pytest.mark.parametrize(
    ("row", "kinds"),
    [
        ({"a": "3.3.0"}, {}),
        ({"a": "3.3.0", "n": 0}, {}),
        ({"a": "an older one"}, {"read back": 1}),
        (None, {"read back": 1}),
    ],
)
def test_a_producer_reads_what_it_wrote(run: Run, row: Any, kinds: dict[Kind, int]) -> None:
    run.history.steps.append(Read(WHO, "30001", row))
    assert found_in(run) == kinds


@pytest.mark.parametrize("is_dead", [False, True])
@pytest.mark.parametrize("b", [None, "3.5.0"])
def test_a_producer_reads_of_a_bad_write_what_was_applied_of_it(
    run: Run, is_dead: bool, b: str | None
) -> None:
    """The next one of its batch has replaced what was bad of it; by itself it is a dead letter."""
    row = ("3.6.0", None if is_dead else "3.5.0", 0, 0)
    run.single(5, Write("put", "own", "30001", {"a": "bad 3.5.0", "b": "3.5.0"}))
    run.single(6, Write("put", "own", "30001", {"a": "3.6.0"}))
    run.versions("own", "30001", ("3.3.0", None, 0, 0), row)
    run.cached("own:30001:3", {"a": '"3.6.0"', "@seq": "6000"})
    if is_dead:
        run.snapshot.dead_letters.append(DeadLetter("3.5.0", 7, 30, "rejected", 5000, "why not"))
    run.history.steps.append(Read(WHO, "30001", {"a": "3.6.0", "b": b}))
    assert found_in(run) == ({} if b == row[1] else {"read back": 1})


@pytest.mark.parametrize(
    ("fields", "ttl_ms", "kinds"),
    [
        ({"b": '"3.4.0"', "@seq": "0"}, 9, {}),
        ({"n": "5", "@seq": "0"}, 9, {"stale": 1}),
        ({"b": '"3.4.0"', "@seq": "0"}, -1, {"stale": 1}),
        ({"@seq": "3", "@is": "marker"}, 9, {"stale": 1}),
        ({"@seq": "3", "@is": "tombstone"}, 9, {"stale": 1}),
        ({"@is": "negative"}, 9, {"stale": 1}),
        ({"@is": "fill", "@token": "t"}, 9, {}),
    ],
)
def test_a_cache_entry_equals_its_row(
    run: Run, fields: dict[str, str], ttl_ms: int, kinds: dict[Kind, int]
) -> None:
    run.cached("raw:9", fields, ttl_ms)
    assert found_in(run) == kinds


def test_the_mark_of_every_call_is_refused_as_it_stands() -> None:
    stream = Stream(1, WHO)
    for call in range(20):
        for writes in (stream.batch(call), stream.raw(call)):
            assert sum(w.table == "marks" for w in writes) == 1
            assert all(is_bad(w) for w in writes if w.table == "marks")


def test_the_last_line_has_the_numbers() -> None:
    counts = Counter({"writes": 412008, "kills": 61, "pauses": 23})
    assert last_line(counts, Counter()) == (
        "chaos: 412,008 writes, 61 kills, 23 pauses: 0 lost, 0 repeated, 0 out of order"
    )
    assert last_line(counts, Counter({"stale": 2})).endswith("0 lost, 0 repeated, 0 out of order, 2 stale")


@pytest.mark.parametrize("module", ["history", "snapshot", "model", "checker"])
def test_the_checker_shares_no_code_with_the_product(module: str) -> None:
    tree = ast.parse((CHAOS / f"{module}.py").read_text())
    names = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    froms = {(node.level, node.module or "") for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(name.startswith("writebehind") for name in names | {name for _, name in froms})
    assert {name for level, name in froms if level} <= {"history", "snapshot", "model"}


# For real.


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = new_data_dir()
    yield folder
    shutil.rmtree(folder)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("shards", "seeds"), [(1, [5, 6]), (3, [7])])
def test_short_rounds_find_nothing_wrong(folder: Path, shards: int, seeds: Sequence[int]) -> None:
    outcomes = []
    try:
        with Stage(folder, writes_per_s=2000, shards=shards) as stage:
            for seed in seeds:
                outcomes.append(play(stage, Plan(seed, 4.0, hurry=2.0), folder / f"{seed}", LiveLine()))
                stage.clear()
    except ServerNotFound as error:
        missing(str(error))
    for outcome in outcomes:
        assert outcome.is_good, (outcome.troubles, outcome.verdict.violations[:5])
        assert outcome.verdict.counts["writes"] > 0 and sum(outcome.faults.values()) > 0
