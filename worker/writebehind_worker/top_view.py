"""What `writebehind top` draws: the same as the status page. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from .dead_view import printable
from .findings import Finding
from .overview import MOST_SHARDS, Overview, ReasonCount
from .quantities import count, duration, rate, ratio
from .watch import Answer

OLD_AFTER_S = 5.0
"""An answer that is older tells nothing about now."""

Course = Sequence[float | None]

_NOBODY = (
    "Does a worker run there? --url, or --metrics-host and --metrics-port, say where; "
    "`writebehind status` needs no worker."
)
_STYLES = {"good": "bold green", "notice": "bold yellow", "trouble": "bold red"}
_MARKS = {"good": "✓", "notice": "!", "trouble": "✗"}
_SHORTEST_S, _LONGEST_S = 60, 600
_BLOCKS, _ASCII = "▁▂▃▄▅▆▇█", "_.-~=+*#"


def sparkline(course: Course, width: int, bars: str = _BLOCKS) -> str:
    """``width`` bars for the last minute, or for as much as there is, ten minutes at most.

    A bar is as high as the highest value of its time, by that of all; a gap is a space.
    """
    span = min(_LONGEST_S, max(_SHORTEST_S, len(course)))
    values = [None] * (span - len(course)) + list(course[-span:])
    top = max((value for value in values if value is not None), default=0)
    drawn = ""
    for place in range(width):
        begin, end = place * span // width, max((place + 1) * span // width, place * span // width + 1)
        part = [value for value in values[begin:end] if value is not None]
        height = max(part, default=0) / top if top else 0
        drawn += bars[round(height * (len(bars) - 1))] if part else " "
    return drawn


def frame(
    answers: Sequence[Answer | None], urls: Sequence[str], now_s: float, is_live: bool = True
) -> RenderableType:
    """The whole screen: the owner's status, or that of whoever answers, and what the others say.

    ``is_live``: they are asked again.
    """
    fresh = [answer if _is_fresh(answer, now_s) else None for answer in answers]
    shown = chosen([answer.overview for answer in fresh if answer is not None and answer.overview])
    parts: list[RenderableType] = []
    if shown is None:
        parts += [_no_answer(url, answer) for url, answer in zip(urls, fresh, strict=True)]
        parts.append(_text(_NOBODY, "dim"))
        if is_live:
            parts.append(_text("Asking again until somebody answers.", "dim"))
        return Group(*parts)
    parts += [_title(shown), *_headline(shown), Text(), _figures(shown), *_dead(shown)]
    parts += _shards([a.overview for a in fresh if a and a.overview and a.overview.queue == shown.queue])
    if len(urls) > 1:
        parts += [Text(), *_workers(urls, fresh, shown)]
    return Group(*parts)


def chosen(overviews: Sequence[Overview]) -> Overview | None:
    """The owner's; of several who believe to be it the last one's; without one, any."""
    return max(overviews, key=lambda found: (found.role == "owner", found.epoch or 0), default=None)


def _is_fresh(answer: Answer | None, now_s: float) -> bool:
    return answer is not None and now_s - answer.at_s <= OLD_AFTER_S


def _no_answer(url: str, answer: Answer | None) -> Text:
    if answer is None:
        return _text(f"{url} has not answered yet.", "bold yellow")
    return _text(f"✗ {url} does not answer: {answer.error}", _STYLES["trouble"])


def _title(found: Overview) -> Text:
    facts = [f"epoch {found.epoch}"] if found.epoch is not None else []
    facts += [f"owner {found.owner}"] if found.owner is not None else []
    facts += [f"asked {found.process}", f"version {found.version}"]
    return Text.assemble(
        (_clean(found.queue), "bold"),
        f"  {found.role} for {duration(found.role_for_s)}",
        f"\n{_clean(', '.join(facts))}",
    )


def _headline(found: Overview) -> Iterator[Text]:
    first, *others = found.findings
    yield _finding(first)
    for other in others:
        yield _text(f"  · {other.text}")


def _finding(finding: Finding) -> Text:
    return _text(f"{_MARKS[finding.level]} {finding.text}", _STYLES[finding.level])


def _figures(found: Overview) -> Table:
    recent, course = found.recent, found.course
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, no_wrap=True)
    table.add_column(style="dim", justify="right", no_wrap=True)
    for name, value, unit, write, key in (
        ("waiting", found.waiting, "writes", count, "waiting"),
        ("  in batches", found.frozen_items, "writes", count, "frozen"),
        ("oldest waiting", found.oldest_age_s, "", duration, "oldest_age_s"),
        ("into Postgres", recent.writes_per_s, "writes/s", rate, "writes_per_s"),
        ("", recent.rows_per_s, "rows/s", rate, "rows_per_s"),
        ("coalescing", recent.coalescing, "writes/row", ratio, "coalescing"),
        ("flush time", recent.flush_s, "", duration, "flush_s"),
        ("until durable", recent.lag_p50_s, "median", duration, "lag_p50_s"),
        ("", recent.lag_p99_s, "99 %", duration, "lag_p99_s"),
        ("retries", recent.retries_per_s, "/s", rate, "retries_per_s"),
        ("dead letters", found.dead_letters, "open", count, "dead_letters"),
    ):
        drawn = course.get(key, [])
        known = [value for value in drawn if value is not None]
        most = f"max {write(max(known))}" if known else ""
        table.add_row(name, write(value), unit, _Drawing(drawn), most)
    return table


def _dead(found: Overview) -> Iterator[RenderableType]:
    if not found.dead_letters:
        return
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    table.add_column(ratio=1, no_wrap=True)
    for reason in found.dead_letters_by_reason:
        table.add_row(
            count(reason.count), _text(_why(reason)), _text(reason.table), _Drawing(reason.course or [])
        )
    yield Text()
    yield _text("dead letters by reason", "dim")
    yield table
    more = (found.dead_letter_reasons or 0) - len(found.dead_letters_by_reason)
    if more > 0:
        yield _text(f"and {count(more)} reasons more", "dim")


def _shards(workers: Sequence[Overview]) -> Iterator[RenderableType]:
    """Of all workers that were asked, the latest first."""
    found = [(shard, worker.process) for worker in workers for shard in worker.shards]
    if not found:
        return
    found.sort(key=lambda one: (-(one[0].oldest_age_s or 0), one[0].queue))
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "right", "left"):
        table.add_column(justify=justify, overflow="fold")
    for shard, owner in found[:MOST_SHARDS]:
        table.add_row(
            _text(shard.queue),
            f"oldest {duration(shard.oldest_age_s)}",
            f"{count(shard.waiting)} wait",
            _text(owner),
        )
    yield Text()
    yield _text("shards, and who owns them", "dim")
    yield table
    more = sum(worker.shards_owned for worker in workers) - len(found[:MOST_SHARDS])
    if more > 0:
        yield _text(f"and {count(more)} shards more", "dim")


def _why(reason: ReasonCount) -> str:
    if reason.sqlstate == "none":
        return "not given to Postgres"
    return f"{reason.sqlstate} {reason.condition or ''}".strip()


def _workers(urls: Sequence[str], answers: Sequence[Answer | None], shown: Overview) -> Iterator[Text]:
    yield _text("workers", "dim")
    for url, answer in zip(urls, answers, strict=True):
        if answer is None or answer.overview is None:
            yield _no_answer(url, answer)
            continue
        found = answer.overview
        mark = ">" if found is shown else " "
        queue = "" if found.queue == shown.queue else f", of another queue: {found.queue}"
        yield _text(f"{mark} {url}  {found.process}  {found.role}{queue}: {found.findings[0].text}")


class _Drawing:
    """A sparkline as wide as its place is."""

    def __init__(self, course: Course) -> None:
        self._course = course

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(8, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        bars = _ASCII if options.ascii_only else _BLOCKS
        yield Segment(sparkline(self._course, options.max_width, bars), console.get_style("cyan"))


def _text(text: str, style: str = "") -> Text:
    """What is in it is no markup, and no terminal obeys it. A space at its beginning is kept."""
    return Text(_clean(text), style=style)


def _clean(text: str) -> str:
    return printable(text).replace("\n", " ")
