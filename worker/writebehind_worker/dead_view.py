"""Dead letters for a terminal, and as JSON. What producers wrote is shown without control characters."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
from rich import box
from rich.table import Table
from rich.text import Text

from .dead import Letter, Reason
from .dead_retry import Outcome
from .packed_rows import readable
from .sqlstate import condition

_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"))


def printable(text: str) -> str:
    """``text`` with what a terminal might obey written as an escape."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def age(since: dt.datetime, now: dt.datetime) -> str:
    """How long ago, in the largest unit that fits."""
    seconds = max(0.0, (now - since).total_seconds())
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def cells(letter: Letter, now: dt.datetime) -> list[str]:
    """Id, age, table, key and reason."""
    found = (str(letter.id), age(letter.created_at, now), letter.table, letter.key, _why(letter))
    return [" ".join(printable(cell or "-").split()) for cell in found]


def table(letters: Sequence[Letter], now: dt.datetime) -> Table:
    """For a terminal: a row a letter."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("id", justify="right", no_wrap=True)
    shown.add_column("age", justify="right", no_wrap=True)
    for name in ("table", "key", "why"):
        shown.add_column(name, overflow="fold")
    for letter in letters:
        shown.add_row(*map(Text, cells(letter, now)))  # Text: what is in it is no markup
    return shown


def _why(letter: Letter) -> str:
    notes = []
    if letter.rejections > 1:
        notes.append(f"{letter.rejections} times")
    if letter.superseded_at is not None:
        notes.append("superseded")
    if letter.kind == "rollback":
        notes.append("rollback")
    noted = f"[{', '.join(notes)}] " if notes else ""
    return noted + f"{letter.sqlstate or ''} {letter.reason}".strip()


def reasons(found: Iterable[Reason]) -> Iterator[str]:
    """One line a reason: the count, the table, the code."""
    for reason in found:
        why = code(reason.sqlstate) if reason.kind == "rejected" else "applied before Redis went back"
        yield f"{reason.count:>8}  {printable(reason.table or 'no table')}: {why}"


def code(sqlstate: str | None) -> str:
    """A SQLSTATE with its name."""
    return f"{sqlstate or 'no code'} {condition(sqlstate) or ''}".strip()


def letter_json(letter: Letter) -> dict[str, Any]:
    """All that is known but the body and the history."""
    known: dict[str, Any] = msgspec.to_builtins(letter)
    return known | {"condition": letter.condition}


def full_json(letter: Letter, history: Sequence[dict[str, Any]], body: bytes) -> dict[str, Any]:
    """With the history and the body: ``body``, or ``body_base64`` where it is no text.

    ``body_unpacked`` is there where columns of it are packed.
    """
    whole = letter_json(letter) | {"history": list(history)}
    try:
        whole |= {"body": body.decode()}
        unpacked = readable(body)
        return whole if unpacked == body else whole | {"body_unpacked": unpacked.decode()}
    except UnicodeDecodeError:
        return whole | {"body_base64": base64.b64encode(body).decode()}


def full(letter: Letter, history: Sequence[dict[str, Any]], body: bytes) -> str:
    """For a terminal: one fact a line, its rejections, the body last, unpacked."""
    facts = [
        ("dead letter", str(letter.id)),
        ("table", letter.table or "unknown"),
        ("key", letter.key or "unknown"),
        ("code", code(letter.sqlstate) if letter.sqlstate else "none"),
        ("reason", letter.reason),
        ("since", _time(letter.created_at)),
        ("batch", f"{letter.batch}, item {letter.position}"),
        ("seq", str(letter.seq) if letter.seq else "none: it was pushed without the library"),
        ("cache key", letter.cache_key or "none"),
    ]
    if letter.superseded_at is not None:
        facts.append(("superseded", _time(letter.superseded_at)))
    if letter.needs_force:
        facts.append(("retry", f"only forced: {letter.needs_force}"))
    for before in history:
        facts.append(("before", f"{before['at']}: {code(before['sqlstate'])}: {before['reason']}"))
    if letter.retried_at is not None:
        facts.append(("retried", f"{_time(letter.retried_at)}: rejected again, as above"))
    shown = readable(body)
    size = f"{letter.body_bytes} bytes"
    facts.append(
        ("body", size if shown == body else f"{size}, with packed columns, which are shown unpacked")
    )
    lines = [f"{label:<13}{' '.join(printable(text).split())}" for label, text in facts]
    return "\n".join([*lines, printable(shown.decode(errors="backslashreplace"))])


def outcome(found: Outcome, timeout_s: float) -> Iterator[str]:
    """What has become of what was sent."""
    back = sum(returned.count for returned in found.returned.values())
    yield f"In Postgres: {found.landed} landed, {back} came back."
    for sqlstate, returned in found.returned.items():
        example = f"{returned.letter}: {printable(returned.reason)}"
        yield f"{returned.count:>8}  {code(sqlstate)}, for one {example}"
    if found.superseded:
        yield f"{found.superseded} were superseded by newer writes of their rows before they were applied."
    if found.unknown:
        yield (
            f"{found.unknown} have no outcome after {timeout_s:g} s: they wait in the queue. "
            "See `writebehind status`, and later `writebehind dead list`."
        )


def _time(at: dt.datetime) -> str:
    return at.astimezone(dt.UTC).isoformat(sep=" ", timespec="seconds")
