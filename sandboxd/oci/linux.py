"""The Linux sections that pause and workload specs share, and the facts about the machine that they need.

Terms and JSON shapes are those of the OCI runtime spec 1.0.2 ("config.md" and "config-linux.md"). The defaults
are containerd's, so that a workload gets the same environment.
"""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sandboxd.errors import InvalidRequest, Unsupported
from sandboxd.pb.cri.v1 import api_pb2 as cri

Json = dict[str, Any]

OCI_VERSION = "1.0.2"
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# linux/capability.h, in the order of their numbers.
_CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE"
    " NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT"
    " SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL"
    " SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
_DEFAULT_CAPABILITIES = (
    "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL"
    " AUDIT_WRITE"
)
ALL_CAPABILITIES: tuple[str, ...] = tuple(f"CAP_{name}" for name in _CAPABILITIES.split())
DEFAULT_CAPABILITIES: frozenset[str] = frozenset(f"CAP_{name}" for name in _DEFAULT_CAPABILITIES.split())

DEFAULT_MASKED_PATHS: tuple[str, ...] = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)

DEFAULT_READONLY_PATHS: tuple[str, ...] = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)

_EVERY_DEVICE = "rwm"  # read, write and mknod

LEAST_SHARES, MOST_SHARES = 2, 262_144  # MIN_SHARES and MAX_SHARES of the kernel's scheduler (kernel/sched/sched.h)
NO_LIMIT = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceNode:
    """A device node of the host, symlinks resolved."""

    path: str
    kind: str  # "c", "b" or "p" as in mknod(1)
    major: int
    minor: int
    mode: int = 0o660  # permission bits only
    uid: int = 0
    gid: int = 0
    below: str = ""  # path relative to the requested one when that is a directory, e.g. "by-id/x"


@dataclass(frozen=True, slots=True, kw_only=True)
class MountSource:
    """The host side of a bind mount: its resolved path, and how the mount that holds it propagates."""

    path: str  # symlinks resolved
    shared: bool = False  # the holding mount has a peer group ("shared:" in mountinfo)
    slave: bool = False  # it receives from a master ("master:" in mountinfo)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelinuxContexts:
    """The contexts for containers from the policy's lxc_contexts file, each "user:role:type:level"."""

    process: str
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """The facts about the machine that the builders need.

    The first block does not change while the daemon runs; the second is gathered for one pod or container and
    added with `dataclasses.replace`.
    """

    hostname: str  # the node's: HOSTNAME of containers whose pod has no hostname of its own
    machine: str  # from uname(2): "x86_64", "aarch64"; selects the seccomp architectures
    capabilities: frozenset[str]  # the daemon's own effective set, "CAP_…"
    oom_score_adj: int  # the daemon's own
    can_lower_oom_score_adj: bool  # CAP_SYS_RESOURCE, see proc_pid_oom_score_adj(5)
    cgroup_v2: bool
    cgroup2_options: tuple[str, ...] = ()  # of the host's cgroup2 mount: nsdelegate, memory_recursiveprot
    swap_controller: bool = True  # swap can be limited (v1: memory.memsw.*, v2: memory.swap.max)
    hugetlb_controller: bool = False
    seccomp: bool = True  # the kernel has seccomp filters
    apparmor: bool = False  # the kernel runs AppArmor
    apparmor_default: str = ""  # the profile for RuntimeDefault, "" for none
    selinux_runs: bool = False  # the kernel runs SELinux
    selinux: SelinuxContexts | None = None  # None: no SELinux, or a policy without contexts for containers

    recursive_read_only: bool = False  # kernel >= 5.12, and the pod's runtime supports "rro"
    annotations: tuple[str, ...] = ()  # globs of the annotations that the pod's handler passes on
    apparmor_loaded: frozenset[str] = frozenset()  # names of loaded profiles, when one is requested
    seccomp_profile: Json | None = None  # the Localhost profile that is requested
    host_devices: tuple[DeviceNode, ...] = ()  # for privileged containers; without pts, shm, mqueue, console
    image_volumes: Mapping[int, str] = field(default_factory=dict)  # host directory, by index in config.mounts
    mapped_mounts: Mapping[int, str] = field(default_factory=dict)  # the id-mapped source, by index
    devices: Mapping[str, tuple[DeviceNode, ...]] = field(default_factory=dict)  # by requested host path
    mount_sources: Mapping[str, MountSource] = field(default_factory=dict)  # by requested host path


# --- process ---------------------------------------------------------------------------------------------------


def environment(entries: Iterable[str]) -> list[str]:
    """`process.env` from "NAME=value" entries: the last value of a name wins, at the position of the first.

    "NAME" alone removes what came before, as in other runtimes.
    """
    values: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if name and equals:
            values[name] = value
        else:
            values.pop(name, None)
    return [f"{name}={value}" for name, value in values.items()]


