"""The manifests of deploy/kubernetes: valid, restricted, and each part fits the others and the worker."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
from tests.support.kubernetes import (
    RENDERED,
    ROOT,
    build,
    configuration,
    deployment,
    labels_of,
    load,
    namespace,
    pod_of,
    render,
    selects,
    the,
    worker,
)
from tests.support.kubernetes_schemas import skipped_fields, validate

from writebehind_worker.config import Config

# From 1.27 the fields `matchLabelKeys` and `unhealthyPodEvictionPolicy` are there without a feature gate.
VERSIONS = ("1.27", "1.30", "1.32", "1.34", "1.35", "1.36", "1.37")
CONFIG_FOLDER = "/etc/writebehind"

# What no schema looks at, and what does instead.
SKIPPED = {
    # keys of labels: test_what_selects_pods_selects_the_workers; those of other pods, nothing does
    "*.metadata.labels[app.kubernetes.io/name]",
    "*.metadata.labels[app.kubernetes.io/part-of]",
    "*.metadata.labels[pod-security.kubernetes.io/enforce]",
    "*.metadata.labels[pod-security.kubernetes.io/warn]",
    "Deployment.spec.selector.matchLabels[app.kubernetes.io/name]",
    "Deployment.spec.template.metadata.labels[app.kubernetes.io/name]",
    "Deployment.spec.template.metadata.labels[app.kubernetes.io/part-of]",
    "Deployment.spec.template.spec.topologySpreadConstraints[].labelSelector.matchLabels[app.kubernetes.io/name]",
    "NetworkPolicy.spec.podSelector.matchLabels[app.kubernetes.io/name]",
    "NetworkPolicy.spec.ingress[].from[].namespaceSelector.matchLabels[kubernetes.io/metadata.name]",
    "NetworkPolicy.spec.egress[].to[].namespaceSelector.matchLabels[kubernetes.io/metadata.name]",
    "NetworkPolicy.spec.egress[].to[].podSelector.matchLabels[k8s-app]",
    "PodDisruptionBudget.spec.selector.matchLabels[app.kubernetes.io/name]",
    "PodMonitor.spec.selector.matchLabels[app.kubernetes.io/name]",
    # the file: test_the_worker_accepts_its_configuration
    "ConfigMap.data[writebehind.toml]",
    # names of resources: test_each_worker_has_bounds
    "Deployment.spec.template.spec.containers[].resources.requests[cpu]",
    "Deployment.spec.template.spec.containers[].resources.requests[memory]",
    "Deployment.spec.template.spec.containers[].resources.limits[memory]",
    # what a trigger is told, which only KEDA itself reads: test_keda.py
    "ScaledObject.spec.triggers[].metadata[activationListLength]",
    "ScaledObject.spec.triggers[].metadata[activationThreshold]",
    "ScaledObject.spec.triggers[].metadata[ignoreNullValues]",
    "ScaledObject.spec.triggers[].metadata[listLength]",
    "ScaledObject.spec.triggers[].metadata[listName]",
    "ScaledObject.spec.triggers[].metadata[query]",
    "ScaledObject.spec.triggers[].metadata[serverAddress]",
    "ScaledObject.spec.triggers[].metadata[threshold]",
}


# Schemas.


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(version: str) -> None:
    objects = [namespace()] + [found for name in RENDERED for found in render(name)]
    different = {json.dumps(found): found for found in objects}  # overlays have much in common
    for found in different.values():
        validate(found, version)


def test_every_field_that_no_schema_looks_at_is_known() -> None:
    objects = [namespace()] + [found for name in RENDERED for found in render(name)]
    assert {path for found in objects for path in skipped_fields(found, VERSIONS[-1])} == SKIPPED


def test_a_kind_and_a_key_that_nobody_knows_would_be_named() -> None:
    assert list(skipped_fields({"kind": "Strange", "apiVersion": "example.com/v1"}, "1.30")) == ["Strange"]
    config = the("ConfigMap", render("base"))
    config["data"]["more"] = ""
    assert set(skipped_fields(config, "1.30")) - SKIPPED == {"ConfigMap.data[more]"}


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", "spec.replicas", "two"),
        ("Deployment", "spec.template.spec.terminationGrace", 20),
        ("PodDisruptionBudget", "spec.maxUnavailable", {}),
        ("PodMonitor", "spec.podMetricsEndpoint", []),
        ("PodMonitor", "metadata.lables", {}),
        ("ScaledObject", "spec.minReplicas", 0),
        ("ScaledObject", "spec.maxReplicaCount", 0),
        ("ScaledObject", "spec.advanced.horizontalPodAutoscalerConfig.behavior.scaleDown.policies", {}),
        ("TriggerAuthentication", "spec.secretRef", []),
    ],
)
def test_what_is_wrong_is_found(kind: str, path: str, value: object) -> None:
    broken = copy.deepcopy(the(kind, render("overlays/keda")))
    *parents, last = path.split(".")
    inner = broken
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(broken, "1.34")


def test_a_kind_without_a_schema_is_an_error() -> None:
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        validate({"kind": "Strange", "apiVersion": "example.com/v1", "metadata": {}}, "1.34")


# How the parts fit.


@pytest.mark.parametrize("name", RENDERED)
def test_what_selects_pods_selects_the_workers(name: str) -> None:
    objects = render(name)
    found = the("Deployment", objects)
    selectors = [found["spec"]["selector"], the("PodDisruptionBudget", objects)["spec"]["selector"]]
    selectors.append(the("NetworkPolicy", objects)["spec"]["podSelector"])
    selectors += [o["spec"]["selector"] for o in objects if o["kind"] == "PodMonitor"]
    constraints = pod_of(found).get("topologySpreadConstraints", [])
    selectors += [constraint["labelSelector"] for constraint in constraints]
    for selector in selectors:
        assert selects(selector, labels_of(found))
    namespaces = {o["metadata"].get("namespace") for o in objects if o["kind"] != "PriorityClass"}
    assert namespaces == ({None} if name == "base" else {namespace()["metadata"]["name"]})


@pytest.mark.parametrize("name", RENDERED)
def test_probes_and_monitors_ask_the_endpoint(name: str) -> None:
    container = worker(name)
    (port,) = container["ports"]
    paths = {
        probe: container[probe]["httpGet"]["path"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
        if container[probe]["httpGet"]["port"] == port["name"]
    }
    assert paths == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    objects = render(name)
    (ingress,) = the("NetworkPolicy", objects)["spec"]["ingress"]
    assert [p["port"] for p in ingress["ports"]] == [port["name"]]
    for monitor in (o for o in objects if o["kind"] == "PodMonitor"):
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert (endpoint["port"], endpoint["path"]) == (port["name"], "/metrics")


def test_the_worker_accepts_its_configuration(tmp_path: Path) -> None:
    config = Config(**configuration(tmp_path))
    container = worker()
    assert config.metrics_port == container["ports"][0]["containerPort"]
    assert config.metrics_host == "0.0.0.0"
    assert "redis_url" not in configuration(tmp_path) and "postgres_url" not in configuration(tmp_path)
    (file,) = [v["value"] for v in container["env"] if v["name"] == "WRITEBEHIND_CONFIG"]
    assert file == f"{CONFIG_FOLDER}/writebehind.toml"
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted["config"] == CONFIG_FOLDER
    (volume,) = [v["configMap"]["name"] for v in pod_of(deployment())["volumes"] if "configMap" in v]
    assert volume == the("ConfigMap", render("base"))["metadata"]["name"]
    assert re.fullmatch(r"writebehind-config-\w+", volume), "without the hash a change would start no rollout"


def test_no_variable_of_a_service_can_be_taken_for_an_option() -> None:
    """A Service `writebehind-metrics` would set WRITEBEHIND_METRICS_PORT=tcp://…"""
    assert pod_of(deployment())["enableServiceLinks"] is False


