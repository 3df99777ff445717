"""An explanation of a row for a terminal, with a verdict in its last line, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from .cached_entry import CachedEntry
from .dead_view import code, printable
from .explain import Explanation
from .packed_rows import readable, unpacked_columns
from .row_ledger import LetterView
from .row_search import FoundWrite
from .verify import expires_in_s
from .verify_view import many, why

Outcome = Literal["consistent", "pending", "rejected", "differs", "unknown"]

_MOST_WRITES = 20
_MOST_OF_A_VALUE = 200
_KINDS = {
    "row": "a row",
    "marker": "a marker: it stands for a row that the cache cannot show yet",
    "tombstone": "a tombstone: the row was deleted",
    "negative": "negative: a reader found no such row",
    "fill": "a fill token: a reader is loading the row",
    "foreign": "something else is at this key, that writebehind did not put there",
    "absent": "absent: the row is not cached",
}


def render(found: Explanation, *, with_values: bool) -> str:
    """One fact a line, in the order of the data's way; the verdict last."""
    lines = [("row", _identity(found)), ("cache key", found.identity.cache_key)]
    lines += [("moved to", found.moved_to)] if found.moved_to else []
    lines += [("shard", found.queue)] if found.is_divided else []
    lines += _entry_lines(found, with_values)
    lines += _pending_lines(found, with_values)
    lines += _ledger_lines(found)
    lines += _letter_lines(found)
    lines += _row_lines(found, with_values)
    shown = [f"{label:<13}{' '.join(printable(text).split())}".rstrip() for label, text in lines]
    return "\n".join([*shown, printable(verdict(found)[1])])


def verdict(found: Explanation) -> tuple[Outcome, str]:
    """What it comes to, and that in a sentence or two."""
    if found.redis_error or found.postgres_error:
        return "unknown", _half(found)
    waiting = _waiting(found)
    if letters := found.open_letters:
        return "rejected", " ".join(filter(None, (_rejected(letters), waiting)))
    if waiting:
        return "pending", waiting
    return _settled(found)


def _half(found: Explanation) -> str:
    parts = [text for text in (found.redis_error, found.postgres_error) if text]
    if found.postgres_error and found.waiting:
        parts.append(f"{many(found.waiting, 'write')} {'waits' if found.waiting == 1 else 'wait'} in Redis")
    return "Only a part of it could be seen. " + ". ".join(parts) + "."


def _waiting(found: Explanation) -> str:
    writes = [write for write in found.found.writes if not write.is_committed] if found.found else []
    if not writes:
        return ""
    oldest = writes[0]
    age = "of unknown age" if oldest.age_s is None else f"{oldest.age_s:.1f} s old"
    count = f"{many(len(writes), 'write')} {'waits' if len(writes) == 1 else 'wait'}"
    which = "it is" if len(writes) == 1 else "the oldest is"
    text = f"{count}; {which} {age}, {_ahead(oldest)}."
    if found.obstacles:
        text += f" Why it waits: {'; '.join(found.obstacles)}."
    return text


def _rejected(letters: list[LetterView]) -> str:
    newest = letters[0]
    if newest.kind == "rollback":
        what = f"A write was set aside, applied before Redis went back in time (dead letter {newest.id})"
    else:
        what = f"A write was rejected (dead letter {newest.id}: {code(newest.sqlstate)})"
    more = f"; {len(letters) - 1} more before it" if len(letters) > 1 else ""
    return f"{what}{more}: `writebehind dead show {newest.id}`."


def _settled(found: Explanation) -> tuple[Outcome, str]:
    """Nothing of the row waits, as far as was looked, and nothing was rejected."""
    search, entry, applied = found.found, found.entry, found.ledger.applied_seq if found.ledger else 0
    assert search is not None
    assert entry is not None
    if search.writes:
        return "consistent", (
            f"All writes are in Postgres; batch {search.writes[-1].batch} is about to be acknowledged, and "
            "the cache entry settled."
        )
    if entry.standing == "pending":
        seq = entry.entry.seq
        if not search.is_whole:
            return "pending", (
                f"The write {seq} waits, further back than was looked: among the oldest "
                f"{search.length - search.looked:,} of {search.length:,} in the queue. --scan 0 looks at all."
            )
        if entry.has_no_ttl and not entry.is_no_others:
            return "pending", (
                f"The write {seq}, which the cache shows, is not in this queue: another queue of this Redis "
                "has it, or may have it. Ask again with its --queue; if no queue has it, in a moment."
            )
        if seq <= applied or search.moved:
            return "pending", (
                f"The write {seq} was on its way to Postgres while this was looked at; ask again."
            )
        return "differs", (
            f"The cache shows the write {seq}, which is neither in the queue nor in Postgres: Redis lost it, "
            "or somebody took it out of the queue. Readers see it until the entry is deleted."
        )
    part = "" if search.is_whole else f" in the newest {search.looked:,} of {search.length:,} in the queue"
    if found.row_error is not None:
        return "unknown", f"No write of the row waits{part}, but {found.row_error}."
    if found.difference is not None:
        return "differs", _differs(found, part)
    if not found.identity.is_known:
        return (
            "consistent",
            f"Postgres has no table {found.identity.table}, and no write of the row waits{part}.",
        )
    if entry.standing in ("row", "gone"):
        return "consistent", f"All writes are in Postgres, and the cache agrees{part}."
    if found.no_value is not None:
        return "consistent", f"There can be no such row: {found.no_value}. No write of it waits{part}."
    return "consistent", (
        f"All writes are in Postgres, and the row is not cached{part}."
        if found.exists
        else f"Postgres has no such row, the cache none, and no write of it waits{part}."
    )


