"""The manifests of deploy/kubernetes: the restricted profile, field by field, and no secret in any."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.support.kubernetes import (
    RENDERED,
    ROOT,
    Object,
    deployment,
    namespace,
    plain_secrets,
    pod_of,
    render,
    render_text,
    the,
    worker,
)
from tests.support.pod_security import violations

from writebehind_worker.config import SETTINGS, redacted

# The restricted profile.


@pytest.mark.parametrize("name", RENDERED)
def test_the_pods_are_of_the_restricted_profile(name: str) -> None:
    assert not list(violations(pod_of(deployment(name))))
    (container,) = pod_of(deployment(name))["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True  # more than the profile asks for


def test_the_namespace_enforces_it() -> None:
    assert namespace()["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def _own(name: str, value: object) -> Callable[[Object], None]:
    """Changes the container's security context; None takes the field away."""

    def change(pod: Object) -> None:
        context = pod["containers"][0]["securityContext"]
        context[name] = value
        if value is None:
            del context[name]

    return change


def _of_pod(name: str, value: object) -> Callable[[Object], None]:
    def change(pod: Object) -> None:
        pod["securityContext"][name] = value
        if value is None:
            del pod["securityContext"][name]

    return change


def _another(group: str) -> Callable[[Object], None]:
    def change(pod: Object) -> None:
        pod[group] = [{"name": "other", "image": "x"}]

    return change


BROKEN: list[tuple[str, Callable[[Object], None]]] = [
    ("pod: hostNetwork", lambda pod: pod.update(hostNetwork=True)),
    ("pod: hostPID", lambda pod: pod.update(hostPID=True)),
    ("pod: hostIPC", lambda pod: pod.update(hostIPC=True)),
    (
        "pod: volume of type hostPath",
        lambda pod: pod["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    ),
    (
        "pod: volume of type nfs",
        lambda pod: pod["volumes"].append({"name": "x", "nfs": {"server": "x", "path": "/"}}),
    ),
    ("pod: sysctl kernel.msgmax", _of_pod("sysctls", [{"name": "kernel.msgmax", "value": "1"}])),
    ("worker: runAsNonRoot is not true", _of_pod("runAsNonRoot", None)),
    ("pod: runAsNonRoot is false", _of_pod("runAsNonRoot", False)),
    ("worker: runAsNonRoot is false", _own("runAsNonRoot", False)),
    ("pod: runAsUser is 0", _of_pod("runAsUser", 0)),
    ("worker: runAsUser is 0", _own("runAsUser", 0)),
    ("worker: no seccompProfile", _of_pod("seccompProfile", None)),
    ("pod: seccompProfile Unconfined", _of_pod("seccompProfile", {"type": "Unconfined"})),
    ("worker: seccompProfile Unconfined", _own("seccompProfile", {"type": "Unconfined"})),
    ("pod: appArmorProfile Unconfined", _of_pod("appArmorProfile", {"type": "Unconfined"})),
    ("worker: seLinuxOptions", _own("seLinuxOptions", {"type": "spc_t"})),
    ("worker: seLinuxOptions", _own("seLinuxOptions", {"user": "root"})),
    ("worker: privileged", _own("privileged", True)),
    ("worker: hostProcess", _own("windowsOptions", {"hostProcess": True})),
    ("worker: allowPrivilegeEscalation is not false", _own("allowPrivilegeEscalation", None)),
    ("worker: allowPrivilegeEscalation is not false", _own("allowPrivilegeEscalation", True)),
    ("worker: procMount", _own("procMount", "Unmasked")),
    ("worker: capabilities: ALL is not dropped", _own("capabilities", None)),
    ("worker: capabilities: ALL is not dropped", _own("capabilities", {"drop": ["NET_RAW"]})),
    (
        "worker: capabilities: SYS_PTRACE is added",
        _own("capabilities", {"drop": ["ALL"], "add": ["SYS_PTRACE"]}),
    ),
    ("worker: hostPort 9753", lambda pod: pod["containers"][0]["ports"][0].update(hostPort=9753)),
    (
        "worker: livenessProbe: host",
        lambda pod: pod["containers"][0]["livenessProbe"]["httpGet"].update(host="10.0.0.1"),
    ),
    (
        "worker: preStop: host",
        lambda pod: pod["containers"][0].update(
            lifecycle={"preStop": {"httpGet": {"host": "10.0.0.1", "port": 1}}}
        ),
    ),
    ("other: capabilities: ALL is not dropped", _another("initContainers")),
    ("other: allowPrivilegeEscalation is not false", _another("ephemeralContainers")),
]


@pytest.mark.parametrize(("what", "change"), BROKEN)
def test_what_breaks_the_profile_is_found(what: str, change: Callable[[Object], None]) -> None:
    pod = pod_of(deployment())
    change(pod)
    assert what in list(violations(pod))


# Secrets.


@pytest.mark.parametrize("name", RENDERED)
def test_no_manifest_holds_a_secret(name: str) -> None:
    assert not list(plain_secrets(render(name)))
    text = render_text(name)
    assert redacted(text) == text


def test_a_secret_in_a_manifest_would_be_found() -> None:
    objects = render("base")
    pod_of(the("Deployment", objects))["containers"][0]["env"].append(
        {"name": "WRITEBEHIND_POSTGRES_URL", "value": "postgresql://db/app"}
    )
    objects.append({"kind": "Secret", "metadata": {"name": "x"}})
    assert list(plain_secrets(objects)) == ["the variable WRITEBEHIND_POSTGRES_URL", "Secret x"]


def test_the_urls_come_from_the_secret_that_the_documentation_makes() -> None:
    sources = {v["name"]: v["valueFrom"]["secretKeyRef"] for v in worker()["env"] if "valueFrom" in v}
    assert sources == {
        SETTINGS["redis_url"].variable: {"name": "writebehind", "key": "redis-url"},
        SETTINGS["postgres_url"].variable: {"name": "writebehind", "key": "postgres-url"},
    }
    documentation = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    assert "create secret generic writebehind " in documentation
    for source in sources.values():
        assert f"--from-literal={source['key']}=" in documentation