def capability_name(name: str) -> str:
    """The full name of a capability: "CAP_NET_ADMIN" for "net_admin". "ALL" is returned as it is.

    Raises InvalidRequest for a name that is not a capability: a typo in `drop` must not go unnoticed.
    """
    upper = name.upper()
    if upper == "ALL":
        return upper
    full = upper if upper.startswith("CAP_") else f"CAP_{upper}"
    if full not in ALL_CAPABILITIES:
        raise InvalidRequest(f"{name!r} is not a Linux capability")
    return full


def capability_names(*, add: Iterable[str], drop: Iterable[str], own: frozenset[str]) -> list[str]:
    """The capabilities that a container gets, in kernel order.

    The default set, or the daemon's `own` for add ALL, or none for drop ALL; then those added by name, minus those
    dropped by name. Raises Unsupported when one is added that the daemon does not have itself.
    """
    added = {capability_name(name) for name in add}
    dropped = {capability_name(name) for name in drop}
    granted = own if "ALL" in added else DEFAULT_CAPABILITIES & own
    if "ALL" in dropped:
        granted = frozenset()
    added -= {"ALL"}
    if missing := added - dropped - own:
        raise Unsupported(
            f"cannot add {', '.join(sorted(missing))}: the daemon itself does not have it on this machine"
        )
    granted = (granted | added) - dropped
    return [name for name in ALL_CAPABILITIES if name in granted]


def ambient_names(wanted: Iterable[str], held: Sequence[str]) -> list[str]:
    """The capabilities that a user other than root keeps across execve, in kernel order; ALL means all of `held`."""
    names = {capability_name(name) for name in wanted}
    return [name for name in held if name in names or "ALL" in names]


def capabilities(names: Sequence[str], ambient: Sequence[str] = ()) -> Json:
    """`process.capabilities`. Without `ambient` ones, none is gained across execve.

    An ambient capability must be inheritable too (capabilities(7)).
    """
    sets = {"bounding": list(names), "effective": list(names), "permitted": list(names)}
    return {**sets, "inheritable": list(ambient), "ambient": list(ambient)} if ambient else sets


def oom_score_adj(wanted: int, host: HostFacts) -> int:
    """`wanted`, or the daemon's own value if that is higher and lowering it would fail with EPERM in the runtime."""
    return wanted if host.can_lower_oom_score_adj else max(wanted, host.oom_score_adj)


# --- namespaces and cgroups ------------------------------------------------------------------------------------

NEW = ""  # a namespace of its own
HOST = None  # stay in the runtime's namespace, which is the host's


def namespaces(wanted: Mapping[str, str | None]) -> list[Json]:
    """`linux.namespaces`: kind → path to join, NEW or HOST."""
    return [
        {"type": kind, "path": path} if path else {"type": kind} for kind, path in wanted.items() if path is not HOST
    ]


def passed_on(annotations: Mapping[str, str], globs: Sequence[str]) -> dict[str, str]:
    """The annotations that match the handler's globs: they are passed on to the runtime."""
    return {
        key: value
        for key, value in sorted(annotations.items())
        if any(fnmatch.fnmatchcase(key, glob) for glob in globs)
    }


def resources(wanted: cri.LinuxContainerResources, host: HostFacts) -> Json:
    """`linux.resources` without devices; UpdateContainerResources sends the same.

    In CRI, 0 and "" mean "not specified". -1 means no limit, of the quota as any other negative number does. Shares
    are brought within the kernel's bounds, since runtimes write what is outside of them wrongly or not at all. Limits
    on huge pages are left out where there is no controller for them. Raises Unsupported for other limits that this
    machine cannot enforce.
    """
    limit, swap = wanted.memory_limit_in_bytes, wanted.memory_swap_limit_in_bytes
    if limit == NO_LIMIT:
        swap = NO_LIMIT  # runtimes refuse to limit memory and swap together where memory has no limit
    if not host.swap_controller:
        # Without swap accounting the files do not exist and runc would fail; the memory limit still applies.
        swap = 0
    elif limit and not swap:
        # With a memory limit alone, the container could move the rest of its memory into the node's swap.
        swap = limit
    if wanted.unified and not host.cgroup_v2:
        names = ", ".join(sorted(wanted.unified))
        raise Unsupported(f"config.linux.resources.unified: {names}: this machine runs cgroup v1")
    sections = {
        "cpu": _given(
            shares=wanted.cpu_shares and min(max(wanted.cpu_shares, LEAST_SHARES), MOST_SHARES),
            quota=max(wanted.cpu_quota, NO_LIMIT),
            period=wanted.cpu_period,
            cpus=wanted.cpuset_cpus,
            mems=wanted.cpuset_mems,
        ),
        "memory": _given(limit=limit, swap=swap),
        "hugepageLimits": _hugepage_limits(wanted, host),
        "unified": dict(sorted(wanted.unified.items())),
    }
    return _given(**sections)


def first_resources(wanted: cri.LinuxContainerResources, host: HostFacts) -> Json:
    """The same for a container that is created: a quota without limit is left out, as a new cgroup has none.

    crun on cgroup v1 fails to write one.
    """
    limited = cri.LinuxContainerResources()
    limited.CopyFrom(wanted)
    if wanted.cpu_quota < 0:
        limited.ClearField("cpu_quota")
    return resources(limited, host)


