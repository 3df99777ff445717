"""The plots of docs/benchmarks.md: horizontal bars as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from .load import LOADS

_COLOURS = {"writebehind": "#2a6f97", "limit": "#b7b7b7", "afternoon": "#e09f3e", "one_by_one": "#9e2a2b"}
_OTHERS = ("#2a6f97", "#b7b7b7", "#e09f3e")
_LABEL, _WIDTH, _BAR, _GAP, _TOP = 250, 420, 13, 12, 46


@dataclass(frozen=True, slots=True)
class Group:
    """Bars under one label: name → figure."""

    label: str
    bars: Mapping[str, float]


def bars(title: str, groups: Sequence[Group]) -> str:
    """One bar a figure, all on one scale from zero; each says its figure."""
    names = list(dict.fromkeys(name for group in groups for name in group.bars))
    colours = {name: _COLOURS.get(name, _OTHERS[i % 3]) for i, name in enumerate(names)}
    longest = max(figure for group in groups for figure in group.bars.values()) or 1.0
    parts, y = [_text(0, 16, title, "font-weight='bold'")], _TOP
    for i, name in enumerate(names):
        parts.append(_rect(_LABEL + 120 * i, 24, 10, colours[name]))
        parts.append(_text(_LABEL + 14 + 120 * i, 34, name.replace("_", " ")))
    for group in groups:
        middle = y + _BAR * len(group.bars) / 2 + 4
        parts.append(_text(_LABEL - 8, middle, group.label, "text-anchor='end'"))
        for name, figure in group.bars.items():
            width = figure / longest * _WIDTH
            parts.append(_rect(_LABEL, y, width, colours[name]))
            parts.append(_text(_LABEL + width + 5, y + 10, f"{figure:,.{0 if figure >= 100 else 1}f}"))
            y += _BAR
        y += _GAP
    size = f"width='{_LABEL + _WIDTH + 90}' height='{y}'"
    style = "font-family='sans-serif' font-size='12'"
    ground = "<rect width='100%' height='100%' fill='white'/>"
    body = "\n".join([ground, *parts])
    return f"<svg xmlns='http://www.w3.org/2000/svg' {size} {style}>\n{body}\n</svg>\n"


def _rect(x: float, y: float, width: float, colour: str) -> str:
    return f"<rect x='{x:.0f}' y='{y:.0f}' width='{width:.1f}' height='{_BAR - 2}' fill='{colour}'/>"


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f"<text x='{x:.0f}' y='{y:.0f}' {more}>{escape(text)}</text>"


def _drain(found: Mapping[str, Any]) -> str | None:
    groups = []
    for load in (found[name] for name in LOADS if name in found):
        rates = {name: rival["writes_per_s"] for name, rival in load["rivals"].items()}
        groups.append(Group(load["title"], rates))
    return bars("Draining a queue, writes/s", groups) if groups else None


def _put(found: Mapping[str, Any]) -> str | None:
    groups = []
    for part in (found[name] for name in ("put", "put_batch_100", "put_batch_1000") if name in found):
        for threads, figures in part["threads"].items():
            rates = {name: rival["writes_per_s"] for name, rival in figures["rivals"].items()}
            groups.append(Group(f"{part['batch']:,} a call, threads: {threads}", rates))
    return bars("Writing from an application, writes/s", groups) if groups else None


def _lag(found: Mapping[str, Any]) -> str | None:
    groups = [
        Group(
            f"{load['load_percent']}% load, delay {load['write_delay_ms']} ms",
            {"p50": load["p50_ms"], "p99": load["p99_ms"], "p99.9": load["p999_ms"]},
        )
        for load in found.get("lag", {}).get("loads", [])
    ]
    return bars("Lag, ms from accepted to committed", groups) if groups else None


PLOTS = {"drain": _drain, "put": _put, "lag": _lag}