def _differs(found: Explanation, part: str) -> str:
    assert found.difference is not None
    assert found.entry is not None
    if found.difference.fault == "stuck":
        return (
            "The write that the cache shows is settled, but the entry has no time to live: it would never "
            "expire. `writebehind verify --all --repair` deletes it."
        )
    left_s = expires_in_s(found.entry.expires_ms, found.now_ms)
    expires = "never expires" if left_s is None else f"expires in {left_s:.0f} s"
    return (
        f"Postgres differs from the cache, and nothing is pending{part}: somebody changed the row behind the "
        f"cache, or a raw LPUSH did; the entry {expires}; `writebehind verify --all --repair` deletes it."
    )


def _identity(found: Explanation) -> str:
    key = found.identity.key
    text = f"{found.identity.table} ({', '.join(key)}) = ({', '.join(key.values())})"
    return text if found.identity.is_known or found.postgres_error else f"{text}: Postgres has no such table"


def _entry_lines(found: Explanation, with_values: bool) -> Iterator[tuple[str, str]]:
    entry = found.entry
    if entry is None:
        yield "cache", "unknown: Redis could not be asked"
        return
    text = _KINDS.get(entry.kind, entry.kind)
    if entry.standing not in ("absent", "foreign"):
        text += (
            f"; seq {entry.entry.seq or 'none: it was loaded'}"
            if entry.kind not in ("fill", "negative")
            else ""
        )
        left_s = expires_in_s(entry.expires_ms, found.now_ms)
        if left_s is not None:
            text += f"; expires in {left_s:.0f} s"
        else:
            text += "; pending: no TTL" if entry.standing == "pending" else "; no TTL, though it is settled"
        if b"@dirty" in (entry.fields or {}) and entry.standing == "pending":
            text += "; an earlier write was rejected: it goes as this one is settled, unless that is a put"
    yield "cache", text
    columns: Mapping[str, bytes] = entry.entry.columns
    if columns and with_values:
        columns = unpacked_columns(columns)
        yield from (("", _value(name, value)) for name, value in columns.items())
    elif columns:
        yield "", f"columns {', '.join(columns)}"


def _pending_lines(found: Explanation, with_values: bool) -> Iterator[tuple[str, str]]:
    search = found.found
    if search is None:
        yield "pending", "unknown: Redis could not be asked"
        return
    count = len(search.writes)
    yield "pending", f"{many(count, 'write')}" if count else "no write of the row"
    for write in search.writes[:_MOST_WRITES]:
        yield "", _write(write, write.queue if write.queue != found.queue else "the queue")
        if write.cache_key not in (None, found.identity.cache_key):
            yield "", f"  its cache key is another: {write.cache_key} (--prefix, --version or --key)"
        if with_values:
            yield "", f"  {_cut(readable(write.body).decode(errors='backslashreplace'))}"
    if count > _MOST_WRITES:
        yield "", f"and {count - _MOST_WRITES:,} more"
    if not search.is_whole:
        yield (
            "",
            (
                f"only the newest {search.looked:,} of {search.length:,} writes in the queue were looked at "
                "(--scan 0: all)"
            ),
        )
    if search.unreadable:
        yield "", f"{search.unreadable:,} items are no messages; they will be dead letters"
    if search.moved and any(write.seq is None for write in search.writes):
        yield "", "the queue moved meanwhile: a raw message may be listed twice"


def _write(write: FoundWrite, queue: str) -> str:
    stamp = "raw, no seq" if write.seq is None else f"seq {write.seq}, {write.age_s:.1f} s old"
    if write.batch is None:
        place = f"in {queue}: {_ahead(write)}"
    else:
        place = f"frozen batch {write.batch}, {_ordinal(write.position or 0)} of {write.size}"
        place += "" if queue == "the queue" else f", in {queue}"
        if write.is_committed:
            place += ": in Postgres, to be acknowledged"
    text = f"{write.op}, {stamp}, {place}"
    text += f"; columns {', '.join(write.columns)}" if write.columns else ""
    text += f"; a retry of dead letter {write.retry}" if write.retry is not None else ""
    return text + (f"; it will be rejected: {write.fault}" if write.fault else "")


