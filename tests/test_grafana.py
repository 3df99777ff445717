"""The dashboard: as generated, as Grafana needs it, and each of its queries asked of a real Prometheus."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from tests.support.prometheus import ROOT, Prometheus, free_port
from tests.support.workers import WorkerProcess, Workload

from writebehind_worker.testing.wait import wait_until

GENERATOR = ROOT / "deploy" / "grafana" / "generate.py"
DASHBOARD = json.loads(GENERATOR.with_name("dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
NO_DATA = {"Rollback"}
"""What shows nothing while all is well; everything else has to show something."""

# Names that Grafana knows.
UNITS = {"s", "none", "short", "bytes", "percentunit", "ops", "wps", "rowsps", "dateTimeFromNow"}


def queries() -> Iterator[tuple[str, str]]:
    """What it belongs to, and the expression."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def filled_in(expression: str, queue: str) -> str:
    """As Grafana sends it: one queue is chosen, of all jobs."""
    values = {"$__rate_interval": "5s", "$job": ".*", "$queue": re.escape(queue).replace("\\", "\\\\")}
    for name, value in values.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def test_the_file_is_what_the_generator_makes() -> None:
    spec = importlib.util.spec_from_file_location("generate", GENERATOR)
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.OUTPUT.read_text() == generate.text(), "run: python deploy/grafana/generate.py"


def test_the_provisioning_files_fit_the_composition() -> None:
    docker = ROOT / "deploy" / "docker"
    compose = yaml.safe_load((docker / "compose.yaml").read_text())
    grafana = compose["services"]["grafana"]
    mounts = dict(volume.split(":")[:2] for volume in grafana["volumes"] if volume.startswith("."))
    assert set(mounts.values()) == {
        "/etc/grafana/provisioning/datasources/writebehind.yaml",
        "/etc/grafana/provisioning/dashboards/writebehind.yaml",
        "/var/lib/grafana/dashboards/writebehind.json",
    }
    read = {target: (docker / source).read_text() for source, target in mounts.items()}

    (source,) = yaml.safe_load(read["/etc/grafana/provisioning/datasources/writebehind.yaml"])["datasources"]
    address = urlsplit(source["url"])
    assert (source["type"], source["access"], source["isDefault"]) == ("prometheus", "proxy", True)
    assert address.hostname in grafana["depends_on"]
    command = compose["services"][address.hostname]["command"]
    assert address.port == 9090 and not any("web.listen-address" in option for option in command)

    (provider,) = yaml.safe_load(read["/etc/grafana/provisioning/dashboards/writebehind.yaml"])["providers"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert PurePosixPath(home).parent == PurePosixPath(provider["options"]["path"])
    assert json.loads(read[home]) == DASHBOARD

    prometheus = compose["services"][address.hostname]
    (config,) = (part.partition("=")[2] for part in command if part.startswith("--config.file="))
    folders = {target: source for source, target, *_ in (v.split(":") for v in prometheus["volumes"])}
    asked_of = docker / folders[str(PurePosixPath(config).parent)] / PurePosixPath(config).name
    assert asked_of.resolve().is_relative_to(ROOT / "deploy" / "prometheus")
    asked = yaml.safe_load(asked_of.read_text())
    assert all((asked_of.parent / rules).exists() for rules in asked["rule_files"])
    (job,) = asked["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    name, _, port = target.partition(":")
    assert any(entry.endswith(f":{port}") for entry in compose["services"][name]["ports"])
    interval = source["jsonData"]["timeInterval"]
    assert interval == asked["global"]["scrape_interval"], "rates would be asked over too short a time"


def test_it_has_what_grafana_needs() -> None:
    assert DASHBOARD["schemaVersion"] >= 36
    assert re.fullmatch(r"[\w-]{1,40}", DASHBOARD["uid"])
    assert "id" not in DASHBOARD, "an id of another Grafana keeps it from being imported"
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    assert [v["name"] for v in DASHBOARD["templating"]["list"]] == ["datasource", "job", "queue"]


def test_grafanas_own_types_know_all_that_it_says() -> None:
    register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARD)))
    # What an annotation's and a variable's data source makes of them is its own.
    own = ("titleFormat", "textFormat", "useValueForTime", "definition")
    assert {path for path in lost(DASHBOARD, read) if not path.endswith(own)} == set()