@pytest.mark.parametrize("name", RENDERED)
def test_it_is_killed_only_after_it_had_time_to_stop(name: str, tmp_path: Path) -> None:
    grace_s = pod_of(deployment(name))["terminationGracePeriodSeconds"]
    assert grace_s >= Config(**configuration(tmp_path)).stop_timeout_s + 10


@pytest.mark.parametrize("name", RENDERED)
def test_neither_a_rollout_nor_a_drain_waits_for_ever(name: str) -> None:
    objects = render(name)
    rolling = the("Deployment", objects)["spec"]["strategy"]["rollingUpdate"]
    assert rolling == {"maxSurge": 1, "maxUnavailable": 0}  # a standby is ready: see test_rollout.py
    budget = the("PodDisruptionBudget", objects)["spec"]
    assert budget["maxUnavailable"] == 1  # one of one, too
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_a_worker_has_no_token() -> None:
    account = the("ServiceAccount", render("base"))
    pod = pod_of(deployment())
    assert account["automountServiceAccountToken"] is pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == account["metadata"]["name"]


@pytest.mark.parametrize("name", RENDERED)
def test_each_worker_has_bounds(name: str) -> None:
    resources = worker(name)["resources"]
    assert resources["requests"].keys() == {"cpu", "memory"}
    assert resources["limits"].keys() == {"memory"}  # no limit for the CPU
    assert all(re.fullmatch(r"\d+(m|Mi|Gi)?", size) for part in resources.values() for size in part.values())


