"""What the producers did, as they wrote it down: one JSON line before each call, and one after it.

A producer writes ``FOLDER/producer-WHO.jsonl`` without a buffer, so that what it wrote survives its death.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

Kind = Literal["batch", "single", "group", "raw"]
Value = str | int
Data = dict[str, Value]


class Write(msgspec.Struct, array_like=True, frozen=True):
    """``id`` is the row's, as text: unique within its table."""

    op: str
    table: str
    id: str
    data: Data


class Line(msgspec.Struct, omit_defaults=True):
    """Before a call: ``kind`` and ``writes``. After it: one of ``ok`` (seq of the first write; 0: raw),
    ``refused`` (nothing was written) and ``unknown``. Of a read: ``read`` is the row's id.
    """

    call: int = 0
    kind: Kind | None = None
    writes: list[Write] = []
    route: int | None = None
    ok: int | None = None
    refused: str | None = None
    unknown: str | None = None
    read: str | None = None
    table: str = "own"
    row: dict[str, Value | None] | None = None


encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode


@dataclass(slots=True)
class Call:
    """One call of a producer. ``seq`` of its first write, where the library told it.

    ``route``: all of its writes have it, and all writes of their rows: one shard takes them. ``None``: each
    row goes where its id says, or (raw) to the queue itself.
    """

    who: int
    number: int
    kind: Kind
    writes: Sequence[Write]
    outcome: Literal["acked", "refused", "unknown"] = "unknown"
    seq: int | None = None
    why: str = "killed"
    route: int | None = None

    def token(self, index: int) -> str:
        """The text that this write alone puts into its columns."""
        return token(self.who, self.number, index)

    def letter(self, index: int) -> str:
        """The token of the dead letter that a write becomes: a group is one, and begins with its first."""
        return self.token(0 if self.kind == "group" else index)

    @property
    def mark(self) -> int | None:
        """Which of its writes is the mark."""
        return next((i for i, w in enumerate(self.writes) if w.table == "marks"), None)

    def __str__(self) -> str:
        seq = "" if self.seq is None else f", seq {self.seq}"
        return f"producer-{self.who}.jsonl, call {self.number} ({self.kind}, {self.outcome}{seq})"


@dataclass(frozen=True, slots=True)
class Read:
    """What ``get`` answered; ``None``: no such row."""

    who: int
    id: str
    row: dict[str, Value | None] | None
    table: str = "own"


@dataclass(slots=True)
class History:
    """All that one producer did, in its order."""

    who: int
    steps: list[Call | Read] = field(default_factory=list)

    @property
    def calls(self) -> list[Call]:
        return [step for step in self.steps if isinstance(step, Call)]


def token(who: int, call: int, index: int) -> str:
    """Unique among all writes of a run."""
    return f"{who}.{call}.{index}"


def file_name(who: int) -> str:
    return f"producer-{who}.jsonl"


def read_histories(folder: Path) -> list[History]:
    """The histories in a folder."""
    found = [(int(path.stem.partition("-")[2]), path) for path in folder.glob("producer-*.jsonl")]
    return [read_history(who, path.read_bytes()) for who, path in sorted(found)]


def read_history(who: int, text: bytes) -> History:
    """A last line that was cut off was written by a producer that died before its call began."""
    history = History(who)
    begun: Call | None = None
    for raw in text.splitlines(keepends=True):
        if not raw.endswith(b"\n"):
            break
        line = _decode(raw)
        if line.kind is not None:
            begun = Call(who, line.call, line.kind, line.writes, route=line.route)
            history.steps.append(begun)
        elif line.read is not None:
            history.steps.append(Read(who, line.read, line.row, line.table))
        else:
            assert begun is not None and begun.number == line.call, f"{file_name(who)}: no call {line.call}"
            _end(begun, line)
    return history


def _end(call: Call, line: Line) -> None:
    if line.ok is not None:
        call.outcome, call.seq, call.why = "acked", line.ok or None, ""
    elif line.refused is not None:
        call.outcome, call.why = "refused", line.refused
    else:
        call.why = line.unknown or ""
