"""Where a pod's and a container's cgroups are: paths below the root of the hierarchy, as /proc/PID/cgroup has them.

Pure. They follow from the pod's configuration and the ids alone, as the runtime makes them from `linux.cgroupsPath`
(`sandboxd.oci.linux.cgroups_path`). Source: systemd.slice(5) for the systemd driver.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Set

from sandboxd.model import SandboxRecord
from sandboxd.oci import linux


def pod_parent(record: SandboxRecord, host: linux.HostFacts) -> str:
    """The cgroup right above all of a pod's containers."""
    if host.cgroup_driver == "systemd":
        return slice_path(linux.pod_cgroup_parent(record.config, host))
    return "/" + (record.config.linux.cgroup_parent or f"{host.cgroup_parent}/{record.id}").strip("/")


def crowded(records: Iterable[SandboxRecord], host: linux.HostFacts) -> frozenset[str]:
    """The cgroups that are right above the containers of more than one of these pods."""
    found = Counter(pod_parent(record, host) for record in records)
    return frozenset(parent for parent, pods in found.items() if pods > 1)


def is_own(record: SandboxRecord, host: linux.HostFacts, shared: Set[str]) -> bool:
    """Whether the cgroup above the pod's containers holds nothing else, as far as is known here.

    Not when other pods are in it too (`shared` is `crowded` of all pods), nor when it is everybody's: the root, and
    the systemd driver's default slice.
    """
    parent = pod_parent(record, host)
    if parent == "/" or (host.cgroup_driver == "systemd" and not record.config.linux.cgroup_parent):
        return False
    return parent not in shared


def member(parent: str, object_id: str, driver: str) -> str:
    """The cgroup of a container, or of the pause container, in its pod's."""
    name = f"sandboxd-{object_id}.scope" if driver == "systemd" else object_id
    return f"{parent.rstrip('/')}/{name}"


def slice_path(name: str) -> str:
    """Where systemd puts a slice: "a-b.slice" is "/a.slice/a-b.slice" (systemd.slice(5))."""
    unit = name.rstrip("/").rpartition("/")[2].removesuffix(".slice")
    if unit == "-":
        return "/"
    parts = unit.split("-")
    return "".join(f"/{'-'.join(parts[: i + 1])}.slice" for i in range(len(parts)))
