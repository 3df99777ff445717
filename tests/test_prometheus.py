"""The rules of deploy/prometheus: promtool's tests, what they rest on, and a real Prometheus at a worker."""

from __future__ import annotations

import re
import subprocess
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import click
import psycopg
import pytest
import redis
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.support.documents import blocks
from tests.support.prometheus import DEPLOYED, ROOT, Prometheus, free_port, program
from tests.support.workers import WorkerProcess, Workload

from writebehind import WriteBehind, WriteRejected
from writebehind.keys import QueueKeys
from writebehind_worker.cli import cli
from writebehind_worker.dead_cli import dead
from writebehind_worker.metrics import Metrics
from writebehind_worker.pause import pause, resume
from writebehind_worker.resharding import divide
from writebehind_worker.testing.wait import wait_until

CASES = Path(__file__).parent / "prometheus"
RULES = ("rules.yaml", "alerts.yaml")
RAW = re.compile(r"(?<![:\w])(writebehind_\w+|process_\w+)(?:\{([^}]*)\})?")
GIVEN_BY_PROMETHEUS = {"job", "instance"}
METRIC_ROW = re.compile(r"^\| `(\w+)`(?:\{([\w, ]+)\})? \| \w", re.M)


def rules(kind: str) -> list[dict[str, Any]]:
    """``alert`` or ``record``."""
    found = []
    for name in RULES:
        for group in yaml.safe_load((DEPLOYED / name).read_text())["groups"]:
            found += [rule for rule in group["rules"] if kind in rule]
    return found


