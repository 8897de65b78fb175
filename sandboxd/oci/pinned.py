"""A pod without a pause container: mounts pin its namespaces, and its containers join them by path. Pure."""

from __future__ import annotations

from sandboxd.model import SandboxRecord
from sandboxd.oci import linux, lsm, sandbox, seccomp, userns
from sandboxd.oci.linux import HostFacts, Json
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.places import Places


def needs_pause(config: cri.PodSandboxConfig) -> str:
    """What of the pod takes a pause container, in words; "" when its namespaces can do without a process."""
    context = config.linux.security_context
    if context.namespace_options.pid == cri.POD:
        return "its containers share a pid namespace, which lasts as long as its first process"
    if userns.of(config) is not None:
        return "its user namespace owns the others, whose sysctls only a process in it may set"
    if context.privileged and context.namespace_options.network != cri.NODE:
        return "it is privileged: its /sys is writable only if the first mount in its network namespace was"
    return ""


def pins(record: SandboxRecord, places: Places) -> dict[str, str]:
    """The path of each namespace that a pinned pod has of its own besides its network's, by kind."""
    modes = record.config.linux.security_context.namespace_options
    own = {}
    if modes.ipc != cri.NODE:
        own["ipc"] = places.ipc_namespace(record.id)
    if modes.network != cri.NODE:
        own["uts"] = places.uts_namespace(record.id)
    return own


def pinned_spec(record: SandboxRecord, *, places: Places, host: HostFacts) -> Json:
    """What containerd keeps as the runtime spec of a pinned pod: its namespaces, and what was set in them.

    Nothing is run from it. What a pause container would be refused is refused: raises InvalidRequest, Unsupported.
    """
    context = record.config.linux.security_context
    lsm.apparmor(context, host)
    seccomp.for_context(context, [], host)
    labels = sandbox.pod_labels(record, host)
    namespaces = {"network": record.netns_path or linux.HOST, **pins(record, places)}
    spec: Json = {
        "ociVersion": linux.OCI_VERSION,
        "annotations": sandbox.pod_annotations(record, host),
        "linux": {
            "namespaces": linux.namespaces(namespaces),
            "cgroupsPath": places.cgroups_path(record, record.id),
            "sysctl": sandbox.sysctls(record.config),
        },
    }
    if record.config.hostname and "uts" in namespaces:
        spec["hostname"] = record.config.hostname
    if labels.mount:
        spec["linux"]["mountLabel"] = labels.mount
    return spec
