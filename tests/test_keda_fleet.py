"""The ScaledObject of deploy/kubernetes/overlays/fleet-keda: how many workers it asks for."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from tests.support.kubernetes import Object, configuration, namespace, render, the
from tests.support.prometheus import Prometheus, free_port
from tests.support.sharded import all_queues, wait_until_drained
from tests.support.workers import WorkerProcess

from writebehind import WriteBehind
from writebehind.keys import DEFAULT_QUEUE, QueueKeys
from writebehind_worker.pause import pause
from writebehind_worker.resharding import divide
from writebehind_worker.testing.wait import wait_until

OVERLAY = "overlays/fleet-keda"
SHARDS = 8


def scaled() -> Object:
    spec: Object = the("ScaledObject", render(OVERLAY))["spec"]
    return spec


def trigger(name: str) -> Object:
    (found,) = [t for t in scaled()["triggers"] if t["name"] == name]
    told: Object = found
    return told


def query(name: str, queue: str) -> str:
    """As KEDA asks it, for this test's queue; nobody labels what a test scrapes with a namespace."""
    text: str = trigger(name)["metadata"]["query"]
    assert f'namespace="{namespace()["metadata"]["name"]}",' in text and DEFAULT_QUEUE in text
    text = text.replace(f'namespace="{namespace()["metadata"]["name"]}",', "")
    return text.replace(DEFAULT_QUEUE, queue).replace("[2m]", "[5s]")


def test_keda_alone_sets_the_number_of_a_fleets_workers(tmp_path: Path) -> None:
    objects = render(OVERLAY)
    found = the("Deployment", objects)
    target = {"apiVersion": found["apiVersion"], "kind": found["kind"], "name": found["metadata"]["name"]}
    assert scaled()["scaleTargetRef"] == target
    assert "replicas" not in found["spec"]
    assert configuration(tmp_path)["queue"] == DEFAULT_QUEUE
    fleet = the("Deployment", render("overlays/fleet"))["spec"]
    assert found["spec"] == {name: value for name, value in fleet.items() if name != "replicas"}


@pytest.mark.parametrize(
    ("workers", "age_s", "cores", "wanted"),
    [
        (2, 0.0, 0.0, 2),  # who takes over is always there
        (2, 20.0, 0.5, 2),
        (2, 45.0, 0.5, 3),
        (2, 60.0, 0.5, 4),
        (4, 300.0, 1.0, 8),  # as many as shards, and never more
        (4, 0.0, 2.8, 4),  # nothing waits long, for so many work
        (4, 0.0, 3.5, 5),
        (8, 0.0, 0.1, 2),
    ],
)
def test_how_many_workers_a_fleet_gets(workers: int, age_s: float, cores: float, wanted: int) -> None:
    assert _wanted(workers, {"oldest-age": age_s, "cpu": cores}) == wanted


def _wanted(workers: int, values: dict[str, float]) -> int:
    """What the autoscaler makes of it: the most that a trigger wants, in bounds; a tenth is nothing.

    `Value` is a ratio to the threshold, for the workers that there are; `AverageValue` a sum that they share.
    """
    wants = [1]
    for told in scaled()["triggers"]:
        threshold, value = float(told["metadata"]["threshold"]), values[told["name"]]
        assert told["metricType"] in ("Value", "AverageValue")
        ratio = value / threshold / (workers if told["metricType"] == "AverageValue" else 1)
        wants.append(workers if abs(ratio - 1) <= 0.1 else math.ceil(round(workers * ratio, 6)))
    least, most = int(scaled()["minReplicaCount"]), int(scaled()["maxReplicaCount"])
    return min(max(*wants, least), most)


def test_a_fleet_changes_by_few_at_a_time() -> None:
    """Each change shares the shards anew, within two lease periods: it is at rest for longer than that."""
    behavior = scaled()["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    for rules in behavior.values():
        (policy,) = rules["policies"]
        assert policy["type"] == "Pods" and policy["value"] <= scaled()["minReplicaCount"]
        assert policy["periodSeconds"] >= 2 * the("Deployment", render(OVERLAY))["spec"]["minReadySeconds"]


def test_its_queries_find_shards_and_workers_and_leave_out_who_is_paused(
    connect: Callable[..., WriteBehind],
    redis_client: redis.Redis,
    users: psycopg.Connection[Any],
    options: dict[str, Any],
    queue: str,
    tmp_path: Path,
) -> None:
    keys = QueueKeys(queue)
    divide(redis_client, keys, SHARDS)
    shards, port, wb = all_queues(keys, SHARDS)[1:], free_port(), connect()
    prometheus = Prometheus(tmp_path, free_port(), f"127.0.0.1:{port}")

    def value(name: str) -> float | None:
        """One number, as KEDA wants it, or none."""
        samples = prometheus.query(query(name, queue))
        assert len(samples) <= 1, "KEDA refuses an answer with several"
        return samples[0].value if samples else None

    with prometheus:
        wait_until(lambda: prometheus.query("up"))
        assert value("oldest-age") is None and value("cpu") is None, "that no worker is there is no figure"
        with WorkerProcess(**options, metrics_port=port, metrics_host="127.0.0.1"):
            _write(wb, range(100))
            wait_until_drained(redis_client, shards, 40)
            wait_until(lambda: value("oldest-age") == 0)
            wait_until(lambda: (value("cpu") or 0) > 0, message="no worker uses the processor")
            # One shard waits: its lock is a user's.
            with users.transaction():
                users.execute("LOCK TABLE users")
                _write(wb, range(1))
                wait_until(lambda: (value("oldest-age") or 0) > 1, message="no shard is late")
                ages = prometheus.query(f'writebehind_oldest_age_seconds{{queue=~"{queue}.*"}} > 0')
                (late,) = (sample.labels["queue"] for sample in ages)
                assert late in {shard.queue for shard in shards}
            wait_until(lambda: value("oldest-age") == 0)
            for shard in shards:
                pause(redis_client, shard, "a test")
            wait_until(lambda: len(prometheus.query('writebehind_held{reason="paused"} == 1')) == SHARDS)
            _write(wb, range(100))
            late_ones = f'count(writebehind_oldest_age_seconds{{queue=~"{queue}:.*"}} > 1)'
            wait_until(lambda: [s.value for s in prometheus.query(late_ones)] == [SHARDS])
            assert value("oldest-age") == 0


def _write(wb: WriteBehind, ids: range) -> None:
    with wb.batch() as batch:
        for id in ids:
            batch.put("users", id, {"name": "Ada"})
