"""The manifests of deploy/kubernetes, rendered without a cluster, and what holds their fields together."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from writebehind_worker.options import read_file
from writebehind_worker.testing.servers import missing

Object = dict[str, Any]

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
RENDERED = (
    "base",
    "overlays/small",
    "overlays/production",
    "overlays/fleet",
    "overlays/fleet-keda",
    "overlays/keda",
)


@functools.cache
def render_text(name: str) -> str:
    """What would be applied for ``base`` or ``overlays/…``, as YAML."""
    return build(KUBERNETES / name)


def build(folder: Path) -> str:
    """Runs kustomize on a folder; it asks no server for anything."""
    kustomize, kubectl = shutil.which("kustomize"), shutil.which("kubectl")
    if not (kustomize or kubectl):
        missing(
            "neither kustomize nor kubectl is on the PATH; run: "
            "go install sigs.k8s.io/kustomize/kustomize/v5@v5.8.1, and add $(go env GOPATH)/bin to the PATH"
        )
    command = [kustomize, "build"] if kustomize else [str(kubectl), "kustomize"]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "a warning: is a field deprecated?"
    return done.stdout


def render(name: str) -> list[Object]:
    """The same as objects; new ones with each call."""
    return load(render_text(name))


def load(text: str) -> list[Object]:
    """The documents of a YAML file."""
    return [found for found in yaml.safe_load_all(text) if found]


def the(kind: str, objects: list[Object]) -> Object:
    """The only one of its kind."""
    (found,) = [o for o in objects if o["kind"] == kind]
    return found


def pod_of(deployment: Object) -> Object:
    """The pod's spec."""
    spec: Object = deployment["spec"]["template"]["spec"]
    return spec


def labels_of(deployment: Object) -> dict[str, str]:
    """The pods' labels."""
    labels: dict[str, str] = deployment["spec"]["template"]["metadata"]["labels"]
    return labels


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a selector by ``matchLabels`` matches. An empty one, which means all pods, does not."""
    wanted = selector.get("matchLabels", {})
    assert selector.keys() <= {"matchLabels"}, "this function knows no expressions"
    return bool(wanted) and wanted.items() <= labels.items()


def namespace() -> Object:
    """The one that the overlays install into."""
    return the("Namespace", load((KUBERNETES / "namespace.yaml").read_text(encoding="utf-8")))


def deployment(name: str = "base") -> Object:
    """The Deployment, rendered."""
    return the("Deployment", render(name))


def worker(name: str = "base") -> Object:
    """The pods' only container."""
    (container,) = pod_of(deployment(name))["containers"]
    found: Object = container
    return found


def configuration(tmp_path: Path) -> dict[str, Any]:
    """What the worker reads from its ConfigMap."""
    path = tmp_path / "writebehind.toml"
    path.write_text(the("ConfigMap", render("base"))["data"][path.name], encoding="utf-8")
    return read_file(path)


def plain_secrets(objects: list[Object]) -> Iterator[str]:
    """Where a manifest holds a secret's value itself instead of naming a Secret."""
    for found in objects:
        if found["kind"] == "Secret":
            yield f"Secret {found['metadata']['name']}"
        if found["kind"] == "Deployment":
            for container in pod_of(found)["containers"]:
                for variable in container.get("env", []):
                    if "value" in variable and variable["name"].endswith(("_URL", "PASSWORD", "TOKEN")):
                        yield f"the variable {variable['name']}"
