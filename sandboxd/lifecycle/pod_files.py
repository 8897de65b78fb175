"""A pod's own files: hosts, hostname and resolv.conf, shared memory, and its cgroup.

They are in the sandbox's directory, whose name the id gives, and are mounted into each of its containers. Writing
them for every pod, host-network ones included, means that a container never finds one of them missing.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from sandboxd import syscalls
from sandboxd.errors import CleanupIncomplete, NotReady
from sandboxd.lifecycle.host import Host
from sandboxd.model import SandboxRecord
from sandboxd.oci import files
from sandboxd.pb.cri.v1 import api_pb2 as cri

SHM_BYTES = 64 << 20  # Docker's and containerd's size for a pod's /dev/shm
CGROUP_ROOT = "/sys/fs/cgroup"
HOST_RESOLV_CONF = "/etc/resolv.conf"
HOST_HOSTS = "/etc/hosts"
_EBUSY_TRIES = 20


def hostname(config: cri.PodSandboxConfig) -> str:
    """The name that the pod sees itself by; a pod in the host's network has the host's."""
    return config.hostname or os.uname().nodename


def write(host: Host, sandbox: SandboxRecord, ips: tuple[str, ...]) -> None:
    """Write the three files; raises NotReady when the disk refuses."""
    directory = Path(host.config.sandbox_dir(sandbox.id))
    name = hostname(sandbox.config)
    try:
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
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


def mount_shm(host: Host, sandbox_id: str) -> None:
    """Mount the pod's own /dev/shm; mounted already is done."""
    path = Path(host.config.sandbox_dir(sandbox_id)) / "shm"
    try:
        path.mkdir(mode=0o711, parents=True, exist_ok=True)
        if not path.is_mount():
            flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
            syscalls.mount("shm", str(path), flags, "tmpfs", f"mode=1777,size={SHM_BYTES}")
    except OSError as exc:
        raise NotReady(f"the shared memory of pod {sandbox_id} cannot be mounted: {exc}") from exc


def unmount_shm(host: Host, sandbox_id: str) -> None:
    """Unmount the pod's /dev/shm; not mounted is done."""
    path = Path(host.config.sandbox_dir(sandbox_id)) / "shm"
    try:
        if path.is_mount():
            syscalls.umount2(str(path), syscalls.MNT_DETACH)
    except OSError as exc:
        raise CleanupIncomplete(f"{path} cannot be unmounted: {exc}") from exc


def remove_directory(path: str) -> None:
    """Remove one of our own directories and what is in it; gone is done."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        pass
    except OSError as exc:
        raise CleanupIncomplete(f"{path} cannot be removed: {exc}") from exc


async def remove_cgroup(cgroup: str) -> None:
    """Remove a pod's own cgroup and all below it from every hierarchy, with whatever still runs there.

    Normally it is empty by now. An OCI runtime that was cut off while it created a container leaves a cgroup that
    nobody else knows of, and sometimes a process in it. The kernel says EBUSY until the last dead process has
    been reaped, so it is asked again for a while. Raises CleanupIncomplete.
    """
    for attempt in range(_EBUSY_TRIES):
        left = [path for top in _cgroup_directories(cgroup) for path in _deepest_first(top)]
        problem: OSError | None = None
        for path in left:
            try:
                _kill_members(path)
                path.rmdir()
            except FileNotFoundError:
                pass
            except OSError as exc:
                problem = exc
        if problem is None:
            return
        await asyncio.sleep(0.01 * (attempt + 1))
    raise CleanupIncomplete(f"cgroup {cgroup} cannot be removed: {problem}") from problem


def _deepest_first(top: Path) -> list[Path]:
    return [Path(directory) for directory, _, _ in os.walk(top, topdown=False)]


def _kill_members(cgroup: Path) -> None:
    for pid in (cgroup / "cgroup.procs").read_text(encoding="ascii").split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            pass


def _cgroup_directories(cgroup: str) -> Iterator[Path]:
    """The cgroup's directory in the v2 hierarchy, or in each v1 hierarchy; links (cpu -> cpu,cpuacct) once."""
    root = Path(CGROUP_ROOT)
    roots = [root] if (root / "cgroup.controllers").exists() else [p for p in root.iterdir() if p.is_dir()]
    seen: set[tuple[int, int]] = set()
    for hierarchy in roots:
        path = hierarchy / cgroup.lstrip("/")
        try:
            at = path.stat()
        except OSError:
            continue
        if (at.st_dev, at.st_ino) not in seen:
            seen.add((at.st_dev, at.st_ino))
            yield path
