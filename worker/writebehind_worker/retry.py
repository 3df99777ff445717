"""Retried dead letters in a batch: which take effect, and what they supersede. No I/O."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence

from .digest import Digest
from .ledger import WrittenRow
from .received import Message
from .resolve import RowId, Write, key_text


def letters_of(messages: Iterable[Message]) -> list[int]:
    """The dead letters that a batch sends again."""
    return [m.retry for m in messages if m.retry is not None and m.member < 2]


def without_effect(
    messages: Sequence[Message], writes: Sequence[Write], retriable: Mapping[int, bool]
) -> set[int]:
    """Positions of the retried messages that are passed over. ``retriable``: see `Ledger.retriable`.

    The letter is gone, applied or dropped; or it is superseded, and nothing forces it; or it occurs twice; or
    a newer write of its row stands before it in the batch: that would have superseded it in a batch of its
    own. Whether that one is refused cannot be told yet; the letter is still there if it is.
    """
    rows_of: dict[int, list[RowId]] = defaultdict(list)
    for write in writes:
        rows_of[write.message.position].append(write.row)
    newest: dict[RowId, float] = {}
    seen: set[int] = set()
    passed_over: set[int] = set()
    for message in messages:
        if message.member > 1:
            continue
        rows, letter = rows_of.get(message.position, ()), message.retry
        age = math.inf if letter is None else letter
        if letter is not None:
            is_newest = message.force or all(newest.get(row, 0) < letter for row in rows)
            is_there = letter in retriable and (message.force or retriable[letter])
            if letter in seen or not is_there or not is_newest:
                passed_over.add(message.position)
                continue
            seen.add(letter)
        for row in rows:
            newest[row] = max(age, newest.get(row, 0))
    return passed_over


def written_rows(written: Iterable[Write]) -> list[WrittenRow]:
    """The rows of what was written, with what tells the older dead letters from the newer ones."""
    position: dict[tuple[str, str], int] = {}
    letter: dict[tuple[str, str], int] = {}
    for write in written:
        row, message = (write.table.full_name, write.key_text), write.message
        if message.retry is None:
            position[row] = max(message.position, position.get(row, -1))
        else:
            letter[row] = max(message.retry, letter.get(row, 0))
    return [WrittenRow(*row, position.get(row, -1), letter.get(row, 0)) for row in position | letter]


def digested_rows(digest: Digest, tables: Container[str]) -> list[WrittenRow]:
    """The rows of these tables (``schema.table``): what is written to them is newer than any dead letter."""
    found = written_rows(write for write in digest.others if write.table.full_name in tables)
    for shape, keys in digest.keys.items():
        if shape.table.full_name in tables:
            found += [WrittenRow(shape.table.full_name, key_text((str(key),)), 0) for key in keys]
    return found