def promtool(*arguments: object) -> str:
    command = [program("promtool"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


REDIS_FIELDS = (
    "keyspace_hits", "keyspace_misses", "evicted_keys", "expired_keys",
    "used_memory", "maxmemory", "connected_clients", "blocked_clients",
)  # fmt: skip


def told() -> dict[str, set[str]]:
    """Sample → labels, of a worker to which everything has happened."""
    metrics = Metrics("q")
    metrics.flushed("public.users", "applied", 1)
    metrics.rows_written("public.users", 1)
    metrics.retried("HeldByLock")
    metrics.dead_lettered("23505", 1)
    metrics.dead_letters_are({("public.users", "23505"): 1})
    metrics.redis_told(dict.fromkeys(REDIS_FIELDS, 1))
    return labels_of(metrics.text().decode())


def labels_of(text: str) -> dict[str, set[str]]:
    families = text_string_to_metric_families(text)
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    promtool("check", "config", DEPLOYED / "prometheus.yaml")
    assert f"{len(rules('record'))} rules found" in promtool("check", "rules", DEPLOYED / "rules.yaml")
    assert f"{len(rules('alert'))} rules found" in promtool("check", "rules", DEPLOYED / "alerts.yaml")


@pytest.mark.parametrize("cases", sorted(CASES.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_alert_fires_when_it_should(cases: Path) -> None:
    promtool("test", "rules", cases)


def test_one_command_keeps_namespaces_apart(tmp_path: Path) -> None:
    """As the head of rules.yaml says; without the label nothing changes."""
    deployed = tmp_path / "deploy" / "prometheus"
    deployed.mkdir(parents=True)
    for name in RULES:
        text = (DEPLOYED / name).read_text()
        (deployed / name).write_text(text.replace("(job, queue", "(namespace, job, queue"))
    folder = tmp_path / "tests" / "prometheus"
    folder.mkdir(parents=True)
    for name in ("lag.yaml", "owner.yaml"):
        (folder / name).write_text((CASES / name).read_text())
        promtool("test", "rules", folder / name)
    for name in RULES:
        assert not re.search(r"\b(by|on) \(job", (deployed / name).read_text())


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    fires: list[dict[str, str]] = []
    rests: set[str] = set()
    for path in CASES.glob("*.yaml"):
        for case in yaml.safe_load(path.read_text())["tests"]:
            for one in case.get("alert_rule_test", ()):
                expected = one["exp_alerts"]
                fires += [{"alertname": one["alertname"]} | alert["exp_labels"] for alert in expected]
                rests |= set() if expected else {one["alertname"]}
    for rule in rules("alert"):
        labels = {"alertname": rule["alert"]} | rule["labels"]
        assert any(labels.items() <= fired.items() for fired in fires), f"{labels} fires in no case"
        assert rule["alert"] in rests, f"{rule['alert']} is never seen at rest"


def test_each_alert_says_how_bad_it_is_and_has_its_page() -> None:
    pages = re.findall(r"^## (Writebehind\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.M)
    assert len(pages) == len(set(pages))
    assert set(pages) == {rule["alert"] for rule in rules("alert")}
    for rule in rules("alert"):
        assert rule["labels"]["severity"] in ("page", "ticket")
        notes = rule["annotations"]
        assert set(notes) == {"summary", "description", "runbook_url"}
        assert notes["runbook_url"].endswith(f"/runbook.md#{rule['alert'].lower()}")


def test_each_page_says_the_same_four_things() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text()
    for page in re.split(r"^## (?=Writebehind)", text, flags=re.M)[1:]:
        heads = re.findall(r"^\*\*(.+?)\*\*", page, re.M)
        assert heads == ["Meaning.", "Causes.", "Do.", "Do not."], page.splitlines()[0]


def test_the_runbook_names_commands_that_exist() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text()
    named = set(re.findall(r"(?:`|^)writebehind (\w+)", text, re.M))
    assert named >= {"status", "pause", "resume", "dead"}
    assert named <= set(cli.list_commands(click.Context(cli)))
    assert set(re.findall(r"writebehind dead (\w+)", text)) <= set(dead.commands)


def test_the_rules_use_what_a_worker_tells() -> None:
    known = told()
    recorded = {rule["record"] for rule in rules("record")}
    for rule in rules("record") + rules("alert"):
        used = RAW.findall(rule["expr"])
        for name, matchers in used:
            assert name in known, f"{name} is told by no worker"
            labels = set(re.findall(r"(\w+)\s*=", matchers))
            assert labels <= known[name] | GIVEN_BY_PROMETHEUS, f"{name} has no {labels - known[name]}"
        for name in re.findall(r"\bjob_queue\w*:[\w:]+", rule["expr"]):
            assert name in recorded, f"{name} is recorded nowhere"
        kept = {label for by in re.findall(r"by \(([^)]+)\)", rule["expr"]) for label in by.split(", ")}
        has = set().union(*(known[name] for name, _ in used)) | GIVEN_BY_PROMETHEUS
        assert not used or kept <= has, f"{kept - has} is no label of {used}"


def test_the_documentation_has_every_metric_and_every_alert() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    documented = {name: set((labels or "").split(", ")) - {""} for name, labels in METRIC_ROW.findall(text)}
    known = {
        re.sub(r"_(bucket|count|sum)$", "", name): labels - {"queue", "le"}
        for name, labels in told().items()
        if not name.endswith("_created")
    }
    assert documented == known
    listed = re.findall(r"^\| \[(\w+)\]\(runbook\.md#(\w+)\) \| (\w+) \|", text, re.M)
    assert all(link == name.lower() for name, link, _ in listed)
    severities = {(rule["alert"], rule["labels"]["severity"]) for rule in rules("alert")}
    assert {(name, severity) for name, _, severity in listed} == severities


def test_a_real_prometheus_sees_a_real_worker(
    load: Workload, redis_url: str, postgres_url: str, queue: str, tmp_path: Path
) -> None:
    port = free_port()
    urls = {"redis_url": redis_url, "postgres_url": postgres_url, "queue": queue}
    prometheus = Prometheus(tmp_path, free_port(), f"127.0.0.1:{port}")
    with WorkerProcess(**urls, metrics_port=port, metrics_host="127.0.0.1") as worker, prometheus:
        load.add(300)
        load.wait_until_done()
        wait_until(lambda: prometheus.query("up") and _is(prometheus, "lease_held", queue, 1))
        assert [s.value for s in prometheus.query("up")] == [1]
        load.add(300)
        load.wait_until_done()
        wait_until(lambda: _is(prometheus, "writes_total", queue, 600), message="not all writes were told")
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        assert set(labels_of(text)) <= set(told()), "a metric that the tests do not know"

        wait_until(lambda: {rule["health"] for rule in prometheus.rules()} == {"ok"})
        expression = f'job_queue:writebehind_landed_writes:rate5m{{job="writebehind", queue="{queue}"}} > 0'
        wait_until(lambda: prometheus.query(expression), message="no write was seen to land")
        # The group's rules are evaluated one after the other: this one comes later.
        share = f'job_queue:writebehind_late_writes:ratio_rate1h{{queue="{queue}"}}'
        late = wait_until(lambda: prometheus.query(share), message="nothing was told of late writes")
        assert [0 <= sample.value <= 1 for sample in late] == [True]
        flushed = prometheus.query(f'time() - writebehind_last_flush_timestamp_seconds{{queue="{queue}"}}')
        assert [0 <= sample.value < 60 for sample in flushed] == [True]
        # What a busy machine, or a Redis of the user's, brings about is none of a quiet queue.
        may = {"WritebehindLagBudgetBurn", "WritebehindUnsafeRedis"}
        wait_until(lambda: not prometheus.firing().keys() - may, message="an alert without a reason")

        load.redis.lpush(queue, b'{"table":"users","id":1,"data":{"nmae":"x"}}')
        alert = _fires(prometheus, "WritebehindDeadLetters")
        assert alert["labels"] == {
            "alertname": "WritebehindDeadLetters", "job": "writebehind", "queue": queue, "severity": "ticket",
        }  # fmt: skip
        assert alert["annotations"]["summary"] == f"{queue} has 1 dead letters"

        pause(load.redis, load.keys, "a test")
        _fires(prometheus, "WritebehindPausedLong")
        resume(load.redis, load.keys)

        worker.kill()
        alert = _fires(prometheus, "WritebehindAbsent")
        assert alert["labels"]["queue"] == queue


def test_a_real_prometheus_sees_a_fleet_that_is_well_and_one_that_is_not(
    connect: Callable[..., WriteBehind],
    redis_client: redis.Redis,
    users: psycopg.Connection[Any],
    options: dict[str, Any],
    queue: str,
    tmp_path: Path,
) -> None:
    """Three workers share two shards, and divide the queue anew."""
    divide(redis_client, QueueKeys(queue), 2)
    ports, wb = [free_port() for _ in range(3)], connect()
    prometheus = Prometheus(tmp_path, free_port(), *(f"127.0.0.1:{port}" for port in ports))

    def owners() -> dict[str, float]:
        found = prometheus.query("sum by (queue) (writebehind_lease_held)")
        return {sample.labels["queue"].removeprefix(queue): sample.value for sample in found}

    def is_quiet(*but: str) -> bool:
        # What a busy machine, or a Redis of the user's, brings about is none of a quiet queue.
        may = {"WritebehindLagBudgetBurn", "WritebehindUnsafeRedis", "WritebehindRetrying", *but}
        return not prometheus.firing().keys() - may

    with prometheus, ExitStack() as workers:
        for port in ports:
            one = WorkerProcess(**options, metrics_port=port, metrics_host="127.0.0.1", lease_ttl_s=2.0)
            workers.enter_context(one)
        wait_until(lambda: owners() == {"": 1, ":1of2": 1, ":2of2": 1}, message="not each has one owner")
        wait_until(lambda: [s.value for s in prometheus.query("sum(up)")] == [3])
        wait_until(is_quiet, message="an alert without a reason")

        with pytest.raises(WriteRejected):
            wb.put("users", 1, {"nmae": "Ada"}, wait=20)
        shard = _fires(prometheus, "WritebehindDeadLetters")["labels"]["queue"]
        assert re.fullmatch(rf"{queue}:[12]of2", shard)
        divide(redis_client, QueueKeys(queue), 3)
        wait_until(lambda: owners() == {"": 1, ":1of3": 1, ":2of3": 1, ":3of3": 1})
        wait_until(lambda: is_quiet("WritebehindDeadLetters"), message="former shards are missed")

        def whose() -> Any:
            found = prometheus.firing().get("WritebehindDeadLetters")  # for a moment it may be nobody's
            return found and found["labels"]["queue"]

        wait_until(lambda: whose() == queue)


def _fires(prometheus: Prometheus, name: str) -> dict[str, Any]:
    found = wait_until(lambda: prometheus.firing().get(name), timeout=20, message=f"{name} did not fire")
    return cast(dict[str, Any], found)


def _is(prometheus: Prometheus, metric: str, queue: str, value: float) -> bool:
    return bool(prometheus.query(f'sum by (queue) (writebehind_{metric}{{queue="{queue}"}}) == {value}'))


def test_the_inhibitions_of_the_documents_are_taken_by_alertmanager(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    (rules,) = [
        block.code for block in blocks(text) if block.kind == "yaml" and "inhibit_rules" in block.code
    ]
    alerts = (ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text()
    for matcher in re.findall(r"Writebehind\(([^)]*)\)", rules):
        for name in matcher.split("|"):
            assert re.search(rf"alert: Writebehind{name}\b", alerts), name
    amtool = program("amtool")
    file = tmp_path / "alertmanager.yaml"
    file.write_text(f"route: {{receiver: nobody}}\nreceivers: [{{name: nobody}}]\n{rules}")
    done = subprocess.run([amtool, "check-config", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 inhibit rules" in done.stdout + done.stderr
