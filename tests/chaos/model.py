"""One row's writes done one after the other, and its versions found among the states that this gives.

No I/O.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Literal

from .history import Call, Write
from .snapshot import State

Kind = Literal[
    "lost", "repeated", "out of order", "wrongly refused", "torn apart", "stale", "read back", "broken"
]
COLUMNS = ("a", "b", "n", "s")
_NEW: State = (None, None, 0, 0)


@dataclass(frozen=True, slots=True)
class Step:
    """A write of a call. ``is_certain``: it was accepted; else it may have been."""

    call: Call
    index: int
    is_certain: bool = True

    @property
    def write(self) -> Write:
        return self.call.writes[self.index]

    @property
    def token(self) -> str:
        return self.call.token(self.index)

    @property
    def letter(self) -> str:
        """The token of the dead letter that it would be."""
        return self.call.letter(self.index)

    @property
    def may_be_refused(self) -> bool:
        """Whether Postgres refuses it, or one that stands or falls with it: it sees net effects."""
        if self.call.kind == "group":
            return any(map(violates_check, self.call.writes))
        return violates_check(self.write)

    def __str__(self) -> str:
        seq = "" if self.call.seq is None else f", seq {self.call.seq + self.index}"
        return f"{self.write.op} {self.token}{seq}"


def is_bad(write: Write) -> bool:
    """Whether it is refused as it stands, before Postgres sees it."""
    return write.op == "broken" or write.table == "marks" or not write.data.keys() <= {*COLUMNS}


def violates_check(write: Write) -> bool:
    """Whether Postgres refuses it, unless a later write of the batch takes its place: it sees net effects."""
    return str(write.data.get("a", "")).startswith("bad")


def after(state: State | None, write: Write) -> State | None:
    """The row after a write that is not refused."""
    if write.op == "delete":
        return None
    old, data = state or _NEW, write.data
    if write.op == "increment":
        return old[0], old[1], old[2] + int(data["n"]), old[3] + int(data["s"])
    return (
        str(data["a"]) if "a" in data else old[0],
        str(data["b"]) if "b" in data else old[1],
        int(data.get("n", old[2])),
        int(data.get("s", old[3])),
    )


@dataclass(slots=True)
class Story:
    """``states[i]`` is the row after ``steps[i - 1]``; ``states[0]`` before all."""

    steps: Sequence[Step]
    states: list[State | None]
    refused: list[Step]


def tell(steps: Sequence[Step], dead: Container[str] = ()) -> Story:
    """Does the writes one after the other; ``dead`` are the tokens of dead letters."""
    story = Story(steps, [None], [])
    state: State | None = None
    for step in steps:
        write = step.write
        if (
            is_bad(write)
            or (write.op == "patch" and state is None)
            or (step.may_be_refused and step.letter in dead)
        ):
            story.refused.append(step)
        else:
            state = after(state, write)
        story.states.append(state)
    return story


def places(story: Story, versions: Sequence[State | None]) -> list[int]:
    """Which of the states each version is, as far as they are in their order."""
    found: list[int] = []
    for version in versions:
        try:
            found.append(story.states.index(version, (found[-1] if found else 0) + 1))
        except ValueError:
            break
    return found


def compare(story: Story, versions: Sequence[State | None]) -> tuple[Kind, str] | None:
    """What is wrong with a row, its versions being the states that it took, oldest first.

    A batch merges writes, so that a row takes some of the states only, but those in their
    order, and the last.
    """
    found = places(story, versions)
    at = found[-1] if found else 0
    if len(found) < len(versions):
        return _explain(story, at, versions[len(found)])
    return _unfinished(story, at)


def _unfinished(story: Story, at: int) -> tuple[Kind, str] | None:
    last = story.states[-1]
    if story.states[at] == last:
        return None
    if story.steps and not story.steps[-1].is_certain and story.states[at] == story.states[-2]:
        return None
    missing = next(i for i in range(at, len(story.steps)) if story.states[i + 1] != story.states[at])
    return "lost", (
        f"{story.steps[missing]} has not taken effect: the row ends as {_shown(story.states[at])} "
        f"and not as {_shown(last)} ({story.steps[missing].call})"
    )


def _explain(story: Story, at: int, version: State | None) -> tuple[Kind, str]:
    """Why a version is none of the states after ``at``."""
    had = f"after {_shown(story.states[at])} ({_step(story, at)}) it became {_shown(version)}"
    if version == story.states[at]:
        return "repeated", f"{had} once more: {_step(story, at)} was done twice"
    if version in story.states[:at]:
        return "out of order", f"{had}, which it was before ({_step(story, story.states.index(version))})"
    if version is None:
        return "out of order", f"{had}: no later write deletes it"
    refused = {str(v): step for step in story.refused for v in step.write.data.values()}
    writers = {
        str(step.write.data[name]): i
        for i, step in enumerate(story.steps, start=1)
        for name in COLUMNS[:2]
        if name in step.write.data
    }
    for text in version[:2]:
        if text is not None and text in refused:
            return "repeated", f"{had}: {refused[text]} had been refused before it took effect"
        if text is not None and text not in writers:
            return "broken", f"{had}: nobody wrote {text!r} to this row"
    found = _sum(story, version)
    if found is not None:
        return found[0], f"{had}: {found[1]}"
    for name, text, old in zip(COLUMNS, version[:2], (story.states[at] or _NEW)[:2], strict=False):
        if old is not None and (text is None or writers[str(text)] < writers[str(old)]):
            return "out of order", f"{had}: {name} went back to an older write"
    newest = max((writers[text] for text in version[:2] if text is not None), default=0)
    return _by_count(story, max(at, newest), version, had)


def _sum(story: Story, version: State) -> tuple[Kind, str] | None:
    """A sum that has one increment twice, or lacks one."""
    states = {s: i for i, s in enumerate(story.states) if s is not None}
    for step in story.steps:
        if step.write.op == "increment":
            n, s = int(step.write.data["n"]), int(step.write.data["s"])
            if (version[0], version[1], version[2] - n, version[3] - s) in states:
                return "repeated", f"it holds {step} twice ({step.call})"
            if (version[0], version[1], version[2] + n, version[3] + s) in states:
                return "lost", f"it lacks {step} ({step.call})"
    return None


def _by_count(story: Story, start: int, version: State, had: str) -> tuple[Kind, str]:
    """Several increments too many or too few, among the states that show the same texts."""
    same = [s[2] for s in story.states[start:] if s is not None and s[:2] == version[:2]]
    if same and version[2] > max(same):
        return "repeated", f"{had}: {version[2] - max(same)} increments too many"
    if same and version[2] < min(same):
        return "lost", f"{had}: {min(same) - version[2]} increments are missing"
    if same:
        return "repeated", f"{had}: a sum that no order of the increments gives"
    return "lost", f"{had}: it shows a later write, and not one before it"


def _step(story: Story, at: int) -> str:
    return str(story.steps[at - 1]) if at else "before all writes"


def _shown(state: State | None) -> str:
    return "no row" if state is None else "(" + ", ".join(map(str, state)) + ")"
