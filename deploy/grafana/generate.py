"""Builds dashboard.json, beside it: `python deploy/grafana/generate.py`. For Grafana 10 or later.

The queries read what the workers tell; those of the objective, and the marks of new owners, need the
recording rules of deploy/prometheus too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Json = dict[str, Any]

OUTPUT = Path(__file__).with_name("dashboard.json")
OBJECTIVE_LATE = 0.001  # so large a share of the writes may be late; as in deploy/prometheus/rules.yaml

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_OF = 'job=~"$job", queue=~"$queue"'
_WIDTH = 24  # of Grafana's grid
_GREEN, _YELLOW, _RED = "green", "yellow", "red"
_NO_YES = {"0": ("no", _GREEN), "1": ("yes", _RED)}


def dashboard() -> Json:
    """All of it, as Grafana imports it."""
    return {
        "uid": "writebehind",
        "title": "writebehind",
        "description": "The way of writes from Redis to Postgres: is anything lost, late, or held up?",
        "tags": ["writebehind"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "",
        "templating": {"list": _variables()},
        "annotations": {"list": _annotations()},
        "panels": _placed([("Is my data safe?", _safe()), ("How far behind", _behind()),
                           ("Throughput", _throughput()), ("Trouble", _trouble())]),
    }  # fmt: skip


def _safe() -> list[Json]:
    return [
        _stat(
            "Oldest write that waits",
            "Since when the oldest accepted write has not been in Postgres. It is in Redis.",
            "s",
            [(f"max by (job, queue) (writebehind_oldest_age_seconds{{{_OF}}})", "{{queue}}")],
            steps=[(None, _GREEN), (10, _YELLOW), (60, _RED)],
        ),
        _stat(
            "Owners",
            "Workers that own the queue, or shard. One is right; the others stand by.",
            "none",
            [(f"sum by (job, queue) (writebehind_lease_held{{{_OF}}})", "{{queue}}")],
            steps=[(None, _RED), (1, _GREEN), (2, _RED)],
            words={"0": ("nobody", _RED)},
        ),
        _stat(
            "Dead letters",
            "Refused writes that are kept, and that no later write superseded. See writebehind dead list.",
            "short",
            [
                (
                    "sum by (job, queue) (max by (job, queue, table, sqlstate) "
                    f"(writebehind_dead_letters_open{{{_OF}}})) "
                    f"or 0 * max by (job, queue) (writebehind_lease_held{{{_OF}}})",
                    "{{queue}}",
                )
            ],
            steps=[(None, _GREEN), (1, _YELLOW), (1000, _RED)],
        ),
        _stat(
            "Last rollback",
            "When a server was last found to have older data than before: writes may be lost. Of a day.",
            "dateTimeFromNow",
            [
                (
                    "1000 * max by (job, queue, server) "
                    f"(max_over_time(writebehind_last_rollback_timestamp_seconds{{{_OF}}}[1d]))",
                    "{{queue}} {{server}}",
                )
            ],
            steps=[(None, _GREEN), (1, _RED)],
            words={"0": ("never", _GREEN)},
        ),
        _stat(
            "Dangers in Redis",
            "eviction: Redis may evict the queue. persistence: a restart loses what waits. write_error: it "
            "cannot write to its disk. memory: more than 90% of maxmemory are used.",
            "none",
            [(f"max by (job, queue, risk) (writebehind_redis_risk{{{_OF}}})", "{{queue}} {{risk}}")],
            steps=[(None, _GREEN), (1, _RED)],
            words=_NO_YES,
            width=6,
        ),
        _stat(
            "Workers",
            "Workers that are scraped, by the version that they run.",
            "none",
            [(f"count by (job, queue, version) (writebehind_build_info{{{_OF}}})", "{{queue}} {{version}}")],
            steps=[(None, _GREEN)],
            width=2,
        ),
    ]


def _behind() -> list[Json]:
    lag = f"sum by (job, queue, le) (rate(writebehind_write_lag_seconds_bucket{{{_OF}}}[$__rate_interval]))"
    ratio = "job_queue:writebehind_late_writes:ratio_rate{}{{" + _OF + "}} / " + str(OBJECTIVE_LATE)
    quantiles = ((0.5, "50%"), (0.99, "99%"), (0.999, "99.9%"))
    return [
        _lines(
            "Writes that wait",
            "In the queue, and in batches that were taken from it and are not acknowledged (frozen).",
            "short",
            [
                (f"max by (job, queue) (writebehind_queue_length{{{_OF}}})", "{{queue}} waiting"),
                (f"max by (job, queue) (writebehind_frozen_items{{{_OF}}})", "{{queue}} frozen"),
            ],
        ),
        _lines(
            "Age of the oldest write that waits",
            "A line that rises by a second each second: nothing is committed.",
            "s",
            [(f"max by (job, queue) (writebehind_oldest_age_seconds{{{_OF}}})", "{{queue}}")],
            steps=[(None, _GREEN), (60, _RED)],
        ),
        _lines(
            "Lag",
            "From a write's acceptance to its commit: half of the writes, 99% and 99.9% took no longer.",
            "s",
            [(f"histogram_quantile({q}, {lag})", f"{{{{queue}}}} {name}") for q, name in quantiles],
            steps=[(None, _GREEN), (1, _RED)],
        ),
        _heatmap(
            "Lag, how many writes",
            "Writes by the time from their acceptance to their commit.",
            f"sum by (le) (increase(writebehind_write_lag_seconds_bucket{{{_OF}}}[$__rate_interval]))",
        ),
        _lines(
            "Burn of the objective",
            "How many times faster than allowed the budget of late writes is spent (99.9% within 1 s over 30 "
            "days). At 1 it lasts just 30 days; an hour above 14.4, or six hours above 6, call somebody.",
            "none",
            [(ratio.format(window), f"{{{{queue}}}} {window}") for window in ("1h", "6h", "3d")],
            steps=[(None, _GREEN), (1, _YELLOW), (6, _RED)],
        ),
        _stat(
            "Budget that is left",
            "Share left of the late writes that 30 days allow, as far as Prometheus remembers.",
            "percentunit",
            [
                (
                    f"1 - avg_over_time(job_queue:writebehind_late_writes:rate5m{{{_OF}}}[30d]) / "
                    f"(avg_over_time(job_queue:writebehind_landed_writes:rate5m{{{_OF}}}[30d]) > 0) / "
                    f"{OBJECTIVE_LATE}",
                    "{{queue}}",
                )
            ],
            steps=[(None, _RED), (0.1, _YELLOW), (0.5, _GREEN)],
            width=12,
            height=8,
        ),
    ]


def _throughput() -> list[Json]:
    writes = f"rate(writebehind_writes_total{{{_OF}}}[$__rate_interval])"
    applied = f'rate(writebehind_writes_total{{{_OF}, outcome="applied"}}[$__rate_interval])'
    rows = f"rate(writebehind_rows_total{{{_OF}}}[$__rate_interval])"

    def quantile(q: float, name: str) -> str:
        rate = f"rate(writebehind_{name}_bucket{{{_OF}}}[$__rate_interval])"
        return f"histogram_quantile({q}, sum by (job, queue, le) ({rate}))"

    def mean(part: str) -> str:
        rate = f"rate(writebehind_stage_seconds_{part}{{{_OF}}}[$__rate_interval])"
        return f"sum by (job, queue, stage) ({rate})"

    return [
        _lines(
            "Writes",
            "Writes settled each second, by table and by what became of them.",
            "wps",
            [(f"sum by (job, queue, table, outcome) ({writes})", "{{queue}} {{table}} {{outcome}}")],
        ),
        _lines(
            "Rows",
            "Rows written each second: writes of one row in one transaction are one.",
            "rowsps",
            [(f"sum by (job, queue, table) ({rows})", "{{queue}} {{table}}")],
        ),
        _lines(
            "Writes a row",
            "How many writes one written row stands for: coalescing. 1: each write is written by itself.",
            "none",
            [(f"sum by (job, queue) ({applied}) / (sum by (job, queue) ({rows}) > 0)", "{{queue}}")],
        ),
        _lines(
            "Batch size",
            "Writes in a batch: half of the batches, and 99% of them, have no more.",
            "short",
            [(quantile(q, "batch_size"), f"{{{{queue}}}} {q:.0%}") for q in (0.5, 0.99)],
        ),
        _lines(
            "Size of a message",
            "Half of the messages, and 99% of them, are no larger; from 128 B to 1 MiB.",
            "bytes",
            [(quantile(q, "message_size_bytes"), f"{{{{queue}}}} {q:.0%}") for q in (0.5, 0.99)],
        ),
        _lines(
            "Time of a flush",
            "For a batch, or several at once, to Postgres, with COMMIT: half, and 99%, take no longer.",
            "s",
            [(quantile(q, "flush_seconds"), f"{{{{queue}}}} {q:.0%}") for q in (0.5, 0.99)],
        ),
        _lines(
            "Where batches spend their time",
            "The mean of each. Redis: claim, announce, settle, acknowledge; Postgres: flush; worker: read. "
            "They wait for the batch before. Up to 500 cache entries are settled while acknowledging.",
            "s",
            [(f"{mean('sum')} / ({mean('count')} > 0)", "{{queue}} {{stage}}")],
        ),
        _lines(
            "Processor",
            "Cores that each worker uses. One worker uses hardly more than one.",
            "none",
            [(f"rate(process_cpu_seconds_total{{{_OF}}}[$__rate_interval])", "{{queue}} {{instance}}")],
            width=6,
        ),
        _lines(
            "Memory",
            "Resident memory of each worker: it is that of the frozen batches, whatever waits.",
            "bytes",
            [(f"process_resident_memory_bytes{{{_OF}}}", "{{queue}} {{instance}}")],
            width=6,
        ),
    ]


def _trouble() -> list[Json]:
    def rate(metric: str, label: str) -> str:
        return f"sum by (job, queue, {label}) (rate(writebehind_{metric}{{{_OF}}}[$__rate_interval]))"

    def each_second(what: str) -> str:
        return f"rate(writebehind_redis_{what}_total{{{_OF}}}[$__rate_interval])"

    hits, misses = each_second("keyspace_hits"), each_second("keyspace_misses")

    return [
        _lines(
            "Attempts that are made again",
            "HeldByLock: somebody locks a row. begin again: a server, or the ownership, was lost.",
            "ops",
            [(rate("retries_total", "reason"), "{{queue}} {{reason}}")],
        ),
        _lines(
            "New dead letters",
            "Each second, by SQLSTATE; none: the worker refused the message before Postgres saw it.",
            "ops",
            [(rate("dead_lettered_total", "sqlstate"), "{{queue}} {{sqlstate}}")],
        ),
        _lines(
            "Held",
            "1 while the queue waits: for an operator (paused), for a table that refuses every write "
            "(breaker), or for somebody's lock (lock).",
            "none",
            [(f"max by (job, queue, reason) (writebehind_held{{{_OF}}})", "{{queue}} {{reason}}")],
        ),
        _lines(
            "Servers",
            "1 while the worker reaches the server; each worker by itself.",
            "none",
            [
                (f"writebehind_redis_up{{{_OF}}}", "{{queue}} {{instance}} Redis"),
                (f"writebehind_postgres_up{{{_OF}}}", "{{queue}} {{instance}} Postgres"),
            ],
        ),
        _lines(
            "Memory of Redis",
            "Used, and maxmemory; 0: no limit.",
            "bytes",
            [
                (f"max by (job, queue) (writebehind_redis_memory_used_bytes{{{_OF}}})", "{{queue}} used"),
                (f"max by (job, queue) (writebehind_redis_memory_max_bytes{{{_OF}}})", "{{queue}} maxmemory"),
            ],
        ),
        _lines(
            "Hit rate of Redis",
            "Share of the keys looked up that were there: of all the server's clients.",
            "percentunit",
            [(f"sum by (job, queue) ({hits}) / (sum by (job, queue) ({hits} + {misses}) > 0)", "{{queue}}")],
        ),
        _lines(
            "Evicted keys",
            "Removed each second for want of memory: rows that are durable, or else writes are at risk.",
            "ops",
            [(f"sum by (job, queue) ({each_second('evicted_keys')})", "{{queue}}")],
        ),
        _lines(
            "Ownership",
            "1 while the worker owns the queue.",
            "none",
            [(f"writebehind_lease_held{{{_OF}}}", "{{queue}} {{instance}}")],
        ),
        _lines(
            "Since the last commit",
            "Grows where nothing is written, too: alarming only while writes wait.",
            "s",
            [
                (
                    f"time() - (max by (job, queue) (writebehind_last_flush_timestamp_seconds{{{_OF}}}) > 0)",
                    "{{queue}}",
                )
            ],
        ),
    ]


def _variables() -> list[Json]:
    def labels(name: str, of: str) -> Json:
        query = f"label_values({of}, {name})"
        return {
            "name": name,
            "label": name,
            "type": "query",
            "datasource": _SOURCE,
            "definition": query,
            "query": {"query": query, "refId": name},
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "current": {"text": ["All"], "value": ["$__all"]},
        }

    source = {"name": "datasource", "label": "datasource", "type": "datasource", "query": "prometheus"}
    return [
        source,
        labels("job", "writebehind_lease_held"),
        labels("queue", 'writebehind_lease_held{job=~"$job"}'),
    ]


def _annotations() -> list[Json]:
    def annotation(name: str, color: str, expression: str, text: str) -> Json:
        return {
            "name": name,
            "datasource": _SOURCE,
            "enable": True,
            "iconColor": color,
            "expr": expression,
            "titleFormat": name,
            "textFormat": text,
        }

    owner = annotation(
        "New owner",
        "blue",
        f"changes(job_queue:writebehind_epoch:max{{{_OF}}}[1m]) > 0",
        "{{queue}}",
    )
    rollback = annotation(
        "Rollback",
        _RED,
        f"1000 * max by (job, queue, server) (writebehind_last_rollback_timestamp_seconds{{{_OF}}} > 0)",
        "{{queue}}: {{server}} came back with older data",
    )
    return [owner, rollback | {"useValueForTime": "on"}]


Query = tuple[str, str]
"""An expression, and what its lines are called."""

Steps = list[tuple[float | None, str]]
"""From which value on which colour; the first from everything on."""


def _panel(kind: str, title: str, description: str, queries: list[Query], width: int, height: int) -> Json:
    targets = [
        {"refId": chr(ord("A") + i), "datasource": _SOURCE, "expr": expression, "legendFormat": legend}
        for i, (expression, legend) in enumerate(queries)
    ]
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": _SOURCE,
        "targets": targets,
        "gridPos": {"w": width, "h": height},
    }


def _defaults(unit: str, steps: Steps) -> Json:
    colors = [{"value": value, "color": color} for value, color in steps]
    return {"unit": unit, "thresholds": {"mode": "absolute", "steps": colors}}


def _stat(
    title: str,
    description: str,
    unit: str,
    queries: list[Query],
    *,
    steps: Steps,
    words: dict[str, tuple[str, str]] | None = None,
    width: int = 4,
    height: int = 5,
) -> Json:
    panel = _panel("stat", title, description, queries, width, height)
    for target in panel["targets"]:
        target |= {"instant": True, "range": False}
    named = {value: {"text": text, "color": color} for value, (text, color) in (words or {}).items()}
    mappings = [{"type": "value", "options": named}] if named else []
    return panel | {
        "fieldConfig": {
            "defaults": _defaults(unit, steps) | {"color": {"mode": "thresholds"}, "mappings": mappings},
            "overrides": [],
        },
        "options": {
            "reduceOptions": {"calcs": ["lastNotNull"]},
            "colorMode": "value",
            "textMode": "value_and_name",
        },
    }


def _lines(
    title: str,
    description: str,
    unit: str,
    queries: list[Query],
    *,
    steps: Steps | None = None,
    width: int = 12,
) -> Json:
    marks = {"mode": "line" if steps else "off"}
    defaults = _defaults(unit, steps or [(None, _GREEN)])
    custom = {"fillOpacity": 10, "showPoints": "never", "thresholdsStyle": marks}
    return _panel("timeseries", title, description, queries, width, 8) | {
        "fieldConfig": {"defaults": defaults | {"min": 0, "custom": custom}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def _heatmap(title: str, description: str, expression: str) -> Json:
    panel = _panel("heatmap", title, description, [(expression, "{{le}}")], 12, 8)
    panel["targets"][0]["format"] = "heatmap"
    return panel | {
        "fieldConfig": {"defaults": {"unit": "short"}, "overrides": []},
        "options": {
            "calculate": False,
            "cellValues": {"unit": "short"},
            "color": {"mode": "scheme", "scheme": "Blues", "steps": 64},
            "yAxis": {"unit": "s"},
        },
    }


def _placed(rows: list[tuple[str, list[Json]]]) -> list[Json]:
    """One after the other, as many in a line as it holds; each with an id."""
    placed: list[Json] = []
    y = 0
    for title, panels in rows:
        row = {"type": "row", "title": title, "collapsed": False, "panels": []}
        placed.append(row | {"gridPos": {"x": 0, "y": y, "w": _WIDTH, "h": 1}})
        y, x, tallest = y + 1, 0, 0
        for panel in panels:
            size = panel["gridPos"]
            if x + size["w"] > _WIDTH:
                x, y, tallest = 0, y + tallest, 0
            placed.append(panel | {"gridPos": {"x": x, "y": y} | size})
            x, tallest = x + size["w"], max(tallest, size["h"])
        y += tallest
    return [panel | {"id": number} for number, panel in enumerate(placed, start=1)]


def text() -> str:
    """What the file holds."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(text(), encoding="utf-8")