def test_the_image_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name in RENDERED:
        assert worker(name)["image"] == f"writebehind:{project['version']}"
    assert (worker()["command"], worker()["args"]) == (["writebehind"], ["run"])
    assert "writebehind" in project["scripts"]


def test_the_policy_lets_out_to_dns_redis_and_postgres_alone() -> None:
    policy = the("NetworkPolicy", render("base"))["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    allowed = {(p["port"], p["protocol"]) for rule in policy["egress"] for p in rule["ports"]}
    assert allowed == {(53, "UDP"), (53, "TCP"), (6379, "TCP"), (5432, "TCP")}
    assert all(peer for rule in policy["egress"] for peer in rule["to"]), "an empty peer is everybody"


# The overlays.


def test_the_documentations_own_overlay_works(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    (overlay,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "writebehind").symlink_to(ROOT)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(overlay, encoding="utf-8")
    (folder / "writebehind.toml").write_text('table = ["users"]\n', encoding="utf-8")
    objects = load(build(folder))
    for found in objects:
        validate(found, VERSIONS[-1])
    pod = pod_of(the("Deployment", objects))
    assert pod["containers"][0]["image"] == "registry.example/writebehind:0.1.0"
    config = the("ConfigMap", objects)
    assert config["data"] == {"writebehind.toml": 'table = ["users"]\n'}
    assert pod["volumes"][0]["configMap"]["name"] == config["metadata"]["name"]
    rules = the("NetworkPolicy", objects)["spec"]["egress"]
    assert [r["ports"][0]["port"] for r in rules if "ipBlock" in r["to"][0]] == [5432]


def test_the_base_has_an_owner_and_a_standby() -> None:
    assert (
        deployment("base")["spec"]["replicas"] == deployment("overlays/production")["spec"]["replicas"] == 2
    )


def test_small_needs_nothing_that_a_cluster_may_lack() -> None:
    objects = render("overlays/small")
    assert the("Deployment", objects)["spec"]["replicas"] == 1
    assert all(re.fullmatch(r"v1|apps/v1|policy/v1|networking\.k8s\.io/v1", o["apiVersion"]) for o in objects)


def test_in_production_two_workers_are_never_on_one_node() -> None:
    objects = render("overlays/production")
    pod = pod_of(the("Deployment", objects))
    strict = [c for c in pod["topologySpreadConstraints"] if c["whenUnsatisfiable"] == "DoNotSchedule"]
    assert [(c["topologyKey"], c["maxSkew"], c["minDomains"]) for c in strict] == [
        ("kubernetes.io/hostname", 1, 2)
    ]
    assert strict[0]["matchLabelKeys"] == ["pod-template-hash"]
    assert pod["priorityClassName"] == the("PriorityClass", objects)["metadata"]["name"]


def test_a_fleets_rollout_waits_until_the_shards_are_shared_again(tmp_path: Path) -> None:
    """That takes two lease periods at most: see test_fleet.py."""
    spec = deployment("overlays/fleet")["spec"]
    assert spec["replicas"] > deployment("overlays/production")["spec"]["replicas"]
    assert spec["minReadySeconds"] == 2 * Config(**configuration(tmp_path)).lease_ttl_s


def test_a_fleet_is_spread_over_the_nodes_that_are_left() -> None:
    constraints = pod_of(deployment("overlays/fleet"))["topologySpreadConstraints"]
    of_production = pod_of(deployment("overlays/production"))["topologySpreadConstraints"]
    assert constraints == [
        {**c, "nodeTaintsPolicy": "Honor"} if c["topologyKey"] == "kubernetes.io/hostname" else c
        for c in of_production
    ]
