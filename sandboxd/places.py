"""Every name that an id gives: paths, keys, cgroups and labels (invariant 3).

Anyone who knows the id of a pod or a container can clean up after it, and anyone who finds one of these things can
find its owner. No other module builds such a name. Pure: nothing here checks whether a thing exists.

Cgroups are paths below the root of the hierarchy, as in /proc/PID/cgroup. They are what the OCI runtime makes of
`linux.cgroupsPath`; source: systemd.slice(5) for the systemd driver.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Self

from sandboxd.config import Config
from sandboxd.errors import InvalidRequest
from sandboxd.model import ID_LENGTH, SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri

KIND_LABEL, SANDBOX_LABEL = "sandboxd.io/kind", "sandboxd.io/sandbox"  # in containerd
RECORD_CHANGES = "sandboxd.io/record-changes"  # a pod's annotation, "true" or "false"; see `pods.recording`
STAGE_DIGITS = 16  # of an id, in the name of a directory where mounts are staged

_ID = re.compile(rf"[0-9a-f]{{{ID_LENGTH}}}\Z")
_SCOPE = re.compile(rf"sandboxd-([0-9a-f]{{{ID_LENGTH}}})\.scope\Z")
_NAMESPACE = re.compile(rf"sandboxd-([0-9a-f]{{{ID_LENGTH}}})\Z")
_IMAGE_SNAPSHOT = re.compile(rf"([0-9a-f]{{{ID_LENGTH}}})-image-[0-9a-f]{{{ID_LENGTH}}}\Z")

USER_NAMESPACE = "userns"  # the name of a pod's pinned user namespace in its directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where this daemon keeps things; the methods take the id of a pod or a container."""

    root: str  # directory, on disk
    state: str  # directory, on a tmpfs: gone after a reboot
    netns: str  # directory of the named network namespaces
    cgroup_driver: str  # "cgroupfs" or "systemd"
    cgroup_parent: str  # of pods that name none

    @classmethod
    def of(cls, config: Config) -> Self:
        """The places that a configuration says."""
        return cls(
            root=config.daemon.root,
            state=config.daemon.state,
            netns=config.network.netns_dir,
            cgroup_driver=config.runtime.cgroup_driver,
            cgroup_parent=config.runtime.cgroup_parent,
        )

    # The daemon's own.

    @property
    def lock_file(self) -> str:
        """Held while a daemon has these directories."""
        return f"{self.root}/lock"

    @property
    def ledger_file(self) -> str:
        """The SQLite database."""
        return f"{self.root}/ledger.db"

    @property
    def reserve_file(self) -> str:
        """Room on the disk that is set aside."""
        return f"{self.root}/reserve"

    @property
    def uploads(self) -> str:
        """Where image archives that clients send are spooled."""
        return f"{self.root}/uploads"

    @property
    def owner(self) -> str:
        """The mark on what is ours in containerd and has no id: another daemon may share the namespace."""
        return hashlib.sha256(self.root.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    @property
    def checkpoints(self) -> str:
        """Where checkpoints are gathered; on disk, as they hold what containers have in memory."""
        return f"{self.root}/checkpoints"

    @property
    def managed_root(self) -> str:
        """The private containerd's root."""
        return f"{self.root}/containerd"

    @property
    def managed_state(self) -> str:
        """The private containerd's state."""
        return f"{self.state}/containerd"

    @property
    def closed(self) -> tuple[str, ...]:
        """The directories that only root may enter."""
        return (
            *(f"{self.state}/{name}" for name in ("containers", "idmapped", "sandboxes")),
            *(f"{self.root}/{name}" for name in ("checkpoints", "image-volumes", "pod-files", "uploads", "volumes")),
        )

    @property
    def of_pods(self) -> tuple[str, ...]:
        """The directories that have an entry for each pod that needs one, named by its id."""
        return (f"{self.state}/sandboxes", f"{self.root}/pod-files", f"{self.root}/image-volumes")

    @property
    def of_containers(self) -> tuple[str, ...]:
        """The same for containers."""
        return (f"{self.state}/containers", f"{self.root}/volumes", self.checkpoints)

    @property
    def stages(self) -> str:
        """The directory that has an entry for each container that is being made, named by the head of its id."""
        return f"{self.state}/idmapped"

    # A pod's.

    def sandbox(self, sandbox_id: str) -> str:
        """What a pod has in memory: its shm and its pinned namespaces, but for that of its network."""
        return f"{self.state}/sandboxes/{sandbox_id}"

    def shm(self, sandbox_id: str) -> str:
        """The pod's /dev/shm."""
        return f"{self.sandbox(sandbox_id)}/shm"

    def user_namespace(self, sandbox_id: str) -> str:
        """Where the pod's user namespace is pinned."""
        return f"{self.sandbox(sandbox_id)}/{USER_NAMESPACE}"

    def ipc_namespace(self, sandbox_id: str) -> str:
        """Where the ipc namespace of a pod without a pause container is pinned."""
        return f"{self.sandbox(sandbox_id)}/ipc"

    def uts_namespace(self, sandbox_id: str) -> str:
        """The same for its uts namespace."""
        return f"{self.sandbox(sandbox_id)}/uts"

    def pod_files(self, sandbox_id: str) -> str:
        """The pod's hosts, hostname and resolv.conf, which its containers can write: never in `state`, a tmpfs that
        others need."""
        return f"{self.root}/pod-files/{sandbox_id}"

    def network_namespace(self, sandbox_id: str) -> str:
        """The pod's named network namespace, for a new pod: that of one that exists is in its record.

        It is not the bare id, which is CNI_CONTAINERID: some plugins make a link of that name in this directory, to
        enter the namespace with `ip netns exec`.
        """
        return f"{self.netns}/sandboxd-{sandbox_id}"

    def image_mounts(self, sandbox_id: str) -> str:
        """The directory of the images that are mounted for a pod's containers. Below the root: after a reboot it
        says which snapshots are left to be removed."""
        return f"{self.root}/image-volumes/{sandbox_id}"

    def image_mount(self, sandbox_id: str, image_id: str) -> str:
        """Where one image is mounted for a pod's containers."""
        return f"{self.image_mounts(sandbox_id)}/{image_id.removeprefix('sha256:')}"

    # A container's, or a pause container's.

    def container(self, container_id: str) -> str:
        """A container's own files: its FIFOs."""
        return f"{self.state}/containers/{container_id}"

    def streams(self, container_id: str) -> str:
        """The FIFOs of a container's own stdin, stdout and stderr."""
        return f"{self.container(container_id)}/io"

    def execs(self, container_id: str) -> str:
        """One directory of FIFOs for each process exec'd into a container, named by the process's id."""
        return f"{self.container(container_id)}/exec"

    def volumes(self, container_id: str) -> str:
        """The volumes that a container's image declares: on disk, as containers can write any amount to them."""
        return f"{self.root}/volumes/{container_id}"

    def checkpoint(self, container_id: str) -> str:
        """Where the checkpoint of a container is gathered."""
        return f"{self.checkpoints}/{container_id}"

    def stage(self, object_id: str) -> str:
        """Where mounts for a container are staged; short, for an overlay's options must fit into one page."""
        return f"{self.stages}/{object_id[:STAGE_DIGITS]}"

    # Cgroups.

    def own_cgroup(self, sandbox_id: str) -> str:
        """The cgroup of a pod that names no parent, ours to remove."""
        return f"{self.cgroup_parent}/{sandbox_id}"

    def is_below_requested(self, sandbox: SandboxRecord) -> bool:
        """Whether the pod's own cgroup, in which its pause container was prepared, is below what is asked for."""
        return self.own_cgroup(sandbox.id).startswith(f"{self.pod_cgroup(sandbox).rstrip('/')}/")

    def requested_parent(self, sandbox: SandboxRecord) -> str:
        """The cgroup above a pod's containers, in the driver's own notation: a path, or a slice's name.

        It is what the pod asks for; else its own, or with the systemd driver, which makes slices, the configured one.
        """
        if sandbox.config.linux.cgroup_parent:
            return sandbox.config.linux.cgroup_parent
        if self.cgroup_driver != "systemd":
            return self.own_cgroup(sandbox.id)
        if self.cgroup_parent.endswith(".slice"):
            return self.cgroup_parent
        return f"{posixpath.basename(self.cgroup_parent.rstrip('/')) or 'system'}.slice"

    def cgroups_path(self, sandbox: SandboxRecord, object_id: str) -> str:
        """`linux.cgroupsPath` of a container of the pod, or of its pause container.

        "/parent/id" for cgroupfs, "slice:prefix:name" for systemd. Clients give the systemd driver either a slice or
        its whole path ("/a.slice/a-b.slice"); runc derives the path from the last element. Raises InvalidRequest when
        that is not a slice.
        """
        parent = self.requested_parent(sandbox)
        if self.cgroup_driver != "systemd":
            return posixpath.join("/", parent.strip("/"), object_id)
        unit = posixpath.basename(parent.rstrip("/"))
        if not unit.endswith(".slice"):
            raise InvalidRequest(
                f"config.linux.cgroup_parent: {parent!r} does not end in a .slice,"
                " which the systemd cgroup driver needs"
            )
        return f"{unit}:sandboxd:{object_id}"

    def pod_cgroup(self, sandbox: SandboxRecord) -> str:
        """The cgroup right above all of a pod's containers."""
        parent = self.requested_parent(sandbox)
        return slice_path(parent) if self.cgroup_driver == "systemd" else "/" + parent.strip("/")

    def cgroup(self, sandbox: SandboxRecord, object_id: str) -> str:
        """The cgroup of a container of the pod, or of its pause container."""
        name = f"sandboxd-{object_id}.scope" if self.cgroup_driver == "systemd" else object_id
        return f"{self.pod_cgroup(sandbox).rstrip('/')}/{name}"

    def crowded(self, sandboxes: Iterable[SandboxRecord]) -> frozenset[str]:
        """The cgroups that are right above the containers of more than one of these pods."""
        pods_of = Counter(self.pod_cgroup(sandbox) for sandbox in sandboxes)
        return frozenset(parent for parent, pods in pods_of.items() if pods > 1)

    def is_own_cgroup(self, sandbox: SandboxRecord, crowded: Set[str]) -> bool:
        """Whether the cgroup above the pod's containers holds nothing else, as far as is known here.

        Not when other pods are in it too (`crowded` is that of all pods), nor when it is shared by design: the root,
        and the systemd driver's default slice.
        """
        parent = self.pod_cgroup(sandbox)
        if parent == "/" or (self.cgroup_driver == "systemd" and not sandbox.config.linux.cgroup_parent):
            return False
        return parent not in crowded


def id_of_directory(name: str) -> str:
    """The id that a directory's, a cgroup's or a snapshot's name is, "" when it is none."""
    return name if _ID.match(name) else ""


def id_of_namespace(name: str) -> str:
    """The pod whose network namespace has this file name, "" when it is none's."""
    return found[1] if (found := _NAMESPACE.match(name)) else ""


def id_of_scope(name: str) -> str:
    """The container whose systemd scope has this name, "" when it is none's."""
    return found[1] if (found := _SCOPE.match(name)) else ""


def id_of_image_snapshot(key: str) -> str:
    """The pod for which an image is mounted from the snapshot `key`, "" when it is another one."""
    return found[1] if (found := _IMAGE_SNAPSHOT.match(key)) else ""


def slice_path(name: str) -> str:
    """Where systemd puts a slice: "a-b.slice" is "/a.slice/a-b.slice" (systemd.slice(5))."""
    unit = name.rstrip("/").rpartition("/")[2].removesuffix(".slice")
    if unit == "-":
        return "/"
    parts = unit.split("-")
    return "".join(f"/{'-'.join(parts[: i + 1])}.slice" for i in range(len(parts)))


def image_snapshot(sandbox_id: str, image_id: str) -> str:
    """The key of the snapshot through which a pod's containers see a mounted image."""
    return f"{sandbox_id}-image-{image_id.removeprefix('sha256:')}"


def labels(config: cri.PodSandboxConfig, sandbox_id: str, *, kind: str, container: str = "") -> dict[str, str]:
    """What makes pods legible to `ctr` and `nerdctl`; `kind` is "sandbox" or "container"."""
    result = {
        "io.kubernetes.pod.name": config.metadata.name,
        "io.kubernetes.pod.namespace": config.metadata.namespace,
        "io.kubernetes.pod.uid": config.metadata.uid,
        KIND_LABEL: kind,
        SANDBOX_LABEL: sandbox_id,
    }
    if container:
        result["io.kubernetes.container.name"] = container
    # containerd refuses a label whose key and value exceed 4096 bytes together; names never come near.
    return result
