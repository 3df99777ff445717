"""The Pod Security Standards' profile "restricted", as Kubernetes 1.36 documents it, for pods of Linux."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral",
    "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
_SELINUX_TYPES = ("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")
_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}
_PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


def violations(pod: dict[str, Any]) -> Iterator[str]:
    """What a pod's spec has that the profile forbids, or lacks that it asks for; as ``where: what``."""
    own = pod.get("securityContext") or {}
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield f"pod: {name}"
    for volume in pod.get("volumes") or []:
        for kind in volume.keys() - {"name"} - _VOLUMES:
            yield f"pod: volume of type {kind}"
    for sysctl in own.get("sysctls") or []:
        if sysctl["name"] not in _SYSCTLS:
            yield f"pod: sysctl {sysctl['name']}"
    yield from (f"pod: {what}" for what in _of_either(own))
    for group in ("initContainers", "containers", "ephemeralContainers"):
        for container in pod.get(group) or []:
            yield from (f"{container['name']}: {what}" for what in _of_container(container, own))


def _of_either(context: dict[str, Any]) -> Iterator[str]:
    """What must not be set, neither for the pod nor for a container."""
    if context.get("runAsNonRoot") is False:
        yield "runAsNonRoot is false"
    if context.get("runAsUser") == 0:
        yield "runAsUser is 0"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield "hostProcess"
    seccomp = (context.get("seccompProfile") or {}).get("type")
    if seccomp not in {None, "RuntimeDefault", "Localhost"}:
        yield f"seccompProfile {seccomp}"
    app_armor = (context.get("appArmorProfile") or {}).get("type")
    if app_armor not in {None, "RuntimeDefault", "Localhost"}:
        yield f"appArmorProfile {app_armor}"
    selinux = context.get("seLinuxOptions") or {}
    if selinux.get("type", "") not in _SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield "seLinuxOptions"


def _of_container(container: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    own = container.get("securityContext") or {}
    yield from _of_either(own)
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield "runAsNonRoot is not true"
    if not (own.get("seccompProfile") or pod.get("seccompProfile") or {}).get("type"):
        yield "no seccompProfile"
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if own.get("procMount", "Default") != "Default":
        yield "procMount"
    capabilities = own.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []):
        yield "capabilities: ALL is not dropped"
    for added in capabilities.get("add") or []:
        if added != "NET_BIND_SERVICE":
            yield f"capabilities: {added} is added"
    for port in container.get("ports") or []:
        if port.get("hostPort"):
            yield f"hostPort {port['hostPort']}"
    yield from _of_hooks(container)


def _of_hooks(container: dict[str, Any]) -> Iterator[str]:
    """Probes and hooks must not be sent to a host of the manifest's choice."""
    hooks = {name: container.get(name) for name in _PROBES} | (container.get("lifecycle") or {})
    for name, hook in hooks.items():
        for kind in ("httpGet", "tcpSocket"):
            if ((hook or {}).get(kind) or {}).get("host"):
                yield f"{name}: host"
