"""The runtime spec of a pod's pause container: it holds the pod's namespaces and sysctls, and does nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandboxd.errors import InvalidRequest, Unsupported
from sandboxd.model import SandboxRecord
from sandboxd.oci import linux, lsm, seccomp, userns
from sandboxd.oci.linux import HOST, NEW, HostFacts, Json
from sandboxd.oci.users import User
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.places import Places

PAUSE_OOM_SCORE_ADJ = -998  # the last to be killed: without it the pod has no namespaces
PAUSE_CPU_SHARES = 2  # the least there is
_HIGHEST_GROUP = 2**31 - 1  # that net.ipv4.ping_group_range takes

# The shim reads this one to put a pod's containers into one process.
SANDBOX_ID = "io.kubernetes.cri.sandbox-id"

_READONLY_BIND = ["rprivate", "ro", "nosuid", "nodev", "noexec"]


def sandbox_spec(
    sandbox: SandboxRecord,
    *,
    places: Places,
    image: Mapping[str, Any],
    image_name: str,
    user: User,
    host: HostFacts,
) -> Json:
    """The runtime spec for the pause container of `sandbox`, whose config was validated.

    `image` is the `config` object of the pause image (Entrypoint, Cmd, Env, WorkingDir).

    Raises InvalidRequest when the image does not say what to run, Unsupported for what this machine cannot do.
    """
    config = sandbox.config
    context = config.linux.security_context
    modes = context.namespace_options
    host_network = modes.network == cri.NODE
    host_ipc = modes.ipc == cri.NODE
    args = [*(image.get("Entrypoint") or ()), *(image.get("Cmd") or ())]
    if not args:
        raise InvalidRequest(f"pause image {image_name}: it has neither an entrypoint nor a command")
    # Nothing that pauses needs a capability; the runtime applies sysctls and the OOM score before they go.
    held: list[str] = []
    ids = userns.of(config)
    userns.check_user(user, ids)
    labels = pod_labels(sandbox, host)
    spec: Json = {
        "ociVersion": linux.OCI_VERSION,
        "process": {
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.additional_gids)},
            "args": args,
            "env": linux.environment([linux.DEFAULT_PATH, *(image.get("Env") or ())]),
            "cwd": linux.clean(image.get("WorkingDir") or "/"),
            "capabilities": linux.capabilities(held),
            "noNewPrivileges": True,
            "oomScoreAdj": linux.oom_score_adj(PAUSE_OOM_SCORE_ADJ, host),
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [
            linux.proc(),
            linux.dev(),
            # A network namespace has one sysfs superblock, which stays read-only if its first mount is: this one.
            sysfs(sandbox, host, writable=context.privileged),
            linux.bind(shm(sandbox, places), "/dev/shm", _READONLY_BIND),
            linux.bind(f"{places.pod_files(sandbox.id)}/resolv.conf", "/etc/resolv.conf", _READONLY_BIND),
        ],
        "annotations": {
            **linux.passed_on(config.annotations, host.annotations),
            "io.kubernetes.cri.container-type": "sandbox",
            **identity(sandbox),
            "io.kubernetes.cri.sandbox-log-directory": config.log_directory,
            "io.kubernetes.cri.podsandbox.image-name": image_name,
            **_resource_annotations(config.linux),
        },
        "linux": {
            "namespaces": linux.namespaces(
                {
                    "user": user_namespace(sandbox, places),
                    "mount": NEW,
                    "network": HOST if host_network else sandbox.netns_path,
                    "uts": HOST if host_network else NEW,
                    "ipc": HOST if host_ipc else NEW,
                    "pid": HOST if modes.pid == cri.NODE else NEW,
                }
            ),
            "cgroupsPath": places.cgroups_path(sandbox, sandbox.id),
            "resources": {"devices": linux.no_devices(), "cpu": {"shares": PAUSE_CPU_SHARES}},
            "sysctl": sysctls(config),
            "maskedPaths": list(linux.DEFAULT_MASKED_PATHS),
            "readonlyPaths": list(linux.DEFAULT_READONLY_PATHS),
        },
    }
    # A hostname needs a uts namespace of its own (config.md, "Hostname").
    if config.hostname and not host_network:
        spec["hostname"] = config.hostname
    if profile := seccomp.for_context(context, held, host):
        spec["linux"]["seccomp"] = profile
    confine(spec, lsm.apparmor(context, host), labels)
    map_ids(spec, ids)
    return spec


def user_namespace(sandbox: SandboxRecord, places: Places) -> str | None:
    """The user namespace to join, by its pinned path; it was made before the network namespace that it owns."""
    return places.user_namespace(sandbox.id) if userns.of(sandbox.config) else HOST


def sysfs(sandbox: SandboxRecord, host: HostFacts, *, writable: bool) -> Json:
    """/sys as the pod may see it; raises Unsupported when it may not (namespaces(7), sysfs)."""
    host_network = sandbox.config.linux.security_context.namespace_options.network == cri.NODE
    if not host_network or userns.of(sandbox.config) is None:
        return linux.sysfs(writable=writable)
    if not host.recursive_read_only:
        raise Unsupported(
            "config.linux.security_context.namespace_options: a user namespace in the host's network needs recursive"
            " read-only mounts (Linux 5.12 and a runtime that has rro)"
        )
    return linux.host_sysfs()


def pod_labels(sandbox: SandboxRecord, host: HostFacts) -> lsm.Labels:
    """The SELinux labels of the pause container and of the pod's files."""
    context = sandbox.config.linux.security_context
    options = context.selinux_options
    return lsm.selinux(options, options, sandbox.id, host, privileged=context.privileged)


