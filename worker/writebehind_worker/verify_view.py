"""What `writebehind verify` has found, for a terminal and as JSON. Values are shown by neither."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .dead_view import printable
from .verify import Difference, Tally, expires_in_s


def line(difference: Difference, now_ms: int) -> str:
    """One difference: the cache key, what is wrong, until when."""
    name = printable(difference.entry.name.decode(errors="backslashreplace"))
    return f"{name}: {why(difference)}; {expiry(difference, now_ms)}"


def why(difference: Difference) -> str:
    """What is wrong with it."""
    table, columns = printable(difference.table), printable(", ".join(difference.columns))
    if difference.fault == "columns":
        one = len(difference.columns) == 1
        return f"{'column' if one else 'columns'} {columns} {'differs' if one else 'differ'} in {table}"
    if difference.fault == "missing":
        return f"{table} has no such row"
    if difference.fault == "exists":
        return f"the cache says that there is no such row, but {table} has it"
    return "it has no time to live, though its write is settled"


def expiry(difference: Difference, now_ms: int) -> str:
    """How long it stays if nobody repairs it."""
    left_s = expires_in_s(difference.expires_ms, now_ms)
    return "it never expires" if left_s is None else f"it expires in {left_s:.0f} s"


def summary(tally: Tally, *, is_sample: bool, repair: bool, start: str) -> Iterator[str]:
    """The last lines."""
    if not tally.entries:
        yield f"Nothing was compared: no key that begins with {start!r} is a cache entry of a known table."
    else:
        yield (
            f"{'A sample of ' if is_sample else ''}{many(tally.entries, 'cache entry', 'cache entries')}: "
            f"{tally.agree:,} agree with Postgres, {tally.differ:,} differ, "
            f"{tally.pending:,} wait for a write (skipped)."
        )
    others = [
        (tally.filling, "being loaded"),
        (tally.vanished, "gone meanwhile"),
        (tally.foreign, "no entries of writebehind"),
    ]
    if any(count for count, _ in others):
        yield "Not compared: " + ", ".join(f"{count:,} {what}" for count, what in others if count) + "."
    if tally.unknown_keys:
        named = ", ".join(f"{printable(table)!r}" for table, _ in tally.unknown_tables.most_common(5))
        yield (
            f"{tally.unknown_keys:,} more keys begin with {start!r} and name no known table: {named}. "
            "Are --prefix and --version those of the producers?"
        )
    if tally.unknown_columns:
        named = ", ".join(printable(name) for name, _ in tally.unknown_columns.most_common(5))
        yield f"Not compared, for the tables have no such columns: {named}."
    if tally.differ and repair:
        left = tally.differ - tally.repaired
        yield (
            f"Repaired: {tally.repaired:,} removed from the cache; the next reader loads each row."
            + (f" {left:,} had just changed, and were left alone." if left else "")
        )
    elif tally.differ:
        yield (
            "`writebehind verify --all --repair`, with the same options otherwise, removes what differs from "
            "the cache; Postgres is never changed."
            + (" Another sample draws other entries." if is_sample else "")
        )


def as_json(
    tally: Tally, differences: Sequence[tuple[Difference, bool]], now_ms: int, *, is_sample: bool
) -> dict[str, Any]:
    """The tally, and the differences that are given, each with whether it was repaired."""
    counts = {name: getattr(tally, name) for name in tally.__struct_fields__}
    return counts | {
        "sample": is_sample,
        "differences": [
            {
                "key": d.entry.name.decode(errors="backslashreplace"),
                "table": d.table,
                "fault": d.fault,
                "columns": d.columns,
                "expires_in_s": expires_in_s(d.expires_ms, now_ms),
                "repaired": repaired,
            }
            for d, repaired in differences
        ],
    }


def many(count: int, one: str, more: str = "") -> str:
    """So many of them, in words."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"
