"""A pod's own files: hosts, hostname and resolv.conf, and shared memory.

Their directories are named by the pod's id and mounted into each of its containers. They are written for every pod,
including those in the host's network, so a container always finds them.

Containers can write to them without a limit. The three files are therefore on a small file system of their own: what
a container adds to its /etc/hosts fills neither the daemon's disk nor the machine's /run.

Others can reach them too: what a cleaner of old files removed is written again for the next container.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sandboxd import private, steps, syscalls
from sandboxd.errors import CleanupIncomplete, NotReady
from sandboxd.jobs import in_pieces
from sandboxd.logs.regular import open_regular
from sandboxd.machine import facts, handlers
from sandboxd.model import SandboxRecord
from sandboxd.node import Node
from sandboxd.oci import files, userns
from sandboxd.oci import sandbox as oci_sandbox
from sandboxd.oci.linux import HostFacts
from sandboxd.pb.cri.v1 import api_pb2 as cri

SHM_BYTES = 64 << 20  # Docker's and containerd's size for a pod's /dev/shm
ROOM_BYTES = 1 << 20  # for what containers add to the three files
_FLAGS = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
HOST_RESOLV_CONF = "/etc/resolv.conf"
# Where the machine's own name servers are when /etc/resolv.conf names a local cache: systemd-resolved(8), and
# NetworkManager(8) with a cache of its own.
UPSTREAM_RESOLV_CONFS = ("/run/systemd/resolve/resolv.conf", "/run/NetworkManager/no-stub-resolv.conf")
HOST_HOSTS = "/etc/hosts"
MAX_SHOWN = 64 << 10  # bytes of a pod's file in its verbose status
MAX_HOST_FILE = 8 << 20  # of a host's file; lists of blocked hosts have some megabytes


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


async def label(node: Node, sandbox: SandboxRecord, found: HostFacts) -> None:
    """Give what the pod's containers share their SELinux label, on a machine that has some."""
    if wanted := oci_sandbox.pod_labels(sandbox, found).mount:
        for path in paths(node, sandbox.id):
            await in_pieces(facts.relabel(path, wanted))


def paths(node: Node, sandbox_id: str) -> tuple[str, ...]:
    """What the pod's containers share: its three files and its shared memory."""
    shm, files_dir = _mount_points(node, sandbox_id)
    return (*(f"{files_dir}/{name}" for name in files.NAMES), shm)


def write(node: Node, sandbox: SandboxRecord, ips: tuple[str, ...]) -> str:
    """Write the three files where `mount` made room for them; what is dubious about them, for people.

    Raises NotReady when it cannot be done.
    """
    directory = Path(node.places.pod_files(sandbox.id))
    contents, warning = _contents(sandbox, ips)
    try:
        for name, content in contents.items():
            (directory / name).write_bytes(content)
            steps.act("file", f"{directory}/{name}", size=len(content))
    except OSError as exc:
        raise NotReady(f"the files of pod {sandbox.id} cannot be written: {exc}") from exc
    return warning


async def mend(node: Node, sandbox: SandboxRecord) -> None:
    """Make again what of a running pod's files is not there any more. Raises NotReady when it cannot be done."""
    if not missing(node, sandbox.id):
        return
    with steps.step("pod.files.mend") as step:
        mount(node, sandbox.id)
        absent = missing(node, sandbox.id)
        contents, _ = _contents(sandbox, sandbox.ips)
        ids = userns.of(sandbox.config)
        found = await handlers.sandbox_facts(node, sandbox)
        label = oci_sandbox.pod_labels(sandbox, found).mount
        try:
            for path in absent:
                _clear(path)
                with open(path, "xb") as file:
                    size = file.write(contents[os.path.basename(path)])
                steps.act("file", path, size=size)
                if ids:
                    os.chown(path, ids.uids.host, ids.gids.host)
                if label:
                    await in_pieces(facts.relabel(path, label))
        except OSError as exc:
            raise NotReady(f"the files of pod {sandbox.id} cannot be written again: {exc}") from exc
        step.note(files=" ".join(os.path.basename(path) for path in absent))


def missing(node: Node, sandbox_id: str) -> list[str]:
    """The files that are not there as plain files; all when their file system is not."""
    shm, directory = _mount_points(node, sandbox_id)
    found = [f"{directory}/{name}" for name in files.NAMES]
    if not os.path.ismount(directory) or not os.path.ismount(shm):
        return found
    return [path for path in found if not os.path.isfile(path) or os.path.islink(path)]


def texts(node: Node, sandbox_id: str) -> dict[str, str]:
    """The pod's three files as they are, by their paths, for people; one that is not plain or is long is left out."""
    _, directory = _mount_points(node, sandbox_id)
    found = {}
    for name in files.NAMES:
        path = f"{directory}/{name}"
        try:
            with open(open_regular(path, os.O_RDONLY), "rb") as file:
                content = file.read(MAX_SHOWN + 1)
        except OSError:
            continue
        if len(content) <= MAX_SHOWN:
            found[path] = content.decode(errors="replace")
    return found


def _clear(path: str) -> None:
    """Remove what is there in place of a file: a link, an empty directory, a FIFO."""
    if os.path.isdir(path) and not os.path.islink(path):
        os.rmdir(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _contents(sandbox: SandboxRecord, ips: tuple[str, ...]) -> tuple[dict[str, bytes], str]:
    """The three files by name, and what is dubious about them."""
    name = hostname(sandbox.config)
    own_network = bool(sandbox.netns_path)
    dns = sandbox.config.dns_config
    warning = ""
    host_dns = b""
    if not dns.servers:
        host_dns, warning = _host_dns(own_network=own_network)
    hosts = b"" if own_network else _read(HOST_HOSTS)
    return {
        "hosts": hosts or files.hosts_file(name, ips),
        "hostname": files.hostname_file(name),
        "resolv.conf": files.resolv_conf(dns, host_dns),
    }, warning


def _host_dns(*, own_network: bool) -> tuple[bytes, str]:
    """The resolv.conf that the pod gets of the host, and what is dubious about it."""
    own = _read(HOST_RESOLV_CONF)
    if not own_network:
        return own, ""
    seen = files.seen_from_a_pod(own)
    if files.name_servers(seen):
        return seen, ""
    for path in UPSTREAM_RESOLV_CONFS:
        upstream = files.seen_from_a_pod(_read(path))
        if files.name_servers(upstream):
            return upstream, ""
    if files.name_servers(own):
        return seen, (
            f"{HOST_RESOLV_CONF} names only servers that pods do not reach ({', '.join(files.name_servers(own))}), so"
            " the pod has none; name some in dns_config"
        )
    return seen, ""


def _read(path: str) -> bytes:
    """A file of the machine, cut at `MAX_HOST_FILE`; empty when it is not there, not readable or not a plain file."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(MAX_HOST_FILE) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    except OSError:
        return b""


def mount(node: Node, sandbox_id: str) -> None:
    """Mount the pod's own /dev/shm and the file system of its three files. Idempotent. Raises NotReady."""
    shm, files_dir = _mount_points(node, sandbox_id)
    try:
        of_host = (HOST_HOSTS, HOST_RESOLV_CONF, *UPSTREAM_RESOLV_CONFS)
        room = ROOM_BYTES + sum(min(os.stat(path).st_size, MAX_HOST_FILE) for path in of_host if os.path.isfile(path))
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