def confine(spec: Json, apparmor: str, labels: lsm.Labels) -> None:
    """Add the AppArmor profile and the SELinux labels that there are."""
    if apparmor:
        spec["process"]["apparmorProfile"] = apparmor
    if labels.process:
        spec["process"]["selinuxLabel"] = labels.process
    if labels.mount:
        spec["linux"]["mountLabel"] = labels.mount


def map_ids(spec: Json, ids: userns.IdMap | None) -> None:
    """Add the mappings of the pod's user namespace; the runtime wants them although it joins one that has them."""
    if ids is not None:
        spec["linux"]["uidMappings"] = ids.uids.spec
        spec["linux"]["gidMappings"] = ids.gids.spec


def identity(sandbox: SandboxRecord) -> dict[str, str]:
    """The annotations by which pause and workloads name their pod."""
    meta = sandbox.config.metadata
    return {
        SANDBOX_ID: sandbox.id,
        "io.kubernetes.cri.sandbox-name": meta.name,
        "io.kubernetes.cri.sandbox-namespace": meta.namespace,
        "io.kubernetes.cri.sandbox-uid": meta.uid,
    }


def shm(sandbox: SandboxRecord, places: Places) -> str:
    """Where the pod's /dev/shm is on the host: the host's own for a pod in the host's ipc namespace."""
    host_ipc = sandbox.config.linux.security_context.namespace_options.ipc == cri.NODE
    return "/dev/shm" if host_ipc else places.shm(sandbox.id)


def sysctls(config: cri.PodSandboxConfig) -> dict[str, str]:
    """`linux.sysctl`: what the pod asks for over what every pod with a network of its own gets.

    The two defaults let any user of the pod bind ports below 1024 and send pings without NET_RAW.
    """
    host_network = config.linux.security_context.namespace_options.network == cri.NODE
    ids = userns.of(config)
    # Of groups, only those that the pod's namespace maps can be named.
    highest = min(ids.gids.length - 1, _HIGHEST_GROUP) if ids else _HIGHEST_GROUP
    defaults = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": f"0 {highest}"}
    asked = {sysctl_name(name): value for name, value in sorted(config.linux.sysctls.items())}
    return asked if host_network else {**defaults, **asked}


def sysctl_name(name: str) -> str:
    """ "net/ipv4/ip_forward" as "net.ipv4.ip_forward".

    A name with slashes that also holds dots, which are then part of an interface's name (sysctl(8)), stays.
    """
    return name if "." in name else name.replace("/", ".")


def _resource_annotations(pod: cri.LinuxPodSandboxConfig) -> dict[str, str]:
    """The pod's limits as VM runtimes read them, present when the request has them."""
    if not pod.HasField("resources"):
        return {}
    return {
        "io.kubernetes.cri.sandbox-cpu-period": str(pod.resources.cpu_period),
        "io.kubernetes.cri.sandbox-cpu-quota": str(pod.resources.cpu_quota),
        "io.kubernetes.cri.sandbox-cpu-shares": str(pod.resources.cpu_shares),
        "io.kubernetes.cri.sandbox-memory": str(pod.resources.memory_limit_in_bytes),
    }
