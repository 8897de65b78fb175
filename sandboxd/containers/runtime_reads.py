"""The files that the OCI runtime itself opens in a container's root: what they may be.

For the user's home and groups, runtimes open /etc/passwd and /etc/group as root, once the container's mounts are in
place, and wait for as long as it takes: for ever on a FIFO, for hours on a huge sparse file, and on a device or in
/proc with effects that the image chooses. So CreateContainer follows these paths as the container will see them,
through the image's layers and the mounts over them, and refuses what is not a small regular file. What is missing, or
a link in a circle, is not opened.

What is mounted may be replaced before the container is started, so StartContainer looks again (`mounted`).

They open them again for each further process, and by then a container may have replaced them: `check_running` looks
before that, and `starting` finds a runtime that waits nevertheless, for exec to end it, since nothing else does.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sandboxd import syscalls
from sandboxd.containerd import rootfs as image_files
from sandboxd.containerd.rootfs import Entry, Look
from sandboxd.containerd.snapshots import Mount
from sandboxd.errors import InvalidRequest, NotReady
from sandboxd.oci import linux
from sandboxd.oci.linux import HostFacts
from sandboxd.pb.cri.v1 import api_pb2 as cri

_PROC = Path("/proc")
PATHS = ("/etc/passwd", "/etc/group")
HARMLESS = "/dev/null"  # images link to it, and clients mount it, to have no users
_NULL = (1, 3)  # its device numbers
_RUNTIMES_OWN = ("proc", "dev", "sys")  # mounted by the runtime, whatever the image has there
_SYSTEMS = ("/proc", "/sys")  # what looks like a file there is none: some wait, and to read some has effects
_MAX_LINKS = 40  # the kernel's own limit
_MAX_NAMES = 128  # that one path may lead through; each is looked up from the root, in every layer
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a directory",
    stat.S_IFREG: "larger than 8 MiB",
}


def check(rootfs: Sequence[Mount], mounts: Mapping[str, str]) -> None:
    """Raise InvalidRequest for a file that the runtime cannot read as what it must be; NotReady as `looking` does.

    `mounts` is from `sources`. Blocks on the file system: run it in a thread.
    """
    with image_files.looking(rootfs) as look:
        seen = _Seen(look, mounts)
        for path in PATHS:
            place, entry = seen.follow(path, path)
            if place == HARMLESS or entry is None or _can_be_read(entry.mode, entry.device, entry.size):
                continue
            raise InvalidRequest(
                f"{path} of the container is {_described(path, place, entry)}, but the OCI runtime reads it and"
                " needs a small regular file: use another image, or mount a file there"
            )


def sources(config: cri.ContainerConfig, host: HostFacts, volumes: Mapping[str, str]) -> dict[str, str]:
    """What is mounted over the image: the host's path by the container's, parents before children."""
    requested = [(path, source) for path, source in volumes.items()]
    for i, mount in enumerate(config.mounts):
        known = host.mount_sources.get(mount.host_path)
        source = host.image_volumes[i] if linux.shows_image(mount) else known.path if known else mount.host_path
        requested.append((mount.container_path, source))
    places = [(linux.clean(path), source) for path, source in requested]
    return dict(sorted(places, key=lambda each: linux.depth(each[0])))


def mounted(spec: Mapping[str, Any]) -> dict[str, str]:
    """What the container's runtime spec mounts over the image, as `sources` has it."""
    mounts = [mount for mount in spec.get("mounts", ()) if mount.get("type") == "bind"]
    places = [(linux.clean(mount["destination"]), str(mount["source"])) for mount in mounts]
    return dict(sorted(places, key=lambda each: linux.depth(each[0])))


