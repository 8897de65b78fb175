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

PAUSE_OOM_SCORE_ADJ = -998  # killed last: the pod's namespaces depend on it
PAUSE_CPU_SHARES = 2  # the minimum
_MAX_GROUP = 2**31 - 1  # in net.ipv4.ping_group_range

# The shim uses this annotation to serve all of a pod's containers from one process.
SANDBOX_ID = "io.kubernetes.cri.sandbox-id"
_IMAGE = "io.kubernetes.cri.podsandbox.image-name"

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
    """The runtime spec for the pause container of `sandbox`, whose config must have been validated.

    `image` is the `config` object of the pause image (Entrypoint, Cmd, Env, WorkingDir).

    Raises InvalidRequest when the image has no command, Unsupported for what this machine cannot do.
    """
    config = sandbox.config
    context = config.linux.security_context
    modes = context.namespace_options
    host_network = modes.network == cri.NODE
    host_ipc = modes.ipc == cri.NODE
    entrypoint = list(image.get("Entrypoint") or ())
    args = [*(entrypoint if entrypoint != [""] else ()), *(image.get("Cmd") or ())]
    if not args:
        raise InvalidRequest(f"pause image {image_name}: it has neither an entrypoint nor a command")
    # Pausing needs no capability; the runtime sets sysctls and the OOM score before it drops them.
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
            # A network namespace has one sysfs superblock. If its first mount, this one, is read-only, it stays so.
            sysfs(sandbox, host, writable=context.privileged),
            linux.bind(shm(sandbox, places), "/dev/shm", _READONLY_BIND),
            linux.bind(f"{places.pod_files(sandbox.id)}/resolv.conf", "/etc/resolv.conf", _READONLY_BIND),
        ],
        "annotations": {**pod_annotations(sandbox, host), _IMAGE: image_name},
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
    # Setting a hostname requires a uts namespace of its own (config.md, "Hostname").
    if config.hostname and not host_network:
        spec["hostname"] = config.hostname
    if profile := seccomp.for_context(context, held, host):
        spec["linux"]["seccomp"] = profile
    confine(spec, lsm.apparmor(context, host), labels)
    map_ids(spec, ids)
    return spec


def pod_annotations(sandbox: SandboxRecord, host: HostFacts) -> dict[str, str]:
    """The annotations of a pod's spec."""
    return {
        **linux.passed_on(sandbox.config.annotations, host.annotations),
        "io.kubernetes.cri.container-type": "sandbox",
        **identity(sandbox),
        "io.kubernetes.cri.sandbox-log-directory": sandbox.config.log_directory,
        **_resource_annotations(sandbox.config.linux),
    }


def handed_out(spec: Mapping[str, Any], sandbox: SandboxRecord, cgroups_path: str) -> Json:
    """The spec of a pause container that was prepared, once it is the pod `sandbox`, which is what was asked for.

    `cgroups_path` is where it is moved, "" when it stays.
    """
    config = sandbox.config
    changed = {
        **spec,
        "annotations": {
            **spec["annotations"],
            **identity(sandbox),
            "io.kubernetes.cri.sandbox-log-directory": config.log_directory,
            **_resource_annotations(config.linux),
        },
    }
    if cgroups_path:
        changed["linux"] = {**spec["linux"], "cgroupsPath": cgroups_path}
    if config.hostname:
        changed["hostname"] = config.hostname
    return changed


def image_of(spec: Mapping[str, Any]) -> str:
    """The name of the image that a pause container was made from; "" when its spec does not say."""
    return str((spec.get("annotations") or {}).get(_IMAGE, ""))


def user_namespace(sandbox: SandboxRecord, places: Places) -> str | None:
    """The user namespace to join, by its pinned path; it was made before the network namespace that it owns."""
    return places.user_namespace(sandbox.id) if userns.of(sandbox.config) else HOST


def sysfs(sandbox: SandboxRecord, host: HostFacts, *, writable: bool) -> Json:
    """The mount of /sys that the pod may have. Raises Unsupported when it can have none."""
    host_network = sandbox.config.linux.security_context.namespace_options.network == cri.NODE
    if not host_network or userns.of(sandbox.config) is None:
        return linux.sysfs(writable=writable)
    if not host.recursive_read_only:
        raise Unsupported(
            "config.linux.security_context.namespace_options: a user namespace in the host's network needs recursive"
            " read-only mounts (Linux 5.12 and a runtime that supports rro)"
        )
    return linux.host_sysfs()


def pod_labels(sandbox: SandboxRecord, host: HostFacts) -> lsm.Labels:
    """The SELinux labels of the pause container and of the pod's files."""
    context = sandbox.config.linux.security_context
    options = context.selinux_options
    return lsm.selinux(options, options, sandbox.id, host, privileged=context.privileged)


def confine(spec: Json, apparmor: str, labels: lsm.Labels) -> None:
    """Add the AppArmor profile and the SELinux labels, where they are not empty."""
    if apparmor:
        spec["process"]["apparmorProfile"] = apparmor
    if labels.process:
        spec["process"]["selinuxLabel"] = labels.process
    if labels.mount:
        spec["linux"]["mountLabel"] = labels.mount


def map_ids(spec: Json, ids: userns.IdMap | None) -> None:
    """Add the mappings of the pod's user namespace; the runtime requires them although it joins an existing one."""
    if ids is not None:
        spec["linux"]["uidMappings"] = ids.uids.spec
        spec["linux"]["gidMappings"] = ids.gids.spec


def identity(sandbox: SandboxRecord) -> dict[str, str]:
    """The annotations that identify the pod of a pause or workload container."""
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
    """`linux.sysctl`: the pod's own over the defaults, which apply to pods with their own network.

    The two defaults let any user in the pod bind ports below 1024 and send pings without NET_RAW.
    """
    host_network = config.linux.security_context.namespace_options.network == cri.NODE
    ids = userns.of(config)
    # The range can only contain groups that the pod's user namespace maps.
    highest = min(ids.gids.length - 1, _MAX_GROUP) if ids else _MAX_GROUP
    defaults = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": f"0 {highest}"}
    requested = {sysctl_name(name): value for name, value in sorted(config.linux.sysctls.items())}
    return requested if host_network else {**defaults, **requested}


def sysctl_name(name: str) -> str:
    """The dotted form of a sysctl's name: "net.ipv4.ip_forward" for "net/ipv4/ip_forward".

    A name that has dots already is kept: beside slashes they are part of an interface's name (sysctl(8)).
    """
    return name if "." in name else name.replace("/", ".")


def _resource_annotations(pod: cri.LinuxPodSandboxConfig) -> dict[str, str]:
    """The pod's limits for VM runtimes, if the request has any."""
    if not pod.HasField("resources"):
        return {}
    return {
        "io.kubernetes.cri.sandbox-cpu-period": str(pod.resources.cpu_period),
        "io.kubernetes.cri.sandbox-cpu-quota": str(pod.resources.cpu_quota),
        "io.kubernetes.cri.sandbox-cpu-shares": str(pod.resources.cpu_shares),
        "io.kubernetes.cri.sandbox-memory": str(pod.resources.memory_limit_in_bytes),
    }