def _ledger_lines(found: Explanation) -> Iterator[tuple[str, str]]:
    if found.ledger is None:
        yield "ledger", f"unknown: {found.postgres_error}"
        return
    recent, applied = found.ledger.recent_batches, found.ledger.applied_seq
    text = f"applied up to seq {applied}, last batch {recent[-1]}" if recent else "no batch was applied yet"
    if found.entry is not None and (seq := found.entry.entry.seq) and _is_of_this_queue(found.entry, found):
        text += f"; the entry's write is {'committed' if seq <= applied else 'not committed'}"
    yield "ledger", text


def _is_of_this_queue(entry: CachedEntry, found: Explanation) -> bool:
    """As far as is known; an entry with a time to live shows no write that is not committed."""
    applied = found.ledger.applied_seq if found.ledger else 0
    if not entry.has_no_ttl:
        return entry.entry.seq <= applied
    return entry.is_no_others or bool(found.found and found.found.writes)


def _letter_lines(found: Explanation) -> Iterator[tuple[str, str]]:
    if found.letters is None:
        yield "dead letters", f"unknown: {found.postgres_error}"
        return
    yield "dead letters", "none" if not found.letters else many(len(found.letters), "letter")
    for letter in found.letters:
        state = "superseded" if letter.is_superseded else "open"
        what = "applied before Redis went back" if letter.kind == "rollback" else code(letter.sqlstate)
        yield "", f"{letter.id} ({state}): {what}: {letter.reason}"


def _row_lines(found: Explanation, with_values: bool) -> Iterator[tuple[str, str]]:
    if found.exists is None:
        why_not = found.postgres_error or found.row_error or "there is no such table"
        yield "postgres", f"unknown: {why_not}"
        return
    text = "the row exists" if found.exists else found.no_value or "no such row"
    if found.difference is not None:
        text += f"; {why(found.difference)}"
    elif found.entry is not None and found.entry.standing in ("row", "gone"):
        text += "; the cache agrees"
    yield "postgres", text
    if with_values:
        yield from (("", _value(name, value)) for name, value in (found.values or {}).items())


def as_json(found: Explanation, *, with_values: bool) -> dict[str, Any]:
    """Everything that :func:`render` shows."""
    outcome, sentence = verdict(found)
    made: dict[str, Any] = {
        "outcome": outcome,
        "verdict": sentence,
        "table": found.identity.table,
        "key": found.identity.key,
        "cache_key": found.identity.cache_key,
        "queue": found.queue,
        "cache": None,
        "pending": None,
        "ledger": found.ledger,
        "dead_letters": found.letters,
        "exists": found.exists,
        "difference": None,
        "row_error": found.row_error,
        "no_value": found.no_value,
        "obstacles": found.obstacles,
        "redis_error": found.redis_error,
        "postgres_error": found.postgres_error,
    }
    if (entry := found.entry) is not None:
        made["cache"] = {
            "kind": entry.kind,
            "standing": entry.standing,
            "seq": entry.entry.seq or None,
            "expires_in_s": None
            if entry.standing == "absent"
            else expires_in_s(entry.expires_ms, found.now_ms),
            "columns": _columns(
                unpacked_columns(entry.entry.columns) if with_values else entry.entry.columns, with_values
            ),
        }
    if (search := found.found) is not None:
        made["pending"] = {
            "writes": [_write_json(write, with_values) for write in search.writes],
            "looked": search.looked,
            "length": search.length,
            "is_whole": search.is_whole,
            "moved": search.moved,
            "unreadable": search.unreadable,
        }
    if (difference := found.difference) is not None:
        made["difference"] = {"fault": difference.fault, "columns": difference.columns}
    if with_values:
        made["row"] = None if found.values is None else _columns(found.values, True)
    return made


def _write_json(write: FoundWrite, with_values: bool) -> dict[str, Any]:
    made = {name: getattr(write, name) for name in write.__struct_fields__ if name != "body"}
    return made | ({"body": readable(write.body).decode(errors="backslashreplace")} if with_values else {})


def _columns(columns: Mapping[str, bytes], with_values: bool) -> Any:
    if not with_values:
        return list(columns)
    return {name: text.decode(errors="backslashreplace") for name, text in columns.items()}


def _value(name: str, text: bytes) -> str:
    return f"  {name} = {_cut(text.decode(errors='backslashreplace'))}"


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_OF_A_VALUE else f"{text[:_MOST_OF_A_VALUE]} ..."


def _ahead(write: FoundWrite) -> str:
    verb = "is" if write.ahead == 1 else "are"
    return f"{many(write.ahead, 'write')} {verb} ahead of it" if write.ahead else "no write is ahead of it"


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"