def lost(said: object, read: object, path: str = "") -> Iterator[str]:
    """Where what was read differs from what is said; what Grafana adds by itself is no difference."""
    if isinstance(said, dict) and isinstance(read, dict):
        for name, value in said.items():
            yield from lost(value, read.get(name), f"{path}/{name}")
    elif isinstance(said, list) and isinstance(read, list) and len(said) == len(read):
        for number, (one, other) in enumerate(zip(said, read, strict=True)):
            yield from lost(one, other, f"{path}/{number}")
    elif said != read:
        yield path


def test_no_panel_lies_on_another_nor_beyond_the_edge() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] >= 0 and at["w"] > 0 and at["x"] + at["w"] <= 24, panel["title"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_each_panel_explains_itself(panel: dict[str, Any]) -> None:
    assert panel["type"] in {"stat", "timeseries", "heatmap"}
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    references = [target["refId"] for target in panel["targets"]]
    assert references == sorted(set(references))
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"]
        assert target["legendFormat"]
        selectors = re.findall(r"\{([^{}]*)\}", target["expr"])
        assert selectors and all('job=~"$job", queue=~"$queue"' in one for one in selectors)


def test_the_runbook_names_what_is_there() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text()
    named = set(re.findall(r"(?<!\*)\*([A-Z][^*\n]+)\*(?!\*)", text))
    shown = {panel["title"] for panel in PANELS} | {a["name"] for a in DASHBOARD["annotations"]["list"]}
    assert "Writes that wait" in named
    assert named - shown == {"Targets"}, "Targets is a page of Prometheus"


def test_each_query_finds_something_in_a_real_prometheus(
    load: Workload, redis_url: str, postgres_url: str, queue: str, tmp_path: Path
) -> None:
    port = free_port()
    urls = {"redis_url": redis_url, "postgres_url": postgres_url, "queue": queue}
    prometheus = Prometheus(tmp_path, free_port(), f"127.0.0.1:{port}")
    others = {"metrics_port": port, "metrics_host": "127.0.0.1"}

    def missing() -> set[str]:
        return {
            f"{title}: {expression}"
            for title, expression in queries()
            if title not in NO_DATA and not prometheus.query_range(filled_in(expression, queue), 20)
        }

    def work() -> bool:
        load.redis.lpush(queue, b'{"table":"users","id":99,"data":{"nmae":"x"}}')  # one more dead letter
        load.add(100)
        load.wait_until_done()
        return not missing()

    with prometheus, WorkerProcess(**urls, **others) as worker:
        load.add(100)
        load.wait_until_done()
        wait_until(lambda: prometheus.query(f'writebehind_lease_held{{queue="{queue}"}} == 1'))
        # By what is recorded, or there would be no change to be seen.
        wait_until(lambda: prometheus.query(f'job_queue:writebehind_epoch:max{{queue="{queue}"}} > 0'))
        # Ends its connections: the queue is owned anew, which is what is tried again and marked.
        for client in load.redis.client_list():
            if client["cmd"].startswith("blmove"):
                load.redis.client_kill_filter(_id=client["id"])
        worker.wait_for_event("owner", count=2)
        with suppress(AssertionError):  # the next line says more
            wait_until(work, timeout=20, interval=0.2)
        assert missing() == set()
        for title, expression in queries():
            filled = filled_in(expression, queue)
            samples = prometheus.query(filled)
            assert {s.labels.get("queue", queue) for s in samples} <= {queue}, title
            if title in NO_DATA:
                assert not samples, title
        assert value(prometheus, "Owners", queue) == 1
        wait_until(lambda: value(prometheus, "Dead letters", queue) >= 1)
        assert value(prometheus, "Writes a row", queue) >= 1
        assert 0 <= value(prometheus, "Since the last commit", queue) < 60


def value(prometheus: Prometheus, title: str, queue: str) -> float:
    (expression,) = [expression for name, expression in queries() if name == title]
    (sample,) = prometheus.query_range(filled_in(expression, queue), 20)
    return sample.value
