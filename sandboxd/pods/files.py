"""A pod's own files: hosts, hostname and resolv.conf, shared memory, and its cgroup.

Their directories are named by the pod's id and mounted into each of its containers. They are written for every pod,
including those in the host's network, so a container always finds them.

Containers can write to them without a limit. The three files are therefore on a small file system of their own: what
a container adds to its /etc/hosts fills neither the daemon's disk nor the machine's /run.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import structlog

from sandboxd import private, syscalls
from sandboxd.cgroups import removal
from sandboxd.errors import CleanupIncomplete, NotReady
from sandboxd.jobs import in_pieces
from sandboxd.model import SandboxRecord, SandboxState
from sandboxd.node import Node
from sandboxd.oci import files, userns
from sandboxd.pb.cri.v1 import api_pb2 as cri

log = structlog.get_logger(__name__)

SHM_BYTES = 64 << 20  # Docker's and containerd's size for a pod's /dev/shm
ROOM_BYTES = 1 << 20  # for what containers add to the three files
_FLAGS = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
HOST_RESOLV_CONF = "/etc/resolv.conf"
HOST_HOSTS = "/etc/hosts"
_EBUSY_TRIES = 20


def hostname(config: cri.PodSandboxConfig) -> str:
    """The name that the pod sees itself by; a pod in the host's network has the host's."""
    return config.hostname or os.uname().nodename


def prepare(node: Node, sandbox: SandboxRecord) -> None:
    """Make everything that the pod's containers share, for its own root to write. Idempotent.

    Raises NotReady when the machine refuses.
    """
    mount(node, sandbox.id)
    write(node, sandbox, sandbox.ips)
    if ids := userns.of(sandbox.config):
        for path in paths(node, sandbox.id):
            os.chown(path, ids.uids.host, ids.gids.host)


def prepare_missing(node: Node) -> None:
    """`prepare` for the pods of an earlier sandboxd, which kept these files elsewhere. A failure is logged."""
    for sandbox in node.ledger.sandboxes.values():
        if sandbox.state is SandboxState.READY and not os.path.exists(node.places.pod_files(sandbox.id)):
            try:
                prepare(node, sandbox)
            except NotReady as exc:
                log.error("a pod of an earlier version has no files", sandbox=sandbox.id, error=str(exc))


def paths(node: Node, sandbox_id: str) -> tuple[str, ...]:
    """What the pod's containers share: its three files and its shared memory."""
    shm, files_dir = _mount_points(node, sandbox_id)
    return (*(f"{files_dir}/{name}" for name in files.NAMES), shm)


def write(node: Node, sandbox: SandboxRecord, ips: tuple[str, ...]) -> None:
    """Write the three files where `mount` made room for them; raises NotReady when it cannot be done."""
    directory = Path(node.places.pod_files(sandbox.id))
    name = hostname(sandbox.config)
    try:
        if sandbox.netns_path:
            hosts = files.hosts_file(name, ips)
        else:
            hosts = _read(HOST_HOSTS) or files.hosts_file(name, ips)
        (directory / "hosts").write_bytes(hosts)
        (directory / "hostname").write_bytes(files.hostname_file(name))
        (directory / "resolv.conf").write_bytes(files.resolv_conf(sandbox.config.dns_config, _read(HOST_RESOLV_CONF)))
    except OSError as exc:
        raise NotReady(f"the files of pod {sandbox.id} cannot be written: {exc}") from exc


def _read(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except OSError:
        return None


def mount(node: Node, sandbox_id: str) -> None:
    """Mount the pod's own /dev/shm and the file system of its three files. Idempotent. Raises NotReady."""
    shm, files_dir = _mount_points(node, sandbox_id)
    try:
        room = ROOM_BYTES + sum(
            os.stat(path).st_size for path in (HOST_HOSTS, HOST_RESOLV_CONF) if os.path.exists(path)
        )
        for name, path, mode, size in (
            ("shm", shm, 0o1777, SHM_BYTES),
            ("pod-files", files_dir, private.CLOSED, room),
        ):
            private.make(path, private.CLOSED)
            if not os.path.ismount(path):
                syscalls.mount(name, path, _FLAGS, "tmpfs", f"mode={mode:o},size={size}")
    except OSError as exc:
        raise NotReady(f"the file systems of pod {sandbox_id} cannot be mounted: {exc}") from exc


def unmount(node: Node, sandbox_id: str) -> None:
    """Undo `mount`, with all that is in them. Idempotent. Raises CleanupIncomplete."""
    for path in _mount_points(node, sandbox_id):
        try:
            if os.path.ismount(path):
                syscalls.umount2(path, syscalls.MNT_DETACH)
        except OSError as exc:
            raise CleanupIncomplete(f"{path} cannot be unmounted: {exc}") from exc


def _mount_points(node: Node, sandbox_id: str) -> tuple[str, str]:
    return node.places.shm(sandbox_id), node.places.pod_files(sandbox_id)


async def remove_cgroup(cgroup: str) -> None:
    """Remove a pod's own cgroup and its children from every hierarchy, and kill what still runs in them.

    It is normally empty. An OCI runtime that was killed while creating a container leaves a cgroup that is not
    recorded anywhere else, sometimes with a process in it. The kernel returns EBUSY until the last dead process has
    been reaped, so this is retried for a while. Raises CleanupIncomplete.
    """
    problem = ""
    for attempt in range(_EBUSY_TRIES):
        problem = await in_pieces(removal.attempt(cgroup))
        if not problem:
            return
        await asyncio.sleep(0.01 * (attempt + 1))
    raise CleanupIncomplete(f"cgroup {cgroup} cannot be removed: {problem}")