def check_running(pid: int) -> None:
    """Raise NotReady when the container with this init process has made a file that the runtime would wait for.

    No error when that cannot be found out, for one because the process has ended. Blocks: run it in a thread.
    """
    try:
        root = os.open(_PROC / str(pid) / "root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        systems = {info.st_dev for top in _SYSTEMS if (info := _info_in(root, top))} - {os.fstat(root).st_dev}
        for path in PATHS:
            info = _info_in(root, path)
            if info and not (_can_be_read(info.st_mode, info.st_rdev, info.st_size) and info.st_dev not in systems):
                kind = _KINDS.get(stat.S_IFMT(info.st_mode), "a device")
                kind = "a file of the running system" if info.st_dev in systems else kind
                raise NotReady(
                    f"{path} of the container is now {kind}, and the OCI runtime would read it: make it a small file"
                )
    finally:
        os.close(root)


def _info_in(root: int, path: str) -> os.stat_result | None:
    try:
        fd = syscalls.open_in_root(root, path, os.O_PATH)
    except OSError:
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def starting(exec_id: str) -> list[int]:
    """The pids of the OCI runtime that starts a process with this exec id, and of all that it has forked.

    It has the id in its arguments, as the name of a pid file; the id is random, so nothing else has. The process
    itself is not among them: its arguments are its own, and its parent is the shim. Blocks: run it in a thread.
    """
    found = _with_argument(f"/{exec_id}.pid".encode())
    for parent in list(found):
        found += _below(parent)
    return found


def executed(container_id: str, container_pid: int) -> list[int]:
    """The pids of what was exec'd into a container: its shim's children in its cgroup, but for its first process.

    In a pid namespace of its own, or of its pod, nothing else is: an orphan's parent is the namespace's first process
    (pid_namespaces(7)). Blocks: run it in a thread.
    """
    try:
        stat_ = (_PROC / str(container_pid) / "stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []  # it has ended, and with it all that was in its namespace
    shim = int(stat_.rpartition(")")[2].split()[1])
    return [pid for pid in _children(shim) if pid != container_pid and _is_in(pid, container_id)]


def _is_in(pid: int, container_id: str) -> bool:
    try:
        return container_id in (_PROC / str(pid) / "cgroup").read_text(encoding="utf-8")
    except OSError:
        return False  # it has just ended


def _can_be_read(mode: int, device: int, size: int) -> bool:
    return (stat.S_ISREG(mode) and size <= image_files.MAX_BYTES) or (
        stat.S_ISCHR(mode) and (os.major(device), os.minor(device)) == _NULL
    )


def _with_argument(ending: bytes) -> list[int]:
    found = []
    for entry in _PROC.iterdir():
        try:
            if entry.name.isdecimal() and any(
                argument.endswith(ending) for argument in (entry / "cmdline").read_bytes().split(b"\0")
            ):
                found.append(int(entry.name))
        except OSError:
            pass  # it has just ended
    return found


def _below(pid: int) -> list[int]:
    """The children of a process, and theirs."""
    found = list(_children(pid))
    for child in found:
        found += _children(child)
    return found


def _children(pid: int) -> Iterator[int]:
    try:
        for task in (_PROC / str(pid) / "task").iterdir():
            yield from map(int, (task / "children").read_text(encoding="ascii").split())
    except OSError:
        pass  # it has just ended


def _described(path: str, place: str, entry: Entry) -> str:
    kind = _KINDS.get(stat.S_IFMT(entry.mode), "a device")
    own = place.split("/")[1] in _RUNTIMES_OWN
    what = "a file of the running system" if own else kind
    return what if place == path else f"a link to {place[:200]!r}, {what}"


class _Seen:
    """The container's files as they will be: an image with mounts over it."""

    def __init__(self, look: Look, mounts: Mapping[str, str]) -> None:
        self._look = look
        self._mounts = {f"/{name}": "" for name in _RUNTIMES_OWN}
        for path, source in mounts.items():
            # The runtime follows the image's links to where it mounts.
            self._mounts[self.follow(path, path)[0]] = source

    def follow(self, path: str, asked: str) -> tuple[str, Entry | None]:
        """(where `path` leads to, what is there). Raises InvalidRequest when it leads through too many names."""
        done: list[str] = []
        todo = _names(path)[::-1]
        links = names = 0
        while todo:
            names += 1
            if names > _MAX_NAMES:
                raise InvalidRequest(f"{asked} of the container leads through more than {_MAX_NAMES} names")
            name = todo.pop()
            if name == "..":
                del done[-1:]
                continue
            entry = self._entry([*done, name])
            if entry is None or not stat.S_ISLNK(entry.mode):
                done.append(name)
                continue
            links += 1
            if links > _MAX_LINKS:
                return path, None
            done = [] if entry.target.startswith("/") else done
            todo += _names(entry.target)[::-1]
        return "/" + "/".join(done), self._entry(done)

    def _entry(self, names: Sequence[str]) -> Entry | None:
        """What is at the end of these names, none of which is a link."""
        for count in range(len(names), 0, -1):
            source = self._mounts.get("/" + "/".join(names[:count]))
            if source is None:
                continue
            if source:
                return _of_host("/".join((source, *names[count:])))
            # Whatever the kernel shows there: a directory above, and below it anything but a regular file.
            return Entry(stat.S_IFDIR if count == len(names) else stat.S_IFCHR)
        return self._look(names)


def _of_host(path: str) -> Entry | None:
    try:
        info = os.lstat(path)
        target = os.readlink(path) if stat.S_ISLNK(info.st_mode) else ""
        return Entry(info.st_mode, target, info.st_rdev, info.st_size)
    except OSError:
        return None


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]
