"""Which requests a pod can serve that was prepared before anybody asked for it. Pure.

A prepared pod is like one that was asked for with `template`. Some of a request can be made true of a pod that runs:
its name, hostname, DNS, labels, annotations, log directory, cgroup. What cannot must be as it was prepared. Whatever
is not known here counts as that, so a field that CRI adds makes pods in the ordinary way and not wrong ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sandboxd.cni import request
from sandboxd.cni.conf import NetworkConfig
from sandboxd.oci import linux, lsm, userns
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.places import RECORD_CHANGES

# Why not: labels of a metric, so they are added and not changed.
HANDLER = "handler"  # the pool is of the default one, and only where its shim is runc's
HOST_NETWORK = "host network"
USER_NAMESPACE = "user namespace"
NAMESPACES = "namespaces"
SECURITY = "security context"
SYSCTLS = "sysctls"
NETWORK = "network"  # what the pod asks of it: host ports, addresses, bandwidth, or that its changes are recorded
ANNOTATIONS = "annotations"  # that reach the OCI runtime
CGROUP = "cgroup parent"  # with the systemd driver: only systemd moves processes into its slices
OTHER = "other"
IDENTITY = "plugins"  # of the network may depend on who the pod is
EMPTY = "empty"  # none is ready
FAILED = "failed"  # one was ready, and could not be handed out

REASONS = (
    HANDLER, HOST_NETWORK, USER_NAMESPACE, NAMESPACES, SECURITY, SYSCTLS, NETWORK, ANNOTATIONS, CGROUP, OTHER,
    IDENTITY, EMPTY, FAILED,
)  # fmt: skip

# Those that a running pod is given, or that nothing of a running pod depends on.
_GIVEN: tuple[Any, ...] = (
    "metadata", "hostname", "log_directory", "dns_config", "port_mappings", "labels", "annotations",
)  # fmt: skip
_GIVEN_LINUX: tuple[Any, ...] = ("cgroup_parent", "overhead", "resources")
_ASKED_OF_NETWORK = ("portMappings", "bandwidth", "ips", "mac")


def template(sandbox_id: str, *, seccomp: bool) -> cri.PodSandboxConfig:
    """What is asked for in place of a client, for the pod with this id; `seccomp` is whether the kernel has it."""
    name = f"prepared-{sandbox_id[:12]}"
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=name, namespace="sandboxd", uid=sandbox_id),
    )
    if seccomp:
        config.linux.security_context.seccomp.profile_type = cri.SecurityProfile.RuntimeDefault
    return config


def why_not(
    config: cri.PodSandboxConfig,
    network: NetworkConfig | None,
    *,
    annotations: Sequence[str] = (),
    systemd: bool = False,
    seccomp: bool = True,
) -> str:
    """Why this pod, in this network, has to be made from the start: one of REASONS, or "".

    `annotations` are the globs of those that reach the OCI runtime, `systemd` is the cgroup driver, `seccomp` is
    whether the kernel has it.
    """
    modes = config.linux.security_context.namespace_options
    if network is None:
        return HOST_NETWORK
    if userns.of(config) is not None:
        return USER_NAMESPACE
    if modes.ipc != cri.POD or modes.pid not in (cri.POD, cri.CONTAINER) or modes.target_id:
        return NAMESPACES
    if not _is_plain(config.linux.security_context, seccomp=seccomp):
        return SECURITY
    if config.linux.sysctls:
        return SYSCTLS
    if _asks_network(config, network):
        return NETWORK
    if linux.passed_on(config.annotations, annotations):
        return ANNOTATIONS
    if systemd and config.linux.cgroup_parent:
        return CGROUP
    return OTHER if _has_more(config) else ""


def _is_plain(context: cri.LinuxSandboxSecurityContext, *, seccomp: bool) -> bool:
    """Whether the pause container is confined as the prepared one is.

    That has the default seccomp profile. Nobody who names none has a claim to a pause container with more.
    """
    rest = cri.LinuxSandboxSecurityContext()
    rest.CopyFrom(context)
    default = cri.SecurityProfile.RuntimeDefault
    if seccomp and rest.HasField("seccomp") and rest.seccomp.profile_type == default:
        rest.ClearField("seccomp")
    if rest.HasField("apparmor") and rest.apparmor.profile_type == default:
        rest.ClearField("apparmor")
    if seccomp and rest.seccomp_profile_path == "runtime/default":
        rest.ClearField("seccomp_profile_path")
    if not lsm.is_asked(rest.selinux_options):
        rest.ClearField("selinux_options")
    rest.ClearField("namespace_options")  # looked at above
    rest.ClearField("readonly_rootfs")  # a pause container's always is
    return not rest.ListFields()


def _asks_network(config: cri.PodSandboxConfig, network: NetworkConfig) -> bool:
    """Whether a plugin would be given something of this pod, or a warning is due since none is."""
    declared = {name for plugin in network.plugins for name, on in (plugin.get("capabilities") or {}).items() if on}
    asked = request.capability_args(config)
    wanted = any(name in asked for name in _ASKED_OF_NETWORK) or bool(declared & asked.keys())
    # The path of a cgroup is the pod's own, and known before it exists; not where the client names another one.
    moved = "cgroupPath" in declared and bool(config.linux.cgroup_parent)
    return wanted or moved or config.annotations.get(RECORD_CHANGES) == "true"


def _has_more(config: cri.PodSandboxConfig) -> bool:
    """Whether there is something in it that is not looked at here."""
    rest = cri.PodSandboxConfig()
    rest.CopyFrom(config)
    for name in _GIVEN:
        rest.ClearField(name)
    for name in (*_GIVEN_LINUX, "security_context"):
        rest.linux.ClearField(name)
    if not rest.linux.ListFields():
        rest.ClearField("linux")
    return bool(rest.ListFields())