def _hugepage_limits(wanted: cri.LinuxContainerResources, host: HostFacts) -> list[Json]:
    # kubelet sends a limit of 0 for every page size of the machine, with or without the controller.
    if not host.hugetlb_controller:
        return []
    return [{"pageSize": item.page_size, "limit": item.limit} for item in wanted.hugepage_limits]


def _given(**values: Any) -> Json:
    """Only what was specified."""
    return {key: value for key, value in values.items() if value}


# --- devices ---------------------------------------------------------------------------------------------------


def no_devices() -> list[Json]:
    """`linux.resources.devices` that deny all; runtimes themselves add /dev/null and the like."""
    return [{"allow": False, "access": _EVERY_DEVICE}]


def devices(wanted: Sequence[cri.Device], host: HostFacts, *, privileged: bool) -> tuple[list[Json], list[Json]]:
    """(`linux.devices`, `linux.resources.devices`): the nodes to create and the rules that allow their use.

    A privileged container gets every device of the host and may use any. Raises InvalidRequest when a requested
    device is not in `host.devices`.
    """
    nodes = {node.path: _device(node.path, node) for node in host.host_devices} if privileged else {}
    rules = [{"allow": True, "access": _EVERY_DEVICE}] if privileged else no_devices()
    for device in wanted:
        host_nodes = host.devices.get(device.host_path, ())
        if not host_nodes:
            raise InvalidRequest(f"config.devices: {device.host_path}: there is no such device on this machine")
        for node in host_nodes:
            place = clean(device.container_path or device.host_path)
            path = posixpath.join(place, node.below) if node.below else place
            nodes[path] = _device(path, node)
            if node.kind in ("c", "b") and not privileged:
                rules.append(
                    {
                        "allow": True,
                        "type": node.kind,
                        "major": node.major,
                        "minor": node.minor,
                        "access": device.permissions,
                    }
                )
    return list(nodes.values()), rules


def _device(path: str, node: DeviceNode) -> Json:
    numbers = {} if node.kind == "p" else {"major": node.major, "minor": node.minor}
    owner = {"fileMode": node.mode, "uid": node.uid, "gid": node.gid}
    return {"path": path, "type": node.kind, **numbers, **owner}


# --- mounts ----------------------------------------------------------------------------------------------------


def proc() -> Json:
    """The process file system, which runtimes require."""
    return _mount("/proc", "proc", "proc", ["nosuid", "noexec", "nodev"])


def dev() -> Json:
    """An empty /dev, in which the runtime creates the nodes."""
    return _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"])


_TTY_GROUP = 5  # in every distribution


def dev_pts(groups: int = _TTY_GROUP + 1) -> Json:
    """The container's own terminals; `groups` is how many groups its user namespace maps."""
    options = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    return _mount("/dev/pts", "devpts", "devpts", [*options, *([f"gid={_TTY_GROUP}"] if groups > _TTY_GROUP else [])])


def dev_mqueue() -> Json:
    """POSIX message queues of the ipc namespace."""
    return _mount("/dev/mqueue", "mqueue", "mqueue", ["nosuid", "noexec", "nodev"])


def sysfs(*, writable: bool = False) -> Json:
    """/sys as the network namespace shows it."""
    return _mount("/sys", "sysfs", "sysfs", ["nosuid", "noexec", "nodev", "rw" if writable else "ro"])


def host_sysfs() -> Json:
    """The host's /sys, for a user namespace in the host's network: only the network's owner can mount sysfs.

    Recursively read-only, because the bind mount includes the cgroups and all other mounts below.
    """
    return bind("/sys", "/sys", ["rprivate", "nosuid", "noexec", "nodev", "rro"])


def cgroup(*, writable: bool = False, options: Sequence[str] = ()) -> Json:
    """The container's view of its cgroups.

    `options` are those of the host's cgroup2 mount. They belong to the machine's only superblock, so mounting it
    without them, outside a cgroup namespace, would turn them off for the whole machine (cgroup-v2.rst, "Mounting").
    """
    flags = ["nosuid", "noexec", "nodev", "relatime", "rw" if writable else "ro", *options]
    return _mount("/sys/fs/cgroup", "cgroup", "cgroup", flags)


def bind(source: str, destination: str, options: Sequence[str]) -> Json:
    """A bind mount of a host path."""
    return _mount(destination, "bind", source, ["rbind", *options])


def _mount(destination: str, kind: str, source: str, options: list[str]) -> Json:
    return {"destination": destination, "type": kind, "source": source, "options": options}


def shows_image(mount: cri.Mount) -> bool:
    """Whether a mount's source is an image; some clients send an empty image with a host path."""
    return mount.HasField("image") and bool(mount.image.image)


def clean(path: str) -> str:
    """`path` in its canonical spelling: no "//", "." or "..", exactly one leading slash."""
    return posixpath.normpath("/" + path.lstrip("/"))


def relative(path: str) -> str:
    """`path` below a directory that the caller joins it to, also when it is absolute."""
    return path.lstrip("/")


def depth(path: str) -> int:
    """The number of elements of a clean absolute path."""
    return 0 if path == "/" else path.count("/")
